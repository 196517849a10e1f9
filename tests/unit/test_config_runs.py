"""The configuration: `base:` of runs, defaults, schedules."""

from __future__ import annotations

from typing import Any

import pytest
from config_examples import experiment, refusal

from cmapkd.config import parse_experiment
from cmapkd.config.schedules import DEFAULT_SCHEDULES
from cmapkd.plan import make_plan

# ---- base of runs


def test_base_merges_key_by_key_and_the_runs_own_keys_win() -> None:
    runs = {
        "full": {"method": "cmapkd", "beta": 0.7, "weights": {"task": 1.0, "intra": 2.0}, "visual_levels": ["P4", "P5"]},
        "less": {"base": "full", "beta": 0.1, "weights": {"task": 0.2}},
        "least": {"base": "less", "visual_levels": ["P5"]},
    }
    read = parse_experiment(experiment(runs=runs)).runs
    less, least = read["less"].model_dump(), read["least"].model_dump()
    assert (less["beta"], less["weights"]["task"], less["weights"]["intra"]) == (0.1, 0.2, 2.0)
    assert less["visual_levels"] == ("P4", "P5")
    assert {**least, "visual_levels": ("P4", "P5")} == less
    assert least["visual_levels"] == ("P5",)  # lists are replaced
    assert "base" not in less


def test_base_may_come_later_in_the_file() -> None:
    runs = {"B": {"base": "A", "weight": 2}, "A": {"method": "kd", "temperature": 3}}
    read = parse_experiment(experiment(runs=runs))
    assert list(read.runs) == ["B", "A"]
    assert read.runs["B"].model_dump() == {**read.runs["A"].model_dump(), "weight": 2.0}


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ({"A": {"base": "B"}, "B": {"base": "C"}, "C": {"base": "A"}}, "runs.C.base = 'A': is a circle: A -> B -> C -> A"),
        ({"A": {"base": "A"}}, "runs.A.base = 'A': is a circle: A -> A"),
        (
            {"CMAPKD": {"method": "cmapkd"}, "B": {"base": "CMAPK"}},
            "runs.B.base = 'CMAPK': names no run\n  fix: did you mean 'CMAPKD'?",
        ),
        ({"A": {"method": "kd"}, "B": {"base": ["A"]}}, "runs.B.base = ['A']: names no run"),
        ({"A": {"method": "kd"}, "B": {"base": None}}, "runs.B.base: names no run\n  fix: known: A, B"),
    ],
)
def test_wrong_bases_are_refused(runs: dict[str, Any], words: str) -> None:
    assert words in refusal(experiment(runs=runs))


def test_runs_that_agree_so_far_share_stages() -> None:
    """An ablation that differs only in `fine` starts from the same `medium` checkpoint."""
    plan = make_plan(
        parse_experiment(experiment(runs={"full": {"method": "cmapkd"}, "flat": {"base": "full", "policy": "uniform"}}))
    )
    full, flat = plan.runs
    assert full.stages[:2] == flat.stages[:2]
    assert len(full.stages) == 4
    assert len(flat.stages) == 3  # nothing left to train in the stage of ALSN alone
    assert not set(full.stages[2:]) & set(flat.stages[2:])


# ---- defaults


V, L = ("P2", "P3", "P4", "P5"), ("L1", "L2", "L3", "L4")
PAIR, ALL = ("student", "pyramid"), ("student", "pyramid", "alsn")
RATES = {"pyramid": 5e-6, "alsn": 5e-5}
SCHEDULES = {  # the table of the method's description: stage, epochs, levels, rate, rates of groups, groups, policy
    "progressive": [
        ("coarse", 5, V[3:], L[3:], 5e-5, {}, PAIR, "uniform"),
        ("medium", 5, V[2:], L[2:], 3e-5, {}, PAIR, "uniform"),
        ("fine", 10, V, L, 1e-5, RATES, ALL, "alsn"),
        ("alsn", 5, V, L, 1e-4, {}, ("alsn",), "alsn"),
    ],
    "alsn_joint": [
        ("warmup", 5, V, L, 5e-5, {"pyramid": 1e-5}, PAIR, "uniform"),
        ("policy", 5, V, L, 1e-4, {}, ("alsn",), "alsn"),
        ("joint", 10, V, L, 1e-5, RATES, ALL, "alsn"),
    ],
    "one_stage": [("all", 25, V, L, 5e-5, {}, ALL, "alsn")],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_default_schedules_are_those_of_the_method(name: str) -> None:
    keys = ("name", "epochs", "visual_levels", "language_levels", "lr", "group_lr", "trains", "policy")
    assert [tuple(getattr(stage, key) for key in keys) for stage in DEFAULT_SCHEDULES[name]] == SCHEDULES[name]


def test_the_other_methods_train_as_long_as_the_method() -> None:
    epochs = {name: sum(stage.epochs for stage in stages) for name, stages in DEFAULT_SCHEDULES.items()}
    assert all(total == 25 for name, total in epochs.items() if name != "alsn_joint")  # whose table says 20


def test_defaults_of_the_method() -> None:
    read = parse_experiment(experiment())
    method = read.runs["CMAPKD"].model_dump()
    assert method["weights"] == {"intra": 1.0, "align": 0.5, "relation": 0.3, "task": 0.1}
    assert (method["beta"], method["gamma"], method["temperature"], method["temperature_kd"]) == (0.5, 0.3, 0.07, 0.1)
    assert (method["alpha"], method["policy"], method["manual_weights"]) == ("fixed", "alsn", (0.1, 0.2, 0.3, 0.4))
    assert method["alsn"] == {
        "hidden": (512, 256),
        "dropout": 0.1,
        "temperature": 1.0,
        "entropy_weight": 0.1,
        "objective": "match",
    }
    assert (method["schedule"], method["teacher_pyramid"], method["similarity"]) == ("progressive", "fit", "pooled")
    assert not any(method["embedding"].values())  # off: the method as published
    assert (read.pyramid.channels, read.pyramid.text_channels, read.pyramid.phrase_window) == (256, 256, 3)
    assert (read.training.global_batch, read.training.bad_samples) == (256, 0.001)
    assert (read.seeds, read.student.init, read.paper.planned) == ((0,), "random", False)


def test_a_schedule_of_the_experiment_replaces_the_default_and_keeps_the_others() -> None:
    stage = {"name": "only", "epochs": 2, "lr": 0.1}
    read = parse_experiment(experiment(schedules__standard=[stage]))
    assert [s.name for s in read.schedules["standard"]] == ["only"]
    assert read.schedules["progressive"] == DEFAULT_SCHEDULES["progressive"]


def test_a_rate_of_a_run_scales_every_rate() -> None:
    read = parse_experiment(experiment(runs__CMAPKD__lr_scale=2))
    method = read.runs["CMAPKD"]
    fine = method.stages(read.schedules["progressive"])[2]
    assert fine.lr == pytest.approx(2e-5)
    assert fine.group_lr == pytest.approx({"pyramid": 1e-5, "alsn": 1e-4})
