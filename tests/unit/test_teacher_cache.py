"""The teacher's outputs from disk: the same as the teacher's own, of the same views; a stale cache is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_experiment as tiny
import torch
import torch.nn.functional as F
from config_examples import experiment as example
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file
from torch import Tensor

from cmapkd import plan as planning
from cmapkd.config import parse_experiment
from cmapkd.costs import estimate
from cmapkd.data.stream import Stream, collate
from cmapkd.data.taught import quantise, read_arrays, restored
from cmapkd.errors import UserError
from cmapkd.files import sha256_of, write_json
from cmapkd.objectives.base import TeacherOutputs
from cmapkd.plan import Plan, Stage, make_plan
from cmapkd.training.loop import _stream, train_stage
from cmapkd.training.stages import Teacher, prepare

VIEWS = 3
STANDARD = [{"name": "train", "epochs": 0.8, "lr": 1e-3}]


def cached(precision: str) -> dict[str, Any]:
    """Keys of an experiment with a cache and runs that read each kind of it."""
    content = tiny.content()
    training = {**content["training"], "augmentation": {**content["training"]["augmentation"], "views": VIEWS}}
    return {
        "training": training,
        "teacher": {**content["teacher"], "cache": {"precision": precision}},
        "schedules": {**content["schedules"], "standard": STANDARD},
        "runs": {
            **content["runs"],
            "KD": {"method": "kd"},
            "PromptKD": {"method": "promptkd", "bank": 8, "teacher_prompts": {"tokens": 2, "layers": 2, "epochs": 0.4}},
        },
    }


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def made(one_rank: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Plan, Path]:
    plan, results = tiny.experiment(tmp_path_factory.mktemp(request.param), **cached(request.param))
    return request.param, plan, results


def first_stage(plan: Plan, run: str) -> Stage:
    return plan.stages[next(found for found in plan.runs if found.name == run).stages[0]]


def both(plan: Plan, results: Path, run: str) -> tuple[TeacherOutputs, TeacherOutputs]:
    """What the teacher says of a batch of a run's first stage: itself, and from disk."""
    stage = first_stage(plan, run)
    prepared = prepare(stage.settings, results / "stages")
    stream: Stream = _stream(stage.settings, prepared, results, tiny.OPTIONS)
    batch = collate([stream.load(position)[0] for position in range(12)], stream.transform)
    teacher: Teacher | None = prepared.teacher
    assert teacher is not None
    live = teacher(batch["image"], batch["text"])
    teacher.forget_towers()  # nothing of them is needed
    return live, teacher.recall(restored(batch["taught"], torch.float32))


def tensors(said: TeacherOutputs) -> dict[str, Tensor]:
    """All that objectives read, by name."""
    found = {"image": said.towers.image, "text": said.towers.text, "scale": said.towers.logit_scale}
    if said.pyramid is not None:
        found |= said.pyramid.maps
        for name in ("pooled", "language", "visual_as_language", "language_as_visual"):
            found[name] = getattr(said.pyramid, name)
    return found


@pytest.mark.parametrize("run", ["CMAPKD", "KD", "PromptKD"])
def test_the_cache_says_what_the_teacher_says(made: tuple[str, Plan, Path], run: str) -> None:
    precision, plan, results = made
    live, kept = (tensors(said) for said in both(plan, results, run))
    assert live.keys() == kept.keys()
    for name, value in live.items():
        if precision == "fp32":
            torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-5)
        elif value.numel() and value.ndim:
            cosine = F.cosine_similarity(kept[name].flatten(1), value.flatten(1))
            assert float(cosine.min()) > (0.999 if precision == "int8" else 0.99999), name


def test_a_training_from_the_cache_is_the_one_that_asks_the_teacher(made: tuple[str, Plan, Path], tmp_path: Path) -> None:
    precision, plan, results = made
    if precision != "fp32":
        pytest.skip("rounded outputs lead to another training")
    stage = first_stage(plan, "CMAPKD")
    shutil.copytree(results, tmp_path / "live")
    # Under the same address, from which the randomness of dropout follows.
    settings = {name: value for name, value in stage.settings.items() if name != "teacher_cache"}
    train_stage(Stage(stage.address, settings, (), "live"), tmp_path / "live", tiny.OPTIONS)
    train_stage(stage, results, tiny.OPTIONS)
    kept, live = (tiny.stream(home / "stages" / stage.address) for home in (results, tmp_path / "live"))
    assert [line["loss"] for line in kept] == pytest.approx([line["loss"] for line in live], rel=1e-4)
    assert [line["grad_norm"] for line in kept] == pytest.approx([line["grad_norm"] for line in live], rel=1e-3)


