"""A training that is interrupted goes on where it was, and ends with what an undisturbed one ends with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cmapkd.files import sha256_of
from tests.pipeline.conftest import Checkout


def test_interrupted_and_run_again(finished: Checkout, tmp_path: Path) -> None:
    experiment = tmp_path / "longer.yaml"
    text = (finished.root / "config/smoke.yaml").read_text().replace("train: {epochs: 1,", "train: {epochs: 8,", 1)
    experiment.write_text(text.replace("workers: 0", "workers: 0\n  log_every: 1", 1))  # 64 steps, each logged at once
    homes = [tmp_path / name / "smoke" for name in ("undisturbed", "disturbed")]
    for home in homes:
        shutil.copytree(finished.home / "data", home / "data")
    options = ["--experiment", str(experiment)]
    plan = finished.run(sys.executable, "-m", "cmapkd", "plan", *options).stdout
    address = next(line.split()[1] for line in plan.splitlines() if line.endswith(" teacher"))

    def command(home: Path) -> list[str]:
        return [sys.executable, "-m", "cmapkd", "train", address, "--threads", "1", "--results", str(home.parent), *options]

    finished.run(*command(homes[0]))
    environment = {**os.environ, "PYTHONPATH": str(finished.root)}
    process = subprocess.Popen(command(homes[1]), cwd=finished.root, env=environment, stderr=subprocess.PIPE, text=True)
    stage = homes[1] / "stages" / address
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if (stage / "log.jsonl").is_file() and (stage / "log.jsonl").stat().st_size:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "goes on from there" in told
    assert not (stage / "stage.json").exists()
    assert list((stage / "checkpoints").glob("step-*"))

    again = finished.run(*command(homes[1]))
    assert "resumed at step" in again.stderr
    for name in ("model/open_clip_model.safetensors", "objective.safetensors"):
        assert sha256_of(stage / name) == sha256_of(homes[0] / "stages" / address / name)
    steps = [line.partition(",")[0] for line in (stage / "log.jsonl").read_text().splitlines()]
    assert steps == [f'{{"step": {step}' for step in range(64)]
