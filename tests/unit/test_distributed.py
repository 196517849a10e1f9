"""One rank of 2B equals two ranks of B: loss and every gradient, and weights after steps through DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import run_ranks
from torch import Tensor

from cmapkd.training import distributed
from cmapkd.training.stages import Distillation, Teacher

RANKS, BATCH = 2, 8  # B = 4 on each rank
# Name of a case -> method, stage options, method options. ALSN without dropout: its draws differ between ranks by design.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "scratch": ("scratch", {}, {}),
    "kd": ("kd", {}, {"temperature": 2.0}),
    "kd with a scale of its own for the teacher": ("kd", {}, {"teacher_scale": 25.0}),
    "clip_kd": ("clip_kd", {}, {"fd_weight": 20.0}),  # at 2000, 1e-5 is below the rounding of the gradients
    "clip_kd with every term": ("clip_kd", {}, {"gd_weight": 0.1, "afd_weight": 1.0, "fd_weight": 20.0}),
    "fitnet hint": ("fitnet", {"name": "hint"}, {"hint_weight": 10.0}),
    "fitnet kd": ("fitnet", {"name": "kd"}, {}),
    "c2kd": ("c2kd", {}, {"candidates": 5}),
    "llava_kd dpt": ("llava_kd", {"name": "dpt", "trains": ("projections",)}, {}),
    "llava_kd sft": ("llava_kd", {"name": "sft"}, {}),
    "llava_kd dft": ("llava_kd", {"name": "dft"}, {}),
    "teacher_pyramid": ("teacher_pyramid", {"trains": ("pyramid",)}, {}),
    "cmapkd uniform, top level": ("cmapkd", {"levels": 1}, {}),
    "cmapkd manual, two levels": ("cmapkd", {"levels": 2, "policy": "manual"}, {}),
    "cmapkd alsn, all levels": ("cmapkd", {"policy": "alsn"}, {"alsn": {"dropout": 0.0}}),
    "teacher_prompts": ("teacher_prompts", {"trains": ("heads",)}, {}),
    "promptkd": ("promptkd", {}, {"weight": 33.0}),
    "promptkd, student prompts alone": (
        "promptkd",
        {"trains": ("heads",)},
        {"weight": 33.0, "student_prompts": 2, "temperature": 2.0},
    ),
    "cmapkd, late interaction and the embedding as a level": (
        "cmapkd",
        {},
        {"similarity": "late", "cells": 2, "embedding": {"intra": 3.0, "align": 1.0, "cross": 1.0, "relation": 1.0}},
    ),
    "cmapkd, alsn by look-ahead": ("cmapkd", {"policy": "alsn"}, {"alsn": {"dropout": 0.0, "objective": "task"}}),
    "cmapkd alsn, learned alpha": ("cmapkd", {"policy": "alsn"}, {"alsn": {"dropout": 0.0}, "alpha": "learned"}),
}


def build(case: str) -> tuple[Distillation, Teacher | None]:
    """A case's module and teacher, the same in each process."""
    method, of, options = CASES[case]
    return tiny.setup(method, tiny.stage(**of), **options)


