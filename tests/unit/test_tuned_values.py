"""Runs that start from tuned values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import config_examples
import pytest
import yaml

from cmapkd.config import load_experiment, parse_experiment
from cmapkd.config.methods import KDConfig
from cmapkd.errors import UserError
from cmapkd.tuning.space import search_space, with_values

RUNS = {
    "KD": {"method": "kd", "temperature": 2.0},
    "KD-soft": {"base": "KD", "temperature": 4.0},
    "CMAPKD": {"method": "cmapkd"},
    "CMAPKD-task": {"base": "CMAPKD", "weights": {"task": 0.7}},
}


def raw(**runs: Any) -> dict[str, Any]:
    """A small experiment with the given runs."""
    return config_examples.experiment(runs=runs, evaluation__validation=["pictures/validation"], tuning={})


@pytest.fixture
def tuned_file(tmp_path: Path) -> Path:
    runs = {
        "KD": {"method": "kd", "values": {"weight": 3.0, "temperature": 5.0}, "complete": True},
        "CMAPKD": {"method": "cmapkd", "values": {"weights": {"task": 0.2, "intra": 4.0}}, "complete": True},
        "Gone": {"method": "kd", "values": {"weight": 3.0}, "complete": False},
    }
    return _write(tmp_path / "tuned.yaml", runs)


def _write(path: Path, runs: object) -> Path:
    path.write_text(yaml.safe_dump({"runs": runs}))
    return path


def test_runs_start_from_tuned_values_and_own_keys_win(tuned_file: Path) -> None:
    content = {**raw(**RUNS), "tuned": tuned_file.name}
    runs: dict[str, Any] = parse_experiment(content, directory=tuned_file.parent).runs
    assert (runs["KD"].weight, runs["KD"].temperature) == (3.0, 2.0)
    assert (runs["KD-soft"].weight, runs["KD-soft"].temperature) == (3.0, 4.0)
    assert (runs["CMAPKD"].weights.task, runs["CMAPKD"].weights.intra) == (0.2, 4.0)
    assert (runs["CMAPKD-task"].weights.task, runs["CMAPKD-task"].weights.intra) == (0.7, 4.0)


def test_a_value_that_the_search_started_from_is_replaced_and_another_stays(tmp_path: Path) -> None:
    trials = [{"number": 0, "values": {"weight": 1.5, "temperature": 2.0}}]
    entry = {"method": "kd", "values": {"weight": 3.0, "temperature": 5.0}, "complete": True, "trials": trials}
    path = _write(tmp_path / "tuned.yaml", {"KD": entry})
    for weight, expected in ((1.5, 3.0), (1.6, 1.6)):
        content = {**raw(**{**RUNS, "KD": {"method": "kd", "temperature": 2.0, "weight": weight}}), "tuned": str(path)}
        kd: Any = parse_experiment(content).runs["KD"]
        assert (kd.weight, kd.temperature) == (expected, 5.0)


def test_a_run_with_a_base_gets_what_was_found_for_it_and_for_its_base(tmp_path: Path) -> None:
    runs = {
        "KD": {"method": "kd", "values": {"weight": 3.0, "lr_scale": 2.0}, "complete": True},
        "KD-soft": {"method": "kd", "values": {"weight": 9.0}, "complete": True},
    }
    content = {**raw(**RUNS), "tuned": str(_write(tmp_path / "tuned.yaml", runs))}
    soft: Any = parse_experiment(content).runs["KD-soft"]
    assert (soft.weight, soft.lr_scale, soft.temperature) == (9.0, 2.0, 4.0)


def test_a_run_may_say_what_is_searched_and_entries_of_a_list_are_searched_one_by_one() -> None:
    runs = {
        "fixed": {"method": "cmapkd", "policy": "manual", "search": ["manual_weights"]},
        "some": {"method": "cmapkd", "search": ["weights", "lr_scale"]},
        "alsn": {"method": "cmapkd"},
    }
    methods: Any = parse_experiment(raw(**runs)).runs
    space = search_space(methods["fixed"])
    assert list(space) == [f"manual_weights.{index}" for index in range(4)]
    moved = with_values(
        methods["fixed"], {"manual_weights.0": 0.9, "manual_weights.3": 0.05, "manual_weights.1": 0.2, "manual_weights.2": 0.3}
    )
    assert moved.manual_weights == (0.9, 0.2, 0.3, 0.05)  # type: ignore[attr-defined]
    assert set(search_space(methods["some"])) == {"lr_scale", "weights.intra", "weights.align", "weights.task"}
    assert not any(key.startswith("manual") for key in search_space(methods["alsn"]))
    wrong: Any = parse_experiment(raw(KD={"method": "kd", "search": ["wieght"]})).runs["KD"]
    with pytest.raises(UserError, match="did you mean 'weight'"):
        search_space(wrong)


def test_tuning_starts_from_the_configured_values(tuned_file: Path) -> None:
    path = tuned_file.parent / "experiment.yaml"
    path.write_text(yaml.safe_dump({**raw(**RUNS), "tuned": tuned_file.name}))
    loaded: Any = load_experiment(path, tuning=("KD", "KD-soft"))
    assert loaded.runs["KD"].weight == loaded.runs["KD-soft"].weight == KDConfig().weight
    loaded = load_experiment(path, tuning=("KD-soft",))  # a run is searched from what was found for its base
    assert loaded.runs["KD-soft"].weight == 3.0
    loaded = load_experiment(path)
    assert loaded.runs["KD"].weight == 3.0
    # What the workflow writes beside the results has every value as a key of its own, so reading it changes nothing.
    assert parse_experiment(loaded.model_dump(mode="json"), directory=tuned_file.parent) == loaded


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "kd", "values": {"weight": 3.0}, "complete": False}, "not complete"),
        ({"method": "kd", "values": None, "complete": True}, "no values"),
        ({"method": "scratch", "values": {}, "complete": True}, "another method"),
    ],
)
def test_values_that_cannot_be_relied_on_are_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    path = _write(tmp_path / "tuned.yaml", {"KD": entry})
    with pytest.raises(UserError, match=f"KD.*{message}"):
        parse_experiment({**raw(**RUNS), "tuned": str(path)})


def test_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        parse_experiment({**raw(**RUNS), "tuned": "nowhere.yaml"}, directory=tmp_path)
    for text in ("a: [", "3", "runs: 4"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=r"bad\.yaml"):
            parse_experiment({**raw(**RUNS), "tuned": "bad.yaml"}, directory=tmp_path)
