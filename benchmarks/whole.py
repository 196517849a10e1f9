"""How long a finished experiment took, from what its files say of themselves: they are read, nothing is run."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Row

GROUP = "i. whole experiment"
MINUTES = 40.0  # for one seed of mini


def whole(home: Path) -> list[Row]:
    """(i) Time in which something ran, and the sum of all trainings; nothing without an experiment in ``home``.

    Args:
        home: ``results/<experiment>``.
    """
    stages = [json.loads(path.read_text()) for path in sorted(home.glob("stages/*/stage.json"))]
    if not stages:
        return []
    trainings = sum(stage.get("summary", {}).get("seconds", 0.0) for stage in stages) / 60
    spans = [span for path in home.rglob("*.json") if (span := _span(path)) is not None]
    busy = union(spans) / 60
    seeds = len({path.stem for path in home.glob("metrics/*/*.json")})
    each = busy / max(1, seeds)
    return [
        Row(GROUP, f"sum of {len(stages)} stages of training", trainings, trainings, trainings, "minutes"),
        Row(GROUP, "time in which something ran", busy, busy, busy, "minutes", busy / trainings, "sum of trainings"),
        Row(GROUP, f"the same for each of {seeds} seeds", each, each, each, "minutes", each / MINUTES, "40 minutes", "<= 1.0"),
    ]


def union(spans: list[tuple[float, float]]) -> float:
    """Seconds that at least one of ``spans`` (start, end) covers: pauses between two runs do not count."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _span(path: Path) -> tuple[float, float] | None:
    try:
        content: Any = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    about = content.get("provenance") if isinstance(content, dict) else None
    if not isinstance(about, dict) or not {"started", "wall_seconds"} <= about.keys():
        return None
    start = datetime.fromisoformat(about["started"]).timestamp()
    return start, start + float(about["wall_seconds"])
