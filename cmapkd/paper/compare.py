"""Two runs side by side: in what they were configured differently, what was measured, and how their losses went.

A side is a run of an experiment (``CMAPKD``), of another one (``mini:CMAPKD``, ``results/mini:CMAPKD``), or a whole results
directory (``results/mini``), which stands for each of its runs. Differences of retrieval, zero-shot classification and visual
questions come with an interval and a p value (``paired``). Torch-free; nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError, nearest
from cmapkd.files import read_json
from cmapkd.paper import paired
from cmapkd.paper.context import EXPERIMENT_FILE, TEACHER, PaperContext
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.verify import like_results, open_results
from cmapkd.plan import make_plan
from cmapkd.runs import find_run

TASKS = ("retrieval", "zeroshot", "vqa")
ELSEWHERE = ("name", "runs", "paper", "tuning", "tuned")  # keys of an experiment that say nothing of one run's result
ADDRESSES = (
    "method",
    "parent",
    "teacher",
    "teacher_pyramid",
    "teacher_prompts",
    "seed",
)  # told by a run's options, or no setting
SIZES = ("images", "captions", "questions", "classes")  # of a test set: equal, or it is another one
UNRANKED = (*SIZES, "answers", "training_questions", "ceiling")  # say nothing of a run


@dataclass(frozen=True)
class Side:
    """A run (or, with an empty name, all runs) of an experiment with results."""

    context: PaperContext
    experiment: ExperimentConfig
    run: str

    @property
    def shown(self) -> str:
        home = self.context.results.name
        return f"{home}:{self.run}" if self.run else home


@dataclass(frozen=True)
class Number:
    """One metric of both sides: mean and deviation over seeds (None: not measured), and the interval of the difference."""

    name: str
    first: tuple[float, float | None] | None
    second: tuple[float, float | None] | None
    interval: paired.Interval | None = None

    @property
    def difference(self) -> float | None:
        return self.first[0] - self.second[0] if self.first and self.second else None


@dataclass(frozen=True)
class Curve:
    """Loss of one stage, mean over seeds: steps (k,) and values (k,)."""

    stage: str
    steps: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common and what not."""

    first: str
    second: str
    settings: list[tuple[str, str, str]]  # key, value of the first, of the second
    numbers: list[Number]
    curves: tuple[list[Curve], list[Curve]]
    seeds: int  # whose spread is part of the intervals; 0: intervals are of these trained models alone
    notes: list[str] = field(default_factory=list)


# ---- which runs -----------------------------------------------------------------------------------------------------------


def find_side(text: str, experiment: ExperimentConfig, context: PaperContext, results: Path) -> Side:
    """What an argument names.

    Args:
        text: ``RUN``, ``EXPERIMENT:RUN`` or a results directory.
        experiment, context: those of a run without an experiment.
        results: folder that holds all experiments.

    Raises:
        UserError: no such run or experiment.
    """
    if text in context.directories:
        return Side(context, experiment, text)
    head, colon, run = text.rpartition(":")
    for place, name in ((head, run), (text, "")) if colon else ((text, ""),):
        homes = [home for home in (Path(place), results / place) if (home / EXPERIMENT_FILE).is_file()]
        if place and homes:
            loaded, found = open_results(homes[0])
            if name and name not in found.directories:
                fix = nearest(name, list(found.directories))
                raise UserError(key="run", value=name, reason=f"is not a run of {loaded.name}", fix=fix)
            return Side(found, loaded, name)
    if colon:
        fix = like_results(Path(head) if "/" in head else results / head)
        raise UserError(key="experiment", value=head, reason="has no results here", fix=fix)
    known = list(context.directories)
    raise UserError(key="run", value=text, reason=f"is not a run of {experiment.name}", fix=nearest(text, known))


def pairs_of(first: Side, second: Side) -> list[tuple[Side, Side]]:
    """The pairs of runs to compare: the two, or all that two experiments have in common.

    Raises:
        UserError: a run against a whole experiment, or experiments without a common run.
    """
    if first.run and second.run:
        return [(first, second)]
    if first.run or second.run:
        alone, whole = (first, second) if first.run else (second, first)
        fix = f"name one of its runs: {whole.shown}:{alone.run}"
        raise UserError(key="run", value=whole.shown, reason=f"is an experiment, {alone.shown} is a run", fix=fix)
    common = [name for name in first.context.directories if name in second.context.directories]
    if not common:
        raise UserError(key="runs", reason=f"{first.shown} and {second.shown} have no run in common")
    return [(Side(first.context, first.experiment, n), Side(second.context, second.experiment, n)) for n in common]


