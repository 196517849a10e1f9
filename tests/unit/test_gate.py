"""The teacher's gate: what passes, what is told when it does not, and that everything trained waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_examples import CONFIG, experiment, refusal
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.config import load_experiment, parse_experiment
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of, write_json
from cmapkd.gate import GATE, pass_gate
from cmapkd.plan import make_plan
from cmapkd.workflow import gate_inputs, pretrained_stages

WHERE = "retrieval:pictures/test_render"
EXPECTED = {WHERE: {"i2t_r1": 56.34, "t2i_r1": 36.51}, "zeroshot:pictures/test_render": {"top1": 75.54}}


def expecting(**more: Any) -> dict[str, Any]:
    content = experiment(evaluation__zeroshot=["pictures/test_render"])
    content["teacher"] |= {"expected": EXPECTED, **more}
    return content


def measured(folder: Path, i2t: float = 56.34, t2i: float = 36.51, top1: float = 75.54) -> Path:
    """The teacher's metric file."""
    split = "pictures/test_render"
    retrieval = {split: {"all": {"i2t_r1": i2t, "t2i_r1": t2i}, "simple": {"i2t_r1": 0.0}}}
    metrics = {"retrieval": retrieval, "zeroshot": {split: {"all": {"top1": top1}}}}
    path = folder / "test" / "metrics" / "Teacher" / "0.json"
    write_json(path, {"run": "Teacher", "metrics": metrics})
    return path


@pytest.mark.parametrize("off", [0.0, 0.29, -0.29])
def test_numbers_within_the_tolerance_pass_and_are_kept_with_their_parent(off: float, tmp_path: Path) -> None:
    file = measured(tmp_path, 56.34 + off, 36.51 - off, 75.54 + off)
    lines = pass_gate(parse_experiment(expecting()), tmp_path)
    assert len(lines) == 3
    assert f"measured {56.34 + off:.2f}, expected 56.34 ({off:+.2f})" in lines[0]
    kept = read_json(tmp_path / "test" / GATE)
    assert kept["parent"] == {"file": "metrics/Teacher/0.json", "sha256": sha256_of(file)}
    assert [number["difference"] for number in kept["numbers"]] == pytest.approx([off, -off, off])


@pytest.mark.parametrize(
    ("values", "told", "not_told"),
    [
        ({"i2t": 56.65}, "i2t_r1: measured 56.65, expected 56.34 (+0.31)", "zeroshot"),
        ({"t2i": 36.20}, "t2i_r1: measured 36.20, expected 36.51 (-0.31)", "zeroshot"),
        ({"top1": 68.34}, "top1: measured 68.34, expected 75.54 (-7.20)", "Karpathy"),
        ({"top1": 0.1, "i2t": 0.1, "t2i": 0.1}, "quickgelu", "are as expected"),
    ],
)
def test_a_number_that_is_off_is_named_with_its_usual_causes(
    values: dict[str, float], told: str, not_told: str, tmp_path: Path
) -> None:
    measured(tmp_path, **values)
    with pytest.raises(UserError) as caught:
        pass_gate(parse_experiment(expecting()), tmp_path)
    assert told in str(caught.value)
    assert not_told not in str(caught.value)
    assert "nothing is trained" in str(caught.value)
    assert not (tmp_path / "test" / GATE).exists()
    assert pass_gate(parse_experiment(expecting(tolerance=100)), tmp_path)


def test_without_metrics_or_with_an_unknown_one_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate the teacher first"):
        pass_gate(parse_experiment(expecting()), tmp_path)
    measured(tmp_path)
    with pytest.raises(UserError, match="was not measured\n  fix: there are: i2t_r1, t2i_r1"):
        pass_gate(parse_experiment(expecting(expected={WHERE: {"recall": 1}})), tmp_path)


def test_expectations_of_what_is_not_measured_are_refused() -> None:
    assert "'retrieval:pictures/test_concept', which `evaluation` does not measure" in refusal(
        expecting(expected={"retrieval:pictures/test_concept": {"i2t_r1": 1}})
    )
    assert "must be at most 100" in refusal(expecting(expected={WHERE: {"i2t_r1": 101}}))


def test_everything_that_is_trained_waits_for_the_gate_and_nothing_without_expectations() -> None:
    plan = make_plan(parse_experiment(expecting()))
    open_stages = [address for address in plan.stages if not gate_inputs(plan, "home", address)]
    assert open_stages == [plan.teacher]
    assert gate_inputs(plan, "home", plan.runs[0].stages[0]) == ["home/teacher/gate.json"]
    without = make_plan(parse_experiment(expecting(expected={})))
    assert list(without.stages) == list(plan.stages), "no address depends on it"
    assert not any(gate_inputs(without, "home", address) for address in without.stages)


def test_pretrained_teacher_and_student_wait_for_nothing() -> None:
    plan = make_plan(load_experiment(CONFIG / "paper.yaml"))
    fetched = pretrained_stages(plan).split("|")
    assert [address.rpartition("-")[0] for address in fetched] == ["teacher", "student"]
    assert [address for address in plan.stages if not gate_inputs(plan, "home", address)] == fetched
    first = plan.stages[plan.runs[0].stages[0]]
    assert first.settings["parent"] == fetched[1]
    assert pretrained_stages(make_plan(parse_experiment(experiment()))) == "(?!)"


def test_the_command_fails_without_a_traceback(tmp_path: Path) -> None:
    import yaml

    measured(tmp_path, i2t=1.0)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(expecting()))
    arguments = ["gate", "--experiment", str(tmp_path / "e.yaml"), "--results", str(tmp_path)]
    assert isinstance(CliRunner().invoke(app, arguments).exception, UserError)
    measured(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert done.output.count("measured") == 3
