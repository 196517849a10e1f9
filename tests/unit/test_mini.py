"""The embedded experiment: its rows, what they share, and what the paper is told of them."""

from __future__ import annotations

from collections import defaultdict

import pytest
import yaml
from config_examples import CONFIG, refusal
from config_examples import experiment as small
from typer.testing import CliRunner

from cmapkd import workflow
from cmapkd.cli import app
from cmapkd.config import load_experiment, parse_experiment
from cmapkd.paper.experiment import paper_context
from cmapkd.plan import make_plan

MINI = CONFIG / "mini.yaml"
METHODS = ["Scratch", "KD", "FitNet", "PromptKD", "C2KD", "LLaVA-KD", "CLIP-KD", "CMAPKD", "CMAPKD-E"]


@pytest.fixture(scope="module")
def plan():  # type: ignore[no-untyped-def]
    return make_plan(load_experiment(MINI))


def test_every_method_and_every_ablation_is_a_row(plan, tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = paper_context(plan.experiment, tmp_path, MINI)
    assert [run.name for run in context.students()] == METHODS
    planned = yaml.safe_load((CONFIG / "planned.yaml").read_text())["table4"]
    ablations = [run.name for run in context.students("ablation")]
    assert [name for name in ablations if name in planned] == list(planned)[:-1]  # the last one is the full method
    assert len(planned) == 8
    assert all(run.changes for run in context.students("ablation"))
    assert {run.name: run.changes for run in context.runs if run.name.startswith("w/o ALSN")} == {
        "w/o ALSN (uniform)": ("policy = uniform",),
        "w/o ALSN (manual)": ("policy = manual",),
    }
    assert context.stages[0].schedule == "progressive"
    assert {stage.schedule for stage in context.stages} == {run.schedule for run in context.runs}
    assert all(bool(stage.policy) == (stage.schedule in ("progressive", "one_stage", "alsn_joint")) for stage in context.stages)


def test_stages_that_runs_agree_in_are_trained_once(plan) -> None:  # type: ignore[no-untyped-def]
    users: dict[str, list[str]] = defaultdict(list)
    for run in plan.runs:
        for address in run.stages:
            users[address].append(run.name)
    shared = {(plan.stages[a].settings["stage"]["name"], tuple(names)) for a, names in users.items() if len(names) > 1}
    assert len(users) < sum(len(run.stages) for run in plan.runs)
    by_stage = {name: set(names) for name, names in shared}
    assert {"CMAPKD", "w/o ALSN (uniform)", "w/o ALSN (manual)"} <= by_stage["coarse"] & by_stage["medium"]
    assert {"w/o visual pyramid", "w/o language hierarchy"} <= by_stage["coarse"]  # it uses P5 and L4 alone, anyway
    assert (
        {"coarse", "medium"} <= set(by_stage) <= {"coarse", "medium", "fine"}
    )  # fine: of searched weights before their search


def test_every_schedule_of_the_full_method_is_as_long_as_the_others(plan) -> None:  # type: ignore[no-untyped-def]
    lengths = {
        name: round(sum(stage.epochs for stage in plan.experiment.schedules[name]), 6)
        for name in ("progressive", "alsn_joint", "one_stage")
    }
    assert len(set(lengths.values())) == 1, lengths


def test_the_plan_prints_how_much_is_shared(plan) -> None:  # type: ignore[no-untyped-def]
    told = CliRunner().invoke(app, ["plan", "-e", str(MINI)]).output.splitlines()[-1]
    stages = [address for run in plan.runs for address in run.stages]
    trained = len(set(stages))
    assert told == (
        f"{len(plan.runs)} runs of {len(stages)} stages, {len(stages) - trained} of them shared: {trained} trainings; "
        f"and {len(plan.stages) - trained} for the teacher"
    )


def test_the_group_of_a_run_changes_no_address() -> None:
    content = yaml.safe_load(MINI.read_text())
    groups = [run.get("group", "method") for run in content["runs"].values()]
    assert set(groups) == {"method", "ablation"}
    for run in content["runs"].values():
        run["group"] = "ablation" if run.get("group", "method") == "method" else "method"
    other, plan = make_plan(parse_experiment(content)), make_plan(load_experiment(MINI))
    assert [method.group for method in other.experiment.runs.values()] != groups
    assert other.stages == plan.stages
    assert other.runs == plan.runs


def test_what_a_table_needs_is_asked_for_before_anything_is_trained() -> None:
    ablation = {"policy": "uniform", "base": "CMAPKD", "group": "ablation"}
    assert "no run has `group: ablation`" in refusal(small(paper__tables=["table4"]))
    changes = {"paper__appendix": ["table4"], "runs__flat": ablation}
    assert "paper.full_run = 'CMAPDK'" in refusal(small(**changes, paper__full_run="CMAPDK"))
    assert parse_experiment(small(**changes)).paper.appendix == ("table4",)
    assert "tuned" in refusal(small(paper__appendix=["tuned"]))
    assert "shows them in the appendix" in refusal(small(paper__planned=True, paper__tables=["planned"]))
    assert "`planned: true` asks for" in refusal(small(paper__appendix=["planned"]))
    assert "which `tables` names already" in refusal(small(paper__tables=["table2"], paper__appendix=["table2"]))


def test_the_schedule_needs_no_metrics_and_the_tuned_values_their_file_alone(plan, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    context = replace(paper_context(plan.experiment, tmp_path, MINI), tuned_file=tmp_path / "tuned.yaml")
    assert context.tuned_file is not None
    context.tuned_file.write_text("{runs: {}, search: {}}")
    assert workflow.table_inputs(plan, context, "home", "table1") == []
    assert workflow.table_inputs(plan, context, "home", "tuned") == [str(context.tuned_file)]
    assert workflow.table_inputs(plan, context, "home", "table4") == workflow.metrics(plan, "home") + workflow.arrays(
        plan, "home"
    )
    before = {name: workflow.table_params(context, name) for name in ("table4", "tuned")}
    context.tuned_file.write_text("{runs: {A: {}}, search: {}}")
    assert workflow.table_params(context, "table4") == before["table4"]
    assert workflow.table_params(context, "tuned") != before["tuned"]
    changed = replace(context, bootstrap=replace(context.bootstrap, samples=5000))
    assert workflow.table_params(changed, "table4") != before["table4"]
    changed = replace(context, stages=context.stages[1:])
    assert workflow.table_params(changed, "table4") != before["table4"]