def compare(first: Side, second: Side, *, strata: bool = False) -> Comparison:
    """Compare two runs.

    Args:
        strata: metrics of every stratum and of the levels too, not only of the whole test sets.

    Raises:
        UserError: a metric file is missing or damaged, or the two were not measured on the same data.
    """
    readers = Metrics(first.context), Metrics(second.context)
    _same_data(first, second, readers)
    notes: list[str] = []
    sides = ((first, readers[0]), (second, readers[1]))
    numbers = _numbers(sides, notes, strata=strata)
    curves = _curves(first, readers[0]), _curves(second, readers[1])
    return Comparison(first.shown, second.shown, _settings(first, second), numbers, curves, len(_shared_seeds(sides)), notes)


# ---- configuration --------------------------------------------------------------------------------------------------------


def _settings(first: Side, second: Side) -> list[tuple[str, str, str]]:
    """Effective settings that differ: of the run, of its stages as they ran, and of the experiments where these are two."""
    found = _differing(_options(first), _options(second), "")
    stages = _stages(first), _stages(second)
    names = ", ".join(stages[0]), ", ".join(stages[1])
    if names[0] != names[1]:
        found.append(("stages", *names))
    for name in [name for name in stages[0] if name in stages[1]]:
        found += _differing(stages[0][name], stages[1][name], f"stage {name}: ")
    if first.experiment != second.experiment:
        whole = [side.experiment.model_dump(mode="json", exclude=set(ELSEWHERE)) for side in (first, second)]
        found += _differing(whole[0], whole[1], "experiment: ")
    return found


def _options(side: Side) -> dict[str, Any]:
    options = side.experiment.teacher if side.run == TEACHER else side.experiment.runs[side.run]
    return options.model_dump(mode="json", exclude={"group", "note"})


def _stages(side: Side) -> dict[str, dict[str, Any]]:
    """Settings of each stage by its name: as ``stage.json`` tells, else as the plan has them."""
    plan = make_plan(side.experiment)
    run = find_run(plan, f"{side.context.directories[side.run]}/{side.context.seeds_of(side.run)[0]}")
    found = {}
    for address in run.stages:
        record = side.context.results / "stages" / address / "stage.json"
        settings = read_json(record, settings=dict)["settings"] if record.is_file() else plan.stages[address].settings
        name = settings.get("stage", {}).get("name", address.rpartition("-")[0])
        found[name] = {key: value for key, value in settings.items() if key not in ADDRESSES}
    return found


def _differing(first: Mapping[str, Any], second: Mapping[str, Any], above: str) -> list[tuple[str, str, str]]:
    own, other = dict(_flat(first)), dict(_flat(second))
    keys = [key for key in dict.fromkeys((*own, *other)) if key not in own or key not in other or own[key] != other[key]]
    return [(above + key, _text(own[key]) if key in own else "", _text(other[key]) if key in other else "") for key in keys]


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_text(entry) for entry in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- what was measured ----------------------------------------------------------------------------------------------------


def _same_data(first: Side, second: Side, readers: tuple[Metrics, Metrics]) -> None:
    digests: list[dict[str, tuple[str, Path]]] = []
    for side, reader in zip((first, second), readers, strict=True):
        files = [reader.file(side.run, seed, side.shown) for seed in side.context.seeds_of(side.run)]
        digests.append({name: (str(d), file.path) for file in files for name, d in file.provenance["data_digests"].items()})
    for dataset in [name for name in digests[0] if name in digests[1]]:
        (own, path), (other, elsewhere) = digests[0][dataset], digests[1][dataset]
        if own != other:
            reason = f"was measured on {dataset} with digest {own[:12]}, {elsewhere} on {other[:12]}: different test data"
            raise UserError(key=str(path), reason=reason, fix="evaluate both on the same data")


def _numbers(sides: tuple[tuple[Side, Metrics], tuple[Side, Metrics]], notes: list[str], *, strata: bool) -> list[Number]:
    measured = [_measured(side, reader) for side, reader in sides]
    intervals = _intervals(sides, measured, notes)
    numbers = []
    for name in dict.fromkeys((*measured[0], *measured[1])):
        task, *_, last = name.split(" ")
        whole = task == "efficiency" or (task in TASKS and name.split(" ")[-2] == "all")
        if last in UNRANKED or not (whole or strata):
            if last in SIZES and all(name in side for side in measured) and {*measured[0][name]} != {*measured[1][name]}:
                path = sides[1][0].context.metric_file(sides[1][0].run, sides[1][0].context.seeds_of(sides[1][0].run)[0])
                reason = f"{name} is {fmean(measured[1][name]):g}, of {sides[0][0].shown} it is {fmean(measured[0][name]):g}"
                raise UserError(key=str(path), reason=f"{reason}: different test data", fix="evaluate both on the same data")
            continue
        first, second = (_spread(side[name]) if name in side else None for side in measured)
        numbers.append(Number(name, first, second, intervals.get(name)))
    for (side, _), own, other in zip(sides, measured, reversed(measured), strict=True):
        lacking = sorted({" ".join(name.split(" ")[:-1]) for name in other if name not in own and name.split(" ")[0] in TASKS})
        if lacking:
            notes.append(f"{side.shown} has no {'; '.join(lacking)}")
    if not any(number.first and number.second for number in numbers):
        notes.append("nothing was measured on both")
    return numbers


