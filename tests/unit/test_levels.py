"""How the levels of a pyramid are compared, and statistics of their weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmapkd.evaluation import levels


def features(count: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def by_kernels(x: np.ndarray, y: np.ndarray) -> float:
    """The same from Gram matrices: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with a centring matrix."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, other = (centre @ (value @ value.T) @ centre for value in (x, y))
    return float(np.trace(k @ other) / math.sqrt(np.trace(k @ k) * np.trace(other @ other)))


@given(count=st.integers(3, 12), ours=st.integers(1, 6), theirs=st.integers(1, 6), seed=st.integers(0, 999))
def test_cka_is_its_kernel_form_whatever_the_basis(count: int, ours: int, theirs: int, seed: int) -> None:
    x, y = features(count, ours, seed), features(count, theirs, seed + 1)
    found = levels.linear_cka(x, y)
    assert found == pytest.approx(by_kernels(x, y), abs=1e-9)
    assert 0 <= found <= 1
    rotation = np.linalg.qr(features(ours, ours, seed + 2))[0]
    assert levels.linear_cka(3.5 * x @ rotation + 7, y) == pytest.approx(found, abs=1e-9)
    assert levels.linear_cka(x, -2 * x @ rotation) == pytest.approx(1)


def test_cka_of_what_does_not_vary_is_zero() -> None:
    assert levels.linear_cka(np.ones((4, 3)), features(4, 2, 0)) == 0


def test_cka_between_names_every_two_levels() -> None:
    found = levels.cka_between({"P4": features(9, 3, 0), "P5": features(9, 3, 0), "P3": features(9, 3, 5)})
    assert list(found) == ["P4-P5", "P4-P3", "P5-P3"]
    assert found["P4-P5"] == pytest.approx(1) and found["P4-P3"] == found["P5-P3"] < 0.9


def test_in_batch_accuracy_counts_rows_that_find_their_own() -> None:
    assert levels.in_batch_accuracy(np.array([[3, 1, 2], [5, 4, 0], [0, 0, 1.0]])) == pytest.approx(100 * 2 / 3)


def test_statistics_of_weights() -> None:
    names = ("P2", "P3", "P4", "P5")
    one_hot = levels.weight_statistics(np.eye(4)[[3, 3, 3, 0]], names)
    assert (one_hot["entropy"], one_hot["entropy_share"]) == (pytest.approx(0), pytest.approx(0))
    assert one_hot["mean"] == one_hot["largest"] == {"P2": 0.25, "P3": 0, "P4": 0, "P5": 0.75}
    assert one_hot["deviation"]["P5"] == pytest.approx(math.sqrt(0.75 * 0.25))
    even = levels.weight_statistics(np.full((5, 4), 0.25), names)
    assert even["entropy"] == pytest.approx(math.log(4)) and even["entropy_share"] == pytest.approx(1)
    assert set(even["deviation"].values()) == {0}
    alone = levels.weight_statistics(np.ones((2, 1)), ("P5",))
    assert (alone["entropy_share"], alone["mean"]) == (1, {"P5": 1})


def test_statistics_by_stratum() -> None:
    weights, strata = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]), np.array(["simple", "simple", ""])
    found = levels.weights_by_stratum(weights, ("P4", "P5"), strata)
    assert list(found) == ["all", "simple"]
    assert found["simple"]["mean"] == pytest.approx({"P4": 0.8, "P5": 0.2})
    assert found["all"]["largest"] == pytest.approx({"P4": 2 / 3, "P5": 1 / 3})


def test_weights_that_follow_the_nearest_level() -> None:
    distances = np.array([[0.1, 0.5], [0.2, 0.6], [0.9, 0.3], [0.4, 0.8]])
    nearest = levels.follows_distance(1 - distances, distances, ("P4", "P5"))
    assert (nearest["easiest"], nearest["farthest"]) == (1, 0)
    assert nearest["rho"] == pytest.approx({"P4": -1, "P5": -1})
    farthest = levels.follows_distance(distances, distances, ("P4", "P5"))
    assert (farthest["easiest"], farthest["farthest"], farthest["rho"]["P5"]) == (0, 1, pytest.approx(1))
    constant = levels.follows_distance(np.tile([0.7, 0.3], (4, 1)), distances, ("P4", "P5"))
    assert constant["easiest"] == 0.75 and constant["rho"] == {}
