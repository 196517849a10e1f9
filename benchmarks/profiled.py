"""Where the time of a step goes, by operation: `python -m benchmarks.profiled --runs KD,CMAPKD --threads 1`, as Markdown."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import setting
from benchmarks.steps import STEPS, Trained
from cmapkd.training.engine import start_process_group


def main(arguments: Sequence[str] | None = None) -> None:
    """All of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiled", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/mini.yaml"))
    parser.add_argument("--folder", type=Path, default=Path("results/bench"), help="data, teacher and caches; kept")
    parser.add_argument("--runs", default="KD,CMAPKD", help="rows of the experiment")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--lines", type=int, default=14, help="operations that are shown")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    made = setting.make(chosen.config, chosen.folder)
    start_process_group()
    for run in chosen.runs.split(","):
        sys.stdout.write(
            f"**{run}**, threads: {chosen.threads}\n\n{table(Trained(made.stage(run).settings, made), chosen.lines)}\n"
        )


def table(trained: Trained, lines: int) -> str:
    """Operations of a step by the time spent in themselves, as Markdown."""
    for _ in range(3):
        trained()
    started = time.perf_counter()
    trained()
    plain = (time.perf_counter() - started) / STEPS * 1000
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        trained()
    found = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in found) / 1000 / STEPS
    text = ["| operation | calls | ms | share |", "|---|---|---|---|"]
    for event in found[:lines]:
        own = event.self_cpu_time_total / 1000 / STEPS
        text.append(f"| `{event.key}` | {event.count / STEPS:.0f} | {own:.2f} | {own / total:.1%} |")
    rest = sum(event.self_cpu_time_total for event in found[lines:]) / 1000 / STEPS
    text.append(f"| {len(found) - lines} others | | {rest:.2f} | {rest / total:.1%} |")
    text.append(f"| all operations; a step takes {plain:.1f} ms when it is not observed | | {total:.1f} | |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
