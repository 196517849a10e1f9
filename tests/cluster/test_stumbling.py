"""A SLURM that stumbles: no answers, refused submissions, jobs that end at their time limits. The workflow gets through.

Small workflows of one rule stand for the experiment where only the executor is looked at; the pauses are set to seconds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from cmapkd.config import load_experiment
from cmapkd.plan import make_plan
from cmapkd.slurm import waiting
from tests.cluster.conftest import SUBMITTING, THREADS, Run
from tests.cluster.slurm import Cluster
from tests.pipeline.conftest import REPOSITORY, Checkout

pytestmark = pytest.mark.cluster

WORKFLOW = """
import sys
sys.path.insert(0, {repository!r})
from cmapkd import workflow as parts
from cmapkd.jobs import keep_logs
parts.outlast_slurm(workflow.is_main_process)
rule train:
    output: "stages/one/stage.json"
    log: "logs/one.log"
    resources: runtime=5, mem_mb=300
    shell: "{command} 2>&1 | tee -i {{log}}; exit ${{{{PIPESTATUS[0]}}}}"
keep_logs(workflow)
"""
# As a training: its time limit stops it with a checkpoint, then without one, then it finishes.
STOPPING = """
import json, pathlib, sys
turn = len(list(pathlib.Path("logs").iterdir()))
print("turn", turn)
saved = pathlib.Path("stages/one/checkpoints")
if turn == 3:
    pathlib.Path("stages/one/stage.json").write_text("{}")
    sys.exit()
if turn == 1:
    (saved / "step-00000043").mkdir(parents=True)
    (saved / "step-00000043" / "checkpoint.json").write_text("{}")
reason = "the time limit is near"
(saved / "stopped.json").write_text(json.dumps({"label": "KD", "step": 43, "steps": 160, "reason": reason}))
sys.exit(75)
"""
OPTIONS = [
    "--executor", "slurm", "--jobs", "2", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1",
    "--seconds-between-status-checks", "1", "--latency-wait", "3", "--default-resources", "slurm_partition=main",
]  # fmt: skip
# Fails as often as the file `left` says, in the words of the file `words`; then it is the real program.
SHIM = """#!/bin/sh
cd "{folder}"
case "$*" in *{only}*) ;; *) cd - > /dev/null; exec "{real}" "$@";; esac
left=$(cat left); echo "$left" >> asked
if [ "$left" -gt 0 ]; then echo $((left - 1)) > left; cat words >&2; exit 1; fi
cd - > /dev/null
exec "{real}" "$@"
"""


@dataclass
class Driver:
    """A workflow that submits to the cluster, in a folder of its own."""

    cluster: Cluster
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def shim(self, name: str, words: str, times: int, only: str = "") -> Path:
        """Put a program before SLURM's that fails first; returns the folder with its counts."""
        shims = self.folder / f"shim-{name}"
        shims.mkdir()
        (shims / "left").write_text(str(times))
        (shims / "words").write_text(words)
        real = self.cluster.root / "bin" / name
        (shims / name).write_text(SHIM.format(folder=shims, only=only, real=real))
        (shims / name).chmod(0o755)
        self.environment["PATH"] = f"{shims}:{self.environment['PATH']}"
        return shims

    def start(self, command: str, *options: str) -> None:
        text = WORKFLOW.format(repository=str(REPOSITORY), command=command.replace("{", "{{").replace("}", "}}"))
        (self.folder / "Snakefile").write_text(text)
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *OPTIONS, *options],
                cwd=self.folder, env=self.environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL, text=True,
            )  # fmt: skip

    @property
    def log(self) -> Path:
        return self.folder / "driver.log"

    def end(self, seconds: float = 180) -> int:
        """Exit code of the workflow, which must end by itself."""
        assert self.process is not None
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the workflow does not end:\n{self.log.read_text()}\n{self.cluster.logs()}")

    def until(self, holds: Callable[[], object], seconds: float = 120) -> None:
        """Wait for something while the workflow runs."""
        end = time.monotonic() + seconds
        while not holds():
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def submitted(self) -> list[str]:
        return re.findall(r"has been submitted with SLURM jobid (\d+)", self.log.read_text())


