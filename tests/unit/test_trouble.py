"""A stage under a time limit, a full disk, a lack of memory, a lost lock, a third failure: nothing is lost, and it says why."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_experiment import OPTIONS, assert_same_stage, at_step, experiment, stages_of, stream

from cmapkd.errors import UserError
from cmapkd.files import read_json, write_json
from cmapkd.models import towers
from cmapkd.plan import Plan, Stage
from cmapkd.training import checkpoints, failures, state, stopping
from cmapkd.training.engine import Engine
from cmapkd.training.locks import FILE as LOCK
from cmapkd.training.locks import LostLock
from cmapkd.training.logs import TrainingLog
from cmapkd.training.loop import Interrupted, train_stage
from cmapkd.training.stages import OBJECTIVE, RESULT

pytestmark = pytest.mark.usefixtures("one_rank")
OFTEN = OPTIONS.model_copy(update={"checkpoint_minutes": 1e-9, "log_every": 1})


@pytest.fixture(scope="module")
def base(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    return experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def uninterrupted(base: tuple[Plan, Path]) -> Path:
    """Directory of the stage, trained in one go."""
    plan, results = base
    train_stage(stages_of(plan)[0], results, OPTIONS)
    kept = results.parent / "uninterrupted"
    (results / "stages" / stages_of(plan)[0].address).rename(kept)
    return kept


@pytest.fixture
def stage(base: tuple[Plan, Path]) -> Stage:
    return stages_of(base[0])[0]


@pytest.fixture
def results(base: tuple[Plan, Path], tmp_path: Path) -> Path:
    shutil.copytree(base[1], tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def directory(stage: Stage, results: Path) -> Path:
    return results / "stages" / stage.address


def names(directory: Path) -> list[str]:
    return [path.name for path in checkpoints.complete(directory / "checkpoints")]


# --- limits and signals ----------------------------------------------------------------------------------------------


def test_before_the_time_limit_it_stops_with_a_checkpoint_and_goes_on_bit_for_bit(
    stage: Stage, results: Path, directory: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        clock = [time.time()]
        patch.delenv(stopping.STARTED, raising=False)
        patch.setattr(stopping.time, "time", lambda: clock[0])
        at_step(2, lambda: clock.__setitem__(0, clock[0] + 9.5 * 60), patch)
        with pytest.raises(Interrupted, match=r"stopped after step 3 of 6 \(the time limit is near\); the same command"):
            train_stage(stage, results, OPTIONS, time_limit=12)
    assert names(directory) == ["step-00000003"] and failures.was_stopped(directory / "checkpoints")
    train_stage(stage, results, OPTIONS, time_limit=600)
    assert_same_stage(directory, uninterrupted)


def test_sigusr1_stops_with_a_checkpoint_too(
    stage: Stage, results: Path, directory: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGUSR1), monkeypatch)
    with pytest.raises(Interrupted, match="asked to by SIGUSR1"):
        train_stage(stage, results, OPTIONS)
    assert not (directory / LOCK).exists()
    train_stage(stage, results, OPTIONS)
    assert_same_stage(directory, uninterrupted)


# --- disk ------------------------------------------------------------------------------------------------------------


def refuse(number: int, real: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    """``real``, but with the error of a disk where ``when`` says so."""

    def instead(*args: Any, **options: Any) -> Any:
        if when(*args):
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    return instead


PLACES: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "a rank's file": (state, "save_file", lambda tensors, path: "step-00000004" in str(path)),
    "its flush": (checkpoints, "flush_file", lambda path: "step-00000004" in str(path)),
    "the description": (checkpoints, "write_json", lambda path, about: about["step"] == 4),
    "the rename": (Path, "rename", lambda path, to: "step-00000004" in str(to)),
    "the directory": (Path, "mkdir", lambda path: ".partial" in path.name and "step-00000004" in path.name),
    "the log": (TrainingLog, "_write", lambda log, step, values: step == 3),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("place", PLACES)
def test_a_disk_that_refuses_ends_it_with_a_word_and_keeps_the_last_checkpoint(
    place: str,
    number: int,
    stage: Stage,
    results: Path,
    directory: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where, name, when = PLACES[place]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, refuse(number, getattr(where, name), when))
        with pytest.raises(UserError, match=r"cannot be written: .*MB are free") as caught:
            train_stage(stage, results, OFTEN)
    assert "step-00000003 is whole" in caught.value.fix or "checkpoint of step 3 is whole" in caught.value.fix
    assert names(directory) == ["step-00000002", "step-00000003"]
    assert not list((directory / "checkpoints").glob(".partial*"))
    report = read_json(directory / "checkpoints" / "failed-00000.json")
    assert report["kind"] == failures.DISK and report["checkpoint"] == 3
    if number == errno.ENOSPC:
        train_stage(stage, results, OPTIONS)
        assert read_json(directory / RESULT)["summary"]["resumed_at"] == 3
        assert_same_stage(directory, uninterrupted)


def test_a_real_disk_that_is_full(stage: Stage, base: tuple[Plan, Path], tmp_path: Path, uninterrupted: Path) -> None:
    """A file system in memory with room for two checkpoints and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    # A checkpoint holds weights and two moments of each.
    size = sum((uninterrupted / name).stat().st_size for name in (f"model/{towers.WEIGHTS}", OBJECTIVE))
    if os.system(f"mount -t tmpfs -o size={int(2.5 * 3 * size)} none {disk} 2>/dev/null"):  # noqa: S605 - nothing of it comes from outside
        pytest.skip("needs to be root")
    try:
        results = disk / "results"
        results.mkdir()
        for name in ("data", "stages"):
            (results / name).mkdir()
        for path in (*(base[1] / "data").iterdir(), *(base[1] / "stages").iterdir()):
            (results / path.relative_to(base[1])).symlink_to(path)
        saved = results / "stages" / stage.address / "checkpoints"
        with pytest.raises(UserError, match=r"no space is left \([\d.]+ of [\d.]+ MB are free there, .* [\d.]+ MB\)"):
            train_stage(stage, results, OFTEN)
        kept = checkpoints.complete(saved)
        assert len(kept) == 2 and checkpoints._damaged(kept[-1], read_json(kept[-1] / "checkpoint.json")["files"]) is None
    finally:
        os.system(f"umount -l {disk}")  # noqa: S605


