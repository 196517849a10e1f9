"""What goes beyond CMAPKD as published: late interaction, the embedding as a level, ALSN by look-ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
import torch.nn.functional as F
from config_examples import experiment
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from cmapkd.config import parse_experiment
from cmapkd.models.pyramid import LANGUAGE, VISUAL, segments
from cmapkd.objectives.base import Representations, Teach
from cmapkd.objectives.cmapkd import _task_gradient
from cmapkd.objectives.terms import alignment, intra
from cmapkd.objectives.terms.contrastive import info_nce
from cmapkd.plan import make_plan
from cmapkd.training.stages import Distillation, Teacher

LATE: dict[str, Any] = {"similarity": "late", "cells": 2}
EMBEDDING: dict[str, Any] = {"embedding": {"intra": 3.0, "align": 0.7, "cross": 0.6, "relation": 0.5}}
TASK: dict[str, Any] = {"alsn": {"objective": "task", "dropout": 0.0}}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    return tiny.images(count), tiny.tokens(count)


def setup(of: Any = None, **options: Any) -> tuple[Distillation, Teacher]:
    module, teacher = tiny.setup("cmapkd", of or tiny.stage(policy="alsn"), **options)
    assert teacher is not None
    return module, teacher


def represent(module: Distillation, teacher: Teacher, pictures: Tensor, captions: Tensor) -> Representations:
    taught = teacher(pictures, captions)
    (ahead,) = module.look_ahead([(pictures, captions)], lambda *_: taught)
    return module.represent(pictures, captions, taught, ahead)


def as_numpy(r: Representations) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in r.items()}


# --- late interaction ------------------------------------------------------------------------------------------------


@given(
    pictures=st.integers(1, 4), cells=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    tokens=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 999),
)  # fmt: skip
def test_late_similarities_are_the_formula(pictures: int, cells: list[int], tokens: list[int], seed: int) -> None:
    rows, columns = normal(pictures, sum(cells), 5, seed=seed), normal(pictures, sum(tokens), 5, seed=seed + 1)
    mask = normal(pictures, sum(tokens), seed=seed + 2) > -0.5  # also texts whose level is all padding
    found = alignment.late_similarities(rows, columns, mask, cells, tokens)
    expected = reference.late_similarities(rows.numpy(), columns.numpy(), mask.numpy(), cells, tokens)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)


def test_late_interaction_of_single_vectors_is_their_cosine() -> None:
    visual, language = normal(5, 2, 6), normal(5, 3, 6, seed=1)
    mask = torch.ones(5, 3, dtype=torch.bool)
    to_text, to_image = alignment.late_similarities(visual, language, mask, [1, 1], [1, 1, 1])
    torch.testing.assert_close(to_text, alignment.level_similarities(visual, language))
    torch.testing.assert_close(to_image, to_text.transpose(2, 3))


def test_late_interaction_tells_apart_what_averages_do_not() -> None:
    """Two pictures with the same average and other cells: pooled vectors cannot tell, late interaction can."""
    one, other = torch.eye(4, dtype=torch.float64)[:2], torch.eye(4, dtype=torch.float64)[[0, 1]].mean(0).repeat(2, 1)
    cells = torch.stack([one, other])
    torch.testing.assert_close(cells[0].mean(dim=0), cells[1].mean(dim=0))
    tokens = one[None].repeat(2, 1, 1)
    _, to_image = alignment.late_similarities(cells, tokens, torch.ones(2, 2, dtype=torch.bool), [2], [2])
    assert float(to_image[0, 0, 0, 0]) == pytest.approx(1)
    assert float(to_image[0, 0, 0, 1]) == pytest.approx(0.5**0.5)


def test_late_interaction_ignores_padding() -> None:
    cells, tokens, mask = normal(3, 4, 5), normal(3, 6, 5, seed=1), torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    before = alignment.late_similarities(cells, tokens, mask, [4], [6])
    after = alignment.late_similarities(cells, torch.where(mask[..., None], tokens, 1e3), mask, [4], [6])
    for ours, theirs in zip(before, after, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_late_interaction() -> None:
    cells, tokens = normal(3, 5, 4).requires_grad_(), normal(3, 6, 4, seed=1).requires_grad_()
    mask = torch.arange(6)[None] < torch.tensor([[6], [4], [5]])
    target = alignment.late_similarities(normal(3, 5, 4, seed=2), normal(3, 6, 4, seed=3), mask, [4, 1], [5, 1])

    def loss(rows: Tensor, columns: Tensor) -> Tensor:
        found = alignment.late_similarities(rows, columns, mask, [4, 1], [5, 1])
        return alignment.pyramid_alignment(found, target, torch.ones(2, 2, dtype=torch.float64), 0.2)

    assert torch.autograd.gradcheck(loss, (cells, tokens))


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=3), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_token_distances_are_the_formula(counts: list[int], size: int, seed: int) -> None:
    ours, theirs = normal(size, sum(counts), 5, seed=seed), normal(size, sum(counts), 5, seed=seed + 1)
    mask = normal(size, sum(counts), seed=seed + 2) > -0.5
    found = intra.token_distances(ours, theirs, mask, counts).numpy()
    squares = ((reference.unit(ours.numpy()) - reference.unit(theirs.numpy())) ** 2).sum(axis=-1)
    for column, places in enumerate(np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])):
        for row in range(size):
            seen = [squares[row, place] for place in places if mask[row, place]]
            assert found[row, column] == pytest.approx(np.mean(seen) if seen else 0, abs=1e-10)


def test_matched_contrast_of_cosines_is_clips_loss() -> None:
    rows, columns = (F.normalize(normal(5, 4, seed=seed), dim=-1) for seed in (0, 1))
    found = alignment.matched_contrast((rows @ columns.T, columns @ rows.T), 7.0)
    torch.testing.assert_close(found, info_nce(rows, columns, 7.0))


@pytest.mark.parametrize("visual", [VISUAL, ("P4", "P5"), ("P5",)])
@pytest.mark.parametrize("language", [LANGUAGE, ("L1", "L4"), ("L3", "L4")])
def test_cells_and_tokens_of_a_pyramid_are_its_levels(visual: tuple[str, ...], language: tuple[str, ...]) -> None:
    module, _ = setup(**LATE)
    objective: Any = module.objective
    outputs = module.model(*batch())
    levels = objective.pyramid(outputs, visual, language, grid=2)
    cells, tokens = segments(levels.cells.shape[1], levels.tokens.shape[1], visual, language)
    assert cells == [1 if level == "P5" else 4 for level in visual]
    assert tokens == [tiny.CONTEXT if level in ("L1", "L2") else 1 for level in language]
    # The last cell is P5's average, the last token L4; the tokens of a level average to its vector.
    torch.testing.assert_close(levels.cells[:, -1], levels.visual_as_language[:, -1])
    torch.testing.assert_close(levels.tokens[:, -1], levels.language[:, -1])
    for index, (part, mask) in enumerate(
        zip(levels.tokens.split(tokens, dim=1), levels.token_mask.split(tokens, dim=1), strict=True)
    ):
        mean = (part * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        torch.testing.assert_close(mean, levels.language[:, index])
    assert objective.pyramid(outputs, visual, language).cells is None


def test_a_grid_finer_than_the_patches_is_theirs() -> None:
    module, _ = setup(similarity="late", cells=9)
    objective: Any = module.objective
    levels = objective.levels(module.model(*batch()))
    assert levels.cells.shape[1] == 3 * 9 + 1  # the student has 3 x 3 patches


# --- the method with its options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_terms_are_their_formulas(late: bool, count: int) -> None:
    of = tiny.stage(count, policy="alsn")
    module, teacher = setup(of, **(LATE if late else {}), **EMBEDDING, alsn={"dropout": 0.0}, temperature_kd=0.15)
    objective: Any = module.objective
    r = represent(module, teacher, *batch())
    terms, n = objective.combine(r), as_numpy(r)
    expected = {
        "embedding_intra": sum(((n[f"projected_{k}"] - n[f"teacher_{k}"]) ** 2).sum(axis=1).mean() for k in ("image", "text")),
        "embedding_align": np.mean(
            [
                reference.row_kl(
                    n["teacher_logit_scale"][0] * n[f"teacher_{a}"] @ n[f"teacher_{b}"].T,
                    n["logit_scale"][0] * n[a] @ n[b].T,
                )
                for a, b in (("image", "text"), ("text", "image"))
            ]
        ),
        "embedding_cross": np.mean(
            [
                reference.cross_entropy_to_diagonal(n[f"projected_{a}"] @ n[f"teacher_{b}"].T / 0.07)
                for a, b in (("image", "text"), ("text", "image"))
            ]
        ),
        "embedding_relation": reference.sample_relation(
            *(np.concatenate([n[f"{side}image"], n[f"{side}text"]], axis=1) for side in ("", "teacher_"))
        ),
    }
    if late:
        sides = []
        for side in ("", "teacher_"):
            sets = (n[f"{side}cells"], n[f"{side}tokens"], n[f"{side}token_mask"] > 0)
            counts = segments(sets[0].shape[1], sets[1].shape[1], of.visual_levels, of.language_levels)
            sides.append(reference.late_similarities(*sets, *counts))
        pairs = reference.fixed_alpha(of.visual_levels, of.language_levels)
        expected["align_pyramid"] = reference.alignment_of_similarities(*sides, pairs, 0.15)
    for name, value in expected.items():
        assert float(terms.parts[name]) == pytest.approx(value, rel=1e-3, abs=1e-5), name
    weights = EMBEDDING["embedding"]
    added = sum(weights[name.removeprefix("embedding_")] * value for name, value in expected.items() if "embedding" in name)
    for name in weights:  # the total without these terms, from the same representations
        objective.surroundings.options["embedding"][name] = 0.0
    objective.cross_scale = None
    assert float((terms.total - objective.combine(r).total).detach()) == pytest.approx(added, rel=1e-3)


def test_late_interaction_leaves_the_bridge_to_vision_alone() -> None:
    module, _ = setup(**LATE)
    unused = {name for name, _ in module.named_parameters() if module.group_of(name) == "unused"}
    assert unused == {f"objective.pyramid.language_to_visual.{kind}" for kind in ("weight", "bias")}
    pooled, _ = setup()
    assert not [name for name, _ in pooled.named_parameters() if pooled.group_of(name) == "unused"]


def test_the_teachers_pyramid_can_be_fitted_by_late_interaction() -> None:
    module, _ = tiny.setup("teacher_pyramid", tiny.stage(trains=("pyramid",)), cells=2)
    r = module.represent(*batch(), None)
    terms, n = module.objective.combine(r), as_numpy(r)
    counts = segments(r["cells"].shape[1], r["tokens"].shape[1], VISUAL, LANGUAGE)
    forth, back = reference.late_similarities(n["cells"], n["tokens"], n["token_mask"] > 0, *counts)
    expected = [np.mean([reference.cross_entropy_to_diagonal(side[i, i] / 0.07) for side in (forth, back)]) for i in range(4)]
    assert [float(value) for value in terms.parts.values()] == pytest.approx(expected, rel=1e-4)
    assert float(terms.total.detach()) == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_late_run_has_a_teacher_pyramid_of_its_own() -> None:
    runs = {
        "pooled": {"method": "cmapkd"},
        "late": {"method": "cmapkd", **LATE},
        "cells that pooling does not read": {"method": "cmapkd", "cells": 7},
    }
    plan = make_plan(parse_experiment(experiment(runs=runs)))
    pyramids = {run.name: plan.stages[run.stages[0]].settings["teacher_pyramid"] for run in plan.runs}
    assert pyramids["pooled"] == pyramids["cells that pooling does not read"] != pyramids["late"]
    settings = plan.stages[pyramids["late"]].settings
    assert settings["method"]["cells"] == 2
    stages = {run.name: run.stages for run in plan.runs}
    assert stages["pooled"] == stages["cells that pooling does not read"]


# --- ALSN by look-ahead ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
def test_gains_are_what_a_step_does_to_the_task_loss(late: bool) -> None:
    """The gain is the derivative of a level's distance along the task's gradient, and that of the task along the level's."""
    module, teacher = setup(**TASK, **(LATE if late else {}))
    module, teacher = module.double(), teacher.double()
    pictures, captions = tiny.images(6).double(), tiny.tokens(6)
    r = represent(module, teacher, pictures, captions)  # fp32, as everything that a loss sees
    objective: Any = module.objective
    held = torch.tensor([1, 3, 5])
    rest = torch.tensor([0, 2, 4])
    weights = {name: value.detach() for name, value in module.model.named_parameters()}
    taught = teacher(pictures, captions).pyramid
    assert taught is not None

    def task(at: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(module.model, at, (pictures[held], captions[held]), {"taps": False})
        return info_nce(outputs.image, outputs.text, outputs.logit_scale)

    def distances(at: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = functional_call(module.model, at, (pictures[rest], captions[rest]), {"taps": True})
        found: tuple[Tensor, Tensor] = objective.distances(objective.levels(outputs), taught.rows(rest))
        return found

    for kind, name in enumerate(("visual", "language")):
        gains = r[f"{name}_gains"].double()
        assert not gains[held].any() and bool(gains[rest].all())
        for row, level in ((0, 0), (1, 3), (2, 1)):
            leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
            distances(leaves)[kind][row, level].backward()
            # One step on this distance alone, backwards and forwards: the change of the task loss of the held-out pairs.
            step = 1e-7
            moved = [
                task({key: weights[key] + sign * step * leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
                     | {key: weights[key] for key, leaf in leaves.items() if leaf.grad is None})
                for sign in (1, -1)
            ]  # fmt: skip
            slope = float((moved[0] - moved[1]).detach()) / (2 * step)
            assert float(gains[rest][row, level]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


def taught(teacher: Teacher, chunks: list[tuple[Tensor, Tensor]]) -> Teach:
    """What the teacher says of each micro-batch, by its number."""
    return lambda number: teacher(*chunks[number])


def test_gains_do_not_depend_on_how_the_batch_is_cut() -> None:
    module, teacher = setup(**TASK)
    pictures, captions = batch(8)
    (whole,) = module.look_ahead([(pictures, captions)], taught(teacher, [(pictures, captions)]))
    for sizes in ([4, 4], [2, 2, 2, 2], [3, 5]):
        chunks = list(zip(pictures.split(sizes), captions.split(sizes), strict=True))
        parts = module.look_ahead(chunks, taught(teacher, chunks))
        for name, value in whole.items():
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=1e-3, atol=1e-4)


def test_gains_of_a_single_pair_are_not_measured() -> None:
    module, teacher = setup(**TASK)
    (ahead,) = module.look_ahead([batch(1)], taught(teacher, [batch(1)]))
    assert not any(bool(value.any()) for value in ahead.values())
    terms = module.objective.combine(represent(module, teacher, *batch(1)))
    assert bool(torch.isfinite(terms.total))


def test_the_task_moves_alsn_and_the_distances_do_not() -> None:
    module, teacher = setup(**TASK)
    objective: Any = module.objective
    objective.surroundings.options["alsn"]["entropy_weight"] = 0.0
    r = {name: value.detach() for name, value in represent(module, teacher, *batch()).items()}
    for kind in ("visual", "language"):
        r[f"{kind}_weights"] = r[f"{kind}_weights"].clone().requires_grad_()
    objective.combine(r).total.backward()
    for kind in ("visual", "language"):
        gains, measured = r[f"{kind}_gains"], r["gains_measured"][:, None] > 0
        size = gains[measured.expand_as(gains)].square().mean().sqrt()
        torch.testing.assert_close(r[f"{kind}_weights"].grad, -gains / size / measured.sum())  # nothing of the distances


def test_without_the_option_nothing_is_looked_ahead() -> None:
    module, teacher = setup(alsn={"dropout": 0.0})
    assert module.look_ahead([batch()], taught(teacher, [batch()])) == [{}]
    uniform, teacher = setup(tiny.stage(policy="uniform"), alsn={"objective": "task"})
    assert uniform.look_ahead([batch()], teacher) == [{}]


def test_looking_ahead_leaves_weights_gradients_and_randomness_alone() -> None:
    module, teacher = setup(**TASK)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(0)
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    module.look_ahead([batch()], taught(teacher, [batch()]))
    assert torch.equal(torch.get_rng_state(), state) and torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_looking_ahead_works_where_alsn_alone_is_trained(one_rank: None) -> None:
    of = tiny.stage(policy="alsn", trains=("alsn",))
    module, teacher = tiny.setup("cmapkd", of, **TASK)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    engine = tiny.engine(module, teacher, of, batch=6)
    pictures, captions = batch()
    terms = engine.step({"image": pictures, "text": captions}, 0)
    assert {f"gain_{level}" for level in (*VISUAL, *LANGUAGE)} <= set(terms.parts)
    after = engine.module.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name].flatten(), value.flatten())}
    assert changed and all(name.startswith("objective.alsn.") for name in changed)


