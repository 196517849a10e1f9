"""Intervals of differences between two runs on the same test images: the statistics of the tables, for two runs.

Images are drawn with all of their captions and questions (a paired bootstrap). Where both runs have the same several seeds, the
spread between seeds is added, as in the tables. Otherwise the seeds of a run are averaged for each image, and the interval
holds for these trained models alone.

``differences`` is the one entry; a metric is a mean of ratios of sums over pictures (recalls, their mean, accuracies).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cmapkd.paper.statistics import Ratio, Sample, compare, mean_sample, resample

REPEATS, LEVEL, SEED = 10_000, 0.95, 0
RECALL_AT = (1, 5, 10)

Part = tuple[np.ndarray, np.ndarray]  # for each picture (N,): sum of scores, number of queries


@dataclass(frozen=True)
class Interval:
    """A difference of two runs with its interval and two-sided p value, all in the metric's own unit."""

    difference: float
    low: float
    high: float
    p: float


def differences(
    first: Sequence[Mapping[str, Sequence[Part]]],
    second: Sequence[Mapping[str, Sequence[Part]]],
    repeats: int = REPEATS,
    seed: int = SEED,
    *,
    seeds: bool = False,
) -> dict[str, Interval]:
    """First minus second, for every metric that both have; metrics of one call share their resamples.

    Args:
        first, second: for each seed, by metric its parts, each (sum of scores (N,), number of queries (N,)); the metric is the
            mean over parts of 100 times the ratio of their sums.
        seeds: whether the seeds of both are the same ones, in this order: then their spread is part of the interval.

    Raises:
        ValueError: the two are not of the same images.
    """
    if not seeds:
        first, second = [average(first)], [average(second)]
    trainings = [*first, *second]
    names = [name for name in first[0] if all(name in training for training in trainings)]
    columns = [column for name in names for column in zip(*(training[name] for training in trainings), strict=True)]
    if not columns:
        return {}
    if any(not np.array_equal(part[1], column[0][1]) for column in columns for part in column):
        raise ValueError("the two were not asked the same queries of the same images")
    drawn = resample([Ratio(np.stack([part[0] for part in column]), column[0][1]) for column in columns], repeats, seed)
    found, place = {}, 0
    for name in names:
        parts = slice(place, place + len(first[0][name]))
        place = parts.stop
        both = mean_sample(drawn[parts])
        sides = (slice(None, len(first)), slice(len(first), None))
        ours, theirs = (Sample(both.value[side], both.draws[:, side]) for side in sides)
        # Always the same one, so that the difference of the two the other way round is exactly the negative.
        turned = ours.value.tolist() < theirs.value.tolist()
        tested = compare(theirs, ours, None, level=LEVEL) if turned else compare(ours, theirs, None, level=LEVEL)
        low, high = (-tested.high, -tested.low) if turned else (tested.low, tested.high)
        found[name] = Interval(-tested.difference if turned else tested.difference, low, high, tested.p)
    return found


# ---- from per-query arrays to parts ---------------------------------------------------------------------------------------


def parts_of(task: str, arrays: Mapping[str, np.ndarray]) -> dict[str, list[Part]]:
    """The parts of every metric of one task on one split, from the arrays that a metric file keeps of it.

    Args:
        task: retrieval (``i2t_ranks`` (N,), ``t2i_ranks`` (M,), ``owner`` (M,)), zeroshot (``ranks`` (n,), ``image`` (n,)) or
            vqa (``accuracy`` (Q,), ``type`` (Q,), ``image`` (Q,)).

    Returns:
        By the metric's name in a metric file; empty when an array is missing.
    """
    try:
        if task == "retrieval":
            return _retrieval(arrays["i2t_ranks"], arrays["t2i_ranks"], arrays["owner"])
        if task == "zeroshot":
            return {f"top{k}": [_part(arrays["ranks"] < k, arrays["image"])] for k in (1, 5)}
        scores, kinds, image = arrays["accuracy"], arrays["type"], arrays["image"]
    except KeyError:
        return {}
    masks = {"overall": np.ones(len(scores), bool), **{_key(kind): kinds == kind for kind in np.unique(kinds)}}
    return {name: [_part(scores * mask, image, mask)] for name, mask in masks.items()}


def _key(kind: object) -> str:
    return str(kind).replace("/", "_").replace(" ", "_")


def _retrieval(i2t: np.ndarray, t2i: np.ndarray, owner: np.ndarray) -> dict[str, list[Part]]:
    found = {}
    for way, ranks, image in (("i2t", i2t, np.arange(len(i2t))), ("t2i", t2i, owner)):
        for k in RECALL_AT:
            found[f"{way}_r{k}"] = [_part(ranks < k, image, size=len(i2t))]
    return {**found, "mean_recall": [part for parts in found.values() for part in parts]}


def _part(scores: np.ndarray, image: np.ndarray, asked: np.ndarray | None = None, size: int = 0) -> Part:
    size = size or int(image.max()) + 1
    weights = np.ones(len(image)) if asked is None else asked.astype(np.float64)
    return (
        np.bincount(image, weights=scores.astype(np.float64), minlength=size),
        np.bincount(image, weights=weights, minlength=size),
    )


def average(seeds: Sequence[Mapping[str, Sequence[Part]]]) -> dict[str, list[Part]]:
    """Parts of several seeds of one run as those of their average; only metrics that all have.

    Raises:
        ValueError: the seeds were not asked the same queries.
    """
    found: dict[str, list[Part]] = {}
    for name in [name for name in seeds[0] if all(name in seed for seed in seeds)]:
        columns = list(zip(*(seed[name] for seed in seeds), strict=True))
        if any(not np.array_equal(part[1], column[0][1]) for column in columns for part in column):
            raise ValueError("the seeds were not asked the same queries of the same pictures")
        found[name] = [(np.mean([part[0] for part in column], axis=0), column[0][1]) for column in columns]
    return found


def value(parts: Sequence[Part]) -> float:
    """The metric of all pictures."""
    return float(np.mean([100 * scores.sum() / queries.sum() for scores, queries in parts]))
