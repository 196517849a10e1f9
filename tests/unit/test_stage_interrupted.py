"""A stage that is stopped, killed or no longer finite, and one that goes on from another."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_experiment import OPTIONS, SAMPLES, assert_same_stage, at_step, experiment, stages_of, stream

from cmapkd.data.stream import order
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of, write_json
from cmapkd.models import towers
from cmapkd.plan import Plan
from cmapkd.training import checkpoints
from cmapkd.training.engine import Engine
from cmapkd.training.loop import Interrupted, train_stage
from cmapkd.training.retries import Retries
from cmapkd.training.stages import OBJECTIVE, RESULT

# --- a whole stage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A plan, and results that hold the data, the teacher and its pyramid."""
    return experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture
def results(base: tuple[Plan, Path], tmp_path: Path) -> Path:
    """A copy of the results so far."""
    shutil.copytree(base[1], tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture(scope="module")
def uninterrupted(base: tuple[Plan, Path]) -> Path:
    """Directory of the stage, trained in one go."""
    plan, results = base
    stage = stages_of(plan)[0]
    train_stage(stage, results, OPTIONS)
    directory: Path = results / "stages" / stage.address
    kept = directory.parent.parent.parent / "uninterrupted"
    directory.rename(kept)  # so that copies of the results do not hold it
    return kept


def test_a_stage_is_complete_and_logs_each_step(base: tuple[Plan, Path], uninterrupted: Path) -> None:
    record = read_json(uninterrupted / RESULT)
    assert record["summary"]["steps"] == 6 and record["summary"]["resumed_at"] == 0
    for name, digest in record["files"].items():
        assert sha256_of(uninterrupted / name) == digest
    lines = stream(uninterrupted)
    assert [line["step"] for line in lines] == list(range(6))
    terms = {"intra", "align_single", "align_pyramid", "relation_sample", "relation_layer", "task", "loss", "lr", "grad_norm"}
    alsn = {"entropy_visual", "entropy_language", "weight_P4", "weight_P5", "weight_L3", "weight_L4"}
    assert all(set(line) == {"step", *terms, *alsn} for line in lines)
    assert all(line["grad_norm"] > 0 for line in lines)
    loaded = towers.load(uninterrupted / "model")
    assert loaded.logit_scale.shape == ()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 3])
