"""The settings of a run that are searched, by dotted key. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmapkd.config.base import Config, Search
from cmapkd.config.methods import MethodConfig
from cmapkd.errors import UserError, nearest

DIGITS = 4  # significant digits of a tried value: what is printed is what was run
SPREAD = 3  # trials after the configured values that are spread over the ranges, before a model proposes any

Values = dict[str, float]
Space = dict[str, Search]


def search_space(method: MethodConfig) -> Space:
    """Ranges of the keys of ``method`` that carry one; a key that is 0 or null in this run is off and stays off.

    A range is widened to hold the configured value. The run's `search` names keys, or sections, to which it is restricted.
    """
    hidden = method.not_searched()
    found = list(_searched(method, ""))
    for wanted in method.search:
        if not any(_within(key, wanted) for key, _, _ in found):
            known = [key for key, _, _ in found]
            raise UserError(key="search", value=wanted, reason="is no key with a range", fix=nearest(wanted, known))
    space = {}
    for key, value, search in found:
        if method.search and not any(_within(key, wanted) for wanted in method.search):
            continue
        if value and not any(_within(key, name) for name in hidden):
            space[key] = Search(min(search.low, value), max(search.high, value), search.log)
    return space


def configured(method: MethodConfig, space: Space) -> Values:
    """The run's own values of the keys of ``space``."""
    values = {key: value for key, value, _ in _searched(method, "")}
    return {key: float(values[key]) for key in space}


def with_values(method: MethodConfig, values: Mapping[str, float]) -> MethodConfig:
    """``method`` with other values of dotted keys, checked like an experiment's."""
    return type(method).model_validate(_merged(method.model_dump(), nested(values)))


def nested(values: Mapping[str, float]) -> dict[str, Any]:
    """Dotted keys as mappings in mappings."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        here = result
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
    return {key: _listed(value) for key, value in result.items()}


def _listed(value: Any) -> Any:
    """Mappings whose keys are 0, 1, ... as lists."""
    if not isinstance(value, dict):
        return value
    if all(key.isdigit() for key in value):
        return [value[key] for key in sorted(value, key=int)]
    return {key: _listed(inner) for key, inner in value.items()}


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def rounded(value: float, search: Search) -> float:
    """``value`` to the digits that are printed, within its range."""
    return min(max(float(f"{value:.{DIGITS}g}"), search.low), search.high)


def propose(
    space: Space,
    start: Values,
    history: Sequence[tuple[Values, float | None]],
    pending: Sequence[Values],
    *,
    index: int,
    seed: int,
    sampler: str,
) -> Values:
    """Values of trial ``index``; a pure function of its arguments, so it does not matter where a search was interrupted.

    Args:
        space: ranges.
        start: configured values, which are trial 0.
        history: values and scores of finished trials; no score: the training diverged, which counts as the worst score.
        pending: values of trials that others are running.
        index: number of the trial.
        seed: of the search.
        sampler: ``tpe``, ``gp`` or ``random``.
    """
    if index == 0:
        return dict(start)
    import numpy as np
    import optuna
    from scipy.stats import qmc

    if index <= SPREAD:
        shares = qmc.LatinHypercube(len(space), rng=np.random.default_rng(seed)).random(SPREAD)[index - 1]
        return {key: rounded(_at(search, share), search) for (key, search), share in zip(space.items(), shares, strict=True)}
    own = int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:4], "big")
    scores = [score for _, score in history if score is not None]
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.FloatDistribution(search.low, search.high, log=search.log) for key, search in space.items()
    }
    study = optuna.create_study(direction="maximize", sampler=_sampler(sampler if scores else "random", own))
    for values, score in history if scores else ():
        value = min(scores) if score is None else score
        study.add_trial(optuna.create_trial(params=values, distributions=distributions, value=value))
    for values in pending if scores else ():  # a middling score, so that two processes do not try the same
        study.add_trial(optuna.create_trial(params=values, distributions=distributions, value=float(np.median(scores))))
    params = study.ask(distributions).params
    return {key: rounded(params[key], search) for key, search in space.items()}


def _sampler(name: str, seed: int) -> Any:
    import optuna

    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)
    return optuna.samplers.RandomSampler(seed=seed)


def _at(search: Search, share: float) -> float:
    if search.log:
        return float(search.low * (search.high / search.low) ** share)
    return float(search.low + (search.high - search.low) * share)


def _searched(section: Config, prefix: str) -> Iterator[tuple[str, Any, Search]]:
    """Every key with a range, its value and the range; sections in sections have dotted keys."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra
        search: Any = extra.get("search") if isinstance(extra, dict) else None
        if search and isinstance(value, tuple):  # one number for each entry
            yield from ((f"{prefix}{name}.{index}", entry, Search(**search)) for index, entry in enumerate(value))
        elif search:
            yield f"{prefix}{name}", value, Search(**search)
        elif isinstance(value, Config):
            yield from _searched(value, f"{prefix}{name}.")


def _merged(base: Any, override: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(override, dict):
        return override
    return {**base, **{key: _merged(base.get(key), value) for key, value in override.items()}}
