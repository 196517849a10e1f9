"""A training by `snakemake --profile slurm` on a SLURM of our own that is disturbed again and again, as clusters do.

The training, its undisturbed twin and the comparison are those of ``tests.pipeline.soak``. Here the workflow runs it as a job:
it is cancelled, requeued, runs out of time, is preempted by a job of a higher partition, and loses a rank, torchrun or the
workflow itself to SIGKILL. The profile's retries go on with it; when they are used up, the workflow is started again.

    python -m tests.pipeline.soak --slurm --count 20

prints a table: what was done at which step, what SLURM made of it, from which checkpoint the training goes on.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.slurm import Cluster
from tests.pipeline.conftest import copy_repository
from tests.pipeline.soak import REPOSITORY, Soak, _steps

# Not more than this lab has, asked often, and in the partition whose jobs are preempted.
LAB = [
    "--profile", "slurm", "--workflow-profile", "workflow/profiles/slurm-bare", "--jobs", "2", "--latency-wait", "10",
    "--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2",
    "--default-resources", "ranks_per_node=2", "gpu_request=gres=gpu:{n}", "mem_mb=2000", "runtime=30", "slurm_partition=low",
    "--set-resources", "train:mem_mb=2000", "train:runtime=30", "train:slurm_partition=low", "--set-threads", "train=2",
    "--allowed-rules", "train",
]  # fmt: skip
PATIENCE = 1800.0  # seconds for anything to happen, on a machine however busy


@dataclass
class Disturbance:
    """What was done to the job of a training, and what was left of it."""

    number: int
    what: str
    job: str
    at: int
    state: str
    checkpoint: int

    def __str__(self) -> str:
        again = max(0, self.at - self.checkpoint)
        return (
            f"{self.number:3}  {self.what:16} job {self.job:>4} at step {self.at:3}: {self.state:10} "
            f"goes on from {self.checkpoint:3}, {again:3} steps again, nothing lost"
        )


class SlurmSoak(Soak):
    """A training in ``folder`` that the workflow runs on ``cluster``."""

    def __init__(self, folder: Path, cluster: Cluster, steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, ranks=2, steps=steps)
        self.cluster = cluster
        self.checkout = copy_repository(folder / "checkout")
        (self.checkout.root / "slurm").symlink_to((REPOSITORY / "slurm").readlink())
        self.result = self.stage("disturbed") / "stage.json"
        self.driver: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def snakemake(self, *options: str) -> list[str]:
        given = ["--configfile", str(self.experiment), "--config", f"results={self.folder / 'disturbed'}"]
        return [sys.executable, "-m", "snakemake", str(self.result), *LAB, *given, *options]

    def drive(self) -> None:
        """Start the workflow, if it does not run."""
        if self.driver is not None and self.driver.poll() is None:
            return
        environment = {**self.checkout.environment, **self.cluster.environment}
        environment["PATH"] = f"{self.cluster.root / 'bin'}:{self.checkout.environment['PATH']}"
        with (self.folder / "log.txt").open("a") as told:
            options = {"cwd": self.checkout.root, "env": environment, "stdout": told, "stderr": told}
            if self.starts:  # what a killed one has locked
                subprocess.run(self.snakemake("--unlock"), check=True, **options)
            self.driver = subprocess.Popen(self.snakemake(), stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self.starts += 1

    def job(self) -> str:
        """The running job that trains; empty if none does. Another may wait for its lock, after the workflow was killed."""
        try:
            holder = str(json.loads((self.stage("disturbed") / "lock.json").read_text())["slurm_job"])
        except (OSError, ValueError, KeyError):
            return ""
        running = self.cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%i", check=False).split()
        return holder if holder in running else ""

    def state(self, job: str) -> str:
        told = self.cluster.run("scontrol", "show", "job", job, check=False)
        return "".join(re.findall(r"JobState=(\S+)", told)[:1])

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not come about in {PATIENCE:g} s\n{self.cluster.logs()}")
            time.sleep(0.05)

    def strike(self, number: int, what: str, choice: random.Random) -> Disturbance | None:
        """Disturb the training once, some steps further on; None if it ended before."""
        stage = self.stage("disturbed")
        self.drive()
        target = max(self._checkpoint(stage), _steps(stage)) + choice.randint(1, 12)

        def there() -> bool:
            self.drive()  # after its last retry
            return self.result.exists() or (_steps(stage) >= target and bool(self.victims("rank")))

        self.until(there, f"step {target}")
        job = self.job()
        if self.result.exists() or not job:
            return None
        at = _steps(stage)
        DISTURBANCES[what](self, job)
        victims = set(self.victims("rank"))
        self.until(lambda: self.result.exists() or not victims & set(self.victims("rank")) or what == "kill workflow", what)
        if self.result.exists():
            return None
        return Disturbance(number, what, job, at, self.state(job), self._checkpoint(stage))

    def victims(self, whom: str) -> list[int]:
        """Processes of the disturbed training: its ranks, or torchrun."""
        word = b"torch.distributed.run" if whom == "torchrun" else self.address.encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                ours = str(self.folder / "disturbed").encode() in words and self.address.encode() in words and word in words
                rank = b"\0RANK=" in b"\0" + path.with_name("environ").read_bytes()
            except OSError:
                continue
            if ours and (rank if whom == "rank" else True):
                found.append(int(path.parent.name))
        return sorted(found)

    def kill(self, whom: str) -> None:
        for pid in self.victims(whom)[:1]:
            os.kill(pid, signal.SIGKILL)

    def kill_workflow(self) -> None:
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()

    def preempt(self) -> None:
        self.cluster.run("sbatch", "--output=/dev/null", "--nodes=2", "--exclusive", "--partition=main", "--wrap=sleep 1")

    def end(self) -> None:
        """Let the training end, and compare it."""
        self.until(lambda: self.drive() or self.result.exists(), "the end")  # type: ignore[func-returns-value]
        if self.driver is not None and self.driver.wait(timeout=PATIENCE) != 0:
            self.drive()
            assert self.driver.wait(timeout=PATIENCE) == 0, (self.folder / "log.txt").read_text()[-6000:]
        self.compare()

    def close(self) -> None:
        """End the workflow, if it still runs; the cluster cancels its jobs."""
        if self.driver is not None and self.driver.poll() is None:
            self.kill_workflow()


DISTURBANCES: dict[str, Callable[[SlurmSoak, str], object]] = {
    "scancel": lambda soak, job: soak.cluster.run("scancel", job),
    "requeue": lambda soak, job: soak.cluster.run("scontrol", "requeue", job),
    "time-out": lambda soak, job: soak.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1"),
    "preemption": lambda soak, job: soak.preempt(),
    "kill rank": lambda soak, job: soak.kill("rank"),
    "kill torchrun": lambda soak, job: soak.kill("torchrun"),
    "kill workflow": lambda soak, job: soak.kill_workflow(),
}


def slurm_soak(folder: Path, cluster: Cluster, count: int, seed: int, steps: int = 400) -> list[Disturbance]:
    """Disturb a job ``count`` times, let it end, and compare; raises AssertionError if anything was lost."""
    choice = random.Random(seed)
    made = SlurmSoak(folder, cluster, steps)
    found: list[Disturbance] = []
    order: list[str] = []
    try:
        while len(found) < count:
            order = order or choice.sample(sorted(DISTURBANCES), len(DISTURBANCES))
            disturbance = made.strike(len(found) + 1, order[0], choice)
            if disturbance is None and made.result.exists():
                made.end()
                shutil.rmtree(made.stage("disturbed"))
            if disturbance is None:
                continue
            order.pop(0)
            sys.stdout.write(f"{disturbance}\n")
            sys.stdout.flush()
            found.append(disturbance)
        made.end()
    finally:
        made.close()
    return found
