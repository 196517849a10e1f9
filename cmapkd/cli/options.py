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
    """Refuse tags and paths of weights that do not exist; open_clip, which knows its tags, is imported only if they matter."""
    from cmapkd.config.paths import require_file

    named = (
        (experiment.teacher.model, experiment.teacher.pretrained, "teacher.pretrained"),
        (experiment.student.model, experiment.student.init, "student.init"),
    )
    for model, init, key in named:
        require_file(init, key)
        if init not in (None, "random"):
            from cmapkd.models import weights

            weights.check_init(model, init, key)


def home_of(experiment: Path, results: Path) -> Path:
    from cmapkd.config import load_experiment

    return results / load_experiment(experiment).name


def dataset_of(experiment: Path, dataset: str, there: bool = False):  # type: ignore[no-untyped-def]
    """The options of a data set; with ``there``, its folders have to be there."""
    from cmapkd.config import load_experiment
    from cmapkd.config.paths import require_folders

    loaded = load_experiment(experiment)
    datasets = loaded.datasets
    if dataset not in datasets:
        raise UserError(key="dataset", value=dataset, reason="is not in this experiment", fix=nearest(dataset, list(datasets)))
    if there:
        require_folders(loaded, [dataset])
    return datasets[dataset]


def paper_of(experiment: Path, results: Path):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment
    from cmapkd.paper.experiment import paper_context

    return paper_context(load_experiment(experiment), results, experiment)
