"""Run the benchmarks, keep their results as JSON and Markdown, and compare them with the last ones of this machine.

    python -m benchmarks --only methods,data --turns 9 --threads 2

Tables of different numbers of threads are different tables. A ratio that moved by more than a tenth is reported; nothing fails
by it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, peer, pipeline, setting, steps, whole
from benchmarks.measure import Row
from cmapkd.files import read_json, write_atomic, write_json
from cmapkd.provenance import code_version, versions

GROUPS = ("peer", "methods", "data", "ranks", "pyramid", "memory", "whole")
MOVED = 0.1


def main(arguments: Sequence[str] | None = None) -> None:
    """All of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/mini.yaml"))
    parser.add_argument("--folder", type=Path, default=Path("results/bench"), help="data, teacher and caches; kept")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--runs", default=",".join(setting.METHODS), help="rows of the experiment that methods measures")
    parser.add_argument("--turns", type=int, default=9, help="each thing is measured so often")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--clock", choices=measure.CLOCKS, default="wall", help="cpu: of a single thread on a busy machine")
    parser.add_argument("--finished", type=Path, default=Path("results/mini"), help="experiment whose times are read, if there")
    parser.add_argument(
        "--stored", type=Path, default=Path("docs/performance"), help="tables to compare with where none is left"
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    measure.chosen_clock[0] = chosen.clock
    made = setting.make(chosen.config, chosen.folder)
    groups: dict[str, Callable[[], list[Row]]] = {
        "peer": lambda: peer.peer(chosen.config, chosen.folder, made, chosen.turns, chosen.threads),
        "methods": lambda: steps.methods(made, chosen.turns, chosen.runs.split(",")),
        "data": lambda: pipeline.data(made, chosen.turns),
        "ranks": lambda: pipeline.ranks(made, chosen.turns),
        "pyramid": lambda: steps.pyramid(chosen.config, chosen.folder, made, chosen.turns),
        "memory": lambda: steps.memory(made),
        "whole": lambda: whole.whole(chosen.finished),
    }
    found: list[Row] = []
    for group in chosen.only.split(","):
        if group not in groups:
            parser.error(f"--only: {group!r} is none of {', '.join(GROUPS)}")
        found += groups[group]()
        sys.stderr.write(f"{group}: done\n")
    name = f"threads-{chosen.threads}"
    kept = chosen.folder / f"{name}.json"
    last = next((path for path in (kept, chosen.stored / kept.name) if path.is_file()), None)
    report = {
        "machine": machine(),
        "threads": chosen.threads,
        "clock": chosen.clock,
        "commit": code_version()[0],
        "rows": [row.as_json() for row in found],
    }
    text = table(found) + changes(found, read_json(last) if last else None, report["machine"])
    write_json(kept, {**report, "versions": versions()})
    write_atomic(chosen.folder / f"{name}.md", text)
    sys.stdout.write(text)


def machine() -> str:
    """What is compared with itself alone: processor and number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown, ratios first."""
    lines = ["| | ratio | to | should be | median | quartiles | |", "|---|---|---|---|---|---|---|"]
    group = ""
    for row in found:
        if row.group != group:
            group = row.group
            lines.append(f"| **{group}** | | | | | | |")
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        bound = row.bound + {True: " (yes)", False: " (no)", None: ""}[row.kept]
        numbers = f"{row.value:.4g} | {row.low:.4g} to {row.high:.4g} | {row.unit}"
        lines.append(f"| {row.name} | {ratio} | {row.reference} | {bound} | {numbers} |")
    return "\n".join(lines) + "\n"


def changes(found: Sequence[Row], before: dict[str, Any] | None, here: str) -> str:
    """Ratios that moved since the last table of the same machine."""
    if before is None or before["machine"] != here:
        return ""
    old = {(row["group"], row["name"]): row["ratio"] for row in before["rows"] if row["ratio"]}
    moved = [
        f"{row.group}: {row.name}: {old[row.group, row.name]:.2f} before, now {row.ratio:.2f}"
        for row in found
        if row.ratio and (row.group, row.name) in old and abs(row.ratio / old[row.group, row.name] - 1) > MOVED
    ]
    return (
        "\n" + ("\n".join(["Moved by more than a tenth:", *moved]) if moved else "No ratio moved by more than a tenth.") + "\n"
    )


if __name__ == "__main__":
    main()
