"""What the levels of a pyramid hold: how much they differ from one another, how well each retrieves, how ALSN weighs them.

Levels that are copies of each other have a CKA near 1 and equal accuracies, whatever a figure of their weights shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr

Array = np.ndarray
BATCH = 128  # pictures among which a level has to find its own text
KEPT = 500  # pictures of which the pooled levels are kept, for a map of them


def linear_cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019) of features of the same samples, (n, p) and (n, q).

    1 for features that are equal up to rotation and scale; 0 where one of them does not vary.
    """
    x, y = (np.asarray(value, np.float64) - np.mean(value, axis=0, dtype=np.float64) for value in (x, y))
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return min(1.0, float(np.linalg.norm(y.T @ x) ** 2 / own)) if own > 0 else 0.0  # above 1 by rounding alone


def in_batch_accuracy(similarities: Array) -> float:
    """Share of the rows of ``similarities`` (b, b) whose largest entry is their own column's, in percent."""
    return float(100 * np.mean(similarities.argmax(axis=1) == np.arange(len(similarities))))


def cka_between(levels: Mapping[str, Array]) -> dict[str, float]:
    """`linear_cka` of every two of ``levels``, (n, C) each, as ``P2-P3`` and so on."""
    return {f"{a}-{b}": linear_cka(levels[a], levels[b]) for a, b in combinations(levels, 2)}


def weight_statistics(weights: Array, names: Sequence[str]) -> dict[str, Any]:
    """Of level weights (n, levels): mean entropy, mean and deviation of each level's weight, and how often it is the largest.

    Returns:
        ``entropy`` in nats, ``entropy_share`` of its maximum, and ``mean``, ``deviation`` (over samples), ``largest``
        (share of the samples) by level.
    """
    weights = np.asarray(weights, np.float64)
    entropy = float(-(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1).mean())
    top = np.bincount(weights.argmax(axis=1), minlength=len(names)) / len(weights)
    return {
        "entropy": entropy,
        "entropy_share": entropy / np.log(len(names)) if len(names) > 1 else 1.0,
        "mean": dict(zip(names, weights.mean(axis=0).tolist(), strict=True)),
        "deviation": dict(zip(names, weights.std(axis=0).tolist(), strict=True)),
        "largest": dict(zip(names, top.tolist(), strict=True)),
    }


def weights_by_stratum(weights: Array, names: Sequence[str], strata: Array) -> dict[str, dict[str, Any]]:
    """`weight_statistics` of all samples and of those of each stratum; ``strata`` (n,) holds "" for a sample without one."""
    found = {"all": weight_statistics(weights, names)}
    for stratum in np.unique(strata):
        if stratum:
            found[str(stratum)] = weight_statistics(weights[strata == stratum], names)
    return found


def follows_distance(weights: Array, distances: Array, names: Sequence[str]) -> dict[str, Any]:
    """Whether weights follow what is easy to match: level weights and distances to the teacher, (n, levels) each.

    Returns:
        ``easiest``: share of the samples whose largest weight is on the level that is nearest to the teacher's, ``farthest``
        the same of the farthest one (chance: one in the number of levels); ``rho``: by level, Spearman's correlation over
        samples of weight and distance, left out where one of them is constant.
    """
    top = weights.argmax(axis=1)
    found: dict[str, Any] = {
        "easiest": float(np.mean(top == distances.argmin(axis=1))),
        "farthest": float(np.mean(top == distances.argmax(axis=1))),
        "rho": {},
    }
    for place, name in enumerate(names):
        weight, distance = weights[:, place], distances[:, place]
        if np.ptp(weight) > 0 and np.ptp(distance) > 0:
            found["rho"][name] = float(spearmanr(weight, distance).statistic)
    return found
