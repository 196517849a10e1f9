"""The executor of Snakemake's SLURM plugin (snakemake-executor-plugin-slurm 2.8.0), for a SLURM that fails for a while.

It differs from the plugin's own executor in this; the first three are worth a report upstream:
    status: after ``status_attempts`` failed queries, made without a pause, the plugin yields none of its jobs. They are
        forgotten, and the workflow waits for ever. Here, a failed query settles nothing: all jobs stay, and SLURM is asked
        again after growing pauses.
    states: ``CANCELLED by 1000`` (sacct) counts as running there, PREEMPTED too also where SLURM does not requeue, and UNKNOWN
        as success. A job that no longer appears is waited for without end. Here, such a job is judged by its output files.
    submission: a refused ``sbatch`` is reported as a failure of the job, so a limit on submitted jobs uses up all retries
        within seconds. Here, a refusal that passes is repeated, and a final one uses up no retries.
    progress: a training that stopped with a new checkpoint is submitted again without a report of a failure.

Only the process that submits jobs uses this class (``install``): jobs run with the executor ``slurm-jobstep``.

All executors for jobs elsewhere write the path of Python into a shell line without quotes, so an environment in a folder with
a blank in its name fails (also worth a report). ``quote_interpreter`` adds them.
"""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm import Executor as PluginExecutor
from snakemake_executor_plugin_slurm.job_status_query import query_job_status_sacct, query_job_status_squeue
from snakemake_executor_plugin_slurm.utils import get_job_wildcards
from snakemake_executor_plugin_slurm_jobstep import Executor as JobstepExecutor
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from cmapkd.slurm import answers, progress, waiting

_LONGEST_POLL = 180.0  # seconds between two questions at most, as in the plugin: a job's end must be seen within MinJobAge
_STEP = 0.5  # seconds between two looks at whether the workflow ends


def install() -> None:
    """Have Snakemake create this executor for ``--executor slurm``. Without the plugin, nothing happens."""
    registry = ExecutorPluginRegistry()
    if registry.is_installed("slurm"):
        registry.get_plugin("slurm").executor = Executor


def quote_interpreter() -> None:
    """Have executors quote the path of Python in the shell lines of jobs, in the process that submits and in jobs."""
    for executor in (RemoteExecutor, JobstepExecutor):
        plain = executor.get_python_executable
        if not hasattr(plain, "__wrapped__"):
            executor.get_python_executable = wraps(plain)(lambda self, plain=plain: shlex.quote(plain(self)))


