"""Paired tests of two runs over the queries of a test set and over seeds, Holm's correction, detectable differences.

A metric is a share (or a mean of shares): hits over queries, both summed over clusters of queries that belong together (a
picture with its captions and questions). Its difference D between two runs, paired query by query and seed by seed, has

    Var(D) = seeds / S + queries / N + rest / (S N)        S seeds, N clusters, two-way random effects

*Queries* are resampled: the paired bootstrap draws N clusters with replacement, the same ones for every run and seed (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993). The candidates of retrieval stay: ranks are those among the whole set.

*Seeds* are not: a bootstrap over three of them knows two thirds of their variance, and that badly (Owen, The pigeonhole
bootstrap, AOAS 2007), so its intervals are too short. Instead the variance of training is that of seeds within runs,
pooled over the runs of a table, as reader variance is in multi-reader studies (Obuchowski and Rockette, Commun. Stat. Simul.
1995; Hillis, Stat. Med. 2007), or that of the two runs alone if this is larger, with a t distribution of (R - 1)(S - 1)
degrees of freedom (R runs). What bootstrap and seeds both hold, ``rest``, is counted once: the bootstrap is shrunk by it.
The draws are D + shrunk bootstrap + t, the interval is between their quantiles, and p is

    2 (1 + min(#draws <= 0, #draws >= 0)) / (B + 1)        never zero (Davison and Hinkley, Bootstrap Methods, 1997, 4.2)

Pooling assumes that trainings of the runs vary about alike. On made-up data with three seeds and nine runs the 95 % intervals
hold the true difference in 95 to 97 % of cases; of a run whose seeds vary three times as much as the others', in 87 to 93 %.
Resampling the seeds gives 80 % where they dominate (``tests/unit/test_paper_statistics.py`` repeats it). With one seed only
queries are resampled: the result is about these two trainings, not about their methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 22  # weights made at a time: 32 MB
TIE = 1e-9  # [percentage points] smaller differences are rounding


@dataclass(frozen=True)
class Ratio:
    """A share that is measured in T trainings: summed over N clusters, ``hits`` over ``sizes``."""

    hits: np.ndarray  # (T, N), e.g. how many captions of a picture found it
    sizes: np.ndarray  # (N,), e.g. its captions

    def value(self) -> np.ndarray:
        """The share in percent, (T,)."""
        value: np.ndarray = 100 * self.hits.sum(1) / self.sizes.sum()
        return value


@dataclass(frozen=True)
class Sample:
    """A metric of T trainings in percent: as measured (T,), and on each of B resamples of its queries (B, T)."""

    value: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """A run minus another run.

    Attributes:
        difference: mean over seeds, in percentage points.
        of_seeds: (S,) the difference of each seed.
        low, high: interval of the asked level.
        p: two-sided, uncorrected.
        error: standard error of the difference.
        freedom: degrees of freedom of ``error`` (Satterthwaite); infinite with one seed.
    """

    difference: float
    of_seeds: np.ndarray
    low: float
    high: float
    p: float
    error: float
    freedom: float


@dataclass(frozen=True)
class SeedVariance:
    """Variance of one training's metric between seeds, within runs, and its degrees of freedom."""

    value: float
    freedom: int


def resample(ratios: Sequence[Ratio], samples: int, seed: int) -> list[Sample]:
    """The ratios on ``samples`` resamples of their N clusters, the same resamples for all of them.

    A resample that holds no query of a ratio (a rare kind of question) keeps the ratio as it was measured.
    """
    columns = np.concatenate([part for ratio in ratios for part in (ratio.hits, ratio.sizes[None])]).T  # (N, K)
    sums = _resampled_sums(np.ascontiguousarray(columns, dtype=np.float64), samples, seed)  # (B, K)
    found, first = [], 0
    for ratio in ratios:
        trainings = len(ratio.hits)
        hits, size = sums[:, first : first + trainings], sums[:, first + trainings, None]
        value = ratio.value()
        found.append(Sample(value, np.where(size > 0, 100 * hits / np.maximum(size, 1), value)))
        first += trainings + 1
    return found


