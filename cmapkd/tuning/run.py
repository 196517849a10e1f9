"""`cmapkd tune`: one run after the other, and the record after each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError, nearest
from cmapkd.tuning import trial
from cmapkd.tuning.record import write_record
from cmapkd.tuning.study import tune


def tune_runs(experiment: ExperimentConfig, names: list[str], results: Path, out: Path, *, restart: bool = False) -> None:
    """Search the settings of ``names`` (of all runs that are tuned, if empty) and write what was found to ``out``.

    Raises:
        UserError: no such run, nothing to tune on, missing data, or earlier trials made under other conditions.
    """
    for name in names:
        if name not in experiment.runs:
            raise UserError(key="run", value=name, reason="is not in this experiment", fix=nearest(name, list(experiment.runs)))
    trial.check(experiment, results)
    folder = results / experiment.name / "tuning"
    for name in names or trial.tuned_runs(experiment):
        trial.prepare(experiment, name, results)
        task = trial.make_task(experiment, name, results)
        if restart:
            trial.clear_work(experiment, name, results)
        try:
            tune(task, folder, partial(trial.run_trial, experiment, name, results), restart=restart)
        finally:
            write_record(experiment, folder, out, trial.search_settings(experiment))
