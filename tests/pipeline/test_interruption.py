"""A workflow that is interrupted goes on where it was, and ends with what an undisturbed one ends with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cmapkd.files import sha256_of

from .conftest import Checkout, copy_repository


def test_interrupted_in_the_teacher_and_run_again(finished: Checkout, tmp_path: Path) -> None:
    checkout = copy_repository(tmp_path / "checkout")
    (checkout.root / "results/smoke").mkdir(parents=True)
    # The data are those of the finished experiment; only the training is of interest here.
    done = checkout.run("cp", "-r", str(finished.home / "data"), str(checkout.home / "data"))
    assert done.returncode == 0
    plan = checkout.cmapkd("plan").stdout
    address = next(line.split()[1] for line in plan.splitlines() if line.endswith(" teacher"))
    stage = checkout.home / "stages" / address
    command = [sys.executable, "-m", "cmapkd", "train", address, "--experiment", "config/smoke.yaml", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.root)}
    process = subprocess.Popen(command, cwd=checkout.root, env=environment, stderr=subprocess.PIPE, text=True)
    waited = time.monotonic() + 120
    while not (stage / "log.jsonl").exists() and time.monotonic() < waited and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143, told
    assert "goes on from there" in told
    assert not (stage / "stage.json").exists()
    assert list((stage / "checkpoints").glob("step-*"))

    again = subprocess.run(command, cwd=checkout.root, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stderr
    name = "model/open_clip_model.safetensors"
    assert sha256_of(stage / name) == sha256_of(finished.home / "stages" / address / name)
