"""The plan: stages shared between runs, addresses that change exactly when a result would, refusals, order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cmapkd import plan as planning
from cmapkd.config import parse_experiment
from cmapkd.errors import UserError
from cmapkd.plan import Plan, deepspeed_settings, make_plan


def content(**changes: Any) -> dict[str, Any]:
    """A small experiment; ``changes`` replace top-level keys."""
    base: dict[str, Any] = {
        "name": "test",
        "datasets": {"scenes": {"source": "emoji_scenes", "train": 64}, "others": {"source": "emoji_scenes"}},
        "distillation": ["scenes/train"],
        "teacher": {"model": "mini-teacher", "train": {"epochs": 1}},
        "student": {"model": "mini-student"},
        "pyramid": {"channels": 16, "text_channels": 16},
        "training": {"global_batch": 32},
        "runs": {"Scratch": {"method": "scratch"}, "KD": {"method": "kd"}, "CMAPKD": {"method": "cmapkd"}},
        "evaluation": {"retrieval": ["scenes/test_render"]},
    }
    return {**base, **changes}


def plan(**changes: Any) -> Plan:
    return make_plan(parse_experiment(content(**changes)))


def stages(of: Plan, run: str = "CMAPKD", seed: int = 0) -> dict[str, str]:
    """Stage name -> address of a run."""
    addresses = next(r.stages for r in of.runs if r.name == run and r.seed == seed)
    return {of.stages[address].settings["stage"]["name"]: address for address in addresses}


def test_runs_come_in_the_order_of_the_file_each_with_its_seeds() -> None:
    found = plan(seeds=[3, 1])
    assert [(run.name, run.seed) for run in found.runs] == [(n, s) for n in ("Scratch", "KD", "CMAPKD") for s in (3, 1)]
    assert list(stages(found, seed=1)) == ["coarse", "medium", "fine", "alsn"]
    assert list(stages(found, "KD", 3)) == ["train"]


def test_a_plan_is_the_same_each_time() -> None:
    first, second = plan(), plan()
    assert first.stages == second.stages and first.runs == second.runs and first.teacher == second.teacher


def test_every_stage_comes_after_its_parents_and_names_what_it_needs() -> None:
    found = plan(seeds=[0, 1])
    seen: set[str] = set()
    for address, stage in found.stages.items():
        assert stage.address == address and set(stage.parents) <= seen
        keys = ("parent", "teacher", "teacher_pyramid", "teacher_prompts")
        assert set(stage.parents) == {stage.settings.get(key) for key in keys} - {None}
        seen.add(address)
    chain = list(stages(found).values())
    assert [found.stages[address].settings["parent"] for address in chain] == [None, *chain[:-1]]
    assert [found.stages[address].settings["start_epochs"] for address in chain] == [0, 5, 10, 20]
    assert found.stages[stages(found, "Scratch")["train"]].parents == ()
    assert found.stages[stages(found, "KD")["train"]].parents == (found.teacher,)


def test_runs_that_differ_in_one_stage_share_those_before_it() -> None:
    runs = {
        "CMAPKD": {"method": "cmapkd"},
        "uniform": {"base": "CMAPKD", "policy": "uniform"},
        "manual": {"base": "CMAPKD", "policy": "manual"},
        "no relation": {"base": "CMAPKD", "weights": {"relation": 0.0}},
    }
    found = plan(runs=runs)
    full, uniform, manual, other = (stages(found, run) for run in runs)
    for name in ("coarse", "medium"):
        assert full[name] == uniform[name] == manual[name] != other[name]
    assert len({full["fine"], uniform["fine"], manual["fine"], other["fine"]}) == 4
    assert "alsn" in full and "alsn" not in uniform  # nothing is left to train there
    trainings = sum(len(run.stages) for run in found.runs)
    assert trainings == 14 and len(found.stages) == 2 + trainings - 4  # teacher and its pyramid; coarse and medium twice less


def test_options_that_a_stage_does_not_read_do_not_set_it_apart() -> None:
    runs = {
        "CMAPKD": {"method": "cmapkd"},
        "hidden": {"base": "CMAPKD", "alsn": {"entropy_weight": 0.5}},
        "weights": {"base": "CMAPKD", "manual_weights": [0.4, 0.3, 0.2, 0.1]},
    }
    found = plan(runs=runs)
    full, hidden, weights = (stages(found, run) for run in runs)
    assert full == weights  # ALSN weighs the levels in this run
    assert full["medium"] == hidden["medium"] and full["fine"] != hidden["fine"] and full["alsn"] != hidden["alsn"]


def test_seeds_share_the_teacher_and_its_pyramid_and_nothing_else() -> None:
    found = plan(seeds=[0, 1])
    first, second = stages(found), stages(found, seed=1)
    assert not set(first.values()) & set(second.values())
    parents = [
        {found.stages[address].settings[key] for address in (*first.values(), *second.values())}
        for key in ("teacher", "teacher_pyramid")
    ]
    assert all(len(group) == 1 for group in parents)


def everything(of: Plan) -> set[str]:
    return set(of.stages)


def teacher(**options: Any) -> dict[str, Any]:
    return {"teacher": {"model": "mini-teacher", "train": {"epochs": 1}, **options}}


def datasets(scenes: int, **others: Any) -> dict[str, Any]:
    return {"datasets": {"scenes": {"source": "emoji_scenes", "train": scenes}, "others": {"source": "emoji_scenes", **others}}}


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    # what is changed -> keys of the experiment, which stages get a new address
    "learning rate of the teacher": (teacher(train={"epochs": 1, "lr": 1e-4}), "all but scratch"),
    "epochs of the teacher's pyramid": (teacher(pyramid={"epochs": 2}), "pyramid"),
    "an option of the data set": (datasets(65), "all"),
    "another data set's option": (datasets(64, train=9), "none"),
    "batch": ({"training": {"global_batch": 64}}, "all"),
    "weight decay": ({"training": {"global_batch": 32, "weight_decay": 0.2}}, "all"),
    "augmentation": ({"training": {"global_batch": 32, "augmentation": {"flip": True}}}, "all"),
    "precision": ({"training": {"global_batch": 32, "deepspeed": "bf16-zero1"}}, "all"),
    "pyramid": ({"pyramid": {"channels": 32, "text_channels": 16}}, "pyramid"),
    "workers": ({"training": {"global_batch": 32, "workers": 0}}, "none"),
    "log_every": ({"training": {"global_batch": 32, "log_every": 1}}, "none"),
    "ranks": ({"training": {"global_batch": 32, "ranks": 4}}, "none"),
    "checkpoints": ({"training": {"global_batch": 32, "checkpoint_minutes": 1}}, "none"),
    "cache": ({"training": {"global_batch": 32, "cache_bytes": 10**6}}, "none"),
    "evaluation": ({"evaluation": {"retrieval": []}}, "none"),
    "name": ({"name": "other"}, "none"),
    "student": ({"student": {"model": "mini-teacher"}}, "students"),
    "initialisation": ({"student": {"model": "mini-student", "init": "some/checkpoint.pt"}}, "students"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_addresses_change_exactly_when_they_should(change: str) -> None:
    before, (keys, changed) = plan(), CHANGES[change]
    after = plan(**keys)
    kept = everything(before) & everything(after)
    scratch = stages(before, "Scratch")["train"]
    kd = stages(before, "KD")["train"]
    pyramid = next(address for address in before.stages if address.startswith("teacher-pyramid-"))
    expected = {
        "none": everything(before),
        "all": set(),
        "all but scratch": {scratch},
        "pyramid": {scratch, before.teacher, kd},
        "students": {before.teacher, pyramid},
    }[changed]
    assert kept == expected


def test_a_changed_stage_changes_those_after_it_alone() -> None:
    def schedule(lr: float) -> dict[str, Any]:
        levels = {"visual_levels": ["P5"], "language_levels": ["L4"], "trains": ["student", "pyramid"]}
        return {"own": [{"name": name, "epochs": 1, "lr": lr if name == "b" else 1e-4, **levels} for name in ("a", "b", "c")]}

    runs = {"CMAPKD": {"method": "cmapkd", "schedule": "own"}}
    first, second = (stages(plan(schedules=schedule(lr), runs=runs)) for lr in (1e-3, 2e-3))
    assert first["a"] == second["a"] and first["b"] != second["b"] and first["c"] != second["c"]


def test_lr_scale_and_levels_change_addresses() -> None:
    runs = {
        "CMAPKD": {"method": "cmapkd"}, "slower": {"base": "CMAPKD", "lr_scale": 0.5},
        "top": {"base": "CMAPKD", "visual_levels": ["P5"]}, "random": {"base": "CMAPKD", "teacher_pyramid": "random"},
    }  # fmt: skip
    found = plan(runs=runs)
    full, slower, top, random = (stages(found, run) for run in runs)
    assert not set(full.values()) & set(slower.values()) and not set(full.values()) & set(random.values())
    assert full["coarse"] == top["coarse"] and full["medium"] != top["medium"]  # P5 alone is what `coarse` uses anyway


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of configurations, to edit."""
    for folder in ("models", "deepspeed"):
        shutil.copytree(planning.CONFIG / folder, tmp_path / folder)
    monkeypatch.setattr(planning, "CONFIG", tmp_path)
    return tmp_path


