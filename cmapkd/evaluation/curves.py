"""Training curves as a metric file keeps them: each stage's log in at most `POINTS` block means. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

POINTS = 100


def read_curves(log: Path, points: int = POINTS) -> dict[str, np.ndarray]:
    """Block means of everything that a stage's ``log.jsonl`` holds.

    Returns:
        By name (``loss``, terms, ``learning_rate``, ...) an array (k,) float32 with k = min(steps, points); ``step`` is the
        mean step of each block. Only names that every step has. Empty without a log: curves are no result, and a stage that was
        brought from elsewhere may come without.
    """
    if not log.is_file():
        return {}
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
    if not rows:
        return {}
    names = [name for name in rows[0] if all(name in row for row in rows)]
    blocks = np.array_split(np.arange(len(rows)), min(points, len(rows)))
    columns = {name: np.asarray([row[name] for row in rows], np.float64) for name in names}
    return {name: np.asarray([values[block].mean() for block in blocks], np.float32) for name, values in columns.items()}
