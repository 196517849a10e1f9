"""Trainings that are killed at random moments, again and again, end to the bit as one that is left alone.

One stage of CMAPKD (with ALSN's dropout, so that random state matters) is trained on data made up here. Each disturbance waits
for a random step, or for a checkpoint that is being written, then sends a signal to the command, to torchrun or to one rank.
The same command is then run again. After all of them the weights and the log must equal those of an undisturbed training.

    python -m tests.pipeline.soak --count 20 --ranks 2

prints one line for each disturbance: what was done, when, how the command ended, and how many steps had to be done again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmapkd.files import sha256_of

REPOSITORY = Path(__file__).parents[2]
STEPS, EXIT = 200, 75
WEIGHTS = ("model/open_clip_model.safetensors", "objective.safetensors")
_CLOCK = ("samples_per_second", "data_seconds")
# Whom, and with what: of a single rank there is only the command.
DISTURBANCES = {
    1: [("command", signal.SIGKILL), ("command", signal.SIGTERM), ("command", signal.SIGUSR1), ("command", signal.SIGINT)],
    2: [
        ("rank", signal.SIGKILL),
        ("torchrun", signal.SIGKILL),
        ("command", signal.SIGTERM),
        ("command", signal.SIGUSR1),
        ("command", signal.SIGKILL),
        ("torchrun", signal.SIGTERM),
        ("torchrun", signal.SIGUSR1),
    ],
}
LEVELS = {"visual_levels": ["P4", "P5"], "language_levels": ["L3", "L4"], "trains": ["student", "pyramid", "alsn"]}


@dataclass
class Disturbance:
    """What was done to a training, and what became of it."""

    number: int
    whom: str
    what: str
    at: int
    early: bool
    within_checkpoint: bool
    code: int
    checkpoint: int

    def __str__(self) -> str:
        where = ", while a checkpoint was written" if self.within_checkpoint else ", at the start" if self.early else ""
        again = max(0, self.at - self.checkpoint)
        return (
            f"{self.number:3}  {self.what:8} to {self.whom:8} at step {self.at:3}{where}: "
            f"exit {self.code}, goes on from {self.checkpoint}, {again} steps again"
        )


class Soak:
    """An experiment in ``folder`` and the training in it that is disturbed."""

    def __init__(self, folder: Path, ranks: int, steps: int = STEPS) -> None:
        self.folder, self.ranks, self.steps = folder, ranks, steps
        self.experiment = folder / "soak.yaml"
        self.experiment.write_text(yaml.safe_dump(_experiment(ranks, steps)))
        self.environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._prepare()

    def _prepare(self) -> None:
        """Data, the teacher and its pyramid, then the undisturbed training."""
        sys.path.insert(0, str(REPOSITORY / "tests" / "unit"))
        from fake_source import write_fake

        from cmapkd.config import load_experiment
        from cmapkd.plan import make_plan

        write_fake(self.home("undisturbed") / "data" / "fake", train=20)
        plan = make_plan(load_experiment(self.experiment))
        (self.address,) = plan.runs[0].stages
        for address in plan.stages:
            if address.startswith("teacher"):
                self.run("undisturbed", address=address, ranks=1)
        shutil.copytree(self.home("undisturbed"), self.home("disturbed"))
        self.run("undisturbed")

    def home(self, name: str) -> Path:
        return self.folder / name / "soak"

    def stage(self, name: str) -> Path:
        return self.home(name) / "stages" / self.address

    def command(self, name: str, address: str | None = None, ranks: int | None = None) -> list[str]:
        return [
            sys.executable, "-m", "cmapkd", "train", address or self.address, "--experiment", str(self.experiment),
            "--results", str(self.folder / name), "--threads", "1", "--attempt", "1", "--ranks", str(ranks or self.ranks),
        ]  # fmt: skip

    def run(self, name: str, **options: Any) -> None:
        """A training to its end."""
        with (self.folder / "log.txt").open("a") as told:
            subprocess.run(self.command(name, **options), env=self.environment, stderr=told, stdout=told, check=True)

    def disturb(self, number: int, whom: str, what: signal.Signals, choice: random.Random) -> Disturbance | None:
        """Start the training, disturb it once, wait for its end; None if it ended before."""
        stage = self.stage("disturbed")
        before = self._checkpoint(stage)
        # The log may hold steps after the checkpoint; they are done again.
        early, within = choice.random() < 0.15, choice.random() < 0.3
        target = 0 if early else max(before, _steps(stage)) + choice.randint(1, max(2, self.steps // 8))
        within &= not early
        with (self.folder / "log.txt").open("a") as told:
            process = subprocess.Popen(self.command("disturbed"), env=self.environment, stderr=told, stdout=told)
        while process.poll() is None:
            at = _steps(stage)
            if at >= target and (not within or list((stage / "checkpoints").glob(".partial-*"))):
                break
            time.sleep(0.002)
        time.sleep(0 if within else choice.random() * (8 if early else 0.05))
        while not (done := process.poll() is not None):
            torchrun = _children(process.pid) if self.ranks > 1 else []
            ranks = [pid for parent in torchrun for pid in _children(parent)]
            victims = {"command": [process.pid], "torchrun": torchrun, "rank": ranks}[whom]
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(choice.choice(victims), what)
                break
            time.sleep(0.01)  # not started yet
        code = process.wait()
        if done or (stage / "stage.json").exists():
            return None
        return Disturbance(number, whom, what.name, _steps(stage), early, within, code, self._checkpoint(stage))

    @staticmethod
    def _checkpoint(stage: Path) -> int:
        found = sorted((stage / "checkpoints").glob("step-*"))
        return int(found[-1].name.removeprefix("step-")) if found else 0

    def restart(self) -> None:
        """Begin the disturbed training anew, after it has ended."""
        self.compare()
        shutil.rmtree(self.stage("disturbed"))

    def compare(self) -> None:
        """Raise unless the disturbed training ended as the undisturbed one did."""
        ours, theirs = self.stage("disturbed"), self.stage("undisturbed")
        for name in WEIGHTS:
            if sha256_of(ours / name) != sha256_of(theirs / name):
                raise AssertionError(f"{name} differs")
        if _log(ours) != _log(theirs):
            raise AssertionError("the logs differ")
        left = sorted(path.name for path in ours.iterdir())
        if left != sorted(path.name for path in theirs.iterdir()):
            raise AssertionError(f"something is left behind: {left}")


def soak(folder: Path, count: int, ranks: int, seed: int, steps: int = STEPS) -> list[Disturbance]:
    """Disturb a training ``count`` times, let it end, and compare; raises AssertionError if anything was lost."""
    choice = random.Random(seed)
    made = Soak(folder, ranks, steps)
    found: list[Disturbance] = []
    kinds = DISTURBANCES[min(ranks, 2)]
    order: list[tuple[str, signal.Signals]] = []
    while len(found) < count:
        order = order or choice.sample(kinds, len(kinds))
        disturbance = made.disturb(len(found) + 1, *order.pop(), choice)
        if disturbance is None:
            made.restart()
            continue
        asked = disturbance.what != "SIGKILL" and disturbance.whom == "command"
        # In its first moments Python does not know of signals yet, and dies of them.
        expected = {EXIT, -signal.Signals[disturbance.what]} if disturbance.early else {EXIT}
        if asked and disturbance.code not in expected:
            raise AssertionError(f"{disturbance}: exit code {EXIT} was expected")
        sys.stdout.write(f"{disturbance}\n")
        sys.stdout.flush()
        found.append(disturbance)
    made.run("disturbed")
    made.compare()
    return found


def _experiment(ranks: int, steps: int) -> dict[str, Any]:
    return {
        "name": "soak",
        "datasets": {"fake": {"source": "emoji_scenes"}},
        "distillation": ["fake/train"],
        "teacher": {"model": "mini-student", "train": {"epochs": 0.4}},
        "student": {"model": "mini-student"},
        "pyramid": {"channels": 8, "text_channels": 8, "heads": 2},
        "training": {
            "global_batch": 8,
            "ranks": ranks,
            "workers": 0,
            "log_every": 1,
            "checkpoint_minutes": 0.02,
            "augmentation": {"scale": [0.5, 1.0], "flip": True},
        },
        "schedules": {"short": [{"name": "all", "epochs": steps / 2.5, "lr": 1e-4, "policy": "alsn", **LEVELS}]},
        "runs": {"CMAPKD": {"method": "cmapkd", "schedule": "short", "teacher_pyramid": "random"}},
        "evaluation": {},
    }


def _steps(stage: Path) -> int:
    """Finished steps of the log: every line is one, and a line is written at once."""
    path = stage / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _log(stage: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _CLOCK} for line in lines]


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def on_slurm(count: int, seed: int, steps: int) -> None:
    """The same with the workflow's job on a SLURM of our own."""
    from tests.cluster.slurm import Cluster
    from tests.cluster.soak import slurm_soak

    with tempfile.TemporaryDirectory(prefix="cmapkd-soak-") as folder:
        cluster = Cluster(Path(folder) / "slurm")
        try:
            cluster.start()
            found = slurm_soak(Path(folder) / "soak", cluster, count, seed, steps)
        except BaseException:
            log = Path(folder) / "soak" / "log.txt"
            sys.stderr.write("\n".join(log.read_text().splitlines()[-60:]) + "\n" if log.is_file() else "")
            raise
        finally:
            cluster.stop()
    sys.stdout.write(f"{len(found)} disturbances on SLURM, seed {seed}: weights and log are those of an undisturbed training\n")


def main() -> None:
    """The command: prints each disturbance, and that nothing was lost."""
    parser = argparse.ArgumentParser(description="disturb a training at random moments and compare it with an undisturbed one")
    parser.add_argument("--count", type=int, default=20, help="disturbances")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training")
    parser.add_argument("--slurm", action="store_true", help="as a job of a SLURM brought up here (root): it is disturbed too")
    options = parser.parse_args()
    if options.slurm:
        on_slurm(options.count, options.seed, options.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = soak(Path(folder), options.count, options.ranks, options.seed, options.steps)
        except BaseException:
            log = Path(folder) / "log.txt"
            sys.stderr.write("\n".join(log.read_text().splitlines()[-60:]) + "\n" if log.is_file() else "")
            raise
    sys.stdout.write(f"{len(found)} disturbances, seed {options.seed}: weights and log are those of an undisturbed training\n")


if __name__ == "__main__":
    main()