class Executor(PluginExecutor):
    """See the module."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before the base class: it starts the thread that asks for states.
        self.patience = answers.Patience.read()
        self._changed = threading.Condition()
        self._ending = False
        self._tracked: dict[str, SubmittedJobInfo] = {}  # by SLURM's number
        self._unsubmitted: dict[int, Any] = {}  # jobs by identity
        self._marks: dict[int, dict[Path, int]] = {}  # what the trainings of a job had reached at its start
        self._refusal = ""
        self._silent_since: float | None = None
        self._pauses = 0
        self._words = ""
        self._submitting = threading.local()
        super().__init__(workflow, logger)

    # Submission: in the plugin's threads, so a pause here holds back nothing but further submissions.

    def _submit_job(self, job: Any) -> None:
        self.run_job_pre(job)
        self._enqueue(job)

    def _enqueue(self, job: Any) -> None:
        with self._changed:
            self._unsubmitted[id(job)] = job
        self._job_submission_executor.submit(self.run_job, job)

    def run_job(self, job: Any) -> None:
        """Submit a job; where SLURM refuses it for a while, until it is accepted."""
        self._marks[id(job)] = progress.marks(progress.stages_of(_outputs(job)))
        began, pauses = time.monotonic(), 0
        try:
            while (message := self._attempt(job, again=pauses > 0)) is not None:
                words = answers.words_of(message)
                pause = None
                if answers.is_passing(words, self._controller_answers):
                    pause = self.patience.pause(pauses, time.monotonic() - began)
                if pause is None:
                    self._refuse(job, words)
                    return
                self._refusal = words
                self._write()
                self.logger.warning(f"SLURM does not take {_name(job)} yet: {words}. The next try is in {pause:g} s.")
                if not self._rest(pause):
                    return
                pauses += 1
            self._refusal = ""
        except Exception as error:  # in a thread, it would be lost, and the workflow would wait for ever
            self._report_job_error_threadsafe(SubmittedJobInfo(job), f"{_name(job)} could not be submitted: {error}\n")
        finally:
            with self._changed:
                self._unsubmitted.pop(id(job), None)
            self._write()

    def _attempt(self, job: Any, again: bool) -> str | None:
        """Call the plugin's submission: None if SLURM took the job, else the plugin's message."""
        if again:
            if (answer := self._ask(["sinfo", "-h", "-o", "%P"]))[0] is None:
                return answer[1]  # no reason to try
            if self._adopt(job):
                return None
        self._submitting.message, self._submitting.now = None, True
        try:
            super().run_job(job)
        finally:
            self._submitting.now = False
        return self._submitting.message

    def _report_job_error_threadsafe(self, job_info: SubmittedJobInfo, msg: str) -> None:
        if getattr(self._submitting, "now", False):
            self._submitting.message = msg
        else:
            super()._report_job_error_threadsafe(job_info, msg)

    def _adopt(self, job: Any) -> bool:
        """Look for a job that SLURM took although `sbatch` had no answer in time. Without it, the job would run twice."""
        if job.is_group():  # the comments of groups are not unique
            return False
        wildcards = get_job_wildcards(job)
        comment = f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
        listed, _ = self._ask(["squeue", "-h", "--name", self.run_uuid, "-o", "%i|%k"])
        for line in (listed or "").splitlines():
            number, _, found = line.strip().partition("|")
            if found == comment and number not in self._tracked:
                log = self.slurm_logdir / f"rule_{job.name}" / wildcards / f"{number}.log"
                self._report_job_submission_threadsafe(SubmittedJobInfo(job, external_jobid=number, aux={"slurm_logfile": log}))
                return True
        return False

    def _refuse(self, job: Any, words: str) -> None:
        """Fail a job at once: its retries would be refused in the same words."""
        job.attempt = job.restart_times + 1
        self._report_job_error_threadsafe(
            SubmittedJobInfo(job),
            f"SLURM sbatch failed. SLURM refuses {_name(job)}, and would refuse it each time: {words}\n"
            "  fix: `cmapkd site` writes what this site allows into the profile; docs/troubleshooting.md explains the words\n",
        )

    def _controller_answers(self) -> bool:
        return self._ask(["sinfo", "-h", "-o", "%P"])[0] is not None

    def _ask(self, command: list[str]) -> tuple[str | None, str]:
        """Output of a program of SLURM, or None and what it wrote instead."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, str(error)
        return (done.stdout, "") if done.returncode == 0 else (None, answers.words_of(done.stderr))

    def _rest(self, seconds: float) -> bool:
        """Wait, at most until a job ends and so makes room; False where the workflow ends."""
        with self._changed:
            if not self._ending:
                self._changed.wait(seconds)
            return not self._ending

    # States.

    def report_job_submission(self, job_info: SubmittedJobInfo, register_job: bool = True) -> None:
        """As the plugin; the job is also kept where a query cannot lose it."""
        self._tracked[str(job_info.external_jobid)] = job_info
        super().report_job_submission(job_info, register_job=register_job)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Settle the jobs that have ended, and yield all others."""
        usual = float(getattr(self.workflow.executor_settings, "init_seconds_before_status_checks", None) or 40)
        if not active_jobs:
            self.next_seconds_between_status_checks = usual
            self._write()
            return
        states = await self._states()
        if states is None:
            self.next_seconds_between_status_checks = self._wait_for_slurm(active_jobs)
            self._write()
            for info in active_jobs:
                yield info
            return
        self._answered()
        settled = False
        for info in active_jobs:
            if await self._settle(info, states):
                settled = True
            else:
                yield info
        if settled:
            with self._changed:
                self._changed.notify_all()
        self._write()
        now = self.next_seconds_between_status_checks
        self.next_seconds_between_status_checks = usual if settled else min(now + usual / 3, max(usual, _LONGEST_POLL))

    async def _states(self) -> dict[str, str] | None:
        """State of each job of this workflow by its number; None without an answer."""
        by_sacct = self.get_status_command() == "sacct"
        command = (query_job_status_sacct if by_sacct else query_job_status_squeue)(self.run_uuid)
        asked = time.monotonic()
        async with self.status_rate_limiter:
            answer, self._words = await asyncio.to_thread(self._ask, shlex.split(command))
        if answer is None:
            self._silent_since = self._silent_since or asked
            return None
        parts = (line.split("|") for line in answer.splitlines() if "|" in line)
        return {number.strip(): answers.state_of(state) for number, state, *_ in parts}

    def _wait_for_slurm(self, active_jobs: list[SubmittedJobInfo]) -> float:
        """Seconds to wait after a failed query.

        Raises:
            WorkflowError: SLURM has not answered for too long.
        """
        waited = time.monotonic() - (self._silent_since or 0.0)
        pause = self.patience.pause(self._pauses, waited)
        count = f"{len(active_jobs)} job{'s' if len(active_jobs) > 1 else ''}"
        if pause is None:
            named = ", ".join(f"{info.external_jobid} ({_name(info.job)})" for info in active_jobs)
            raise WorkflowError(
                f"SLURM has not answered for {_clock(waited)} ({self._words}), and the workflow stops waiting for {count}: "
                f"{named}. They may still run (`squeue --me`). Start the same command again when SLURM answers: what is done "
                "is kept, and a training that still runs is not started twice."
            )
        self._pauses += 1
        self.logger.warning(
            f"SLURM does not answer ({self._words}): the workflow still waits for {count}. The next question is in {pause:g} s."
        )
        return pause

    def _answered(self) -> None:
        if self._silent_since is not None:
            self.logger.warning(f"SLURM answers again, after {_clock(time.monotonic() - self._silent_since)}.")
        self._silent_since, self._pauses = None, 0

    async def _settle(self, info: SubmittedJobInfo, states: dict[str, str]) -> bool:
        """Report a job that has ended, or submit it again; False: it waits or runs."""
        number = str(info.external_jobid)
        state = states.get(number) or states.get(number.partition("_")[0])  # of an array, sacct may know the parent only
        if state in (None, "UNKNOWN"):
            state = await self._look_for(info)
        if state is None:
            return False
        if state == answers.COMPLETED or (state == "GONE" and all(Path(str(path)).exists() for path in _outputs(info.job))):
            self.report_job_success(info)
            self._remove_log(info)
        elif state in answers.ENDED:
            # SLURM puts it back into the queue by itself, unless the site or the partition forbids it.
            requeued = state in answers.REQUEUED and self.workflow.executor_settings.requeue
            if requeued and self._since(info, "lost") < self.patience.unknown:
                return False
            return self._ended(info, str(state))
        else:
            for key in ("missing", "lost", "ended"):
                info.aux.pop(key, None)
            return False
        self._forget(info)
        return True

    async def _look_for(self, info: SubmittedJobInfo) -> str | None:
        """State of a job that is not listed, or no longer: ``GONE`` if SLURM knows nothing of it; None: not known yet."""
        if self._since(info, "missing") < self.patience.first:
            return None
        command = ["scontrol", "show", "job", "--oneliner", str(info.external_jobid)]
        answer, words = await asyncio.to_thread(self._ask, command)
        if answer is not None and "JobState=" in answer:
            info.aux.pop("missing")
            return answers.state_of(answer.partition("JobState=")[2])
        if "invalid job id" not in words.lower() and answer is None:
            return None  # no answer
        if all(Path(str(path)).exists() for path in _outputs(info.job)) or self._since(info, "missing") > self.patience.unknown:
            return "GONE"
        if self._since(info, "told missing") == 0:
            self.logger.warning(
                f"SLURM does not know job {info.external_jobid} ({_name(info.job)}) any more. Unless it appears again or its "
                f"files do, it counts as failed in {_clock(self.patience.unknown)}."
            )
        return None

    def _ended(self, info: SubmittedJobInfo, state: str) -> bool:
        """A job that did not complete: again if a training got on in it, else a failure. False: its files may still appear."""
        job = info.job
        before = self._marks.get(id(job), {})
        outside = state in answers.OUTSIDE
        stop = progress.stopped_since(before, outside)
        if stop is not None:
            if self._ending:
                return False
            why = stop.reason or answers.OUTSIDE.get(state, "")
            steps = f" of {stop.steps}" if stop.steps else ""
            self.logger.warning(f"{stop.stage} stopped at step {stop.step}{steps} {why} and was submitted again.")
            self._forget(info)
            self._enqueue(job)
            return True
        latency = float(self.workflow.execution_settings.latency_wait or 0)
        if before and not progress.has_failed(before) and self._since(info, "ended") < latency:
            return False
        known = "SLURM no longer knows it, and its files are missing" if state == "GONE" else f"its state in SLURM is {state}"
        more = " No training of it has saved a new checkpoint since it was submitted." if before and outside else ""
        log = info.aux.get("slurm_logfile")
        self.report_job_error(
            info,
            msg=f"SLURM job {info.external_jobid} ({_name(job)}) failed: {known}.{more} ",
            aux_logs=[str(log)] if log is not None else [],
        )
        self._forget(info)
        return True

    def _since(self, info: SubmittedJobInfo, what: str) -> float:
        """Seconds since something was first seen of a job: 0 at the first call."""
        now = time.monotonic()
        return now - float(info.aux.setdefault(what, now))

    def _forget(self, info: SubmittedJobInfo) -> None:
        self._tracked.pop(str(info.external_jobid), None)

    def _remove_log(self, info: SubmittedJobInfo) -> None:
        log = info.aux.get("slurm_logfile")
        if log is not None and not self.workflow.executor_settings.keep_successful_logs:
            try:
                Path(log).unlink(missing_ok=True)
            except OSError as error:
                self.logger.warning(f"{log} could not be removed: {error}")

    # The end.

    async def sleep(self) -> None:
        """Wait for the next question, at most until the workflow ends."""
        end = time.monotonic() + float(self.next_seconds_between_status_checks)
        while self.wait and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(_STEP, left))

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs, also those whose states are being asked for just now."""
        self._end()
        jobs = {str(info.external_jobid): info for info in (*active_jobs, *self._tracked.values())}
        try:
            super().cancel_jobs(list(jobs.values()))
        except WorkflowError as error:
            self.logger.error(f"{error}\nThe jobs may still run. Cancel them when SLURM answers: scancel {' '.join(jobs)}")

    def shutdown(self) -> None:
        """End, without waiting for jobs that SLURM refuses."""
        self._end()
        super().shutdown()
        waiting.remove()

    def _end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def _write(self) -> None:
        if self._ending:
            return
        with self._changed:
            unsubmitted = tuple(_name(job) for job in self._unsubmitted.values())
        silent = time.monotonic() - self._silent_since if self._silent_since is not None else 0.0
        jobs = {number: _name(info.job) for number, info in list(self._tracked.items())}
        waiting.write(waiting.Waiting(jobs, unsubmitted, self._refusal if unsubmitted else "", silent, self._words))


def _outputs(job: Any) -> Iterator[Any]:
    for member in job.jobs if job.is_group() else (job,):
        yield from member.output


def _name(job: Any) -> str:
    """What a job does, for people: its rule and wildcards."""
    wildcards = get_job_wildcards(job)
    return f"{job.name} {wildcards}" if wildcards else str(job.name)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
