"""An experiment that trains in a second: data, a teacher, its pyramid, and a run of two stages of CMAPKD."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fake_source import write_fake
from safetensors.torch import load_file
from torch import Tensor

from cmapkd import plan as planning
from cmapkd.config import parse_experiment
from cmapkd.config.training import TrainingConfig
from cmapkd.files import sha256_of
from cmapkd.models import towers
from cmapkd.plan import Plan, Stage, make_plan
from cmapkd.training.engine import Engine
from cmapkd.training.loop import train_stage
from cmapkd.training.stages import OBJECTIVE

OPTIONS = TrainingConfig(global_batch=8, workers=0, log_every=4, checkpoint_minutes=60)
SAMPLES, EPOCHS = 20, 2.4  # 2.5 batches an epoch, 6 steps


def models(config: Path) -> None:
    for name, options in {
        "tiny-student": {},
        "tiny-teacher": {"patch": 4, "width": 48, "embed": 24, "custom_text": True},
    }.items():
        model = tiny.architecture(image=16, vocab_size=49408, **{"patch": 8, **options})
        (config / "models" / f"{name}.json").write_text(json.dumps(model))


def content(**changes: Any) -> dict[str, Any]:
    """The experiment as in a file; ``changes`` replace whole keys."""
    levels = {"visual_levels": ["P4", "P5"], "language_levels": ["L3", "L4"], "trains": ["student", "pyramid", "alsn"]}
    after = {"name": "next", "epochs": 0.4, "lr": 1e-3, "policy": "uniform", **levels, "trains": ["student", "pyramid"]}
    return {
        "name": "tiny",
        "datasets": {"fake": {"source": "emoji_scenes"}},
        "distillation": ["fake/train"],
        "teacher": {"model": "tiny-teacher", "train": {"epochs": 0.4}},
        "student": {"model": "tiny-student"},
        "pyramid": {"channels": 8, "text_channels": 8, "heads": 2},
        "training": {"global_batch": 8, "warmup": 0.3, "augmentation": {"scale": [0.5, 1.0], "flip": True}},
        "schedules": {"short": [{"name": "all", "epochs": EPOCHS, "lr": 1e-3, "policy": "alsn", **levels}, after]},
        "runs": {"CMAPKD": {"method": "cmapkd", "schedule": "short", "teacher_pyramid": "random"}},
        "evaluation": {},
        **changes,
    }


def experiment(folder: Path, **changes: Any) -> tuple[Plan, Path]:
    """A plan, and results in ``folder`` that hold the data, the teacher and its pyramid; needs a process group."""
    (folder / "config" / "models").mkdir(parents=True)
    shutil.copytree(planning.CONFIG / "deepspeed", folder / "config" / "deepspeed")
    models(folder / "config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "CONFIG", folder / "config")
        plan = make_plan(parse_experiment(content(**changes)))
    results = folder / "results"
    write_fake(results / "data" / "fake", train=SAMPLES)
    for address, stage in plan.stages.items():
        if address.startswith("teacher"):
            train_stage(stage, results, OPTIONS)
    return plan, results


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two sets of weights agree to the bit."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def stages_of(plan: Plan) -> list[Stage]:
    return [plan.stages[address] for address in plan.runs[0].stages]


def stream(directory: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("samples_per_second", "data_seconds")} for line in lines
    ]


def assert_same_stage(directory: Path, expected: Path) -> None:
    for name in (f"model/{towers.WEIGHTS}", OBJECTIVE):
        ours, theirs = load_file(directory / name), load_file(expected / name)
        assert same(ours, theirs), name
        assert sha256_of(directory / name) == sha256_of(expected / name)
    assert stream(directory) == stream(expected)
    assert not (directory / "checkpoints").exists()


def at_step(number: int, action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something once, when a step of this number begins."""
    real, done = Engine.step, []

    def step(self: Engine, batch: Any, step: int) -> Any:
        if step == number and not done:
            done.append(step)
            action()
        return real(self, batch, step)

    monkeypatch.setattr(Engine, "step", step)
