"""The compared methods: their formulas in float64 against a second writing, their modules, stages and options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import reference_methods
import tiny
import torch
from config_examples import experiment, refusal
from torch import Tensor

from cmapkd.config import parse_experiment
from cmapkd.config.schedules import DEFAULT_SCHEDULES, StageConfig
from cmapkd.errors import UserError
from cmapkd.models import towers
from cmapkd.objectives.base import Representations, Terms
from cmapkd.paper.experiment import paper_context
from cmapkd.plan import CONFIG, make_plan
from cmapkd.training.engine import Engine
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

COMPARED = ("clip_kd", "fitnet", "c2kd", "llava_kd")
HINT = tiny.stage(name="hint")


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
    teacher = Teacher(above, None, of, module.objective.needs_taps, module.objective.needs_patches)
    terms = module(*batch(3), teacher(*batch(3)))
    terms.total.backward()
    assert bool(torch.isfinite(terms.total))
    heads = dict(module.objective.named_parameters())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in heads.values())


@pytest.mark.parametrize("method", COMPARED)
@pytest.mark.parametrize("name", ["hint", "dpt", "stage"])
def test_half_precision_with_partitioned_optimiser_states(method: str, name: str, one_rank: None) -> None:
    """The file that clusters use: representations leave a bf16 model in fp32, and everything of the loss is finite."""
    of = tiny.stage(name=name, lr=1e-3, trains=("student", "projections", "heads"))
    options = {"gd_weight": 1.0, "afd_weight": 1.0} if method == "clip_kd" else {}
    config = json.loads((CONFIG / "deepspeed" / "bf16-zero1.json").read_text())
    module, teacher = tiny.setup(method, of, **options)
    engine = Engine(module, teacher, of, {**tiny.TRAINING, "global_batch": 8}, config, 6, torch.device("cpu"))
    pictures, captions = batch(8)
    losses = [engine.step({"image": pictures, "text": captions}, step).total for step in range(6)]
    assert all(loss.dtype == torch.float32 for loss in losses) and float(losses[-1].detach()) < float(losses[0].detach())


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
        ({}, ["cross_scale", "project"]),
        ({"icl_weight": 0.0}, ["project"]),
        ({"icl_weight": 0.0, "fd_weight": 0.0}, []),
        ({"icl_weight": 0.0, "fd_weight": 0.0, "gd_weight": 1e8}, ["project"]),
        ({"icl_weight": 0.0, "fd_weight": 0.0, "afd_weight": 1.0}, ["fuse", "fusion_scale"]),
    ],
    ids=str,
)
def test_a_weight_of_zero_leaves_a_term_and_its_modules_out(options: dict[str, float], modules: list[str]) -> None:
    """A module without a gradient would still decay."""
    module, teacher = tiny.setup("clip_kd", tiny.stage(), **options)
    assert sorted(module_names(module)) == modules
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


# --- FitNet ----------------------------------------------------------------------------------------------------------


def test_fitnets_hint_is_its_formula() -> None:
    """Grids of 3 x 3 and 6 x 6, widths 32 and 48, captions of several lengths."""
    module, teacher = tiny.setup("fitnet", HINT, hint_weight=10.0)
    objective: Any = module.objective
    pictures, captions = batch()
    terms = objective.combine(represented(module, teacher))
    with torch.no_grad():
        ours, theirs = module.model(pictures, captions), teacher(pictures, captions).towers  # type: ignore[misc]
    image, text = [], []
    for row in range(len(captions)):
        maps = [of.image_taps[1][row].permute(1, 2, 0).double().numpy() for of in (ours, theirs)]
        tokens = [of.text_taps[1][row].double().numpy() for of in (ours, theirs)]
        heads = [(h.weight.detach().double().numpy(), h.bias.detach().double().numpy()) for h in objective.regress.values()]
        length = int(captions[row].argmax()) + 1
        image.append(reference_methods.image_hint(*maps, *heads[0]))
        text.append(reference_methods.text_hint(*tokens, *heads[1], length))
    expected = {"hint_image": np.mean(image), "hint_text": np.mean(text)}
    assert len({int(caption.argmax()) for caption in captions}) > 2
    for name, value in expected.items():
        assert float(terms.parts[name]) == pytest.approx(float(value), rel=1e-5)
    assert float(terms.total.detach()) == pytest.approx(10 * sum(map(float, expected.values())), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0, "weight": 0.5}, {"teacher_scale": 25.0}], ids=str)
def test_fitnets_second_stage_is_kd_without_a_regressor(options: dict[str, Any]) -> None:
    module, teacher = tiny.setup("fitnet", tiny.stage(name="kd"), **options)
    kd, _ = tiny.setup("kd", tiny.stage(), **options)
    assert not module_names(module)
    ours, theirs = (of.objective.combine(represented(of, teacher)) for of in (module, kd))
    assert_terms(ours, {name: float(value) for name, value in {**theirs.parts, "total": theirs.total.detach()}.items()})


def test_a_hint_does_not_see_what_follows_the_end_of_text() -> None:
    module, teacher = tiny.setup("fitnet", HINT)
    pictures, captions = batch(4)
    before = module.represent(pictures, captions, tiny.teach(teacher, pictures, captions))
    end = captions.argmax(dim=1)
    for row, place in zip(captions, end, strict=True):
        row[place + 1 :] = 7  # words instead of padding
    after = module.represent(pictures, captions, tiny.teach(teacher, pictures, captions))
    assert bool((captions == 7).any())
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("count", [1, 2])
def test_hints_are_finite_for_the_smallest_batches_and_a_caption_of_padding(count: int) -> None:
    module, teacher = tiny.setup("fitnet", HINT)
    pictures, captions = batch(count)
    captions[0] = 0
    terms = module(pictures, captions, tiny.teach(teacher, pictures, captions))
    terms.total.backward()
    assert bool(torch.isfinite(terms.total))
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("quarter", range(4))
def test_what_precedes_a_tap_is_what_its_gradient_reaches(quarter: int, custom_text: bool) -> None:
    model = tiny.model(0, "tiny-deep", layers=8, custom_text=custom_text)
    outputs = model(*batch(3))
    (outputs.image_taps[quarter].square().sum() + outputs.text_taps[quarter].square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert towers.precedes(name, quarter, model.shapes()) == (parameter.grad is not None), name


def test_the_hint_guides_the_lower_half_and_leaves_the_rest_alone() -> None:
    module, _ = tiny.setup("fitnet", HINT)
    guided = {name for name, p in module.named_parameters() if p.requires_grad}
    assert {"objective.regress.image.weight", "model.model.visual.transformer.resblocks.1.mlp.c_fc.weight"} <= guided
    assert "model.model.token_embedding.weight" in guided
    for name in ("visual.transformer.resblocks.2.mlp.c_fc.weight", "visual.proj", "ln_final.weight", "logit_scale"):
        assert f"model.model.{name}" not in guided


def test_hints_can_be_learned() -> None:
    module, teacher = tiny.setup("fitnet", HINT)
    pictures, captions = batch(8)
    outputs = tiny.teach(teacher, pictures, captions)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(120):
        terms = module(pictures, captions, outputs)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(float(terms.total.detach()))
    assert losses[-1] < losses[0] / 3


def test_options_of_one_stage_do_not_set_the_other_apart() -> None:
    runs = {"A": {"method": "fitnet"}, "B": {"base": "A", "weight": 2.0}, "C": {"base": "A", "hint_weight": 1.0}}
    first, second, third = (run.stages for run in make_plan(parse_experiment(experiment(runs=runs))).runs)
    assert first[0] == second[0] != third[0]  # what bears on KD does not bear on the hint
    assert len({first[1], second[1], third[1]}) == 3


@pytest.mark.parametrize("method", ["fitnet", "llava_kd"])
def test_a_method_with_stages_of_its_own_refuses_others(method: str) -> None:
    known = ", ".join(tiny.METHODS[method].stage_names)
    message = refusal(experiment(runs={"A": {"method": method, "schedule": "standard"}}))
    assert f"runs.A.schedule = 'standard' has a stage 'train'; stages of this method are named {known}" in message


# --- C2KD ------------------------------------------------------------------------------------------------------------

C2KD = {"proxy_weight": 0.7, "selection_weight": 1.3, "temperature": 2.0, "candidates": 4}


@pytest.mark.parametrize(("count", "candidates"), [(1, 32), (2, 32), (6, 4), (9, 32)])
def test_c2kd_is_its_formula(count: int, candidates: int) -> None:
    options = {**C2KD, "candidates": candidates}
    module, teacher = tiny.setup("c2kd", tiny.stage(), **options)
    r = represented(module, teacher, count)
    terms = module.objective.combine(r)
    assert_terms(terms, reference_methods.c2kd(as_numpy(r), options))
    assert count < 6 or 0 < float(terms.parts["selected"]) < 1


def test_in_c2kd_each_divergence_moves_its_second_argument_alone() -> None:
    module, _ = tiny.setup("c2kd", tiny.stage())
    objective: Any = module.objective
    names = ("teacher", "teacher_proxy", "student", "student_proxy")
    rows = [torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(4)]
    moved = {"teacher_proxy": {1}, "student_proxy": {2, 3}, "to_student": {3}, "to_teacher": {1}}
    for name, of in moved.items():
        gradients = torch.autograd.grad(objective._one_direction(*rows)[name], rows, allow_unused=True)
        assert {place for place, value in enumerate(gradients) if value is not None} == of, [names[place] for place in of]


def test_c2kd_trains_the_teachers_proxy_and_not_the_teacher() -> None:
    module, teacher = tiny.setup("c2kd", tiny.stage())
    module(*batch(), tiny.teach(teacher, *batch())).total.backward()
    assert teacher is not None and not any(p.requires_grad for p in teacher.parameters())
    assert module_names(module) == {"student_proxy", "teacher_proxy"}
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.objective.parameters())


# --- LLaVA-KD --------------------------------------------------------------------------------------------------------

LLAVA = {"answer": 0.7, "visual": 0.6, "relation": 0.4}
DPT, SFT, DFT = (
    tiny.stage(name=name, trains=("projections",) if name == "dpt" else ("student",)) for name in ("dpt", "sft", "dft")
)


@pytest.mark.parametrize("of", [DPT, DFT], ids=lambda of: of.name)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_llava_kd_is_its_formula(of: StageConfig, count: int) -> None:
    module, teacher = tiny.setup("llava_kd", of, **{f"{name}_weight": value for name, value in LLAVA.items()})
    r = represented(module, teacher, count)
    n = as_numpy(r)
    assert n["patches"].shape[:2] == n["teacher_patches"].shape[:2] == (count, 9)
    assert_terms(module.objective.combine(r), reference_methods.llava_kd(n, LLAVA))


def test_llava_kds_patches_are_the_last_blocks_at_the_students_grid() -> None:
    module, teacher = tiny.setup("llava_kd", DFT)
    pictures, captions = batch(3)
    n = as_numpy(represented(module, teacher, 3))
    with torch.no_grad():
        theirs = teacher(pictures, captions).towers.patches.double().numpy()  # type: ignore[misc]
    assert theirs.shape == (3, 24, 6, 6)
    for row in range(3):
        resized = reference.area(theirs[row], 3, 3).reshape(24, 9).T
        np.testing.assert_allclose(n["teacher_patches"][row], reference.unit(resized), atol=1e-5)


def test_a_tower_that_averages_its_patches_embeds_their_mean() -> None:
    """So a patch's vector is in the space of the embeddings."""
    config = tiny.architecture()
    config["vision_cfg"] |= {"pool_type": "avg"}
    with tiny.seeded(0):
        model = towers.Tapped(towers.create("tiny-average", config, "random"))
    outputs = model(*batch(2), patches=True)
    assert outputs.patches is not None
    torch.testing.assert_close(torch.nn.functional.normalize(outputs.patches.mean(dim=(2, 3)), dim=-1), outputs.image)