def test_the_content_of_a_model_file_is_part_of_the_address(own_config: Path) -> None:
    before = plan()
    path = own_config / "models" / "mini-student.json"
    model = json.loads(path.read_text())
    path.write_text(json.dumps(model))  # written otherwise, it says the same
    assert everything(plan()) == everything(before)
    model["vision_cfg"]["layers"] += 1
    path.write_text(json.dumps(model))
    assert stages(plan())["coarse"] != stages(before)["coarse"] and plan().teacher == before.teacher


def test_the_content_of_a_deepspeed_file_is_part_of_the_address(own_config: Path) -> None:
    before = plan()
    (own_config / "deepspeed" / "fp32.json").write_text('{"gradient_clipping": 2.0}')
    assert not everything(plan()) & everything(before)


def test_an_unknown_deepspeed_file_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"training\.deepspeed = 'bf16-zero'.*no file") as caught:
        plan(training={"global_batch": 32, "deepspeed": "bf16-zero"})
    assert "bf16-zero" in caught.value.fix


def test_a_batch_that_ranks_and_accumulation_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"global_batch = 36.*4 x 2") as caught:
        plan(training={"global_batch": 36, "ranks": 4, "deepspeed": "fp32-accumulate2"})
    assert "multiple of 8" in caught.value.fix


