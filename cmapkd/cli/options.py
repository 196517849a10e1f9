"""What the commands share: options, their defaults, and the way from an experiment's file to its plan and its paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cmapkd import commands
from cmapkd.cli.needs import Needs
from cmapkd.errors import UserError, nearest

DEFAULT = commands.EXPERIMENT
RESULTS = commands.RESULTS


def _given(context: typer.Context, parameter: typer.CallbackParam) -> bool:
    """Whether an option was given, and not left to its default."""
    source = context.get_parameter_source(str(parameter.name))
    return source is not None and source.name != "DEFAULT"  # by its name: typer may bring an enumeration of its own


def _experiment(context: typer.Context, parameter: typer.CallbackParam, value: Path | None) -> Path | None:
    """The experiment's file: as it was given, or the default of the project that the working directory is in."""
    if value is None or context.resilient_parsing:
        return value
    if _given(context, parameter):
        commands.remember("--experiment", value)
        return value
    return default_experiment()


def _results(context: typer.Context, parameter: typer.CallbackParam, value: Path) -> Path:
    """The folder of all results: as it was given, or the project's."""
    if context.resilient_parsing:
        return value
    if _given(context, parameter):
        commands.remember("--results", value)
        return value
    return default_results()


Experiment = Annotated[Path, typer.Option("--experiment", "-e", help="experiment file", callback=_experiment)]
Results = Annotated[Path, typer.Option("--results", help="folder that holds all experiments", callback=_results)]


def default_experiment() -> Path:
    """`config/mini.yaml` here, or in the nearest folder above that is a project.

    Raises:
        UserError: there is neither.
    """
    root = commands.project()
    if DEFAULT.is_file() or root is None:
        if not DEFAULT.is_file():
            raise UserError(
                key=str(Path.cwd()),
                reason="is in no clone of this repository, where the default experiment would be",
                fix="run this in a clone, or name the experiment with --experiment",
            )
        return DEFAULT
    return commands.shown(root / DEFAULT)


def default_results() -> Path:
    """`results` of the project that the working directory is in; outside of any, of the working directory."""
    root = commands.project()
    return RESULTS if root is None else commands.shown(root / RESULTS)


def plan_of(experiment: Path):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment
    from cmapkd.plan import make_plan

    return make_plan(load_experiment(experiment))


def check_weights(experiment):  # type: ignore[no-untyped-def]
    """Refuse weights that do not exist or are not of the named model; open_clip is imported only if there are some."""
    from cmapkd.config.paths import require_file

    named = (
        (experiment.teacher, experiment.teacher.pretrained, "teacher.pretrained"),
        (experiment.student, experiment.student.init, "student.init"),
    )
    for role, init, key in named:
        require_file(init, key)
        if init not in (None, "random"):
            from cmapkd.models import weights
            from cmapkd.plan import model_settings

            content = model_settings(role.model, f"{key.partition('.')[0]}.model")["config"]
            stated = role.preprocessing.given() if role.preprocessing is not None else None
            weights.check_init(role.model, init, key, content, stated)


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
    commands.remember_dataset(dataset)
    return datasets[dataset]


def dataset_named(error: UserError) -> str | None:
    """The data set that a refusal is about: that of the command, or the first of the folder or kind of source that it names."""
    from cmapkd.config import load_experiment

    if "`cmapkd data " not in error.fix or commands.remembered_dataset():
        return commands.remembered_dataset()
    try:
        datasets = load_experiment(commands.given("--experiment") or default_experiment()).datasets
    except UserError:
        return None
    text = f"{error.key} {error.value}"
    by_root = [name for name, config in datasets.items() if str(getattr(config, "root", None)) == str(error.value)]
    by_folder = [name for name in datasets if re.search(rf"/data/{re.escape(name)}(?:[/\s]|$)", text)]
    by_source = [name for name, config in datasets.items() if error.key.startswith(f"{config.source}:")]
    return next(iter((*by_root, *by_folder, *by_source)), None)


def needs_of(experiment: Path, results: Path) -> Needs:
    """What an experiment's commands can be refused for."""
    from cmapkd.config import load_experiment

    return Needs(experiment, load_experiment(experiment).name, results)


def paper_of(experiment: Path, results: Path):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment
    from cmapkd.paper.experiment import paper_context

    return paper_context(load_experiment(experiment), results, experiment)