@pytest.fixture
def driver(cluster: Cluster, tmp_path: Path) -> Iterator[Driver]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CMAPKD_SLURM_PAUSES": "0.5,2,120"}
    made = Driver(cluster, tmp_path, environment)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    for job in made.submitted() if made.log.is_file() else []:
        cluster.run("scancel", job, check=False)


DONE = "mkdir -p stages/one && touch begun && sleep {seconds} && echo done > stages/one/stage.json"


def test_a_controller_that_is_gone_while_a_job_ends(driver: Driver, cluster: Cluster) -> None:
    driver.start(DONE.format(seconds=8), "--retries", "0")
    driver.until((driver.folder / "begun").exists)
    os.kill(int((cluster.root / "run/slurmctld.pid").read_text()), 15)
    try:
        driver.until((driver.folder / "stages/one/stage.json").exists)
        driver.until(lambda: "SLURM does not answer" in driver.log.read_text())
    finally:
        subprocess.run(["slurmctld"], env={**os.environ, **cluster.environment}, check=True, timeout=60)
    assert driver.end() == 0, driver.log.read_text()
    text = driver.log.read_text()
    assert "SLURM answers again" in text and "1 of 1 steps (100%) done" in text
    assert len(driver.submitted()) == 1
    assert not (driver.folder / waiting.FILE).exists(), "a workflow that has ended waits for nothing"


def test_a_queue_that_never_answers_ends_with_the_jobs_named(driver: Driver) -> None:
    driver.environment["CMAPKD_SLURM_PAUSES"] = "0.5,1,3"
    driver.shim("squeue", "slurm_load_jobs error: Unable to contact slurm controller\n", 999, "--name")
    driver.start(DONE.format(seconds=1), "--retries", "0")
    assert driver.end() == 1
    (job,) = driver.submitted()
    text = driver.log.read_text()
    assert re.search(rf"SLURM has not answered for 0:00:\d\d .*: {job} \(train\)", text), text


def test_a_job_that_slurm_forgot_is_judged_by_its_files(driver: Driver, cluster: Cluster) -> None:
    """Its answers are good but know nothing of the job, as after an outage longer than MinJobAge."""
    lost = driver.folder / "lost"
    lost.mkdir()
    for name, words in (("squeue", ""), ("scontrol", "slurm_load_jobs error: Invalid job id specified")):
        real = cluster.root / "bin" / name
        answer = "exit 0" if name == "squeue" else f"echo '{words}' >&2; exit 1"
        (lost / name).write_text(f'#!/bin/sh\ncase "$*" in *--name*|*oneliner*) {answer};; esac\nexec "{real}" "$@"\n')
        (lost / name).chmod(0o755)
    driver.environment["PATH"] = f"{lost}:{driver.environment['PATH']}"
    driver.start(DONE.format(seconds=4), "--retries", "0")
    assert driver.end() == 0, driver.log.read_text()
    assert "SLURM does not know job" in driver.log.read_text()


def test_refusals_that_pass_and_a_queue_that_fails_more_often_than_the_plugin_asks_use_no_retry(driver: Driver) -> None:
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    words = f"sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: {policy}\n"
    shim = driver.shim("sbatch", words, 3)
    # Only the question of states has this format; the shims before it are asked for other things.
    silent = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    queue = driver.shim("squeue", f"{silent}\n", 6, "--states=all")
    driver.start(DONE.format(seconds=1), "--retries", "0")
    driver.until(lambda: (found := waiting.read(driver.folder)) is not None and found.refusal)
    found = waiting.read(driver.folder)
    if found is not None:  # it may have been accepted meanwhile
        assert found.unsubmitted == ("train",) and "AssocMaxSubmitJobLimit" in found.refusal
    assert driver.end() == 0, driver.log.read_text()
    assert (shim / "asked").read_text().split() == ["3", "2", "1", "0"]
    text = driver.log.read_text()
    assert text.count("SLURM does not take train yet: AssocMaxSubmitJobLimit") == 3
    assert text.count("SLURM does not answer (Unable to contact slurm controller (connect failure))") == 6
    assert (queue / "asked").read_text().split()[:6] == ["6", "5", "4", "3", "2", "1"]


