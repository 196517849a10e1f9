"""Statistics against closed forms, SciPy and simulations of made-up data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cmapkd.paper.statistics import (
    Ratio,
    Sample,
    SeedVariance,
    compare,
    detectable,
    holm,
    mean_sample,
    resample,
    seed_variance,
    smallest_p,
)

P = st.lists(st.floats(1e-6, 1), min_size=1, max_size=12)


# ---- Holm -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.03], [0.03]),
        ([0.01, 0.04], [0.02, 0.04]),
        ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]),  # 3 x .01, 2 x .03, then 1 x .04, but not below 2 x .03
        ([0.5, 0.6, 0.001], [1.0, 1.0, 0.003]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p: list[float], corrected: list[float]) -> None:
    assert holm(p) == pytest.approx(corrected)


@given(P, st.floats(0.001, 0.999))
def test_holm_rejects_what_its_step_down_procedure_rejects(p: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] * (len(p) - step) > alpha:
            break
        rejected.add(index)
    corrected = holm(p)
    if min(abs(c - alpha) for c in corrected) > 1e-9:
        assert {i for i, c in enumerate(corrected) if c <= alpha} == rejected


@given(P)
def test_holm_is_between_no_correction_and_bonferroni(p: list[float]) -> None:
    for single, corrected in zip(p, holm(p), strict=True):
        assert single <= corrected <= min(1.0, len(p) * single) + 1e-12
    assert holm(p[::-1]) == pytest.approx(holm(p)[::-1])


# ---- the bootstrap over queries ---------------------------------------------------------------------------------------------


def test_resamples_are_multinomial_weights_shared_by_all_ratios() -> None:
    clusters = 40
    generator = np.random.default_rng(0)
    hits, sizes = generator.integers(0, 4, (3, clusters)), generator.integers(4, 9, clusters)
    identity = Ratio(np.eye(clusters), np.ones(clusters))  # its draws are the weights
    weights, drawn = (sample.draws for sample in resample([identity, Ratio(hits, sizes)], 2000, seed=5))
    weights = weights * clusters / 100
    assert np.allclose(weights, weights.round())
    assert np.allclose(weights.sum(1), clusters)
    assert np.allclose(drawn, 100 * (weights @ hits.T) / (weights @ sizes)[:, None])
    covariance = np.cov(weights.T)
    assert np.diag(covariance).mean() == pytest.approx(1 - 1 / clusters, rel=0.05)
    again = resample([identity], 2000, seed=5)[0].draws * clusters / 100
    assert np.array_equal(again, weights)
    assert not np.array_equal(resample([identity], 2000, seed=6)[0].draws * clusters / 100, weights)


def test_a_resample_without_queries_of_a_kind_keeps_what_was_measured() -> None:
    sizes = np.array([1.0, 0.0, 0.0])
    sample = resample([Ratio(np.array([[0.25, 0.0, 0.0]]), sizes)], 500, seed=0)[0]
    assert np.allclose(sample.draws, 25.0)


def test_interval_of_one_seed_agrees_with_scipy() -> None:
    generator = np.random.default_rng(1)
    ones = generator.random((2, 300)) < np.array([[0.3], [0.22]])
    run, other = (resample([Ratio(row[None], np.ones(300))], 20_000, seed=0)[0] for row in ones)
    found = compare(run, other, None)
    reference = stats.bootstrap(
        tuple(100.0 * ones), lambda a, b, axis: (a - b).mean(axis=axis), paired=True, n_resamples=5_000, method="percentile",
        random_state=np.random.default_rng(3),
    )  # fmt: skip
    assert found.difference == pytest.approx(100 * (ones[0].mean() - ones[1].mean()))
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval), abs=0.6)
    assert found.error == pytest.approx(reference.standard_error, rel=0.05)
    assert found.freedom == math.inf
    normal = 2 * stats.norm.sf(abs(found.difference) / found.error)
    assert found.p == pytest.approx(normal, abs=0.01)


def test_p_is_never_zero_and_one_without_a_difference() -> None:
    hits = np.zeros((1, 50))
    nothing, everything = (resample([Ratio(part, np.ones(50))], 999, seed=0)[0] for part in (hits, hits + 1))
    assert compare(everything, nothing, None).p == pytest.approx(2 / 1000) == smallest_p(999)
    same = compare(everything, everything, None)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_a_difference_is_the_opposite_of_its_reverse(seed: int, seeds: int) -> None:
    generator = np.random.default_rng(seed)
    run, other = (resample([Ratio(generator.random((seeds, 30)), np.ones(30))], 300, seed=1)[0] for _ in range(2))
    there, back = compare(run, other, None, seed=2), compare(other, run, None, seed=2)
    assert there.difference == pytest.approx(-back.difference)
    assert there.error == pytest.approx(back.error)
    assert there.low <= there.high
    if seeds == 1:
        assert (there.low, there.high, there.p) == pytest.approx((-back.high, -back.low, back.p))


# ---- seeds ------------------------------------------------------------------------------------------------------------------


def test_variance_between_seeds_by_hand() -> None:
    # Two runs: half the sample variance of their difference, with S - 1 degrees of freedom.
    found = seed_variance(np.array([[1.0, 2.0, 6.0], [0.0, 2.0, 1.0]]))
    assert found == SeedVariance(pytest.approx(np.var([1, 0, 5], ddof=1) / 2), 2)
    # What a seed does to all runs alike is no reason for them to differ.
    alike = seed_variance(np.array([[1.0, 5.0], [2.0, 6.0], [4.0, 8.0]]))
    assert alike == SeedVariance(pytest.approx(0, abs=1e-12), 2)
    assert seed_variance(np.array([[1.0], [2.0]])) is None
    assert seed_variance(np.array([[1.0, 2.0]])) is None


def test_the_error_is_that_of_the_analysis_of_variance() -> None:
    """Mean squares of a two-way layout: (MS_seeds + MS_queries - MS_rest) / (S N), Hillis 2007."""
    generator = np.random.default_rng(4)
    seeds, queries = 3, 250
    cells = generator.normal(0, 1, (seeds, 1)) + generator.normal(0, 8, (1, queries)) + generator.normal(0, 5, (seeds, queries))
    run, other = resample([Ratio(cells, np.ones(queries)), Ratio(np.zeros_like(cells), np.ones(queries))], 20_000, seed=0)
    found = compare(run, other, None)
    mean = cells.mean()
    by_seed, by_query = cells.mean(1) - mean, cells.mean(0) - mean
    rest = cells - mean - by_seed[:, None] - by_query
    squares = (
        queries * (by_seed**2).sum() / (seeds - 1),
        seeds * (by_query**2).sum() / (queries - 1),
        (rest**2).sum() / ((seeds - 1) * (queries - 1)),
    )
    assert found.error == pytest.approx(100 * math.sqrt((squares[0] + squares[1] - squares[2]) / cells.size), rel=0.02)
    assert found.freedom == pytest.approx(2 * ((squares[0] + squares[1] - squares[2]) / squares[0]) ** 2, rel=0.08)


def test_without_query_noise_the_interval_is_students() -> None:
    values = np.array([3.0, 4.5, 4.0])
    run = Sample(values, np.tile(values, (200_000, 1)))
    other = Sample(np.zeros(3), np.zeros((200_000, 3)))
    found = compare(run, other, None)
    reference = stats.ttest_1samp(values, 0)
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=0.03)
    assert found.p == pytest.approx(reference.pvalue, rel=0.05)
    assert found.freedom == 2


def test_the_larger_of_pooled_and_own_variance_counts() -> None:
    values = np.array([1.0, 3.0, 5.0])
    run, other = Sample(values, np.tile(values, (10, 1))), Sample(np.zeros(3), np.zeros((10, 3)))
    errors = [compare(run, other, SeedVariance(value, 16)).error for value in (0.1, 2.0, 8.0)]
    assert errors == pytest.approx([math.sqrt(4 / 3), math.sqrt(4 / 3), math.sqrt(2 * 8 / 3)])


def coverage(repetitions: int, noise: float, wide: float = 1.0) -> tuple[float, float]:
    """How often 95 % intervals hold the true difference, zero: ours, and a bootstrap over three seeds and queries.

    Nine runs; the seeds of the first one vary ``wide`` times as much as the others'.
    """
    generator = np.random.default_rng(8)
    runs, seeds, queries, samples = 9, 3, 60, 400
    held = naive = 0
    for repetition in range(repetitions):
        trained = generator.normal(0, 1, (runs, seeds, 1))
        trained[0] *= wide
        asked = generator.normal(0, noise, (runs, 1, queries))
        cells = trained + asked + generator.normal(0, noise, (runs, seeds, queries))
        ratio = Ratio(cells.reshape(-1, queries) / 100, np.ones(queries))
        drawn = resample([ratio], samples, seed=repetition)[0]
        pooled = seed_variance(drawn.value.reshape(runs, seeds))
        run, other = (Sample(drawn.value[part], drawn.draws[:, part]) for part in (slice(0, 3), slice(3, 6)))
        found = compare(run, other, pooled, seed=repetition)
        held += found.low <= 0 <= found.high
        chosen = generator.integers(0, seeds, (samples, seeds))
        both = np.take_along_axis(run.draws - other.draws, chosen, axis=1).mean(1)
        low, high = np.quantile(both, [0.025, 0.975])
        naive += low <= 0 <= high
    return held / repetitions, naive / repetitions


def test_coverage_where_seeds_dominate() -> None:
    ours, naive = coverage(400, noise=1.0)
    assert 0.935 <= ours <= 0.995
    assert naive < 0.85  # three seeds resampled know too little: the reason for the t distribution


def test_coverage_where_queries_dominate() -> None:
    ours, _ = coverage(400, noise=20.0)
    assert 0.92 <= ours <= 0.985


def test_coverage_suffers_when_one_run_varies_three_times_as_much() -> None:
    ours, naive = coverage(400, noise=1.0, wide=3.0)
    assert naive < ours < 0.93  # what the module says of its assumption


def test_a_mean_of_metrics() -> None:
    one, two = Sample(np.array([1.0]), np.array([[2.0], [4.0]])), Sample(np.array([3.0]), np.array([[4.0], [0.0]]))
    both = mean_sample([one, two])
    assert both.value.tolist() == [2.0]
    assert both.draws.tolist() == [[3.0], [2.0]]


# ---- power ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("freedom", "alpha"), [(math.inf, 0.05), (math.inf, 0.0005), (16, 0.05), (40, 0.005)])
def test_the_detectable_difference_is_found_in_four_of_five_cases(freedom: float, alpha: float) -> None:
    error = 0.7
    shift = detectable(error, freedom, alpha) / error
    if freedom == math.inf:
        power = stats.norm.sf(stats.norm.isf(alpha / 2) - shift)
    else:
        power = stats.nct.sf(stats.t.isf(alpha / 2, freedom), freedom, shift)
    assert power == pytest.approx(0.8, abs=0.02)