def test_a_picture_has_so_many_views_and_all_seeds_see_the_same(made: tuple[str, Plan, Path]) -> None:
    _, plan, results = made
    stage = first_stage(plan, "KD")
    prepared = prepare(stage.settings, results / "stages")
    seen: dict[int, set[bytes]] = {}
    for seed in (0, 1):
        stream: Stream = _stream({**stage.settings, "seed": seed}, prepared, results, tiny.OPTIONS)
        for position in range(10 * tiny.SAMPLES):
            item = stream.load(position)[0]
            seen.setdefault(item["index"], set()).add(item["image"].numpy().tobytes())
    for index, views in seen.items():
        assert views <= {view.numpy().tobytes() for view in stream.all_views(index)[1]}
        assert 1 <= len(views) <= VIEWS
    assert max(len(views) for views in seen.values()) == VIEWS


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.float32, (2, 3, 2, 2), elements=st.floats(-1e4, 1e4, width=32)))
def test_quantised_maps_are_off_by_half_a_step(maps: np.ndarray) -> None:
    values, scale = quantise(torch.from_numpy(maps))
    kept = restored({"P2": torch.from_numpy(values), "P2.scale": torch.from_numpy(scale)}, torch.float32)["P2"].numpy()
    largest = np.abs(maps).max(axis=(-2, -1), keepdims=True)
    assert (np.abs(kept - maps) <= largest / 127 * 0.5001 + 1e-30).all()


def test_rows_are_those_that_the_library_reads(made: tuple[str, Plan, Path]) -> None:
    _, _, results = made
    files = sorted((results / "stages").glob("teacher-cache-*/fake/train/*.safetensors"))
    assert len({file.parents[2].name for file in files}) == 3  # embeddings, those of the prompted teacher, pyramid
    for file in files:
        mapped = read_arrays(file)
        assert mapped.keys() == load_file(file).keys()
        assert all(np.array_equal(mapped[name], value) for name, value in load_file(file).items())


def test_only_what_is_missing_is_made_again(made: tuple[str, Plan, Path], tmp_path: Path) -> None:
    _, plan, results = made
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    stage = next(stage for stage in plan.stages.values() if stage.settings.get("part") == "pyramid")
    directory = copy / "stages" / stage.address
    before = {file: file.read_bytes() for file in sorted(directory.glob("fake/train/*.safetensors"))}
    assert len(before) > 1
    whole, lost, *_, cut = before
    lost.unlink()
    cut.write_bytes(before[cut][:-1])
    (directory / "stage.json").unlink()
    made_at = whole.stat().st_mtime_ns
    train_stage(stage, copy, tiny.OPTIONS)
    assert whole.stat().st_mtime_ns == made_at
    assert {file: file.read_bytes() for file in before} == before  # to the byte


def replace_teacher(results: Path, stage: Stage) -> None:
    """As if the teacher had been trained again."""
    directory = results / "stages" / stage.settings["teacher"]
    weights = directory / "model/open_clip_model.safetensors"
    tensors = load_file(weights)
    save_file({name: np.asarray(tensor + 1) for name, tensor in tensors.items()}, weights)
    content = json.loads((directory / "stage.json").read_text())
    content["files"]["model/open_clip_model.safetensors"] = sha256_of(weights)
    write_json(directory / "stage.json", content)