# --- memory ----------------------------------------------------------------------------------------------------------


def run_out(failing: list[int], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Run out of memory at each of these steps once, in this order; the steps begun, each with its micro-batches."""
    real, begun = Engine.step, []

    def step(self: Engine, batch: Any, step: int) -> Any:
        begun.append((step, self.accumulation))
        if failing and step == failing[0]:
            failing.pop(0)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, batch, step)

    monkeypatch.setattr(Engine, "step", step)
    return begun


def test_out_of_memory_goes_on_with_half_the_micro_batch(
    stage: Stage, results: Path, directory: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = run_out([3, 4], monkeypatch)
    train_stage(stage, results, OFTEN)
    assert begun == [(0, 1), (1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (4, 4), (5, 4)]
    summary = read_json(directory / RESULT)["summary"]
    assert [retry["accumulation"] for retry in summary["oom_retries"]] == [2, 4]
    assert "Tried to allocate" in summary["oom_retries"][0]["reason"] and summary["cut"]["accumulation"] == 4
    assert [line["step"] for line in stream(directory)] == list(range(6))
    assert stream(directory)[:3] == stream(uninterrupted)[:3]
    # ALSN's dropout draws for micro-batches of another size, so later losses are near, not equal.
    ours, theirs = ([line["loss"] for line in stream(path)] for path in (directory, uninterrupted))
    assert ours == pytest.approx(theirs, rel=0.05)


def test_a_halved_micro_batch_stays_halved_when_it_is_started_again(
    stage: Stage, results: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        begun = run_out([2], patch)
        at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(Interrupted):
            train_stage(stage, results, OFTEN)
    begun = run_out([], monkeypatch)
    train_stage(stage, results, OFTEN, attempt=1)
    assert begun == [(4, 2), (5, 2)]


def test_out_of_memory_stops_where_no_retry_is_left(
    stage: Stage, results: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out([1, 1], monkeypatch)
    with pytest.raises(UserError, match=r"out of memory, after 1 of 1 retries .*Tried to allocate"):
        train_stage(stage, results, OFTEN.model_copy(update={"oom_retries": 1}))


def test_memory_that_ran_out_on_one_of_several_ranks_halves_at_the_next_start(
    stage: Stage, results: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank of several cannot retry alone: it leaves word and ends."""
    with monkeypatch.context() as patch:
        at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(Interrupted):
            train_stage(stage, results, OFTEN)
    saved = directory / "checkpoints"
    origin = read_json(saved / failures.STOPPED)["origin"]
    failures.Failures(saved, origin, stage.label, 1).report(1, failures.MEMORY, "OutOfMemoryError: on rank 1", 4)
    begun = run_out([], monkeypatch)
    train_stage(stage, results, OFTEN, attempt=2)
    assert begun == [(4, 2), (5, 2)]


# --- failures and locks ----------------------------------------------------------------------------------------------


def test_the_third_failure_of_one_kind_is_the_last_and_success_forgets(
    stage: Stage, results: Path, directory: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down() -> None:
        raise ValueError("the network file system has lost a file")

    for attempt in (1, 2, 3):
        with monkeypatch.context() as patch:
            at_step(2, break_down, patch)
            with pytest.raises(ValueError, match="lost a file"):
                train_stage(stage, results, OPTIONS, attempt=attempt)
    with pytest.raises(UserError, match=r"failed 3 times in the same way \(error\)") as caught:
        train_stage(stage, results, OPTIONS, attempt=4)
    assert str(caught.value).count("ValueError: the network file system has lost a file") == 3
    train_stage(stage, results, OPTIONS, attempt=1)
    assert_same_stage(directory, uninterrupted)  # nothing is left beside the result


def test_a_process_that_lost_its_lock_writes_nothing_more(
    stage: Stage, results: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_taken_over() -> None:
        write_json(directory / LOCK, {**read_json(directory / LOCK), "token": "successor", "host": "node7"})

    at_step(3, be_taken_over, monkeypatch)
    with pytest.raises(LostLock, match=r"lost its lock.*on node7"):
        train_stage(stage, results, OFTEN)
    assert names(directory) == ["step-00000002", "step-00000003"]
    assert read_json(directory / LOCK)["host"] == "node7"
    assert not list((directory / "checkpoints").glob("failed-*"))


def test_a_stage_that_another_process_finished_meanwhile_is_not_trained_again(
    stage: Stage, results: Path, directory: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder ends while this process waits for its lock."""
    directory.mkdir()
    (directory / LOCK).write_text(json.dumps({"token": "other", "host": "node7", "pid": 1, "began": "today"}))

    def finish(seconds: float) -> None:
        if (directory / LOCK).exists():
            shutil.copytree(uninterrupted, directory, dirs_exist_ok=True)
            (directory / LOCK).unlink()

    monkeypatch.setattr("cmapkd.training.locks.time.sleep", finish)
    begun = run_out([], monkeypatch)
    train_stage(stage, results, OPTIONS)
    assert begun == [] and load_file(directory / "model" / towers.WEIGHTS)
    assert not (directory / LOCK).exists()
