"""`cmapkd tune` on the finished smoke experiment: real trainings, and an experiment that starts from what they found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from cmapkd.config import load_experiment
from tests.pipeline.conftest import Checkout


@pytest.fixture
def experiment(finished: Checkout, tmp_path: Path) -> Path:
    """The smoke experiment with a split to tune on."""
    content = yaml.safe_load((finished.root / "config/smoke.yaml").read_text())
    content["evaluation"]["validation"] = ["emoji_scenes/validation"]
    content["tuning"] = {"trials": 2, "length": 0.5}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_search_trains_and_an_experiment_starts_from_its_values(finished: Checkout, experiment: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cmapkd", "tune", "KD", "-e", str(experiment), "--out", str(tmp_path / "tuned.yaml")]
    before = {path: path.stat().st_mtime_ns for path in finished.home.glob("stages/*/stage.json")}
    finished.run(*command)
    found = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["runs"]["KD"]
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * 2
    assert all(0 <= trial["score"] <= 100 for trial in found["trials"])
    assert found["complete"]
    assert {path: path.stat().st_mtime_ns for path in finished.home.glob("stages/*/stage.json")} == before
    assert not list(finished.home.glob("tuning/work/*/*")), "a finished trial leaves nothing but its numbers"

    told = finished.run(*command, "--trials", "3")
    assert told.stderr.count(": trial ") == 1, "two of the three are there already"
    again = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["runs"]["KD"]
    assert again["trials"][:2] == found["trials"]

    experiment.write_text(f"{experiment.read_text()}\ntuned: tuned.yaml\n")
    run = load_experiment(experiment).runs["KD"].model_dump()
    assert {key: run[key] for key in again["values"]} == again["values"]
