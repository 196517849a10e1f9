"""The command that searches settings of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cmapkd import commands
from cmapkd.cli.options import DEFAULT, RESULTS, Experiment, Results, needs_of
from cmapkd.errors import UserError, nearest


def tune(
    runs: Annotated[list[str] | None, typer.Argument(help="runs to tune; none: those of the key `tuning`")] = None,
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all")] = 1,
    trials: Annotated[int, typer.Option(help="trials of each run; 0: as the experiment says")] = 0,
    out: Annotated[Path | None, typer.Option(help="file of what was found; default config/tuned/<experiment>.yaml")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="forget earlier trials of these runs")] = False,
) -> None:
    """Search settings of runs on the validation splits, as many trials for each; killed, the same command goes on.

    Several of these commands may run at once, on the same runs or others.
    """
    from cmapkd.config import load_experiment

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(key="tune", reason="runs in one process", fix="start it without torchrun, several times if you like")
    loaded = load_experiment(experiment, tuning=runs or ())
    for run in runs or ():
        if run not in loaded.runs:
            raise UserError(key="run", value=run, reason="is not in this experiment", fix=nearest(run, list(loaded.runs)))
    if loaded.evaluation.validation:
        references = (*loaded.distillation, *loaded.evaluation.validation)
        needs_of(experiment, results).data(reference.partition("/")[0] for reference in references)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    if threads:
        torch.set_num_threads(threads)
    from cmapkd.training.stopping import EXIT, Interrupted
    from cmapkd.tuning.run import tune_runs
    from cmapkd.tuning.trial import tuned_runs

    names = runs or tuned_runs(load_experiment(experiment, tuning=()))
    loaded = load_experiment(experiment, tuning=names)
    if trials:
        loaded = loaded.model_copy(update={"tuning": loaded.tuning.model_copy(update={"trials": trials})})
    root = commands.project()
    folder = DEFAULT.parent if root is None else commands.shown(root / DEFAULT.parent)
    target = out or folder / "tuned" / f"{loaded.name}.yaml"
    try:
        tune_runs(loaded, names, results, target, restart=restart)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise SystemExit(EXIT) from None
    typer.echo(str(target))