def loss_and_gradients(case: str, rank: int, ranks: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, logged parts and parameter gradients of one rank's share of the batch."""
    module, teacher = build(case)
    rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    pictures, captions = tiny.images(BATCH)[rows], tiny.tokens(BATCH)[rows]
    taught = tiny.teach(teacher, pictures, captions)
    (ahead,) = module.look_ahead([(pictures, captions)], lambda *_: taught)
    terms = module(pictures, captions, taught, ahead)
    terms.total.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return terms.total.detach(), terms.parts, gradients


STEPS = 3
# Batch norm takes out a constant shift of its input, so these have no gradient but rounding, which AdamW blows up.
INERT = {"promptkd": ("model.model.visual.ln_post.bias",)}
THROUGH_DEEPSPEED = (
    "kd",
    "clip_kd with every term",
    "fitnet hint",
    "c2kd",
    "llava_kd dpt",
    "llava_kd dft",
    "teacher_pyramid",
    "teacher_prompts",
    "promptkd",
    "cmapkd uniform, top level",
    "cmapkd alsn, learned alpha",
    "cmapkd, late interaction and the embedding as a level",
    "cmapkd, alsn by look-ahead",
)


def trained(case: str, rank: int, ranks: int, accumulation: int) -> tuple[dict[str, Tensor], list[float]]:
    """All weights after ``STEPS`` steps, and the steps' losses averaged over ranks."""
    module, teacher = build(case)
    engine = tiny.engine(module, teacher, tiny.stage(**CASES[case][1]), BATCH, accumulation, STEPS)
    rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    losses = []
    for step in range(STEPS):
        batch = {"image": tiny.images(BATCH, seed=step)[rows], "text": tiny.tokens(BATCH, seed=step)[rows]}
        losses.append(float(distributed.mean_over_ranks(engine.step(batch, step).total)))
    return {name: value.detach().clone() for name, value in engine.module.state_dict().items()}, losses


def on_two_ranks(folder: Path) -> dict[str, Any]:
    rank, results = distributed.rank(), {}
    for case in CASES:
        loss, parts, gradients = loss_and_gradients(case, rank, RANKS)
        mean = {name: distributed.mean_over_ranks(value) for name, value in gradients.items()}
        logged = {name: distributed.mean_over_ranks(value) for name, value in parts.items()}
        results[case] = (distributed.mean_over_ranks(loss), logged, mean)
    weights = {case: {cut: trained(case, rank, RANKS, cut) for cut in (1, 2)} for case in THROUGH_DEEPSPEED}
    return {"gradients": results, "weights": weights}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes computed: averaged losses, parts and gradients, and weights after some steps."""
    return run_ranks(on_two_ranks, RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_of_b_equal_one_of_2b(case: str, two_ranks: list[dict[str, Any]]) -> None:
    loss, parts, gradients = loss_and_gradients(case, 0, 1)
    assert gradients
    for other_loss, other_parts, other_gradients in (results["gradients"][case] for results in two_ranks):
        torch.testing.assert_close(other_loss, loss, atol=1e-5, rtol=1e-5)
        assert other_parts.keys() == parts.keys()
        for name, value in parts.items():
            torch.testing.assert_close(other_parts[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert other_gradients.keys() == gradients.keys()
        for name, value in gradients.items():
            torch.testing.assert_close(other_gradients[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_in_these_cases_are_not_negligible() -> None:
    """A comparison to 1e-5 says something only of gradients well above it."""
    for case in CASES:
        gradients = loss_and_gradients(case, 0, 1)[2]
        large = [name for name, value in gradients.items() if float(value.abs().max()) > 1e-3]
        assert len(large) > len(gradients) / 2, case


@pytest.mark.parametrize("case", THROUGH_DEEPSPEED)
def test_training_does_not_depend_on_how_the_batch_is_cut(case: str, two_ranks: list[dict[str, Any]], one_rank: None) -> None:
    before = build(case)[0].state_dict()
    weights, losses = trained(case, 0, 1, 1)
    assert any(not torch.equal(weights[name].flatten(), value.flatten()) for name, value in before.items())
    others = {"1 rank x 2": trained(case, 0, 1, 2)}
    others |= {f"rank {r} of 2 x {cut}": two_ranks[r]["weights"][case][cut] for r in range(RANKS) for cut in (1, 2)}
    for cut, (other_weights, other_losses) in others.items():
        assert other_losses == pytest.approx(losses, abs=1e-5), cut
        for name, value in weights.items():
            if name in INERT.get(case, ()):
                continue
            torch.testing.assert_close(
                other_weights[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name, c=cut: f"{c}: {n}: {m}"
            )
