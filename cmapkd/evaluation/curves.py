"""Training curves as a metric file keeps them: each stage's log in at most `POINTS` block means. Torch-free."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmapkd.files import parse_json

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
    lines = enumerate(log.read_text(encoding="utf-8").splitlines(), 1)
    rows = [parse_json(line, f"{log}, line {number}", dict) for number, line in lines if line.strip()]
    if not rows:
        return {}
    names = [name for name in rows[0] if all(name in row for row in rows)]
    blocks = np.array_split(np.arange(len(rows)), min(points, len(rows)))
    columns = {name: np.asarray([row[name] for row in rows], np.float64) for name in names}
    return {name: np.asarray([values[block].mean() for block in blocks], np.float32) for name, values in columns.items()}