def test_a_tower_that_pools_by_attention_has_no_patches_to_project() -> None:
    config = tiny.architecture()
    config["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    model = towers.Tapped(towers.create("tiny-attentive", config, "random"))
    with pytest.raises(UserError, match="pools by attention"):
        model(*batch(2), patches=True)


def test_llava_kds_second_stage_is_the_task_alone_without_a_teacher() -> None:
    module, teacher = tiny.setup("llava_kd", SFT)
    scratch, _ = tiny.setup("scratch", tiny.stage())
    assert teacher is None and not module.objective.needs_taps and not module.objective.needs_patches
    assert tiny.method_options("llava_kd", SFT, answer_weight=3.0) == {"method": "llava_kd"}
    ours, theirs = (of.objective.combine(represented(of, None)) for of in (module, scratch))
    assert list(ours.parts) == ["task"] and torch.equal(ours.total, theirs.total)


@pytest.mark.parametrize("custom_text", [False, True])
def test_llava_kds_first_stage_trains_the_projections_alone(custom_text: bool) -> None:
    pupil, above = tiny.model(0, "tiny-custom", custom_text=custom_text), tiny.teacher_model()
    module = Distillation(pupil, tiny.objective("llava_kd", DPT, pupil.shapes(), above.shapes()))
    module.freeze_all_but(DPT.trains)
    text = "text.text_projection" if custom_text else "text_projection"
    trained = {name.removeprefix("model.model.") for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"visual.proj", text, "logit_scale"}


def test_llava_kd_of_a_model_by_itself_is_the_task_alone() -> None:
    pupil = tiny.student()
    module = Distillation(pupil, tiny.objective("llava_kd", DFT, pupil.shapes(), pupil.shapes()))
    terms = module(*batch(), Teacher(pupil, None, DFT, taps=True, patches=True)(*batch()))
    for name in ("answer", "visual", "relation"):
        assert float(terms.parts[name]) == pytest.approx(0, abs=1e-5)


def test_llava_kds_schedule() -> None:
    stages = DEFAULT_SCHEDULES["llava_kd"]
    assert [(of.name, of.epochs, of.trains) for of in stages] == [
        ("dpt", 5, ("projections",)), ("sft", 10, ("student", "heads")), ("dft", 10, ("student", "heads")),
    ]  # fmt: skip
    assert stages[0].epochs == 0.2 * sum(of.epochs for of in stages)
    assert stages[2].lr == pytest.approx(stages[1].lr / 10)


def test_methods_that_are_not_quite_the_published_ones_say_so_in_the_tables(tmp_path: Path) -> None:
    runs = {method: {"method": method} for method in ("kd", "c2kd", "llava_kd")}
    rows = {run.method: run.note for run in paper_context(parse_experiment(experiment(runs=runs)), tmp_path).runs}
    assert rows["kd"] == "" and "frozen" in rows["c2kd"] and "Re-interpreted" in rows["llava_kd"]