def test_a_stage_stopped_by_a_signal_goes_on_bit_for_bit(
    number: signal.Signals,
    step: int,
    base: tuple[Plan, Path],
    uninterrupted: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = stages_of(base[0])[0]
    directory = results / "stages" / stage.address
    handler = signal.getsignal(number)
    at_step(step, lambda: os.kill(os.getpid(), number), monkeypatch)
    with pytest.raises(Interrupted, match=f"stopped after step {step + 1} of 6"):
        train_stage(stage, results, OPTIONS)
    assert signal.getsignal(number) == handler
    assert not (directory / RESULT).exists()
    torch.manual_seed(1234)
    train_stage(stage, results, OPTIONS)
    assert read_json(directory / RESULT)["summary"]["resumed_at"] == step + 1
    assert_same_stage(directory, uninterrupted)


def test_a_stage_that_was_killed_goes_on_from_its_last_checkpoint(
    base: tuple[Plan, Path], uninterrupted: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps after the checkpoint are in the log already, the last line half-written; each is there once at the end."""
    stage = stages_of(base[0])[0]
    directory = results / "stages" / stage.address
    often = OPTIONS.model_copy(update={"checkpoint_minutes": 1e-9, "log_every": 1})

    def die() -> None:
        raise KeyError("killed")

    at_step(4, die, monkeypatch)
    with pytest.raises(KeyError, match="killed"):
        train_stage(stage, results, often)
    found = checkpoints.complete(directory / "checkpoints")
    assert [path.name for path in found] == ["step-00000003", "step-00000004"]
    shutil.rmtree(found[1])
    with (directory / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    train_stage(stage, results, OPTIONS)
    assert read_json(directory / RESULT)["summary"]["resumed_at"] == 3
    assert_same_stage(directory, uninterrupted)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_stage_does_not_go_on_under_another_teacher(
    recorded: bool, base: tuple[Plan, Path], results: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Trained again, the teacher is another start; with weights that its stage.json does not name nothing is trained."""
    stage = stages_of(base[0])[0]
    often = OPTIONS.model_copy(update={"checkpoint_minutes": 1e-9})

    def die() -> None:
        raise KeyError("killed")

    at_step(4, die, monkeypatch)
    with pytest.raises(KeyError, match="killed"):
        train_stage(stage, results, often)
    teacher = results / "stages" / stage.settings["teacher"]
    weights = teacher / "model/open_clip_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights)
    if not recorded:
        with pytest.raises(UserError, match=f"{weights.name}.*not the file this stage wrote"):
            train_stage(stage, results, OPTIONS)
        return
    record = read_json(teacher / RESULT)
    record["files"]["model/open_clip_model.safetensors"] = sha256_of(weights)
    write_json(teacher / RESULT, record)
    train_stage(stage, results, OPTIONS)
    made = read_json(results / "stages" / stage.address / RESULT)
    assert made["summary"]["resumed_at"] == 0 and "other code, settings, data or weights" in caplog.text
    assert made["rests_on"][teacher.name] == record["files"]


def test_a_loss_that_is_not_finite_names_stage_step_and_samples_and_keeps_the_checkpoint(
    base: tuple[Plan, Path], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stages_of(base[0])[0]
    often = OPTIONS.model_copy(update={"checkpoint_minutes": 1e-9})
    real = Engine.step

    def step(self: Engine, batch: Any, step: int) -> Any:
        if step == 2:
            batch["image"][0] = float("nan")
        return real(self, batch, step)

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(UserError, match=r"at step 2, on the samples train_\d{6}") as caught:
        train_stage(stage, results, often)
    assert caught.value.key == stage.label
    directory = results / "stages" / stage.address
    assert not (directory / RESULT).exists()
    assert checkpoints.complete(directory / "checkpoints")[-1].name == "step-00000002"


# --- retries of a training that is no longer finite --------------------------------------------------------------------

OFTEN = OPTIONS.model_copy(update={"checkpoint_minutes": 1e-9, "log_every": 1, "nan_retries": 1})


def spoil(failures: list[int], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Make each step of ``failures`` fail once, in this order; returns the steps taken, each with its learning rate."""
    real, taken = Engine.step, []

    def step(self: Engine, batch: Any, step: int) -> Any:
        if failures and step == failures[0]:
            failures.pop(0)
            batch = {**batch, "image": torch.full_like(batch["image"], float("nan"))}
        terms = real(self, batch, step)
        taken.append((step, self.engine.optimizer.param_groups[0]["lr"]))
        return terms

    monkeypatch.setattr(Engine, "step", step)
    return taken


def rates(directory: Path) -> list[float]:
    return [line["lr"] for line in stream(directory)]


@pytest.fixture
def retried(base: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory of the stage after step 3 was not finite once, retried in one go."""
    shutil.copytree(base[1], tmp_path / "retried")
    stage = stages_of(base[0])[0]
    with monkeypatch.context() as patch:
        spoil([3], patch)
        train_stage(stage, tmp_path / "retried", OFTEN)
    return tmp_path / "retried" / "stages" / stage.address


def test_a_retry_goes_on_from_the_checkpoint_before_at_half_the_rates_and_tells(
    base: tuple[Plan, Path],
    uninterrupted: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = stages_of(base[0])[0]
    directory = results / "stages" / stage.address
    taken = spoil([3], monkeypatch)
    train_stage(stage, results, OFTEN)
    # The checkpoint of three steps is what step 3 failed on, whatever its learning rate.
    assert [step for step, _ in taken] == [0, 1, 2, 2, 3, 4, 5]
    lines = stream(directory)
    assert [line["step"] for line in lines] == list(range(6))
    assert lines[:2] == stream(uninterrupted)[:2]
    expected = [rate * factor for rate, factor in zip(rates(uninterrupted), [1, 1, 0.5, 0.5, 0.5, 0.5], strict=True)]
    assert rates(directory) == pytest.approx(expected, rel=1e-6)
    assert ["lr_factor" in line for line in lines] == [False, False, True, True, True, True]
    (record,) = read_json(directory / RESULT)["summary"]["nan_retries"]
    assert (record["step"], record["restarted_at"], record["lr_factor"]) == (3, 2, 0.5)
    told = [entry.getMessage() for entry in caplog.records if "retry 1 of 1" in entry.getMessage()]
    assert len(told) == 1 and stage.label in told[0] and "step 3" in told[0] and "from step 2 at 0.5 times" in told[0]
    for text in (told[0], record["reason"]):
        assert "the loss is nan" in text and "'task': nan" in text and "on the samples train_" in text
    assert "nan_retries" not in read_json(uninterrupted / RESULT)["summary"]


def test_without_a_checkpoint_a_retry_starts_the_stage_again(
    base: tuple[Plan, Path], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stages_of(base[0])[0]
    taken = spoil([2], monkeypatch)
    train_stage(stage, results, OPTIONS.model_copy(update={"nan_retries": 1}))
    assert [step for step, _ in taken] == [0, 1, 0, 1, 2, 3, 4, 5]
    assert taken[2][1] == taken[0][1] / 2
    directory = results / "stages" / stage.address
    assert read_json(directory / RESULT)["summary"]["nan_retries"][0]["restarted_at"] == 0
    assert all(line["lr_factor"] == 0.5 for line in stream(directory))


@pytest.mark.parametrize("stop", [2, 4])
def test_a_retried_training_that_is_interrupted_ends_like_one_that_is_not(
    stop: int, base: tuple[Plan, Path], retried: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stages_of(base[0])[0]
    directory = results / "stages" / stage.address
    with monkeypatch.context() as patch:
        taken = spoil([3], patch)
        behind = Engine.step

        def step(self: Engine, batch: Any, step: int) -> Any:
            if step == stop and self.lr_share == 0.5:
                os.kill(os.getpid(), signal.SIGTERM)
            return behind(self, batch, step)

        patch.setattr(Engine, "step", step)
        with pytest.raises(Interrupted, match=f"stopped after step {stop + 1} of 6"):
            train_stage(stage, results, OFTEN)
    assert [step for step, _ in taken] == [0, 1, 2, *range(2, stop + 1)]
    torch.manual_seed(1234)
    train_stage(stage, results, OFTEN)
    summary = read_json(directory / RESULT)["summary"]
    assert summary["resumed_at"] == stop + 1
    assert summary["nan_retries"] == read_json(retried / RESULT)["summary"]["nan_retries"]
    assert_same_stage(directory, retried)


def test_a_second_failure_is_retried_at_a_quarter_or_stops(
    base: tuple[Plan, Path], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stages_of(base[0])[0]
    directory = results / "stages" / stage.address
    with monkeypatch.context() as patch:
        spoil([3, 4], patch)
        with pytest.raises(UserError, match=r"at step 4, on the samples train_\d{6}.*after 1 of 1 retries") as caught:
            train_stage(stage, results, OFTEN)
    assert caught.value.key == stage.label and "allow 2 of training.nan_retries" in caught.value.fix
    assert not (directory / RESULT).exists()
    assert [path.name for path in checkpoints.complete(directory / "checkpoints")] == ["step-00000003", "step-00000004"]
    # One more is allowed, and it fails at the same place: back before the checkpoint of that step, at a quarter.
    taken = spoil([4], monkeypatch)
    train_stage(stage, results, OFTEN.model_copy(update={"nan_retries": 2}))
    assert [step for step, _ in taken] == [3, 4, 5]
    records = read_json(directory / RESULT)["summary"]["nan_retries"]
    assert [(record["step"], record["restarted_at"], record["lr_factor"]) for record in records] == [(3, 2, 0.5), (4, 3, 0.25)]
    assert [line.get("lr_factor") for line in stream(directory)] == [None, None, 0.5, 0.25, 0.25, 0.25]


def test_a_gradient_that_is_not_finite_is_retried_from_weights_it_has_not_spoilt(
    base: tuple[Plan, Path], retried: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the update has been made: its NaN is in the weights, and in AdamW's momenta."""
    stage = stages_of(base[0])[0]
    spoilt: list[Engine] = []
    handles = []
    real = Engine.step

    def step(self: Engine, batch: Any, step: int) -> Any:
        if step == 3 and not spoilt:
            spoilt.append(self)
            scale = self.module.model.model.logit_scale
            handles.append(scale.register_hook(lambda gradient: gradient * float("inf")))
        return real(self, batch, step)

    monkeypatch.setattr(Engine, "step", step)
    train_stage(stage, results, OFTEN)
    directory = results / "stages" / stage.address
    assert not torch.isfinite(spoilt[0].module.model.model.logit_scale).all()
    (record,) = read_json(directory / RESULT)["summary"]["nan_retries"]
    assert "the loss is finite, but the norm of its gradient is" in record["reason"]
    assert_same_stage(directory, retried)


def test_retries_of_other_code_or_settings_are_forgotten(tmp_path: Path) -> None:
    record = {"step": 3, "reason": "", "restarted_at": 2, "lr_factor": 0.5}
    (tmp_path / "nan-retries.json").write_text(json.dumps({"origin": "before", "retries": [record]}))
    assert Retries(tmp_path, "before", 1, "stage").lr_factor == 0.5
    assert Retries(tmp_path, "edited", 1, "stage").lr_factor == 1


def test_the_next_stage_starts_from_weights_and_data_of_the_one_before(
    base: tuple[Plan, Path], uninterrupted: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stages_of(base[0])
    shutil.copytree(uninterrupted, results / "stages" / first.address)
    seen: dict[str, Any] = {}
    real = Engine.step

    def step(self: Engine, batch: Any, step: int) -> Any:
        if step == 0:
            seen.update(model={name: value.clone() for name, value in self.module.state_dict().items()}, keys=batch["keys"])
        return real(self, batch, step)

    monkeypatch.setattr(Engine, "step", step)
    train_stage(second, results, OPTIONS)
    # The data go on where the first stage ended: after 6 batches of 8, within the third epoch of 20 samples.
    assert seen["keys"] == [f"train_{index:06d}" for index in order(SAMPLES, seed=0, epoch=2)[8:16]]
    model, objective = load_file(uninterrupted / "model" / towers.WEIGHTS), load_file(uninterrupted / OBJECTIVE)
    for name, value in model.items():
        assert torch.equal(seen["model"][f"model.model.{name}"].reshape(value.shape), value)
    pyramid = {name: value for name, value in objective.items() if name.startswith("pyramid.")}
    assert pyramid and all(torch.equal(seen["model"][f"objective.{name}"], value) for name, value in pyramid.items())
    assert read_json(results / "stages" / second.address / RESULT)["summary"]["steps"] == 1


def test_a_teacher_s_pyramid_stage_stores_its_pyramid_alone(base: tuple[Plan, Path]) -> None:
    plan, results = base
    address = next(address for address in plan.stages if address.startswith("teacher-pyramid"))
    directory = results / "stages" / address
    assert not (directory / "model").exists()
    assert {name.split(".")[0] for name in load_file(directory / OBJECTIVE)} == {"pyramid"}
    assert read_json(directory / RESULT)["summary"] == {"steps": 0}  # a random one is used as it was initialised
