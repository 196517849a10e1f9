"""Loss terms: closed forms, a second writing in NumPy, open_clip's losses, finite differences, and extreme values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, DistillClipLoss
from torch import Tensor

from cmapkd.models.pyramid import LANGUAGE, VISUAL
from cmapkd.objectives.terms import alignment, contrastive, features, gradients, intra, patches, ranking, relation

NAMES = ("pooled", "language", "visual_as_language", "language_as_visual")
batches = st.integers(1, 6)
levels = st.integers(1, 4)
seeds = st.integers(0, 10_000)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def units(features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Two modalities' embeddings, normalised."""
    return F.normalize(features[0], dim=-1), F.normalize(features[1], dim=-1)


def of_channels(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) normalised over channels."""
    return features.normed(maps.movedim(1, -1)).movedim(-1, 1)


def pyramid(batch: int, visual: int, language: int, channels: int = 5, text: int = 7, seed: int = 0) -> tuple[Tensor, ...]:
    """Random levels in the order of NAMES."""
    shapes = ((visual, channels), (language, text), (visual, text), (language, channels))
    return tuple(normal(batch, *shape, seed=seed + place) for place, shape in enumerate(shapes))


# --- contrastive -----------------------------------------------------------------------------------------------------


@given(batch=batches, width=st.integers(1, 9), scale=st.floats(0.01, 100), seed=seeds)
def test_info_nce_is_the_formula_and_open_clips_loss(batch: int, width: int, scale: float, seed: int) -> None:
    rows, columns = unit(batch, width, seed=seed), unit(batch, width, seed=seed + 1)
    found = float(contrastive.info_nce(rows, columns, scale))
    assert found == pytest.approx(reference.info_nce(rows.numpy(), columns.numpy(), scale), abs=1e-10)
    assert found == pytest.approx(float(ClipLoss()(rows, columns, torch.tensor(scale, dtype=torch.float64))), abs=1e-10)


def test_info_nce_in_closed_form() -> None:
    assert float(contrastive.info_nce(unit(1, 4), unit(1, 4), 7.0)) == 0  # a batch of one has one candidate
    assert float(contrastive.info_nce(torch.ones(5, 1), torch.ones(5, 1), 3.0)) == pytest.approx(math.log(5))
    eye = torch.eye(4, dtype=torch.float64)
    assert float(contrastive.info_nce(eye, eye, 2.0)) == pytest.approx(math.log(1 + 3 * math.exp(-2)))
    # Two pairs at right angles, swapped: the right answer has logit 0 and the wrong one 2.
    assert float(contrastive.info_nce(eye[:2], eye[:2].flip(0), 2.0)) == pytest.approx(math.log(1 + math.exp(2)))


@given(batch=batches, seed=seeds, scale=st.floats(0.1, 100), teacher_scale=st.floats(0.1, 100))
def test_kd_terms_are_open_clips_distillation_loss(batch: int, seed: int, scale: float, teacher_scale: float) -> None:
    v, t, big_v, big_t = (
        unit(batch, 4, seed=seed),
        unit(batch, 4, seed=seed + 1),
        unit(batch, 6, seed=seed + 2),
        unit(batch, 6, seed=seed + 3),
    )
    ours = sum(
        contrastive.row_cross_entropy(teacher_scale * theirs, scale * own)
        for theirs, own in zip(contrastive.similarity(big_v, big_t), contrastive.similarity(v, t), strict=True)
    )
    task, expected = DistillClipLoss()(v, t, scale, big_v, big_t, teacher_scale)
    assert float(ours) / 2 == pytest.approx(float(expected), abs=1e-9)
    assert float(contrastive.info_nce(v, t, scale)) == pytest.approx(float(task), abs=1e-9)


@given(batch=batches, columns=st.integers(1, 5), seed=seeds)
def test_row_kl_is_the_formula_and_cross_entropy_minus_entropy(batch: int, columns: int, seed: int) -> None:
    p, q = normal(batch, columns, seed=seed), 3 * normal(batch, columns, seed=seed + 1)
    found = float(contrastive.row_kl(p, q))
    assert found == pytest.approx(reference.row_kl(p.numpy(), q.numpy()), abs=1e-10)
    own = float(contrastive.row_cross_entropy(p, p))
    assert found == pytest.approx(float(contrastive.row_cross_entropy(p, q)) - own, abs=1e-10)
    assert found >= -1e-12 and abs(float(contrastive.row_kl(p, p + 5.0))) < 1e-12  # a shift of logits changes nothing


def test_row_kl_keeps_leading_dimensions() -> None:
    p, q = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    found = contrastive.row_kl(p, q)
    assert found.shape == (2, 3)
    assert float(found[1, 2]) == pytest.approx(reference.row_kl(p[1, 2].numpy(), q[1, 2].numpy()))


# --- intra-modal -----------------------------------------------------------------------------------------------------


@given(
    batch=st.integers(1, 3), channels=st.integers(1, 6), ours=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    theirs=st.tuples(st.integers(1, 7), st.integers(1, 7)), seed=seeds,
)  # fmt: skip
def test_map_distance_is_the_formula(
    batch: int, channels: int, ours: tuple[int, int], theirs: tuple[int, int], seed: int
) -> None:
    student, teacher = normal(batch, channels, *ours, seed=seed), normal(batch, channels, *theirs, seed=seed + 1)
    expected = [reference.map_distance(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    np.testing.assert_allclose(intra.map_distance(student, teacher).numpy(), expected, atol=1e-8)


def test_map_distance_in_closed_form() -> None:
    maps = normal(2, 3, 4, 4)
    torch.testing.assert_close(intra.map_distance(maps, 5 * maps), torch.zeros(2, dtype=torch.float64))  # length plays no role
    torch.testing.assert_close(intra.map_distance(maps, -maps), torch.full((2,), 4.0, dtype=torch.float64))
    first, second = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    first[:, 0], second[:, 1] = 1, 9
    assert float(intra.map_distance(first, second)) == pytest.approx(2)  # at right angles


def test_a_distance_does_not_shrink_with_the_number_of_channels() -> None:
    """Averaged over channels (as the design's code has it) it would be 1 / 256 of itself."""
    few, many = (float(intra.map_distance(normal(8, c, 4, 4), normal(8, c, 4, 4, seed=1)).mean()) for c in (16, 256))
    assert few == pytest.approx(2, abs=0.2) and many == pytest.approx(2, abs=0.1)


def test_vector_distances_and_level_order() -> None:
    student, teacher = normal(3, 4, 6), normal(3, 4, 6, seed=1)
    found = intra.vector_distances(student, teacher)
    expected = ((reference.unit(student.numpy()) - reference.unit(teacher.numpy())) ** 2).sum(axis=-1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
    maps = {level: normal(2, 3, size, size, seed=size) for level, size in zip(VISUAL, (8, 4, 2, 1), strict=True)}
    other = {
        level: normal(2, 3, size, size, seed=size + 20) for level, size in zip(reversed(VISUAL), (1, 2, 4, 8), strict=True)
    }
    stacked = intra.map_distances(maps, other)
    assert stacked.shape == (2, 4)
    for column, level in enumerate(VISUAL):
        torch.testing.assert_close(stacked[:, column], intra.map_distance(maps[level], other[level]))


@given(batch=batches, count=levels, seed=seeds)
def test_weighted(batch: int, count: int, seed: int) -> None:
    distances, weights = normal(batch, count, seed=seed).abs(), torch.softmax(normal(batch, count, seed=seed + 1), dim=1)
    assert float(intra.weighted(distances, weights)) == pytest.approx(
        reference.intra(distances.numpy(), weights.numpy()), abs=1e-10
    )


def test_uniform_weights_of_equal_distances_give_a_quarter_of_them() -> None:
    for count in (1, 2, 4):  # 1/4 stays, whatever the number of active levels
        assert float(intra.weighted(torch.full((3, count), 2.0), torch.full((3, count), 1 / count))) == pytest.approx(0.5)


# --- alignment -------------------------------------------------------------------------------------------------------


def aligned(student: Sequence[Tensor], teacher: Sequence[Tensor], alpha: Tensor, temperature: float) -> Tensor:
    """The alignment of pyramids whose levels are pooled vectors."""
    sides = (alignment.pooled_similarities(*levels) for levels in (student, teacher))
    return alignment.pyramid_alignment(*sides, alpha, temperature)


@given(batch=batches, visual=levels, language=levels, temperature=st.floats(0.05, 2), seed=seeds)
def test_pyramid_alignment_is_the_formula(batch: int, visual: int, language: int, temperature: float, seed: int) -> None:
    student, teacher = pyramid(batch, visual, language, seed=seed), pyramid(batch, visual, language, 6, 4, seed=seed + 9)
    alpha = normal(visual, language, seed=seed).abs()
    expected = reference.pyramid_alignment(
        *({name: value.numpy() for name, value in zip(NAMES, of, strict=True)} for of in (student, teacher)),
        alpha.numpy(),
        temperature,
    )
    found = float(aligned(student, teacher, alpha, temperature))
    assert found == pytest.approx(expected, abs=1e-9)


def test_alignment_is_zero_for_equal_models_and_for_one_sample() -> None:
    student = pyramid(4, 4, 4)
    alpha = alignment.fixed_alpha(VISUAL, LANGUAGE, student[0])
    assert float(aligned(student, student, alpha, 0.1)) == pytest.approx(0, abs=1e-12)
    one = pyramid(1, 4, 4)
    assert float(aligned(one, pyramid(1, 4, 4, seed=9), alpha, 0.1)) == 0


def test_fixed_alpha_is_one_on_the_diagonal_of_partners() -> None:
    like = torch.zeros(1)
    full = alignment.fixed_alpha(VISUAL, LANGUAGE, like)
    torch.testing.assert_close(full, 0.5 * torch.ones(4, 4) + 0.5 * torch.eye(4))
    assert alignment.fixed_alpha(("P4", "P5"), ("L2", "L4"), like).tolist() == [[0.5, 0.5], [0.5, 1.0]]
    for visual, language in ((VISUAL, LANGUAGE), (("P3", "P5"), LANGUAGE)):
        assert alignment.fixed_alpha(visual, language, like).tolist() == reference.fixed_alpha(visual, language).tolist()


def test_alignment_trains_both_projectors() -> None:
    student, teacher = ([value.requires_grad_() for value in pyramid(3, 2, 2, seed=s)] for s in (0, 9))
    aligned(student, [value.detach() for value in teacher], torch.ones(2, 2, dtype=torch.float64), 0.1).backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in student)  # both projectors of the bridge too


# --- relation --------------------------------------------------------------------------------------------------------


@given(batch=batches, ours=st.integers(1, 6), theirs=st.integers(1, 6), seed=seeds)
def test_sample_relation_is_the_formula(batch: int, ours: int, theirs: int, seed: int) -> None:
    student, teacher = normal(batch, ours, seed=seed), normal(batch, theirs, seed=seed + 1)
    found = float(relation.sample_relation(student, teacher))
    assert found == pytest.approx(reference.sample_relation(student.numpy(), teacher.numpy()), abs=1e-10)


def test_sample_relation_in_closed_form() -> None:
    eye, ones = torch.eye(4, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    assert float(relation.sample_relation(eye, ones)) == pytest.approx(12 / 16)  # 12 entries of 16 differ by one
    features = normal(5, 6)
    rotation = torch.linalg.qr(normal(6, 6, seed=1)).Q
    assert float(relation.sample_relation(features, 3 * features @ rotation)) == pytest.approx(0, abs=1e-12)


@given(batch=batches, count=st.integers(2, 4), ours=st.integers(3, 6), theirs=st.integers(3, 6), seed=seeds)
def test_layer_relation_is_the_formula(batch: int, count: int, ours: int, theirs: int, seed: int) -> None:
    student, teacher = normal(batch, count, ours, seed=seed), normal(batch, count, theirs, seed=seed + 1)
    found = float(relation.layer_relation(student, teacher))
    assert found == pytest.approx(reference.layer_relation(student.numpy(), teacher.numpy()), abs=1e-9)


def test_layer_relation_in_closed_form() -> None:
    x = normal(3, 1, 6)
    same, opposite = torch.cat([x, x], dim=1), torch.cat([x, -x], dim=1)  # correlations 1 and -1
    assert float(relation.layer_relation(same, opposite)) == pytest.approx(8)
    assert float(relation.layer_relation(same, 3 * same + 2)) == pytest.approx(0, abs=1e-12)
    assert float(relation.layer_relation(x, normal(3, 1, 6, seed=1))) == pytest.approx(
        0, abs=1e-12
    )  # one level has no relation


# --- all terms -------------------------------------------------------------------------------------------------------

ALPHA = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
TERMS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]] = {
    # name -> term of (student tensors, teacher tensors), shapes after the batch of both
    "info_nce": (
        lambda s, t: contrastive.info_nce(F.normalize(s[0], dim=-1), F.normalize(s[1], dim=-1), 5.0), ((5,), (5,)), (),
    ),
    "info_nce, learned scale": (lambda s, t: contrastive.info_nce(s[0], s[1], s[2].mean().exp()), ((5,), (5,), ()), ()),
    "cross_entropy": (
        lambda s, t: contrastive.row_cross_entropy(3 * contrastive.similarity(*t)[0], 3 * contrastive.similarity(*s)[0]),
        ((4,), (4,)), ((6,), (6,)),
    ),
    "map_distance": (lambda s, t: intra.map_distance(s[0], t[0]).mean(), ((4, 3, 3),), ((4, 6, 6),)),
    "vector_distances": (lambda s, t: intra.vector_distances(s[0], t[0]).mean(), ((2, 5),), ((2, 5),)),
    "weighted": (
        lambda s, t: intra.weighted(intra.vector_distances(s[0], t[0]), s[1].softmax(dim=1)), ((2, 5), (2,)), ((2, 5),),
    ),
    "pyramid_alignment": (
        lambda s, t: aligned(s, t, ALPHA.to(s[0].dtype), 0.3),
        ((2, 5), (2, 4), (2, 4), (2, 5)), ((2, 3), (2, 6), (2, 6), (2, 3)),
    ),
    "sample_relation": (lambda s, t: relation.sample_relation(s[0], t[0]), ((5,),), ((3,),)),
    "layer_relation": (lambda s, t: relation.layer_relation(s[0], t[0]), ((4, 5),), ((4, 6),)),
    "gradient_distillation": (
        lambda s, t: gradients.gradient_distillation(units(s), units(t), 4.0, 9.0), ((5,), (5,)), ((5,), (5,)),
    ),
    "map_regression": (
        lambda s, t: features.map_regression(of_channels(s[0]), of_channels(t[0])).mean(), ((4, 3, 3),), ((4, 5, 6),),
    ),
    "token_regression": (
        lambda s, t: features.token_regression(features.normed(s[0]), features.normed(t[0]), torch.arange(3) < 2).mean(),
        ((3, 6),), ((3, 6),),
    ),
    "patch_relation": (
        lambda s, t: patches.patch_relation(F.normalize(s[0], dim=-1), F.normalize(t[0], dim=-1)).mean(), ((4, 5),), ((4, 3),),
    ),
    "selected_kl": (
        lambda s, t: ranking.selected_kl(
            4 * contrastive.similarity(*units(t))[0], 9 * contrastive.similarity(*units(s))[0], t[2].sign().clamp(min=0)
        ),
        ((5,), (5,)), ((3,), (3,), ()),
    ),
    "distil_logits": (
        lambda s, t: contrastive.distil_logits(contrastive.row_kl, units(s), units(t), 4.0, 9.0), ((5,), (5,)), ((3,), (3,)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_those_of_finite_differences(term: str, batch: int) -> None:
    function, ours, theirs = TERMS[term]
    student = [normal(batch, *shape, seed=place).requires_grad_() for place, shape in enumerate(ours)]
    teacher = tuple(normal(batch, *shape, seed=place + 10) for place, shape in enumerate(theirs))
    assert torch.autograd.gradcheck(lambda *s: function(s, teacher), student, atol=1e-6)


@pytest.mark.parametrize("term", TERMS)
@given(order=st.permutations(range(5)))
def test_terms_do_not_depend_on_the_order_of_the_batch(term: str, order: list[int]) -> None:
    function, ours, theirs = TERMS[term]
    student = tuple(normal(5, *shape, seed=place) for place, shape in enumerate(ours))
    teacher = tuple(normal(5, *shape, seed=place + 10) for place, shape in enumerate(theirs))
    permuted = (tuple(value[list(order)] for value in of) for of in (student, teacher))
    torch.testing.assert_close(function(*permuted), function(student, teacher))


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-7, 6e-5, 1.0, 65504.0, 1e15])
@pytest.mark.parametrize("term", [name for name in TERMS if name != "info_nce, learned scale"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_terms_and_gradients_are_finite_for_extreme_features(term: str, magnitude: float, batch: int) -> None:
    """Features in fp32, as the terms see them, of magnitudes up to what fp16 holds (65504) and far beyond."""
    function, ours, theirs = TERMS[term]
    scale = 1.0 if term == "cross_entropy" else magnitude  # its callers pass unit vectors
    student = [(scale * normal(batch, *shape, seed=place)).float().requires_grad_() for place, shape in enumerate(ours)]
    teacher = tuple((scale * normal(batch, *shape, seed=place + 10)).float() for place, shape in enumerate(theirs))
    value = function(tuple(student), teacher)
    value.backward()
    assert bool(torch.isfinite(value))
    assert all(bool(torch.isfinite(tensor.grad).all()) for tensor in student)


def test_logits_of_a_scale_of_one_hundred_are_finite() -> None:
    """At OpenAI's scale a teacher's row is close to one-hot, and the wrong answer's probability underflows."""
    vectors = torch.eye(4)
    logits = (100 * vectors @ vectors.T).requires_grad_()
    for term in (contrastive.row_kl, contrastive.row_cross_entropy):
        value = term(100 * vectors.flip(0), logits)
        value.backward()
        assert float(value.detach()) == pytest.approx(100, abs=1e-3)
        assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())
