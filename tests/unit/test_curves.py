"""Training curves of a metric file, against means taken by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cmapkd.evaluation.curves import read_curves


def _log(path: Path, rows: list[dict[str, float]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_means_of_blocks(tmp_path: Path) -> None:
    log = _log(tmp_path / "log.jsonl", [{"step": i, "loss": float(i * i)} for i in range(5)])
    curves = read_curves(log, points=2)  # blocks of 3 and 2 steps
    assert curves["step"].tolist() == [1, 3.5]
    np.testing.assert_allclose(curves["loss"], [(0 + 1 + 4) / 3, (9 + 16) / 2], rtol=1e-6)


def test_fewer_steps_than_points_are_kept_as_they_are(tmp_path: Path) -> None:
    log = _log(tmp_path / "log.jsonl", [{"step": 0, "loss": 3.0, "once": 1.0}, {"step": 1, "loss": 2.0}])
    curves = read_curves(log)
    assert curves["loss"].tolist() == [3, 2]
    assert "once" not in curves


def test_without_a_log_there_are_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "log.jsonl") == {}
    assert read_curves(_log(tmp_path / "empty.jsonl", [])) == {}
