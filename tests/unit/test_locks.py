"""One process trains a stage: a living holder is waited for, a dead one replaced, and a ghost notices."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.training.locks import FILE, LostLock, StageLock, identity


def lock(directory: Path, wait: float = 0.0, stale: float = 60.0, **options: Any) -> StageLock:
    return StageLock(directory, "Run, seed 0: stage", wait, stale, poll=0.01, **options)


def elsewhere(directory: Path, age: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A lock of a process on another machine, whose heart last beat ``age`` seconds ago."""
    content = {"token": "other", **identity(), "host": "node7", "pid": 4242, "slurm_job": "31", "began": "yesterday", **changes}
    (directory / FILE).write_text(json.dumps(content))
    then = time.time() - age
    os.utime(directory / FILE, (then, then))
    return content


def test_it_is_there_within_the_block_and_names_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "815")
    with lock(tmp_path / "new") as held:
        content = read_json(tmp_path / "new" / FILE)
        assert content["pid"] == os.getpid() and content["slurm_job"] == "815" and content["token"] == held.token
        held.check()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_living_holder_is_waited_for_then_named(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=r"process 4242 on node7 \(since yesterday, SLURM job 31\)") as caught,
        lock(tmp_path, 0.2),
    ):
        pass
    assert time.monotonic() - began > 0.2 and caught.value.key == "Run, seed 0: stage"
    assert read_json(tmp_path / FILE)["host"] == "node7"


def test_who_waits_goes_on_when_the_holder_has_finished(tmp_path: Path) -> None:
    with lock(tmp_path) as first:
        timer = threading.Timer(0.2, first.__exit__)
        timer.start()
        with lock(tmp_path, wait=20) as second:
            assert second.waited and not first.waited
            timer.join()
            assert read_json(tmp_path / FILE)["token"] == second.token


def test_a_signal_ends_the_waiting(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    with pytest.raises(UserError), lock(tmp_path, wait=1000, stop=lambda: True):
        pass


def test_a_heart_that_stopped_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere(tmp_path, age=90)
    with lock(tmp_path) as held:
        held.check()
        assert "took over the lock of process 4242 on node7" in caplog.text and "heart stopped 1.5 minutes ago" in caplog.text


def test_a_lock_cut_short_by_a_kill_falls_when_it_is_old(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"token": "ot')
    with pytest.raises(UserError, match="a process that left no name"), lock(tmp_path):
        pass
    os.utime(tmp_path / FILE, (0, 0))
    with lock(tmp_path):
        pass


def test_a_process_of_this_machine_that_is_gone_is_replaced_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = f"""
import os, sys
from pathlib import Path
from cmapkd.training.locks import StageLock
StageLock(Path({str(tmp_path)!r}), "stage", 0, 60).__enter__()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / FILE).is_file()
    with lock(tmp_path):
        assert "whose process is gone" in caplog.text


def test_a_number_given_to_another_process_does_not_deceive(tmp_path: Path) -> None:
    elsewhere(tmp_path, **{**identity(), "born": "1"})  # this process's number, but it started at another time
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("changes", [{"space": "another boot or container"}, {"host": "node7"}])
def test_a_process_of_another_machine_or_container_is_not_judged_by_its_number(tmp_path: Path, changes: dict[str, str]) -> None:
    elsewhere(tmp_path, **{**identity(), "pid": 2**22 + 1, **changes})
    with pytest.raises(UserError), lock(tmp_path):
        pass


def test_the_heart_keeps_it(tmp_path: Path) -> None:
    with lock(tmp_path, stale=0.5, beat=0.05):
        time.sleep(1.0)
        with pytest.raises(UserError), lock(tmp_path, stale=0.5):
            pass


def test_a_ghost_notices_and_leaves_the_lock_of_its_successor(tmp_path: Path) -> None:
    ghost = lock(tmp_path, beat=1000).__enter__()
    os.utime(tmp_path / FILE, (0, 0))  # it did not run for a while
    with lock(tmp_path) as successor:
        with pytest.raises(LostLock, match=f"lost its lock.*process {os.getpid()}"):
            ghost.check()
        ghost.__exit__()
        successor.check()


def test_the_heart_of_a_ghost_stops(tmp_path: Path) -> None:
    ghost = lock(tmp_path, beat=0.02).__enter__()
    elsewhere(tmp_path, age=500)
    until = time.monotonic() + 20
    while not ghost.lost and time.monotonic() < until:
        time.sleep(0.01)
    assert ghost.lost and time.time() - (tmp_path / FILE).stat().st_mtime > 400
    ghost.__exit__()
    assert (tmp_path / FILE).is_file()


def _contend(directory: Path, gate: Any, results: Any) -> None:
    gate.wait()
    mine = lock(directory)
    try:
        mine.__enter__()
        time.sleep(0.3)
        mine.check()
        results.put("held")
    except UserError as error:
        results.put(type(error).__name__)


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_that_come_at_once_one_gets_it(tmp_path: Path, stale: bool) -> None:
    if stale:
        elsewhere(tmp_path, age=1000)
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_contend, args=(tmp_path, gate, results)) for _ in range(6)]
    for process in processes:
        process.start()
    outcomes = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert outcomes == ["UserError"] * 5 + ["held"]
