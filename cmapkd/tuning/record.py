"""The file of what was found: the best values of each run, and every trial."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial

from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.files import write_atomic
from cmapkd.plain_yaml import read_yaml
from cmapkd.tuning.space import nested
from cmapkd.tuning.study import DIVERGED, LOCK, finished, locked, open_storage

HEAD = """# Written by `cmapkd tune`; do not edit. The key `tuned` of an experiment names it: runs then start from these values.
"""


def write_record(experiment: ExperimentConfig, folder: Path, out: Path, search: dict[str, Any]) -> None:
    """Write ``out`` from the journal in ``folder``: every search of the experiment with a finished trial.

    Entries of ``out`` whose search is not in this journal (made on another machine, or before results were deleted) stay.

    Args:
        experiment: names the searches and gives their order.
        folder: of the journal.
        out: YAML file.
        search: what all searches have in common.
    """
    with locked(folder / LOCK):
        storage = open_storage(folder)
        prefix = f"{experiment.name}/"
        names = [name.removeprefix(prefix) for name in optuna.get_all_study_names(storage) if name.startswith(prefix)]
        runs = _kept(out, experiment.name)
        for name in names:
            study = optuna.load_study(study_name=prefix + name, storage=storage)
            trials = finished(study, study.user_attrs["trials"])
            if trials:
                runs[name] = _run(study, trials, search)
        order = list(experiment.runs)
        ranked = sorted(runs, key=lambda name: (order.index(name) if name in order else len(order), name))
        content = {"experiment": experiment.name, "search": search, "runs": {name: runs[name] for name in ranked}}
        write_atomic(out, HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def _kept(out: Path, experiment: str) -> dict[str, Any]:
    """Entries of the file as it is."""
    try:
        content = read_yaml(out)
    except (OSError, UserError):
        return {}
    if not isinstance(content, dict) or content.get("experiment") != experiment or not isinstance(content.get("runs"), dict):
        return {}
    return dict(content["runs"])


def _run(study: optuna.Study, trials: list[FrozenTrial], search: dict[str, Any]) -> dict[str, Any]:
    about = study.user_attrs
    scored = [trial for trial in trials if trial.value is not None]
    best = max(scored, key=_score, default=None)  # of equal ones the first
    scores = [_score(trial) for trial in scored]
    spread = {"min": min(scores), "median": float(statistics.median(scores)), "max": max(scores)} if scores else None
    first = next((trial for trial in trials if trial.user_attrs["index"] == 0), None)
    own = {**about["search"], "trials": about["trials"]}
    return {
        "method": about["method"],
        "values": nested(best.params) if best else None,
        "score": best.value if best else None,
        "default_score": first.value if first else None,
        "scores": spread,
        "complete": len(trials) >= about["trials"],
        **({"search": own} if own != search else {}),
        "config": about["depends"],
        "code": about["code"],
        "data": about["data"],
        "commit": about["commit"],
        "dirty": about["dirty"],
        "trials": [
            {
                "number": trial.user_attrs["index"],
                "values": nested(trial.params),
                "score": trial.value,
                "loss": trial.user_attrs.get("loss"),
                "seconds": trial.user_attrs.get("seconds"),
                "state": "finished" if trial.value is not None else DIVERGED,
            }
            for trial in trials
        ],
    }


def _score(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
