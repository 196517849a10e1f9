"""What a job hands to its commands, and the nodes that a new attempt keeps away from; SLURM's answers are made up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cmapkd.cluster import Layout, Site, training_resources
from cmapkd.jobs import exclusion, failed_nodes, option, rename_logs, variables
from cmapkd.launch import launch_command
from cmapkd.workflow import job_prefix

JOB = (
    "JobId=7 JobName=x UserId=root(0) Requeue=1 Restarts={restarts} RunTime=00:00:03 TimeLimit=01:30:00 TimeMin=N/A "
    "SubmitTime=2026-03-01T09:00:00 StartTime=2026-03-01T10:00:00 EndTime=2026-03-01T11:30:00 Deadline=N/A Comment=a b"
)
INSIDE = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n2"}


def test_a_job_tells_its_limit_as_slurm_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        found = variables(2, INSIDE, lambda command: JOB.format(restarts=0))
    finally:
        monkeypatch.undo()
        time.tzset()
    # 2026-03-01T10:00:00 UTC: 20513 days after the epoch, and ten hours.
    assert float(found.pop("CMAPKD_STARTED")) == 20513 * 86400 + 36000
    assert found == {"CMAPKD_TIME_LIMIT": "90", "CMAPKD_ATTEMPT": "2", "CMAPKD_NODE": "n2", "CMAPKD_JOB": "7"}


def test_a_job_that_slurm_put_back_is_no_start_by_hand() -> None:
    assert variables(1, INSIDE, lambda command: JOB.format(restarts=2))["CMAPKD_ATTEMPT"] == "3"


@pytest.mark.parametrize(
    "told", [None, "", "JobId=7 Restarts=0 TimeLimit=UNLIMITED StartTime=2026-03-01T10:00:00 EndTime=Unknown"]
)
def test_without_an_answer_or_a_limit_none_is_handed_on(told: str | None) -> None:
    assert variables(1, INSIDE, lambda command: told) == {"CMAPKD_ATTEMPT": "1", "CMAPKD_NODE": "n2", "CMAPKD_JOB": "7"}


def test_outside_of_slurm_nothing_is_asked_or_said() -> None:
    def refuse(command: Sequence[str]) -> str | None:
        raise AssertionError(command)

    assert variables(1, {}, refuse) == {}


def test_the_start_and_the_limit_reach_every_node_through_a_container() -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NODEID": "1"}
    job = {"CMAPKD_STARTED": "1.5", "CMAPKD_TIME_LIMIT": "90", "CMAPKD_ATTEMPT": "2", "CMAPKD_NODE": "n1"}
    site = {"CMAPKD_RANKS_PER_NODE": "1", "CMAPKD_CONTAINER": "apptainer exec image.sif", "SLURMD_NODENAME": "n2"}
    command = launch_command(2, 0, ["train", "x"], {**step, **job, **site}, address_of=lambda name: name)
    assert command[3:9] == [
        "env", "CMAPKD_STARTED=1.5", "CMAPKD_TIME_LIMIT=90", "CMAPKD_ATTEMPT=2", "CMAPKD_NODE=n2", "python",
    ]  # fmt: skip


def fail(home: Path, name: str, node: str | None, kind: str, reason: str = "RuntimeError: x") -> None:
    path = home / "stages/fine-0123/checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"kind": kind, "node": node, "reason": reason}
    path.write_text(json.dumps({"failures": [report]} if name == "failures.json" else report))


def test_only_failures_that_a_node_may_cause_count_against_it(tmp_path: Path) -> None:
    fail(tmp_path, "failures.json", "n1", "ended without a word")
    fail(tmp_path, "failed-00000.json", "n3", "out of memory")
    fail(tmp_path, "failed-00001.json", "n4", "error")
    fail(tmp_path, "failed-00002.json", "n5", "error", "UserError: a misspelt key")
    fail(tmp_path, "failed-00003.json", "n6", "lost a rank")
    fail(tmp_path, "failed-00004.json", None, "error")
    fail(tmp_path, "failed-00005.json", "n7; rm", "error")
    assert failed_nodes(tmp_path) == ["n1", "n4"]


def test_a_node_that_died_without_a_word_counts_before_the_next_start(tmp_path: Path) -> None:
    fail(tmp_path, "running.json", "n2", "")
    assert failed_nodes(tmp_path) == ["n2"]
    lock = tmp_path / "stages/fine-0123/lock.json"
    lock.write_text('{"slurm_job": "7"}')
    assert failed_nodes(tmp_path, lambda command: "RUNNING\n") == [], "job 7 trains it"
    assert failed_nodes(tmp_path, lambda command: "PENDING\n") == ["n2"], "it was put back into the queue"
    assert failed_nodes(tmp_path, lambda command: None) == [], "nobody to ask, and its heart has just beaten"
    os.utime(lock, (0, 0))
    assert failed_nodes(tmp_path, lambda command: None) == ["n2"]


def test_a_second_attempt_keeps_away_where_other_nodes_remain(tmp_path: Path) -> None:
    fail(tmp_path, "failures.json", "n1", "error")

    def sinfo(command: Sequence[str]) -> str:
        return "n1|main*|idle\nn2|main*|mixed\nn3|main*|down*\nn4|low|idle\n"

    assert exclusion(tmp_path, 1, "", sinfo)(1) == "", "a start by hand"
    assert exclusion(tmp_path, 1, "", sinfo)(2) == "--exclude=n1"
    assert exclusion(tmp_path, 2, "", sinfo)(2) == "", "with two nodes only n2 and n4 remain, of which n4 is elsewhere"
    assert exclusion(tmp_path, 2, "low", sinfo)(2) == "--exclude=n1"
    extra = training_resources(Layout(1, 1), Site(), exclusion(tmp_path, 1, "", sinfo))["slurm_extra"]
    assert [extra(None, attempt) for attempt in (1, 2)] == ["--signal=USR1@120", "--signal=USR1@120 --exclude=n1"]


def test_a_command_heeds_signals_that_its_shell_ignores() -> None:
    program = "import os, signal; from cmapkd.jobs import heed_signals; heed_signals(); os.kill(os.getpid(), signal.SIGTERM)"
    ignoring = ["bash", "-c", 'trap "" TERM USR1; "$@"; exit $?', "bash", sys.executable, "-c", program]
    assert subprocess.run(ignoring, timeout=60).returncode == 128 + signal.SIGTERM


def test_the_shell_is_told_the_attempt_that_snakemake_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmapkd.jobs.outlive_signals", lambda: None)
    monkeypatch.setattr("cmapkd.jobs.variables", lambda attempt: {"CMAPKD_ATTEMPT": str(attempt), "CMAPKD_NODE": "a b"})
    told = job_prefix(True, ["snakemake", "--mode", "remote", "--attempt", "2", "--cores", "all"])
    assert told == "trap '' TERM USR1; export CMAPKD_ATTEMPT=2; export CMAPKD_NODE='a b'; "
    assert "CMAPKD_ATTEMPT=1;" in job_prefix(True, ["snakemake"])
    assert job_prefix(False, ["snakemake", "--attempt", "2"]) == ""


def test_values_of_an_option_end_at_the_next_one() -> None:
    words = ["snakemake", "--target-jobs", "train:stage=a", "train:stage=b", "--allowed-rules", "train"]
    assert option("--target-jobs", words) == ["train:stage=a", "train:stage=b"]
    assert option("--attempt", words) == []


def test_logs_of_earlier_attempts_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for text in ("one", "two", "three"):
        rename_logs([log, tmp_path / "missing.log"])
        log.write_text(text)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.log": "three", "a.attempt-1.log": "one", "a.attempt-2.log": "two",
    }  # fmt: skip
    log.write_text("")
    rename_logs([log])
    assert not (tmp_path / "a.attempt-3.log").exists(), "an empty log is not kept"