def test_the_gradient_over_micro_batches_is_that_of_the_whole() -> None:
    model = tiny.student()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    pictures, captions = batch()
    with torch.no_grad():
        whole = _task_gradient(model, weights, [(pictures, captions)])
        parts = _task_gradient(model, weights, [(pictures[:2], captions[:2]), (pictures[2:], captions[2:])])
    assert sum(float(value.abs().sum()) for value in whole.values()) > 0
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_cmapkd_with_all_its_options_overfits_sixteen_pairs(one_rank: None) -> None:
    of = tiny.stage(policy="alsn", lr=2e-3, trains=("student", "pyramid", "alsn"))
    options = {**LATE, "embedding": {"cross": 0.1}, **TASK, "weights": {"task": 1.0}}
    module, teacher = tiny.setup("cmapkd", of, **options)
    engine = tiny.engine(module, teacher, of, batch=16, steps=200)
    pictures, captions = tiny.images(16, seed=8), tiny.tokens(16, seed=8)

    def accuracy() -> float:
        with torch.no_grad():
            outputs = engine.module.model(pictures, captions, taps=False)
        best = (outputs.image @ outputs.text.T).argmax(dim=1)
        return float((best == torch.arange(16)).float().mean())

    assert accuracy() < 0.5
    for step in range(200):
        engine.step({"image": pictures, "text": captions}, step)
        if step % 20 == 19 and accuracy() >= 0.97:
            break
    assert accuracy() >= 0.97
