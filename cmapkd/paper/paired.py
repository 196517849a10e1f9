"""Intervals of differences between two runs on the same test pictures: the paired bootstrap of ``statistics``, for two runs.

Pictures are drawn with all of their captions and questions; a run's several seeds are averaged for each picture before. So the
interval speaks of other test pictures and these trained models; how much a training varies, the seeds show.

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
    first: Mapping[str, Sequence[Part]],
    second: Mapping[str, Sequence[Part]],
    repeats: int = REPEATS,
    seed: int = SEED,
) -> dict[str, Interval]:
    """First minus second, for every metric that both have; metrics of one call share their resamples.

    Args:
        first, second: by metric its parts, each (sum of scores (N,), number of queries (N,)); the metric is the mean over
            parts of 100 times the ratio of their sums.

    Raises:
        ValueError: the two are not of the same pictures.
    """
    names = [name for name in first if name in second]
    pairs = [(part, other) for name in names for part, other in zip(first[name], second[name], strict=True)]
    if not pairs:
        return {}
    if any(not np.array_equal(part[1], other[1]) for part, other in pairs):
        raise ValueError("the two were not asked the same queries of the same pictures")
    ratios = [Ratio(np.stack([part[0], other[0]]), part[1]) for part, other in pairs]  # of two trainings
    drawn = resample(ratios, repeats, seed)
    found, place = {}, 0
    for name in names:
        parts = slice(place, place + len(first[name]))
        place = parts.stop
        both = mean_sample(drawn[parts])
        ours, theirs = (Sample(both.value[side : side + 1], both.draws[:, side : side + 1]) for side in (0, 1))
        tested = compare(ours, theirs, None, level=LEVEL)
        found[name] = Interval(tested.difference, tested.low, tested.high, tested.p)
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


def average(seeds: Sequence[Mapping[str, list[Part]]]) -> dict[str, list[Part]]:
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
