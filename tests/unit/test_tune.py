"""`cmapkd tune`: the same trials however often it is killed, as many for each run, and values that runs start from."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any, get_args

import config_examples
import optuna
import pytest
import yaml

from cmapkd.config import parse_experiment
from cmapkd.config.base import Search
from cmapkd.config.methods import AnyMethod, FitNetConfig, KDConfig, PromptKDConfig
from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.plan import make_plan
from cmapkd.tuning import run as tuning_run
from cmapkd.tuning import trial as tuning_trial
from cmapkd.tuning.record import write_record
from cmapkd.tuning.space import configured, nested, propose, rounded, search_space, with_values
from cmapkd.tuning.study import Diverged, Outcome, Task, _born, finished, open_storage, tune

SPACE = {"weight": Search(0.1, 10), "temperature": Search(0.5, 8)}
START = {"weight": 1.0, "temperature": 1.0}


def task(run: str = "KD", trials: int = 7, depends: str = "a", sampler: str = "gp", **changes: Any) -> Task:
    about = {"method": "kd", "search": SEARCH, "code": "c", "data": {"d": "1"}, "commit": "abc", "dirty": False}
    return Task("mini", run, SPACE, START, trials, 100, sampler, depends, about, **changes)


SEARCH = {"trials": 7, "length": 0.5, "seed": 100, "sampler": "gp", "metric": "mean_recall", "splits": ["d/val"]}


def score(index: int, values: dict[str, float]) -> Outcome:
    """A smooth score, best inside the ranges."""
    value = 40 - (values["weight"] - 3) ** 2 - (values["temperature"] - 2) ** 2
    return Outcome(value, {"d/val": value}, loss=1.5)


def tried(folder: Path, run: str = "KD", trials: int = 7) -> list[tuple[int, dict[str, float], float | None]]:
    study = optuna.load_study(study_name=f"mini/{run}", storage=open_storage(folder))
    return [(t.user_attrs["index"], dict(t.params), t.value) for t in finished(study, trials)]


def raw(tuning: dict[str, Any] | None = None, **runs: Any) -> dict[str, Any]:
    """A small experiment with the given runs."""
    return config_examples.experiment(runs=runs, evaluation__validation=["pictures/validation"], tuning=tuning or {})


def experiment(tuning: dict[str, Any] | None = None, **runs: Any) -> ExperimentConfig:
    return parse_experiment({**raw(tuning, **runs), "name": "mini"})


class Killed(BaseException):
    """As a signal ends a process."""


# The space


def test_space_leaves_out_what_is_off_and_holds_the_configured_value() -> None:
    assert list(search_space(KDConfig())) == ["lr_scale", "weight", "temperature"]
    assert "weight" not in search_space(KDConfig(weight=0))
    assert "hint_weight" not in search_space(FitNetConfig())
    space = search_space(KDConfig(weight=100, temperature=0.01))
    assert (space["weight"].low, space["weight"].high) == (0.3, 100)
    assert (space["temperature"].low, space["temperature"].high) == (0.01, 8)
    assert configured(KDConfig(weight=100), space)["weight"] == 100


def test_range_lies_around_the_default_of_every_method() -> None:
    assert search_space(PromptKDConfig())["weight"] == Search(100, 10_000)
    for method in (member() for member in get_args(get_args(AnyMethod)[0])):
        space = search_space(method)
        assert space, "nothing to search"
        for key, value in configured(method, space).items():
            assert space[key].low <= value <= space[key].high
        assert with_values(method, configured(method, space)) == method


def test_hook_leaves_out_what_nothing_reads() -> None:
    class Quiet(KDConfig):
        def not_searched(self) -> frozenset[str]:
            return frozenset({"temperature"})

    assert list(search_space(Quiet())) == ["lr_scale", "weight"]


def test_dotted_keys_become_sections() -> None:
    assert nested({"a": 1.0, "weights.task": 2.0, "weights.intra": 3.0}) == {"a": 1.0, "weights": {"task": 2.0, "intra": 3.0}}


def test_values_have_four_digits_and_stay_in_range() -> None:
    assert rounded(1.23456, Search(0.1, 10)) == 1.235
    assert rounded(9.99999, Search(0.1, 9.9999)) == 9.9999
    for index in range(1, 7):
        history = [(START, 1.0), ({"weight": 2.0, "temperature": 3.0}, 2.0)]
        for sampler in ("gp", "tpe", "random"):
            values = propose(SPACE, START, history, [], index=index, seed=3, sampler=sampler)
            for key, value in values.items():
                assert value == float(f"{value:.4g}")
                assert SPACE[key].low <= value <= SPACE[key].high


def test_first_trial_is_configured_and_the_next_three_spread() -> None:
    first = [propose(SPACE, START, [], [], index=index, seed=100, sampler="gp") for index in range(4)]
    assert first[0] == START
    for key, search in SPACE.items():  # one of the three in each third of the range
        shares = [math.log(v[key] / search.low) / math.log(search.high / search.low) for v in first[1:]]
        assert sorted(int(3 * share) for share in shares) == [0, 1, 2]


def test_proposals_without_any_score_are_random_ones() -> None:
    history = [(START, None)] * 5
    values = propose(SPACE, START, history, [], index=5, seed=1, sampler="gp")
    assert values == propose(SPACE, START, [], [], index=5, seed=1, sampler="random")
    assert values != propose(SPACE, START, history, [], index=6, seed=1, sampler="gp")


# The search


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_killed_search_ends_with_the_same_trials(tmp_path: Path, sampler: str) -> None:
    tune(task(sampler=sampler), tmp_path / "whole", score)
    kills = [0, 2, 5]
    given: dict[int, list[dict[str, float]]] = {}

    def killed(index: int, values: dict[str, float]) -> Outcome:
        given.setdefault(index, []).append(values)
        if index in kills:
            kills.remove(index)
            raise Killed
        return score(index, values)

    for _ in range(3):
        with pytest.raises(Killed):
            tune(task(sampler=sampler), tmp_path / "parts", killed)
    tune(task(sampler=sampler), tmp_path / "parts", killed)
    assert tried(tmp_path / "parts") == tried(tmp_path / "whole")
    assert [len(given[index]) for index in range(7)] == [2, 1, 2, 1, 1, 2, 1]
    assert all(values == given[index][0] for index in given for values in given[index])
    assert [index for index, _, _ in tried(tmp_path / "whole")] == list(range(7))


def _orphan(folder: Path, owner: dict[str, Any]) -> None:
    """A running trial with index 0 of a process that is no more here."""
    study = optuna.create_study(study_name="mini/KD", storage=open_storage(folder), direction="maximize")
    study.set_user_attr("depends", "a")
    for key, value in task().about.items():
        study.set_user_attr(key, value)
    study.enqueue_trial({"weight": 5.0, "temperature": 4.0}, user_attrs={"index": 0, "owner": owner})
    study.ask({key: optuna.distributions.FloatDistribution(s.low, s.high, log=s.log) for key, s in SPACE.items()})


def test_trial_of_a_dead_process_is_redone_with_its_values(tmp_path: Path) -> None:
    _orphan(tmp_path, {"host": platform.node(), "pid": 2**22 + 1, "born": "1"})  # above the largest number of a process
    tune(task(trials=2), tmp_path, score)
    assert tried(tmp_path)[0][1] == {"weight": 5.0, "temperature": 4.0}
    assert len(tried(tmp_path)) == 2


def test_trial_of_another_live_process_is_left_alone(tmp_path: Path) -> None:
    _orphan(tmp_path, {"host": platform.node(), "pid": os.getppid(), "born": _born(os.getppid())})
    tune(task(trials=3), tmp_path, score)
    assert [index for index, _, _ in tried(tmp_path)] == [1, 2]


def test_number_given_to_another_process_is_no_live_owner(tmp_path: Path) -> None:
    _orphan(tmp_path, {"host": platform.node(), "pid": os.getppid(), "born": "another time"})
    tune(task(trials=3), tmp_path, score)
    assert [index for index, _, _ in tried(tmp_path)] == [0, 1, 2]


def test_diverged_trial_counts_and_has_no_score(tmp_path: Path) -> None:
    def trial(index: int, values: dict[str, float]) -> Outcome:
        if index == 1:
            raise Diverged("loss is nan")
        return Outcome(float("nan")) if index == 2 else score(index, values)

    tune(task(trials=5), tmp_path, trial)
    values = [value for _, _, value in tried(tmp_path)]
    assert len(values) == 5
    assert [index for index, value in enumerate(values) if value is None] == [1, 2]
    tune(task(trials=5), tmp_path, lambda index, values: pytest.fail("all five are there"))


def test_more_trials_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    tune(task(trials=4), tmp_path / "parts", score)
    tune(task(trials=7), tmp_path / "parts", score)
    tune(task(trials=7), tmp_path / "whole", score)
    assert tried(tmp_path / "parts") == tried(tmp_path / "whole")


def test_trials_of_other_conditions_are_refused_until_restart(tmp_path: Path) -> None:
    tune(task(trials=2), tmp_path, score)
    with pytest.raises(UserError, match="--restart"):
        tune(task(trials=2, depends="b"), tmp_path, score)
    tune(task(run="other", trials=1), tmp_path, score)
    ran = []
    tune(task(trials=2, depends="b"), tmp_path, lambda index, values: ran.append(index) or score(index, values), restart=True)
    assert ran == [0, 1]
    assert len(tried(tmp_path, "other")) == 1, "another run's search is not touched"


# The record


def test_record_holds_best_values_and_all_trials(tmp_path: Path) -> None:
    def trial(index: int, values: dict[str, float]) -> Outcome:
        if index == 1:
            raise Diverged("loss is nan")
        return score(index, values)

    tune(task(), tmp_path, trial)
    tune(task(run="Part", trials=3), tmp_path, score)
    study = optuna.load_study(study_name="mini/Part", storage=open_storage(tmp_path))
    study.set_user_attr("trials", 7)
    write_record(experiment(KD={"method": "kd"}), tmp_path, tmp_path / "out.yaml", SEARCH)
    text = (tmp_path / "out.yaml").read_text()
    content = yaml.safe_load(text)
    assert text.startswith("# Written by `cmapkd tune`; do not edit")
    assert content["search"] == SEARCH
    assert list(content["runs"]) == ["KD", "Part"]
    kd = content["runs"]["KD"]
    scores = [trial["score"] for trial in kd["trials"]]
    assert [trial["number"] for trial in kd["trials"]] == list(range(7))
    assert kd["trials"][0]["values"] == START
    assert (scores[1], kd["trials"][1]["state"]) == (None, "diverged")
    known = sorted(value for value in scores if value is not None)
    assert kd["scores"] == {"min": known[0], "median": pytest.approx((known[2] + known[3]) / 2), "max": known[-1]}
    assert kd["score"] == known[-1]
    assert kd["values"] == kd["trials"][scores.index(known[-1])]["values"]
    assert kd["default_score"] == scores[0]
    assert (kd["complete"], content["runs"]["Part"]["complete"]) == (True, False)
    assert (kd["commit"], kd["dirty"], kd["data"], kd["config"]) == ("abc", False, {"d": "1"}, "a")


def test_record_keeps_searches_of_another_journal(tmp_path: Path) -> None:
    out, reader = tmp_path / "out.yaml", experiment(KD={"method": "kd"})
    tune(task(), tmp_path / "here", score)
    write_record(reader, tmp_path / "here", out, SEARCH)
    tune(task(run="Part", trials=3), tmp_path / "elsewhere", score)
    before = yaml.safe_load(out.read_text())["runs"]
    write_record(reader, tmp_path / "elsewhere", out, SEARCH)
    after = yaml.safe_load(out.read_text())["runs"]
    assert list(after) == ["KD", "Part"] and after["KD"] == before["KD"]
    write_record(reader.model_copy(update={"name": "other"}), tmp_path / "elsewhere", out, SEARCH)
    assert list(yaml.safe_load(out.read_text())["runs"]) == [], "another experiment's entries do not stay"


def test_every_run_gets_as_many_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = experiment(KD={"method": "kd"}, Scratch={"method": "scratch"}, tuning={"trials": 3})
    ran: list[str] = []

    def trial(experiment: ExperimentConfig, run: str, results: Path, index: int, values: dict[str, float]) -> Outcome:
        ran.append(run)
        return Outcome(1.0, {"d/val": 1.0})

    for name in ("check", "prepare"):
        monkeypatch.setattr(tuning_trial, name, lambda *_: None)
    monkeypatch.setattr(tuning_trial, "make_task", lambda e, run, r: task(run=run, trials=e.tuning.trials))
    monkeypatch.setattr(tuning_trial, "run_trial", trial)
    tuning_run.tune_runs(whole, [], tmp_path, tmp_path / "out.yaml")
    assert sorted(ran) == ["KD"] * 3 + ["Scratch"] * 3
    with pytest.raises(UserError, match="not in this experiment"):
        tuning_run.tune_runs(whole, ["KS"], tmp_path, tmp_path / "out.yaml")


# The plan of a trial


def test_trial_trains_its_values_at_the_tuning_seed_and_length() -> None:
    whole = experiment(KD={"method": "kd"}, tuning={"length": 0.5, "seed": 42})
    plan = tuning_trial.trial_plan(whole, "KD", {"weight": 3.0, "lr_scale": 2.0})
    full = make_plan(whole)
    settings = plan.stages[plan.runs[0].stages[0]].settings
    usual = full.stages[full.runs[0].stages[0]].settings
    assert (settings["seed"], settings["method"]["weight"]) == (42, 3.0)
    assert settings["stage"]["epochs"] == usual["stage"]["epochs"] / 2
    assert settings["stage"]["lr"] == usual["stage"]["lr"] * 2
    assert tuning_trial.teacher_stages(plan) == [full.teacher], "the teacher is shared with the experiment"
    scratch = tuning_trial.trial_plan(experiment(S={"method": "scratch"}), "S", {})
    assert tuning_trial.teacher_stages(scratch) == []


def test_tuning_does_not_enter_addresses() -> None:
    plain, tuned = (experiment(KD={"method": "kd"}, tuning=tuning) for tuning in ({}, {"trials": 3, "length": 0.1, "seed": 5}))
    assert list(make_plan(plain).stages) == list(make_plan(tuned).stages)


def test_runs_that_are_tuned() -> None:
    assert tuning_trial.tuned_runs(experiment(A={"method": "kd"}, B={"method": "scratch"})) == ["A", "B"]
    assert tuning_trial.tuned_runs(experiment(A={"method": "kd"}, B={"method": "kd"}, tuning={"runs": ["B"]})) == ["B"]
    with pytest.raises(UserError, match=r"tuning\.runs"):
        experiment(A={"method": "kd"}, tuning={"runs": ["C"]})


def test_what_is_missing_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    content = raw(KD={"method": "kd"})
    content["evaluation"]["validation"] = []
    with pytest.raises(UserError, match=r"evaluation\.validation"):
        tuning_trial.check(parse_experiment(content), tmp_path)
    with pytest.raises(UserError, match="cmapkd data build"):
        tuning_trial.check(experiment(KD={"method": "kd"}), tmp_path)


# Starting from tuned values
