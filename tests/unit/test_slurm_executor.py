"""The executor that outlasts SLURM, without a SLURM: its questions are answered here."""

from __future__ import annotations

import asyncio
import shlex
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake_executor_plugin_slurm_jobstep as jobstep
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors import remote
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from cmapkd.slurm import executor, progress
from cmapkd.slurm.answers import Patience
from cmapkd.slurm.executor import Executor, install
from cmapkd.training.failures import Failures


class Limiter:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None: ...


class Told(Executor):
    """An executor whose programs answer from a dictionary; what it reports is kept."""

    def __init__(self, folder: Path, requeue: bool = False) -> None:
        settings = SimpleNamespace(init_seconds_before_status_checks=30, keep_successful_logs=False, requeue=requeue)
        self.workflow = SimpleNamespace(
            executor_settings=settings, execution_settings=SimpleNamespace(latency_wait=0), scheduler=None,
            remote_execution_settings=SimpleNamespace(seconds_between_status_checks=30),
        )  # fmt: skip
        self.said: list[str] = []
        self.logger = SimpleNamespace(warning=self.said.append, error=self.said.append)
        self.patience, self.status_rate_limiter, self.run_uuid = Patience(10, 300, 3600), Limiter(), "run"
        self._next_seconds_between_status_checks = None
        self._changed, self._ending, self._tracked, self._unsubmitted, self._marks = threading.Condition(), True, {}, {}, {}
        self._refusal, self._silent_since, self._pauses, self._words = "", None, 0, ""
        self.answers: dict[str, tuple[str | None, str]] = {}
        self.done: list[str] = []
        self.failed: list[str] = []
        self.again: list[Any] = []

    def get_status_command(self) -> str:
        return "squeue"

    def _ask(self, command: list[str]) -> tuple[str | None, str]:
        return self.answers[command[0]]

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        self.done.append(str(job_info.external_jobid))

    def report_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **options: Any) -> None:
        self.failed.append(str(msg))

    def _enqueue(self, job: Any) -> None:
        self.again.append(job)

    def look(self, *jobs: SubmittedJobInfo) -> list[str]:
        """Numbers of the jobs that are still waited for."""

        async def check() -> list[str]:
            return [str(info.external_jobid) async for info in self.check_active_jobs(list(jobs))]

        return asyncio.run(check())


