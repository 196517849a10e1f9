"""What is measured on: mini's models, batch and options on a small part of its data, a teacher of one step, and its caches.

How good a teacher is changes no time; what is trained and read is real.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmapkd.config import parse_experiment
from cmapkd.plan import Plan, Stage, make_plan
from cmapkd.workflow import write_effective

SAMPLES = 2048
# The stage of each run in which all of its method takes part.
MAIN = {"FitNet": "kd", "LLaVA-KD": "dft", "CMAPKD": "fine", "CMAPKD-E": "fine"}
METHODS = ("Scratch", "KD", "FitNet", "PromptKD", "C2KD", "LLaVA-KD", "CLIP-KD", "CMAPKD", "CMAPKD-E")


@dataclass(frozen=True)
class Setting:
    """An experiment whose data, teacher and caches are there."""

    file: Path
    plan: Plan
    results: Path  # of all experiments

    @property
    def home(self) -> Path:
        return self.results / self.plan.experiment.name

    def stage(self, run: str) -> Stage:
        """The main stage of a run."""
        chain = [self.plan.stages[address] for address in next(r for r in self.plan.runs if r.name == run).stages]
        return next((stage for stage in chain if stage.settings["stage"]["name"] == MAIN.get(run)), chain[-1])


def content(config: Path, cache: bool = True, **changes: Any) -> dict[str, Any]:
    """The experiment ``config`` made short, its teacher's outputs kept or not; ``changes`` replace whole keys."""
    found: dict[str, Any] = yaml.safe_load(config.read_text())
    name, source = next(iter(found["datasets"].items()))
    found["datasets"] = {name: {**source, "train": SAMPLES, "validation": 100, "test_render": 100, "test_concept": 50}}
    found["teacher"] = {**found["teacher"], "cache": {"precision": "fp16"} if cache else None}
    found["teacher"]["train"] = {**found["teacher"]["train"], "epochs": 0.05}
    found["teacher"]["pyramid"] = {**found["teacher"].get("pyramid", {}), "epochs": 0.05}
    for run in found["runs"].values():
        if run.get("method") == "promptkd":
            run["teacher_prompts"] = {"epochs": 0.05}
    found.pop("tuned", None)
    for key in ("appendix", "tables"):
        found["paper"][key] = [table for table in found["paper"].get(key, []) if table != "tuned"]
    return {**found, "name": "bench", "seeds": [0], **changes}


def make(config: Path, folder: Path, like: Setting | None = None, cache: bool = True, **changes: Any) -> Setting:
    """Build data, teacher, pyramid, prompts and caches, by the commands that the workflow calls.

    Args:
        config: experiment that is made short.
        folder: what is there is kept.
        like: setting whose data, and as far as they are the same whose teacher, this one shares.
        cache: whether the teacher's outputs are kept.
        changes: replace whole keys of the experiment.
    """
    experiment = parse_experiment(content(config, cache, **changes))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{experiment.name}.yaml"
    write_effective(experiment, file)
    setting = Setting(file, make_plan(experiment), folder / "results")
    if like is not None:
        _share(like, setting)
    for dataset in experiment.datasets:
        if not (setting.home / "data" / dataset / "manifest.json").is_file():
            run(setting, "data", "build", dataset)
    missing = [address for address in setting.plan.stages if address.startswith("teacher") and not done(setting, address)]
    if missing:
        run(setting, "train", *missing)
    return setting


def _share(like: Setting, setting: Setting) -> None:
    (setting.home / "stages").mkdir(parents=True, exist_ok=True)
    for name in ("data", *(f"stages/{address}" for address in setting.plan.stages if address.startswith("teacher"))):
        link, target = setting.home / name, like.home / name
        if target.exists() and not link.exists():
            link.symlink_to(target.absolute())


def done(setting: Setting, address: str) -> bool:
    """Whether a stage has its result."""
    return (setting.home / "stages" / address / "stage.json").is_file()


def run(setting: Setting, *command: str, **options: Any) -> None:
    """A sub-command of cmapkd on the experiment.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    words = [sys.executable, "-m", "cmapkd", *command, "--experiment", str(setting.file), "--results", str(setting.results)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if ended.returncode:
        raise SystemExit(f"{' '.join(words)}\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}")


def live(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a stage that asks the teacher itself."""
    return {name: value for name, value in settings.items() if name != "teacher_cache"}
