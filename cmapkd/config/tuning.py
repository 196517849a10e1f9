"""How the settings of the runs are searched, and the file of the values that were found. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cmapkd.config.base import Config, Field
from cmapkd.config.extend import looked_up
from cmapkd.errors import UserError
from cmapkd.plain_yaml import read_yaml

REPOSITORY = Path(__file__).parent.parent.parent
# The workflow does not say where an experiment's file lies; those of the repository are all in `config`.
PLACES = (REPOSITORY, REPOSITORY / "config")


class TuningConfig(Config):
    """Search of the settings of every run on `evaluation.validation`, by `cmapkd tune`: as many trials for each run."""

    trials: int = Field(16, ge=1, unit="trials", description="settings that are tried for each run, the configured ones first")
    length: float = Field(1.0, gt=0, le=1, unit="share", description="share of the schedule's epochs that a trial trains")
    seed: int = Field(
        100, ge=0, description="seed of the trials' trainings and of the sampler; best none of `seeds`, which are reported"
    )
    sampler: Literal["tpe", "gp", "random"] = Field(
        "gp",
        description="what proposes settings after the configured ones and three spread over the ranges (Optuna's samplers)",
    )
    runs: tuple[str, ...] = Field((), description="runs that are tuned; empty: all but the ablations")


def find_tuned(name: str, origin: str, directory: Path | None) -> list[Path]:
    """Where the file ``name`` of the key `tuned` is looked for; arguments and errors as for `tuned_values`."""
    return looked_up(name, f"{origin}: tuned", directory, PLACES)


def tuned_values(
    name: str, runs: Mapping[str, Any], origin: str, directory: Path | None = None
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Of those of ``runs`` that the file ``name`` holds: the values found and those the search started from.

    Both are nested as in the experiment.

    Args:
        name: the experiment's key `tuned`.
        runs: the runs that may start from the file, as read.
        origin: what messages call the experiment.
        directory: of the experiment file; the file is looked for there, then in the repository.

    Raises:
        UserError: the file is missing or damaged, or its values of a run come from an unfinished search or another method.
    """
    key = f"{origin}: tuned"
    places = find_tuned(name, origin, directory)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        where = " or ".join(str(place) for place in places)
        raise UserError(key=key, value=name, reason=f"there is no file {where}", fix="run `cmapkd tune`, or take the key out")
    try:
        content = read_yaml(path)
    except (OSError, UserError) as error:
        raise UserError(key=key, value=name, reason=f"{path} cannot be read: {error}", fix="run `cmapkd tune` again") from None
    found = content.get("runs") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise UserError(key=key, value=name, reason=f"{path} holds no `runs`", fix="name a file that `cmapkd tune` wrote")
    values = {}
    for run, entry in found.items():
        own = runs.get(run)
        if not isinstance(own, dict):
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("values"), dict):
            raise UserError(key=f"{path}: runs.{run}", reason="holds no values", fix=f"run `cmapkd tune {run!r}`")
        if entry.get("complete") is not True:
            reason = "its search is not complete"
            raise UserError(key=f"{path}: runs.{run}", reason=reason, fix=f"run `cmapkd tune {run!r}` to its end")
        if entry.get("method") != own.get("method", entry.get("method")):  # a run with a `base` may leave it to that
            reason = f"was tuned for another method than the experiment's {own.get('method')!r}"
            raise UserError(key=f"{path}: runs.{run}", value=entry.get("method"), reason=reason, fix="tune it with --restart")
        trials = entry.get("trials") or [{}]
        values[run] = dict(entry["values"]), dict(trials[0].get("values") or {})
    return values
