"""A made-up results tree (`synthetic_results`) in which one run has a real student, so that it can be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from synthetic_results import Tree, edit_json, experiment_of, write_tree
from torch import Tensor

from cmapkd.files import sha256_of
from cmapkd.models import towers
from cmapkd.runs import collect_run
from cmapkd.training.stages import seeded

RUN = "CMAPKD"
TEXTS = ["a red square", "it's two dogs, 1234!", "", "a very long caption " * 9, "café in zürich"]


def tree(directory: Path, run: str = RUN, **changes: Any) -> Tree:
    """The smoke experiment with a random student as the result of ``run`` at seed 0."""
    made = write_tree(directory, experiment_of(**changes), paper=False)
    settings = made.plan.stages[made.plan.run(f"{run}/0").stages[-1]].settings
    with seeded(7):
        model = towers.create(settings["model"]["name"], settings["model"]["config"], "random")
    give(made, run, model, settings["model"]["name"])
    return made


def give(made: Tree, run: str, model: torch.nn.Module, name: str) -> None:
    """Make ``model`` the result of a run at seed 0."""
    record = made.stage(run)
    folder = record.parent / "model"
    towers.save(model, name, folder)
    made_now = {f"model/{file}": sha256_of(folder / file) for file in (towers.WEIGHTS, towers.CONFIG)}
    edit_json(record, lambda content: content["files"].update(made_now))
    collect_run(made.plan, f"{run}/0", made.home.parent)


def student(made: Tree, run: str = RUN) -> Any:
    """As its user loads it, without this package."""
    return open_clip.create_model(f"local-dir:{made.home / 'runs' / run / '0' / 'student'}").eval()


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(99 + count))


def unit(values: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values, dim=-1)
