"""Failures are counted, three of one kind stop; memory halves the micro-batch; disks, limits and signals are put into words."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cmapkd.errors import UserError
from cmapkd.files import read_json, write_json
from cmapkd.training import failures as kinds
from cmapkd.training.failures import Failures, left_by_memory, lost_a_rank, was_stopped
from cmapkd.training.memory import Halvings
from cmapkd.training.stopping import EXIT, STARTED, Budget, Signals
from cmapkd.training.storage import disk_error, is_disk_error, writing

# --- failures --------------------------------------------------------------------------------------------------------


def attempt(directory: Path, kind: str, checkpoint: int = 4, rank: int = 0, number: int = 2) -> list[dict[str, object]]:
    """An attempt that looks back and then fails; what it saw."""
    these = Failures(directory, "origin", "stage", number)
    seen = these.gather()
    these.check(seen)
    these.running(checkpoint)
    these.report(rank, kind, f"reason {len(seen)}", checkpoint)
    return seen


def test_three_of_one_kind_stop_with_all_three(tmp_path: Path) -> None:
    assert [len(attempt(tmp_path, kinds.ERROR)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"failed 3 times in the same way \(error\)") as caught:
        attempt(tmp_path, kinds.ERROR)
    for number in range(3):
        assert f"{number + 1}. after step 4, rank 0" in str(caught.value) and f"reason {number}" in str(caught.value)
    assert len(read_json(tmp_path / kinds.FILE)["failures"]) == 3
    assert attempt(tmp_path, kinds.ERROR, number=1) == []  # a start by hand forgets them


@pytest.mark.parametrize(
    "sequence",
    [
        [(kinds.ERROR, 4), (kinds.ERROR, 4), (kinds.DISK, 4), (kinds.ERROR, 4)],  # of another kind
        [(kinds.ERROR, 4), (kinds.ERROR, 4), (kinds.ERROR, 6), (kinds.ERROR, 6)],  # it got on in between
    ],
)
def test_others_between_them_start_the_count_anew(sequence: list[tuple[str, int]], tmp_path: Path) -> None:
    for kind, checkpoint in sequence:
        attempt(tmp_path, kind, checkpoint)
    attempt(tmp_path, *sequence[-1])


def test_an_attempt_that_ended_without_a_word_is_known(tmp_path: Path) -> None:
    Failures(tmp_path, "origin", "stage", 1).running(3)
    later = Failures(tmp_path, "origin", "stage", 2)
    (found,) = later.gather()
    assert found["kind"] == kinds.KILLED and found["checkpoint"] == 3 and later.fresh == found
    again = Failures(tmp_path, "origin", "stage", 3)
    assert again.gather() == [found] and again.fresh is None


def test_one_that_was_stopped_is_no_failure(tmp_path: Path) -> None:
    these = Failures(tmp_path, "origin", "stage")
    these.running(3)
    these.stopped(5, "asked to")
    assert was_stopped(tmp_path)
    assert Failures(tmp_path, "origin", "stage").gather() == [] and not was_stopped(tmp_path)


def test_of_several_ranks_the_one_with_the_cause_counts(tmp_path: Path) -> None:
    these = Failures(tmp_path, "origin", "stage")
    these.running(0)
    these.report(0, kinds.LOST, "Connection closed by peer", 0)
    assert not left_by_memory(tmp_path)
    these.report(1, kinds.MEMORY, "CUDA out of memory", 0)
    assert left_by_memory(tmp_path)
    (found,) = Failures(tmp_path, "origin", "stage").gather()
    assert found["rank"] == 1 and found["kind"] == kinds.MEMORY
    assert not left_by_memory(tmp_path)


def test_failures_of_other_code_or_settings_are_forgotten(tmp_path: Path) -> None:
    for _ in range(3):
        attempt(tmp_path, kinds.ERROR)
    assert Failures(tmp_path, "edited", "stage").gather() == []


def test_a_rank_that_is_gone_is_recognised() -> None:
    gone = "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242"
    assert lost_a_rank(RuntimeError(gone)) and not lost_a_rank(RuntimeError("shapes differ"))


# --- memory ----------------------------------------------------------------------------------------------------------


def halvings(directory: Path, limit: int = 2, samples: int = 12, origin: str = "origin") -> Halvings:
    return Halvings(directory, origin, limit, "stage", samples, 1)


def test_each_retry_halves_the_micro_batch_until_it_cannot(tmp_path: Path) -> None:
    assert halvings(tmp_path).accumulation == 1
    halvings(tmp_path).take("first")
    later = halvings(tmp_path)
    assert later.accumulation == 2 and later.taken == [{"reason": "first", "accumulation": 2}]
    later.take("second")
    assert later.accumulation == 4
    with pytest.raises(UserError, match="after 2 of 2 retries"):
        later.take("third")
    with pytest.raises(UserError, match="a micro-batch of 3 samples cannot be halved"):
        halvings(tmp_path, limit=9).take("third")
    assert halvings(tmp_path).accumulation == 4
    assert halvings(tmp_path, origin="edited").accumulation == 1


# --- disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("by", ["system", "torch", "safetensors"])
def test_a_disk_that_refuses_is_told_with_path_space_and_what_is_kept(number: int, by: str, tmp_path: Path) -> None:
    error: Exception = OSError(number, os.strerror(number))
    if by == "torch":
        error = RuntimeError(f"[enforce fail at inline_container.cc:672] . {os.strerror(number)}")
    elif by == "safetensors":
        error = ValueError(f"Error while serializing: I/O error: message (os error {number})")
    path = tmp_path / "checkpoints" / "file"
    with pytest.raises(UserError, match=r"cannot be written: .*MB are free there") as caught, writing(path, "step 7 is whole"):
        raise error
    assert caught.value.key == str(path) and "step 7 is whole" in caught.value.fix
    assert is_disk_error(error) and is_disk_error(caught.value)


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    for error in (OSError(errno.ENOENT, "No such file"), ValueError("no"), KeyError("step")):
        assert disk_error(error, tmp_path, "") is None and not is_disk_error(error)
        with pytest.raises(type(error)), writing(tmp_path, ""):
            raise error


# --- limits and signals ----------------------------------------------------------------------------------------------


def test_the_reserve_is_three_checkpoints_a_step_and_the_margin() -> None:
    budget = Budget(60, 2, started=0.0)
    budget.saved(100)
    budget.saved(40)
    budget.stepped(7)
    assert budget.reserve == 3 * 100 + 7 + 120
    assert not budget.used_up(3600 - 428) and budget.used_up(3600 - 427)


def test_before_the_first_checkpoint_it_is_guessed_but_not_more_than_a_tenth() -> None:
    assert Budget(60, 0, started=0.0).reserve == 180
    assert Budget(10, 0, started=0.0).reserve == 60


def test_without_a_limit_time_is_never_used_up() -> None:
    assert not Budget(0, 2, started=0.0).used_up(1e12)


def test_a_limit_below_the_margin_is_refused() -> None:
    with pytest.raises(UserError, match=r"--time-limit = 2: leaves nothing beside training\.stop_margin_minutes = 2"):
        Budget(2, 2)


def test_the_time_counts_from_the_first_process_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTED, "1000.0")
    assert Budget(10, 0).used_up(1000 + 540) and not Budget(10, 0).used_up(1000 + 539)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_noted_and_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Signals() as asked:
        assert not asked.stop
        os.kill(os.getpid(), number)
        assert asked.stop and asked.name == number.name
    assert signal.getsignal(number) == before


def test_a_signal_before_training_has_begun_ends_with_the_exit_code_of_what_is_not_done() -> None:
    code = "import os, signal\nfrom cmapkd.training.stopping import leave_when_asked\nleave_when_asked()\n"
    for number in ("SIGTERM", "SIGINT", "SIGUSR1"):
        ended = subprocess.run([sys.executable, "-c", f"{code}os.kill(os.getpid(), signal.{number})"], check=False)
        assert ended.returncode == EXIT == 75


def test_a_running_mark_of_other_code_is_ignored(tmp_path: Path) -> None:
    write_json(tmp_path / kinds.RUNNING, {"origin": "edited", "rank": 0, "host": "node", "attempt": 0, "checkpoint": 0})
    assert Failures(tmp_path, "origin", "stage").gather() == [] and not (tmp_path / kinds.RUNNING).exists()
