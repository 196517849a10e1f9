"""What SLURM sends to a job reaches the command in it, which has time to end; and the command knows its job's limit.

The command is a stand-in for a training, in a workflow of one rule with the prefix of ``workflow/rules/environment.smk``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import SUBMITTING, sbatch_lines
from tests.cluster.slurm import Cluster
from tests.pipeline.conftest import REPOSITORY, Checkout

pytestmark = pytest.mark.cluster

WORKFLOW = """
import sys
sys.path.insert(0, {repository!r})
from cmapkd import workflow as parts
from cmapkd.slurm.executor import quote_interpreter
quote_interpreter()
shell.prefix("set -euo pipefail; " + parts.job_prefix(workflow.remote_exec))
rule train:
    output: "done"
    log: "log.txt"
    resources: runtime=20, mem_mb=500, slurm_extra="--signal=USR1@120"
    shell: "{python} {program} 2>&1 | tee -i {{log}}"
"""
# As a training: asked to stop it takes two seconds to save, says so, and ends with 75. The second time it succeeds.
PROGRAM = """
import json, os, pathlib, signal, sys, time
told = {name: value for name, value in os.environ.items() if name.startswith("CMAPKD_")}
def stop(number, frame):
    time.sleep(2)
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    print("saved", flush=True)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop)
if pathlib.Path("saved").exists():
    pathlib.Path("second.json").write_text(json.dumps(told))
    pathlib.Path("done").touch()
    sys.exit()
pathlib.Path("first.json.part").write_text(json.dumps(told))
pathlib.Path("first.json.part").rename("first.json")
time.sleep(600)
"""
ACTIONS: dict[str, Callable[[Cluster, str], object]] = {
    "SIGTERM": lambda cluster, job: cluster.run("scancel", job),
    "SIGUSR1": lambda cluster, job: cluster.run("scancel", "--signal=USR1", job),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_signal_reaches_the_command_which_ends_in_peace_and_is_started_again(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    python = shlex.quote(sys.executable)
    (tmp_path / "Snakefile").write_text(WORKFLOW.format(repository=str(REPOSITORY), python=python, program=program))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [
        sys.executable, "-m", "snakemake", "--executor", "slurm", "--jobs", "1", "--retries", "1", "--slurm-requeue",
        "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2",
        "--seconds-between-status-checks", "2", "--default-resources", "slurm_partition=main",
    ]  # fmt: skip
    log = tmp_path / "driver.log"
    with log.open("w") as told:
        driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=told, stderr=told, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 600
        while not (tmp_path / "first.json").exists():
            assert driver.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        job = cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%i|%Z").partition("|")[0].strip()
        ACTIONS[name](cluster, job)
        assert driver.wait(timeout=600) == 0, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    assert (tmp_path / "saved").read_text() == name
    first, second = (json.loads((tmp_path / f"{which}.json").read_text()) for which in ("first", "second"))
    assert float(first["CMAPKD_TIME_LIMIT"]) == 20
    assert abs(float(first["CMAPKD_STARTED"]) - (tmp_path / "first.json").stat().st_mtime) < 300
    assert (first["CMAPKD_ATTEMPT"], second["CMAPKD_ATTEMPT"]) == ("1", "2")
    assert first["CMAPKD_NODE"] in cluster.names


def test_a_second_attempt_keeps_away_from_a_node_that_failed(cluster: Cluster, checkout: Checkout) -> None:
    """The options that the executor would give to sbatch; the nodes are this cluster's."""
    stage = checkout.home / "stages/failed-0123"
    (stage / "checkpoints").mkdir(parents=True)
    failure = {"kind": "ended without a word", "node": "n1", "reason": "killed from outside, or its node was lost"}
    (stage / "checkpoints/failures.json").write_text(json.dumps({"failures": [failure]}))
    try:
        told = sbatch_lines(checkout, *SUBMITTING, "--cores", "999").stdout
    finally:
        shutil.rmtree(stage)
    jobs = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    asked = {attempt: [job for job in jobs if job["rule"] == "train" and job["attempt"] == attempt] for attempt in (1, 2)}
    assert asked[1] and asked[2]
    assert not any("--exclude" in job["sbatch"] for job in asked[1])
    assert all("--exclude=n1" in job["sbatch"] for job in asked[2])
    assert not any("--exclude" in job["sbatch"] for job in jobs if job["rule"] not in ("train", "teacher"))