def _resampled_sums(columns: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums (samples, K) of columns (N, K) over N rows drawn with replacement; a function of N and seed beside the columns."""
    generator = np.random.default_rng([seed, 0])
    clusters, rows = len(columns), max(1, BLOCK // len(columns))
    blocks = []
    for first in range(0, samples, rows):
        count = min(rows, samples - first)
        drawn = generator.integers(0, clusters, size=(count, clusters)) + clusters * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * clusters).reshape(count, clusters)  # how often each was drawn
        blocks.append(weights.astype(np.float64) @ columns)
    return np.concatenate(blocks)


def mean_sample(samples: Sequence[Sample]) -> Sample:
    """The mean of several metrics of the same trainings and resamples."""
    return Sample(np.mean([s.value for s in samples], axis=0), np.mean([s.draws for s in samples], axis=0))


def seed_variance(values: np.ndarray) -> SeedVariance | None:
    """Variance between the seeds of runs (R, S), after what a seed does to all runs alike; None with one run or one seed."""
    runs, seeds = values.shape
    if runs < 2 or seeds < 2:
        return None
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    freedom = (runs - 1) * (seeds - 1)
    return SeedVariance(float((rest**2).sum() / freedom), freedom)


def compare(run: Sample, other: Sample, pooled: SeedVariance | None, *, level: float = 0.95, seed: int = 0) -> Comparison:
    """``run`` minus ``other``, whose trainings are the seeds, in the same order.

    Args:
        run, other: metrics of S seeds on the same resamples.
        pooled: variance between seeds of all runs compared, from ``seed_variance``; ignored with one seed.
        level: of the interval.
        seed: of the draws from the t distribution.
    """
    of_seeds = run.value - other.value  # (S,)
    draws = run.draws - other.draws  # (B, S)
    mean, seeds = float(of_seeds.mean()), len(of_seeds)
    resampled = draws.mean(1)  # (B,)
    if seeds == 1:
        return Comparison(mean, of_seeds, *_interval(resampled, level), float(resampled.std(ddof=1)), math.inf)
    own = SeedVariance(float(of_seeds.var(ddof=1)) / 2, seeds - 1)  # of one training
    if pooled is None:
        pooled = own
    trained = 2 * max(own.value, pooled.value) / seeds
    queries = float(resampled.var(ddof=1))
    shared = float((draws - resampled[:, None]).var(axis=0, ddof=1).sum()) / (seeds * (seeds - 1))
    kept = max(queries - shared, 0.0)
    noise = np.random.default_rng([seed, 1]).standard_t(pooled.freedom, size=len(resampled))
    shrunk = (resampled - mean) * math.sqrt(kept / queries) if queries > 0 else 0.0
    freedom = pooled.freedom * (1 + kept / trained) ** 2 if trained > 0 else math.inf
    drawn = mean + shrunk + noise * math.sqrt(trained)
    return Comparison(mean, of_seeds, *_interval(drawn, level), math.sqrt(kept + trained), freedom)


def _interval(draws: np.ndarray, level: float) -> tuple[float, float, float]:
    """Lower and upper end, and p of no difference."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    beyond = min(int((draws <= TIE).sum()), int((draws >= -TIE).sum()))
    return float(low), float(high), min(1.0, 2 * (1 + beyond) / (len(draws) + 1))


def smallest_p(samples: int) -> float:
    """The smallest p that so many resamples can give."""
    return 2 / (samples + 1)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, Scand. J. Statist. 1979), in the order given.

    The i-th smallest of m is multiplied by m - i + 1, and none is smaller than the one before it.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()


def detectable(error: float, freedom: float, alpha: float, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at ``alpha`` finds with probability ``power``.

    ``error * (t(1 - alpha / 2) + t(power))``: the usual approximation of the noncentral t.
    """
    from scipy.stats import t  # most tables need it not, and it takes a second to import

    return error * (float(t.ppf(1 - alpha / 2, freedom)) + float(t.ppf(power, freedom)))
