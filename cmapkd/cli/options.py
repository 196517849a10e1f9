"""What the commands share: options, their defaults, and the way from an experiment's file to its plan and its paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmapkd.errors import UserError, nearest

Experiment = Annotated[Path, typer.Option("--experiment", "-e", help="experiment file")]
Results = Annotated[Path, typer.Option("--results", help="folder that holds all experiments")]
DEFAULT = Path("config/mini.yaml")
RESULTS = Path("results")


def plan_of(experiment: Path):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment
    from cmapkd.plan import make_plan

    return make_plan(load_experiment(experiment))


def check_weights(experiment):  # type: ignore[no-untyped-def]
    """Refuse weights that do not exist or are not of the named model; open_clip is imported only if there are some."""
    named = (
        (experiment.teacher, experiment.teacher.pretrained, "teacher.pretrained"),
        (experiment.student, experiment.student.init, "student.init"),
    )
    for role, init, key in named:
        if init not in (None, "random"):
            from cmapkd.models import weights
            from cmapkd.plan import model_settings

            content = model_settings(role.model, f"{key.partition('.')[0]}.model")["config"]
            stated = role.preprocessing.given() if role.preprocessing is not None else None
            weights.check_init(role.model, init, key, content, stated)


def home_of(experiment: Path, results: Path) -> Path:
    from cmapkd.config import load_experiment

    return results / load_experiment(experiment).name


def dataset_of(experiment: Path, dataset: str):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment

    datasets = load_experiment(experiment).datasets
    if dataset not in datasets:
        raise UserError(key="dataset", value=dataset, reason="is not in this experiment", fix=nearest(dataset, list(datasets)))
    return datasets[dataset]


def paper_of(experiment: Path, results: Path):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment
    from cmapkd.paper.experiment import paper_context

    return paper_context(load_experiment(experiment), results, experiment)