def _spread(values: list[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None


def _measured(side: Side, reader: Metrics) -> dict[str, list[float]]:
    """Every number of a run by where it stands (``retrieval <split> all i2t_r1``): its values over the seeds that have it."""
    found: dict[str, list[float]] = {}
    seeds = side.context.seeds_of(side.run)
    for seed in seeds:
        for keys, value in _leaves(reader.file(side.run, seed, side.shown).content["metrics"], ()):
            found.setdefault(" ".join(keys), []).append(value)
    return {name: values for name, values in found.items() if len(values) == len(seeds)}


def _leaves(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield keys, float(value)


def _shared_seeds(sides: tuple[tuple[Side, Metrics], tuple[Side, Metrics]]) -> tuple[int, ...]:
    """The seeds of both runs, if they are the same several ones."""
    ours, theirs = (tuple(side.context.seeds_of(side.run)) for side, _ in sides)
    return ours if ours == theirs and len(ours) > 1 else ()


def _intervals(
    sides: tuple[tuple[Side, Metrics], tuple[Side, Metrics]], measured: list[dict[str, list[float]]], notes: list[str]
) -> dict[str, paired.Interval]:
    """Intervals of the metrics of whole test sets, as far as per-query arrays of both runs are there and are the metrics'."""
    found: dict[str, paired.Interval] = {}
    for task, split in dict.fromkeys(tuple(name.split(" ")[:2]) for side in measured for name in side):
        if task not in TASKS:
            continue
        parts = []
        for side, reader in sides:
            parts.append([_parts(side, reader, seed, task, split) for seed in side.context.seeds_of(side.run)])
        if not all(all(seeds) for seeds in parts):
            notes.append(f"no intervals for {task} on {split}: its per-query arrays are not in both metric files")
            continue
        try:
            made = paired.differences(parts[0], parts[1], seeds=bool(_shared_seeds(sides)))
        except ValueError as error:
            notes.append(f"no intervals for {task} on {split}: {error}")
            continue
        found |= {f"{task} {split} all {metric}": interval for metric, interval in made.items()}
    return found


def _parts(side: Side, reader: Metrics, seed: int, task: str, split: str) -> dict[str, list[paired.Part]]:
    above = f"{task}/{split}/"
    arrays = reader.arrays(side.run, seed, side.shown)
    parts = paired.parts_of(task, {name.removeprefix(above): array for name, array in arrays.items() if name.startswith(above)})
    file = reader.file(side.run, seed, side.shown)
    stated = file.content["metrics"].get(task, {}).get(split, {}).get("all", {})
    for metric, made in parts.items():
        if stated.get(metric) is not None and not math.isclose(stated[metric], paired.value(made), abs_tol=1e-4):
            reason = f"{above}... give {metric} = {paired.value(made):.4f}, but {file.path.name} says {stated[metric]:.4f}"
            raise UserError(key=str(file.arrays_path), reason=reason, fix=file.again)
    return {metric: made for metric, made in parts.items() if stated.get(metric) is not None}


def _curves(side: Side, reader: Metrics) -> list[Curve]:
    """Loss of each stage in order, mean over the seeds (of the first alone where their logs have different lengths)."""
    seeds = [reader.arrays(side.run, seed, side.shown) for seed in side.context.seeds_of(side.run)]
    names = sorted((n for n in seeds[0] if n.startswith("curves/") and n.endswith("/loss")), key=lambda n: int(n.split("/")[1]))
    found = []
    for name in names:
        losses = [arrays[name] for arrays in seeds if name in arrays and arrays[name].shape == seeds[0][name].shape]
        steps = seeds[0].get(name.removesuffix("loss") + "step", np.arange(len(losses[0])))
        found.append(Curve(name.split("/", 2)[2].removesuffix("/loss"), steps, np.mean(losses, axis=0)))
    return found