def test_a_job_that_slurm_took_without_an_answer_is_not_submitted_twice(driver: Driver, cluster: Cluster) -> None:
    shims = driver.folder / "shim"
    shims.mkdir()
    words = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    real = cluster.root / "bin/sbatch"
    (shims / "sbatch").write_text(f'#!/bin/sh\n"{real}" "$@" >> {shims}/taken\necho "{words}" >&2\nexit 1\n')
    (shims / "sbatch").chmod(0o755)
    driver.environment["PATH"] = f"{shims}:{driver.environment['PATH']}"
    driver.start(DONE.format(seconds=6), "--retries", "0")
    assert driver.end() == 0, driver.log.read_text()
    assert len((shims / "taken").read_text().split()) == 1


def test_a_submission_that_is_refused_for_good_fails_at_once(driver: Driver, cluster: Cluster) -> None:
    shim = driver.shim("sbatch", "", 0)
    driver.start("true", "--retries", "3", "--default-resources", "slurm_partition=gpuq")
    assert driver.end() == 1
    assert "SLURM refuses train, and would refuse it each time: invalid partition specified: gpuq" in driver.log.read_text()
    assert len((shim / "asked").read_text().split()) == 1, "its retries would be refused in the same words"


def test_a_stop_with_progress_uses_no_retry_and_the_same_step_twice_does(driver: Driver) -> None:
    program = driver.folder / "program.py"
    program.write_text(STOPPING)
    driver.start(f"{shlex.quote(sys.executable)} {program}", "--retries", "1")
    assert driver.end(240) == 0, driver.log.read_text()
    text = driver.log.read_text()
    first, second = (
        text.index("KD stopped at step 43 of 160 by its time limit and was submitted again."),
        text.index("Error in rule"),
    )
    assert first < second and text.count("was submitted again") == text.count("Error in rule") == 1
    assert len(driver.submitted()) == 3 and text.count("Trying to restart") == 1
    logs = sorted((driver.folder / "logs").iterdir())
    assert [(path.name, path.read_text()) for path in logs] == [
        ("one.attempt-1.log", "turn 1\n"), ("one.attempt-2.log", "turn 2\n"), ("one.log", "turn 3\n"),
    ]  # fmt: skip


def test_a_training_goes_through_five_time_limits_without_a_retry(run_on_slurm: Run) -> None:
    """Six steps; the margin leaves each job time for one."""
    checkout: Checkout = run_on_slurm.checkout
    content = yaml.safe_load((checkout.root / "config/smoke.yaml").read_text())
    content["name"] = "long"
    content["teacher"]["train"]["epochs"] = 0.75
    content["training"]["stop_margin_minutes"] = 9.9
    experiment = checkout.root / "config/long.yaml"
    experiment.write_text(yaml.safe_dump(content, sort_keys=False))
    address = make_plan(load_experiment(experiment)).teacher
    home = checkout.root / "results/long"
    home.mkdir()
    (home / "data").symlink_to(checkout.home / "data")
    options = ["--default-resources", "ranks_per_node=1", "gpu_request=gres=gpu:{n}", "mem_mb=2000", "runtime=20"]
    options += ["--set-resources", "teacher:mem_mb=3000", "teacher:runtime=10", "--allowed-rules", "teacher", "--retries", "0"]
    options += ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--jobs", "1"]
    done = checkout.run(
        "snakemake", f"results/long/stages/{address}/stage.json", *SUBMITTING[:4], "--configfile", str(experiment), *THREADS,
        *options, "--latency-wait", "10",
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert re.findall(r"^teacher stopped at step (\d) of 6 by its time limit and was submitted again", said, re.MULTILINE) == [
        "1", "2", "3", "4", "5",
    ]  # fmt: skip
    assert "Error in rule" not in said and "Traceback" not in said
    stage = json.loads((home / "stages" / address / "stage.json").read_text())
    assert stage["summary"]["steps"] == 6
    assert len(list((home / "logs/train").glob(f"{address}.attempt-*.log"))) == 5
