"""What jobs printed and what they cost, and what a data set holds, as pages: Snakemake's report takes outputs, not logs."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmapkd.files import parse_json, write_atomic
from cmapkd.paper.html import entries, nested, page, paragraph, plain_table, section, source
from cmapkd.plan import TEACHER, Plan
from cmapkd.runs import teacher_seed

LONGEST = 200_000  # [characters] of a log, its end
LONGEST_EARLIER = 20_000  # [characters] of each log of an earlier attempt


def logs_of(plan: Plan) -> dict[str, tuple[str, str, str]]:
    """Logs of everything behind the metrics: ``<step>/<name>`` -> (title, log, benchmark), files relative to the results."""
    found = {}
    for dataset in plan.experiment.datasets:
        found[f"data/fetch-{dataset}"] = (f"{dataset}: fetched", f"data/fetch-{dataset}.log", "")
        found[f"data/build-{dataset}"] = (f"{dataset}: written", f"data/build-{dataset}.log", f"data/{dataset}.jsonl")
    for address, stage in plan.stages.items():
        found[f"training/{address}"] = (stage.label, f"train/{address}.log", f"train/{address}.jsonl")
    for directory in (f"{TEACHER}/{teacher_seed(plan.experiment)}", *(run.directory for run in plan.runs)):
        run, _, seed = directory.rpartition("/")
        title = next((f"{r.name}, seed {r.seed}" for r in plan.runs if r.directory == directory), f"{run}, seed {seed}")
        found[f"evaluation/{run}-{seed}"] = (title, f"evaluate/{run}-{seed}.log", f"evaluate/{run}-{seed}.jsonl")
    return found


def write_log_pages(plan: Plan, home: Path, target: Path) -> list[Path]:
    """Write ``<target>/<step>/<name>.html`` of every job behind the metrics."""
    written = []
    for name, (title, log, benchmark) in logs_of(plan).items():
        path = target / f"{name}.html"
        write_atomic(path, render_log_page(title, home / "logs" / log, home / "benchmarks" / benchmark if benchmark else None))
        written.append(path)
    return written


def render_log_page(title: str, log: Path, benchmark: Path | None) -> str:
    """A log and what its job cost. A missing file is said to be missing: logs may be deleted, results stay."""
    text = log.read_bytes().decode(errors="replace") if log.is_file() else ""
    # A progress bar overwrites its line, which `read_text` would take for many lines; what stands last is what people saw.
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    shown = "\n".join(lines).strip("\n")
    cut = f"The last {LONGEST:,} of {len(shown):,} characters." if len(shown) > LONGEST else ""
    empty = "" if shown else "It printed nothing." if log.is_file() else "The log is no longer there."
    earlier = [
        section(f"Attempt {number}", source(kept[-LONGEST_EARLIER:]))
        for number, path in attempts_before(log)
        if (kept := path.read_bytes().decode(errors="replace").strip("\n"))
    ]
    last = source(shown[-LONGEST:]) if shown else ""
    return page(title, _cost(benchmark), paragraph(cut or empty, "small"), last, optional=earlier)


def attempts_before(log: Path) -> list[tuple[int, Path]]:
    """Logs of earlier attempts of a job, the latest first: ``a.attempt-2.log`` and ``a.attempt-1.log`` of ``a.log``."""
    head = f"{log.stem}.attempt-"
    found = [(path.stem.removeprefix(head), path) for path in log.parent.glob(f"{glob.escape(head)}*.log")]
    return sorted(((int(number), path) for number, path in found if number.isdigit()), reverse=True)


def _cost(benchmark: Path | None) -> str:
    """Snakemake's benchmark of a job's last run."""
    text = benchmark.read_text(encoding="utf-8") if benchmark is not None and benchmark.is_file() else ""
    if not (lines := text.strip().splitlines()):
        return ""
    try:
        cost: dict[str, Any] = parse_json(lines[-1].replace("NaN", "null"), str(benchmark), dict)
    except ValueError:
        return ""
    named = {"s": "wall time [s]", "cpu_time": "CPU time [s]", "max_rss": "largest memory [MiB]"}
    return entries({label: cost[key] for key, label in named.items() if isinstance(cost.get(key), int | float)})


def render_data_page(manifest: Mapping[str, Any]) -> str:
    """A data set: what its splits hold, what they share, what it is made from and under which conditions."""
    splits = manifest.get("splits", {})
    names = list(dict.fromkeys(key for about in splits.values() for key, value in about.items() if isinstance(value, int)))
    strata = list(dict.fromkeys(name for about in splits.values() for name in about.get("strata", {})))
    headers = ("split", *names, *strata, "shards", "bytes")
    rows = []
    for split, about in splits.items():
        shards = about.get("shards", [])
        counts = (*(about.get(name) for name in names), *(about.get("strata", {}).get(name) for name in strata))
        rows.append((split, *counts, len(shards), sum(shard.get("bytes", 0) for shard in shards)))
    sources = manifest.get("sources", [])
    columns = list(dict.fromkeys(key for entry in sources for key in entry))
    listed = [tuple(entry.get(key) for key in columns) for entry in sources]
    return page(
        f"{manifest.get('dataset', 'Data set')}",
        entries({"source": manifest.get("source"), "digest of the manifest": manifest.get("digest")}),
        section("Splits", plain_table(headers, rows)),
        section("What the splits share", nested(manifest.get("leakage", {}))),
        section("What it is made from", plain_table(columns, listed, words=range(1, len(columns)))),
        section("Configuration", nested(manifest.get("config", {}))),
    )