@pytest.mark.parametrize("names", [("A b", "A-b"), ("Teacher.", "x")])
def test_two_runs_with_one_directory_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="same directory name"):
        plan(runs={name: {"method": "scratch"} for name in names})


def test_a_schedule_that_leaves_a_run_nothing_to_train_is_refused() -> None:
    schedules = {"own": [{"name": "only", "epochs": 1, "lr": 1e-3, "trains": ["alsn"], "policy": "alsn"}]}
    with pytest.raises(UserError, match="no stage that trains anything"):
        plan(schedules=schedules, runs={"CMAPKD": {"method": "cmapkd", "schedule": "own", "policy": "uniform"}})


def test_a_pretrained_teacher_is_a_stage_without_data() -> None:
    found = plan(teacher={"model": "ViT-L-14", "pretrained": "openai"}, student={"model": "ViT-B-16"})
    stage = found.stages[found.teacher]
    assert stage.datasets == () and stage.method == "pretrained" and stage.settings["init"] == "openai"
    assert found.stages[stages(found)["coarse"]].datasets == ("scenes",)


def test_a_run_is_found_by_its_directory() -> None:
    found = plan(seeds=[2])
    assert found.run("CMAPKD/2").name == "CMAPKD"
    with pytest.raises(UserError, match="not in the plan") as caught:
        found.run("CMAPDK/2")
    assert "CMAPKD/2" in caught.value.fix


def test_a_zero_stage_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "four.json").write_text('{"zero_optimization": {"stage": 4}}')
    monkeypatch.setattr("cmapkd.plan.CONFIG", tmp_path)
    with pytest.raises(UserError, match=r"four\.json: zero_optimization\.stage = 4: is no stage of ZeRO") as refused:
        deepspeed_settings("four")
    assert "use 0, 1, 2 or 3" in str(refused.value)


def test_looking_ahead_needs_all_weights_on_each_rank() -> None:
    training = {"global_batch": 32, "deepspeed": "bf16-zero3"}
    assert plan(training=training).runs
    runs = {"Ahead": {"method": "cmapkd", "alsn": {"objective": "task"}}}
    with pytest.raises(UserError, match=r"runs\.Ahead\.alsn\.objective = 'task'.*ZeRO 3"):
        plan(training=training, runs=runs)