def job(number: str, *outputs: Path) -> SubmittedJobInfo:
    made = SimpleNamespace(name="train", output=list(outputs), is_group=lambda: False, wildcards=[], restart_times=3, attempt=1)
    return SubmittedJobInfo(made, external_jobid=number, aux={})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the executor sees, in seconds."""
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("cmapkd.slurm.executor.time.monotonic", lambda: made.now)
    return made


def test_a_failed_question_keeps_all_jobs_for_more_than_an_hour_and_then_names_them(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    executor = Told(tmp_path)
    executor.answers["squeue"] = (None, "Unable to contact slurm controller")
    jobs = job("12", tmp_path / "a"), job("13", tmp_path / "b")
    began, pauses = clock.now, []
    with pytest.raises(
        WorkflowError, match=r"not answered for 1:\d\d:\d\d \(Unable to contact slurm controller\).*12 \(train\), 13"
    ):
        while True:
            assert executor.look(*jobs) == ["12", "13"]
            pauses.append(executor.next_seconds_between_status_checks)
            clock.now += pauses[-1]
    assert pauses[:6] == [10, 20, 40, 80, 160, 300] and clock.now - began >= 3600
    assert len(executor.said) == len(pauses), "one line for each pause"


def test_an_answer_after_failed_ones_settles_the_jobs(tmp_path: Path, clock: SimpleNamespace) -> None:
    executor = Told(tmp_path)
    executor.answers["squeue"] = (None, "busy")
    assert executor.look(job("12")) == ["12"]
    executor.answers["squeue"] = ("12|COMPLETED\n13|RUNNING\n14|PENDING\n15|FAILED\n16|CANCELLED by 0\n", "")
    jobs = [job(number, tmp_path / number) for number in ("12", "13", "14", "15", "16")]
    assert executor.look(*jobs) == ["13", "14"]
    assert executor.done == ["12"] and len(executor.failed) == 2
    assert executor.next_seconds_between_status_checks == 30


@pytest.mark.parametrize("there", [True, False])
def test_a_job_that_is_listed_nowhere_is_judged_by_its_files(tmp_path: Path, clock: SimpleNamespace, there: bool) -> None:
    executor = Told(tmp_path)
    executor.answers = {"squeue": ("", ""), "scontrol": (None, "slurm_load_jobs error: Invalid job id specified")}
    lost = job("12", tmp_path / "made")
    assert executor.look(lost) == ["12"], "it may be too new to be listed"
    if there:
        (tmp_path / "made").touch()
    clock.now += 20
    assert executor.look(lost) == ([] if there else ["12"])
    clock.now += 601
    if not there:
        assert executor.look(lost) == []
    assert executor.done == (["12"] if there else []) and len(executor.failed) == (0 if there else 1)


def test_a_job_that_only_scontrol_knows_is_waited_for(tmp_path: Path, clock: SimpleNamespace) -> None:
    executor = Told(tmp_path)
    executor.answers = {"squeue": ("", ""), "scontrol": ("JobId=12 JobState=RUNNING Reason=None", "")}
    lost = job("12", tmp_path / "made")
    for _ in range(50):
        assert executor.look(lost) == ["12"]
        clock.now += 100
    executor.answers["scontrol"] = (None, "Unable to contact slurm controller")
    for _ in range(50):
        assert executor.look(lost) == ["12"]
        clock.now += 100


@pytest.mark.parametrize("state", ["TIMEOUT", "PREEMPTED", "NODE_FAIL", "CANCELLED"])
def test_a_training_that_was_ended_from_outside_goes_on_while_it_gets_on(
    tmp_path: Path, clock: SimpleNamespace, state: str
) -> None:
    executor = Told(tmp_path)
    executor._ending = False
    executor._write = lambda: None  # type: ignore[method-assign]
    executor.answers["squeue"] = (f"12|{state}\n", "")
    info = job("12", tmp_path / "stage.json")
    executor._marks[id(info.job)] = progress.marks([tmp_path])
    saved = tmp_path / "checkpoints/step-00000043"
    saved.mkdir(parents=True)
    (saved / "checkpoint.json").write_text("{}")
    Failures(tmp_path / "checkpoints", "origin", "KD, seed 0: train", 1).running(0, 160)
    assert executor.look(info) == [] and executor.again == [info.job] and not executor.failed
    assert executor.said[-1].startswith("KD, seed 0: train stopped at step 43 of 160 by ")
    executor._marks[id(info.job)] = progress.marks([tmp_path])
    assert executor.look(info) == [] and len(executor.again) == 1
    assert "No training of it has saved a new checkpoint" in executor.failed[0]


def test_a_preempted_job_is_left_to_slurm_where_it_is_requeued(tmp_path: Path, clock: SimpleNamespace) -> None:
    executor = Told(tmp_path, requeue=True)
    executor.answers["squeue"] = ("12|PREEMPTED\n", "")
    info = job("12", tmp_path / "made")
    assert executor.look(info) == ["12"]
    clock.now += 601
    assert executor.look(info) == [] and executor.failed, "SLURM has not put it back"


def test_a_refusal_for_good_leaves_no_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Told(tmp_path)
    told: list[str] = []
    monkeypatch.setattr(Executor, "_report_job_error_threadsafe", lambda self, info, msg: told.append(msg))
    refused = job("0").job
    executor._refuse(refused, "Invalid qos specification")
    assert refused.attempt == refused.restart_times + 1
    assert "Invalid qos specification" in told[0] and "fix:" in told[0]


def test_only_the_executor_of_the_plugin_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ExecutorPluginRegistry()
    plugin, local = registry.get_plugin("slurm"), registry.get_plugin("local")
    before = plugin.executor, local.executor
    monkeypatch.setattr(plugin, "executor", plugin.executor)  # put back at the end
    install()
    assert plugin.executor is Executor and local.executor is before[1]
    assert issubclass(Executor, before[0])


def test_the_path_of_python_is_one_word_of_a_shell_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment may be in a folder with a blank in its name."""
    for module in (remote, jobstep):
        monkeypatch.setattr(module.sys, "executable", "/a b/é/python")
    usage = SimpleNamespace(storage_settings=SimpleNamespace(shared_fs_usage=[remote.SharedFSUsage.SOFTWARE_DEPLOYMENT]))
    kinds = (remote.RemoteExecutor, jobstep.Executor)
    for kind in kinds:
        monkeypatch.setattr(kind, "get_python_executable", kind.get_python_executable)  # to be put back
    for _ in range(2):  # a second call quotes no more
        executor.quote_interpreter()
        for kind in kinds:
            assert shlex.split(kind.get_python_executable(SimpleNamespace(workflow=usage))) == ["/a b/é/python"]
