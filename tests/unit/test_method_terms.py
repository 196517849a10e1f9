"""Terms of the compared methods: closed forms, a second writing in NumPy, autograd and SciPy. `test_terms.py` has what holds of
every term: finite differences, order of the batch, extreme values.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import reference_methods
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ConstantInputWarning, kendalltau
from torch import Tensor

from cmapkd.objectives.terms import contrastive, features, gradients, patches, ranking

batches = st.integers(1, 6)
seeds = st.integers(0, 10_000)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1)


# --- gradients -------------------------------------------------------------------------------------------------------


@given(batch=batches, width=st.integers(1, 6), scale=st.floats(0.1, 100), teacher_scale=st.floats(0.1, 100), seed=seeds)
def test_gradient_distillation_is_the_formula(batch: int, width: int, scale: float, teacher_scale: float, seed: int) -> None:
    v, t, big_v, big_t = (unit(batch, width, seed=seed + place) for place in range(4))
    found = float(gradients.gradient_distillation((v, t), (big_v, big_t), scale, teacher_scale))
    numbers = [value.numpy() for value in (v, t, big_v, big_t)]
    expected = reference_methods.gradient_distillation(*numbers[:2], scale, *numbers[2:], teacher_scale)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(batch=batches, width=st.integers(1, 6), scale=st.floats(0.1, 100), seed=seeds)
def test_contrastive_gradients_are_those_of_autograd(batch: int, width: int, scale: float, seed: int) -> None:
    rows, columns = unit(batch, width, seed=seed).requires_grad_(), unit(batch, width, seed=seed + 1).requires_grad_()
    expected = torch.autograd.grad(contrastive.diagonal_cross_entropy(rows, columns, scale), (rows, columns))
    for ours, theirs in zip(gradients.contrastive_gradients(rows, columns, scale), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


# --- patches ---------------------------------------------------------------------------------------------------------


@given(batch=batches, count=st.integers(1, 6), ours=st.integers(1, 5), theirs=st.integers(1, 5), seed=seeds)
def test_patch_relation_is_the_formula(batch: int, count: int, ours: int, theirs: int, seed: int) -> None:
    student, teacher = unit(batch, count, ours, seed=seed), unit(batch, count, theirs, seed=seed + 1)
    pairs = zip(student.numpy(), teacher.numpy(), strict=True)
    found = patches.patch_relation(student, teacher).numpy()
    np.testing.assert_allclose(found, [reference_methods.patch_relation(*pair) for pair in pairs], atol=1e-12)


def test_patch_relation_in_closed_form() -> None:
    student = unit(3, 6, 5)
    rotation = torch.linalg.qr(normal(5, 5, seed=1)).Q
    torch.testing.assert_close(patches.patch_relation(student, student @ rotation), torch.zeros(3, dtype=torch.float64))
    eye, ones = torch.eye(4, dtype=torch.float64)[None], torch.ones(1, 4, 1, dtype=torch.float64)
    assert float(patches.patch_relation(eye, ones)) == pytest.approx(1 - 4 / (2 * 4))  # norms 2 and 4, product 4


# --- features --------------------------------------------------------------------------------------------------------


@given(
    batch=st.integers(1, 3), channels=st.integers(1, 6), ours=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    theirs=st.tuples(st.integers(1, 7), st.integers(1, 7)), seed=seeds,
)  # fmt: skip
def test_map_regression_is_the_formula(
    batch: int, channels: int, ours: tuple[int, int], theirs: tuple[int, int], seed: int
) -> None:
    student, teacher = normal(batch, channels, *ours, seed=seed), normal(batch, channels, *theirs, seed=seed + 1)
    pairs = zip(student.movedim(1, -1).numpy(), teacher.movedim(1, -1).numpy(), strict=True)
    expected = [((reference_methods.bilinear(s, *theirs) - t) ** 2).mean() for s, t in pairs]
    np.testing.assert_allclose(features.map_regression(student, teacher).numpy(), expected, atol=1e-10)


@given(batch=batches, length=st.integers(1, 6), channels=st.integers(1, 5), seed=seeds)
def test_token_regression_is_over_the_positions_of_the_mask(batch: int, length: int, channels: int, seed: int) -> None:
    student, teacher = normal(batch, length, channels, seed=seed), normal(batch, length, channels, seed=seed + 1)
    mask = normal(batch, length, seed=seed + 2) > 0
    found = features.token_regression(student, teacher, mask)
    for row in range(batch):
        squares = [float((student[row, i] - teacher[row, i]).square().mean()) for i in range(length) if mask[row, i]]
        assert float(found[row]) == pytest.approx(np.mean(squares) if squares else 0.0, abs=1e-12)
    np.testing.assert_allclose(features.normed(student).numpy(), reference_methods.normed(student.numpy()), atol=1e-12)


# --- ranking ---------------------------------------------------------------------------------------------------------


@given(batch=batches, columns=st.integers(2, 40), candidates=st.integers(2, 40), seed=seeds)
def test_kendall_is_scipys_on_rows_without_ties(batch: int, columns: int, candidates: int, seed: int) -> None:
    teacher, student = normal(batch, columns, seed=seed), normal(batch, columns, seed=seed + 1)
    found = ranking.kendall(teacher, student, candidates)
    for row in range(batch):
        best = np.argsort(-teacher[row].numpy())[:candidates]
        expected = kendalltau(teacher[row].numpy()[best], student[row].numpy()[best]).statistic
        assert float(found[row]) == pytest.approx(expected, abs=1e-12)


@given(columns=st.integers(2, 9), values=st.integers(1, 4), seed=seeds)
def test_with_ties_kendall_selects_what_scipys_does(columns: int, values: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randint(values, (6, columns), generator=generator).double() for _ in range(2))
    found = ranking.kendall(teacher, student, columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        expected = [kendalltau(t.numpy(), s.numpy()).statistic for t, s in zip(teacher, student, strict=True)]
    assert (found > 0).tolist() == [value > 1e-12 for value in expected]  # an undefined one (NaN) is not selected


def test_kendall_in_closed_form() -> None:
    rows = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    for student, expected in (([8, 6, 4, 2], 1), ([1, 2, 3, 4], -1), ([3, 4, 2, 1], 2 / 3), ([5, 5, 5, 5], 0)):
        assert float(ranking.kendall(rows, torch.tensor([student], dtype=torch.float32), 9)) == pytest.approx(expected)
    assert float(ranking.kendall(rows, torch.tensor([[3.0, 4.0, 9.0, 1.0]]), 2)) == -1  # of the teacher's best two alone
    assert ranking.kendall(rows[:, :1], rows[:, :1], 32).tolist() == [0]  # one candidate has no rank


@given(batch=batches, seed=seeds)
def test_the_target_is_left_out(batch: int, seed: int) -> None:
    logits = normal(batch, batch, seed=seed)
    expected = np.stack([np.delete(row, place) for place, row in enumerate(logits.numpy())])
    np.testing.assert_array_equal(ranking.without_target(logits).numpy(), expected)
