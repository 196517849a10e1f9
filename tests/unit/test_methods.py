"""The compared methods: their formulas in float64 against a second writing, their modules, stages and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import reference
import reference_methods
import tiny
import torch
from torch import Tensor

from cmapkd.objectives.base import Representations, Terms
from cmapkd.training.stages import Distillation, Teacher


def batch(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    return tiny.images(count, seed), tiny.tokens(count, seed)


def represented(module: Distillation, teacher: Teacher | None, count: int = 6, seed: int = 0) -> Representations:
    """A batch's representations in float64, so that what follows can be compared closely."""
    pictures, captions = batch(count, seed)
    r = module.represent(pictures, captions, tiny.teach(teacher, pictures, captions))
    return {name: value.detach().double() for name, value in r.items()}


def as_numpy(representations: Representations) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in representations.items()}


def assert_terms(terms: Terms, expected: Mapping[str, float]) -> None:
    assert {*terms.parts, "total"} == set(expected)
    for name, value in {**terms.parts, "total": terms.total.detach()}.items():
        assert float(value) == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


def module_names(module: Distillation) -> set[str]:
    return {name.partition(".")[0] for name, _ in module.objective.named_parameters()}


# --- all -------------------------------------------------------------------------------------------------------------

COMPARED = ("clip_kd",)


@pytest.mark.parametrize("method", COMPARED)
def test_the_order_of_the_batch_does_not_matter(method: str) -> None:
    module, teacher = tiny.setup(method, tiny.stage())
    r = represented(module, teacher)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    terms, permuted = (module.objective.combine(of) for of in (r, {name: value[order] for name, value in r.items()}))
    for name, value in {**terms.parts, "total": terms.total}.items():
        torch.testing.assert_close({**permuted.parts, "total": permuted.total}[name], value)


@pytest.mark.parametrize("method", COMPARED)
@pytest.mark.parametrize("shape", [{"width": 48, "layers": 6, "patch": 6, "embed": 8}, {"patch": 12, "embed": 40}], ids=str)
def test_students_of_other_shapes(method: str, shape: dict[str, Any]) -> None:
    """Wider, deeper, with a finer or coarser grid, and a smaller or larger embedding than the teacher's."""
    of = tiny.stage()
    pupil, above = tiny.model(0, "tiny-other", **shape), tiny.teacher_model()
    module = Distillation(pupil, tiny.objective(method, of, pupil.shapes(), above.shapes()))
    teacher = Teacher(above, None, of, module.objective.needs_taps)
    terms = module(*batch(3), teacher(*batch(3)))
    terms.total.backward()
    assert bool(torch.isfinite(terms.total))
    heads = dict(module.objective.named_parameters())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in heads.values())


# --- CLIP-KD ---------------------------------------------------------------------------------------------------------

CLIP_KD = {"crd": 0.7, "icl": 0.6, "fd": 20.0, "gd": 3.0, "afd": 0.4}


@pytest.mark.parametrize("count", [1, 2, 6])
def test_clip_kd_is_its_formula(count: int) -> None:
    module, teacher = tiny.setup("clip_kd", tiny.stage(), **{f"{name}_weight": value for name, value in CLIP_KD.items()})
    objective: Any = module.objective
    with torch.no_grad():
        objective.cross_scale.fill_(1.5), objective.fusion_scale.fill_(2.0)
    r = represented(module, teacher, count)
    scales = [float(scale.detach().exp()) for scale in objective.logit_scales()]
    assert_terms(objective.combine(r), reference_methods.clip_kd(as_numpy(r), {"task": 1.0, **CLIP_KD}, *scales))


def test_clip_kd_projects_and_fuses_normalised_embeddings() -> None:
    module, teacher = tiny.setup("clip_kd", tiny.stage(), afd_weight=1.0)
    objective: Any = module.objective
    n = as_numpy(represented(module, teacher))
    for name in ("image", "text"):
        both = np.concatenate([n[name], n[f"teacher_{name}"]], axis=1)
        for key, head, features in (("projected", objective.project[name], n[name]), ("fused", objective.fuse[name], both)):
            weight, bias = (value.detach().double().numpy() for value in (head.weight, head.bias))
            np.testing.assert_allclose(n[f"{key}_{name}"], reference.unit(features @ weight.T + bias), atol=1e-6)
    assert n["projected_image"].shape == n["teacher_image"].shape != n["image"].shape


def test_clip_kd_is_by_default_the_papers_final_method() -> None:
    module, teacher = tiny.setup("clip_kd", tiny.stage())
    terms = module.objective.combine(represented(module, teacher))
    parts = {name: float(value) for name, value in terms.parts.items()}
    assert list(parts) == ["task", "crd", "icl", "fd"]
    assert float(terms.total.detach()) == pytest.approx(parts["task"] + parts["crd"] + parts["icl"] + 2000 * parts["fd"])
    assert [float(scale.detach().exp()) for scale in module.objective.logit_scales()] == pytest.approx([1 / 0.07])


@pytest.mark.parametrize(
    ("options", "modules"),
    [
        ({}, {"project", "cross_scale"}),
        ({"icl_weight": 0.0}, {"project"}),
        ({"icl_weight": 0.0, "fd_weight": 0.0}, set()),
        ({"icl_weight": 0.0, "fd_weight": 0.0, "gd_weight": 1e8}, {"project"}),
        ({"icl_weight": 0.0, "fd_weight": 0.0, "afd_weight": 1.0}, {"fuse", "fusion_scale"}),
    ],
    ids=str,
)
def test_a_weight_of_zero_leaves_a_term_and_its_modules_out(options: dict[str, float], modules: set[str]) -> None:
    """A module without a gradient would still decay."""
    module, teacher = tiny.setup("clip_kd", tiny.stage(), **options)
    assert module_names(module) == modules
    terms = module(*batch(), tiny.teach(teacher, *batch()))
    assert set(terms.parts) == {"task", "crd"} | {name for name in ("icl", "fd", "gd", "afd") if module.objective.weights[name]}
    terms.total.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.objective.parameters())


def test_scales_of_an_objective_are_clamped_too(one_rank: None) -> None:
    of = tiny.stage()
    module, teacher = tiny.setup("clip_kd", of, afd_weight=1.0)
    with torch.no_grad():
        for scale in module.objective.logit_scales():
            scale.fill_(6.0)
    engine = tiny.engine(module, teacher, of, batch=4)
    pictures, captions = batch(4)
    engine.step({"image": pictures, "text": captions}, 0)
    assert [float(scale.detach().exp()) for scale in module.objective.logit_scales()] == pytest.approx([100, 100])