def flip_a_bit(results: Path, stage: Stage) -> None:
    file = next((results / "stages" / stage.settings["teacher_cache"]["embeddings"]).glob("fake/train/*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def break_file(results: Path, stage: Stage) -> None:
    file = next((results / "stages" / stage.settings["teacher_cache"]["embeddings"]).glob("fake/train/*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def break_data(results: Path, stage: Stage) -> None:
    path = results / "stages" / stage.settings["teacher_cache"]["embeddings"] / "stage.json"
    content = json.loads(path.read_text())
    content["data"] = {"fake": "0" * 64}
    write_json(path, content)


def lose_it(results: Path, stage: Stage) -> None:
    (results / "stages" / stage.settings["teacher_cache"]["embeddings"] / "stage.json").unlink()


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (replace_teacher, "another teacher"),
        (break_file, "not the file this stage wrote"),
        (flip_a_bit, "not the file this stage wrote"),
        (break_data, "other shards"),
        (lose_it, "not finished"),
    ],
)
def test_a_stale_cache_is_refused(made: tuple[str, Plan, Path], tmp_path: Path, action: Any, reason: str) -> None:
    _, plan, results = made
    shutil.copytree(results, tmp_path / "results")
    stage = first_stage(plan, "KD")
    action(tmp_path / "results", stage)
    with pytest.raises(UserError, match=rf"teacher[.-]cache.*{reason}"):
        train_stage(stage, tmp_path / "results", tiny.OPTIONS)


def test_its_size_is_known_before_it_is_made(made: tuple[str, Plan, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan, results = made
    monkeypatch.setattr(estimate, "CAPTIONS", 3)  # as the fake pictures have
    monkeypatch.setattr(planning, "CONFIG", results.parent / "config")
    (results.parent / plan.experiment.name).symlink_to(results.name)
    costs = estimate.estimate(plan, results.parent, "A100").stages
    for address, stage in plan.stages.items():
        if stage.settings["kind"] == "cache":
            size = sum(array.nbytes for file in (results / "stages" / address).rglob("*.safetensors")
                       for name, array in load_file(file).items() if name not in ("valid", "captions"))  # fmt: skip
            assert costs[address].disk == size


def test_a_plan_says_what_a_cache_would_take_and_save(tmp_path: Path) -> None:
    content = example(seeds=[0])
    content["runs"] = {"KD": {"method": "kd"}, "CMAPKD": {"method": "cmapkd"}}
    plan = make_plan(parse_experiment(content))
    text = estimate.render(estimate.estimate(plan, tmp_path, "A100"), plan)
    assert "not kept; as `teacher.cache` they would be" in text
    content["runs"] = {"Scratch": {"method": "scratch"}}
    assert estimate.cache_effect(make_plan(parse_experiment(content)), tmp_path) == ""


def test_a_new_view_in_each_epoch_cannot_be_kept() -> None:
    content = tiny.content()
    content["teacher"]["cache"] = {}
    with pytest.raises(UserError, match=r"training\.augmentation.*views"):
        parse_experiment(content)
    for augmentation in ({"views": 2}, {"scale": [1, 1]}):
        content["training"]["augmentation"] = augmentation
        assert parse_experiment(content).teacher.cache is not None


def test_caches_are_shared_and_only_stages_that_they_serve_have_them() -> None:
    content = example(seeds=[0, 1])
    content["training"] = {**content.get("training", {}), "augmentation": {"views": 2}}
    content["teacher"] = {**content["teacher"], "cache": {}}
    content["runs"] = {
        "Scratch": {"method": "scratch"},
        "KD": {"method": "kd"},
        "FitNet": {"method": "fitnet"},
        "LLaVA-KD": {"method": "llava_kd"},
        "PromptKD": {"method": "promptkd"},
        "CMAPKD": {"method": "cmapkd"},
        "random": {"method": "cmapkd", "teacher_pyramid": "random"},
        "late": {"method": "cmapkd", "similarity": "late"},
    }
    plan = make_plan(parse_experiment(content))
    kept = [stage for stage in plan.stages.values() if stage.settings["kind"] == "cache"]
    # Embeddings, those of the prompted teacher, and the pyramid that is fitted and the one that is not.
    assert sorted(stage.settings["part"] for stage in kept) == ["embeddings", "embeddings", "pyramid", "pyramid"]
    for run in plan.runs:
        for address in run.stages:
            stage = plan.stages[address]
            parts = set(stage.settings.get("teacher_cache", {}))
            if run.name in ("Scratch", "LLaVA-KD", "late") or stage.settings["stage"]["name"] == "hint":
                assert not parts
            else:
                assert parts == ({"embeddings", "pyramid"} if run.name in ("CMAPKD", "random") else {"embeddings"})
            assert set(stage.settings.get("teacher_cache", {}).values()) <= set(stage.parents)
