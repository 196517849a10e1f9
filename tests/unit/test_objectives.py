"""Methods as a whole: their formula, that they train, what they leave alone, what they log, how they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from torch import Tensor

from cmapkd import objectives
from cmapkd.config.schedules import VISUAL_LEVELS
from cmapkd.errors import UserError
from cmapkd.objectives.base import Objective, Representations
from cmapkd.training.stages import Distillation, Teacher

LEVEL_NAMES = ("pooled", "language", "visual_as_language", "language_as_visual")
POLICIES = ("uniform", "manual", "alsn")


def batch(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    return tiny.images(count, seed), tiny.tokens(count, seed)


def represent(module: Distillation, teacher: Teacher | None, pictures: Tensor, captions: Tensor) -> Representations:
    return module.represent(pictures, captions, tiny.teach(teacher, pictures, captions))


def as_numpy(representations: Representations) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in representations.items()}


def test_known_methods_are_the_files_and_all_of_the_configuration() -> None:
    assert set(objectives.known()) == {*tiny.METHODS, *tiny.TEACHER_STAGES}


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="method = 'cmapdk'") as caught:
        objectives.build("cmapdk", None)  # type: ignore[arg-type]
    assert caught.value.fix == "did you mean 'cmapkd'?"


def test_a_method_cannot_be_registered_twice_or_outside_its_file() -> None:
    tiny.setup("kd", tiny.stage())
    with pytest.raises(ValueError, match=r"must live in objectives/other\.py"):
        objectives.register("other")(type("Other", (Objective,), {}))
    with pytest.raises(ValueError, match="registered twice"):
        objectives.register("kd")(type("KD", (Objective,), {"__module__": "elsewhere.kd"}))


# --- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0, "weight": 0.5}, {"teacher_scale": 25.0}])
def test_kd_is_its_formula(options: dict[str, Any]) -> None:
    module, teacher = tiny.setup("kd", tiny.stage(), **options)
    r = represent(module, teacher, *batch())
    terms = module.objective.combine(r)
    n = as_numpy(r)
    scale, own = n["logit_scale"][0], n["teacher_logit_scale"][0]
    task = reference.info_nce(n["image"], n["text"], scale)
    their_scale = options.get("teacher_scale") or own
    distillation = reference.kd(
        n["image"], n["text"], scale, n["teacher_image"], n["teacher_text"], their_scale, options.get("temperature", 1.0)
    )
    assert float(terms.parts["task"]) == pytest.approx(task, rel=1e-4)
    assert float(terms.parts["distillation"]) == pytest.approx(distillation, rel=1e-4)
    assert float(terms.total.detach()) == pytest.approx(task + options.get("weight", 1.0) * distillation, rel=1e-4)


def test_teacher_pyramid_is_its_formula() -> None:
    module, teacher = tiny.setup("teacher_pyramid", tiny.stage(trains=("pyramid",)))
    r = represent(module, teacher, *batch())
    n = {name: reference.unit(value) for name, value in as_numpy(r).items()}
    values = []
    for i in range(4):
        pairs = ("visual_as_language", "language"), ("pooled", "language_as_visual")
        values.append(np.mean([reference.info_nce(n[a][:, i], n[b][:, i], 1 / 0.07) for a, b in pairs]))
    terms = module.objective.combine(r)
    assert float(terms.total.detach()) == pytest.approx(float(np.mean(values)), rel=1e-4)
    assert [float(value) for value in terms.parts.values()] == pytest.approx(values, rel=1e-4)
    assert list(terms.parts) == ["P2-L1", "P3-L2", "P4-L3", "P5-L4"]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("alpha", ["fixed", "learned"])
def test_cmapkd_is_its_formula(count: int, policy: str, alpha: str) -> None:
    weights = {"intra": 0.9, "align": 0.6, "relation": 0.7, "task": 0.2}
    options = {"weights": weights, "beta": 0.4, "gamma": 0.2, "temperature": 0.2, "temperature_kd": 0.15, "alpha": alpha}
    of = tiny.stage(count, policy=policy)
    module, teacher = tiny.setup("cmapkd", of, **options, **({"alsn": {"dropout": 0.0}} if policy == "alsn" else {}))
    objective: Any = module.objective
    if objective.compatibility is not None:
        torch.nn.init.normal_(objective.compatibility, generator=torch.Generator().manual_seed(0))
    r = represent(module, teacher, *batch())
    terms = objective.combine(r)
    n = as_numpy(r)

    assert n["visual_weights"].shape == n["language_weights"].shape == (6, count)
    fixed = {"uniform": np.ones(4), "manual": np.array([0.1, 0.2, 0.3, 0.4])}
    if policy != "alsn":
        active = fixed[policy][4 - count :]
        np.testing.assert_allclose(n["visual_weights"], np.tile(active / active.sum(), (6, 1)), rtol=1e-6)
        np.testing.assert_allclose(n["language_weights"], n["visual_weights"])

    ours, theirs = ({name: n[prefix + name] for name in LEVEL_NAMES} for prefix in ("", "teacher_"))
    pairs = reference.fixed_alpha(of.visual_levels, of.language_levels)
    if alpha == "learned":
        learned = objective.compatibility.detach().double().numpy().reshape(4, 4)[4 - count :, 4 - count :]
        pairs = np.exp(learned) / np.exp(learned).sum()
    expected = {
        "intra": sum(reference.intra(n[f"{kind}_distances"], n[f"{kind}_weights"]) for kind in ("visual", "language")),
        "align_single": reference.info_nce(
            reference.unit(ours["visual_as_language"][:, -1]), reference.unit(ours["language"][:, -1]), 1 / 0.2
        ),
        "align_pyramid": reference.pyramid_alignment(ours, theirs, pairs, 0.15),
        "relation_sample": reference.sample_relation(
            *(np.concatenate([side["pooled"][:, -1], side["language"][:, -1]], axis=1) for side in (ours, theirs))
        ),
        "relation_layer": 0.0
        if count == 1
        else np.mean([reference.layer_relation(ours[kind], theirs[kind]) for kind in ("pooled", "language")]),
        "task": reference.info_nce(n["image"], n["text"], n["logit_scale"][0]),
    }
    for name, value in expected.items():
        assert float(terms.parts[name]) == pytest.approx(value, rel=1e-3, abs=1e-5), name
    total = 0.9 * expected["intra"] + 0.6 * (expected["align_single"] + 0.4 * expected["align_pyramid"])
    total += 0.7 * (expected["relation_sample"] + 0.2 * expected["relation_layer"]) + 0.2 * expected["task"]
    if policy == "alsn":
        total -= 0.1 * (reference.entropy(n["visual_weights"]) + reference.entropy(n["language_weights"]))
    assert float(terms.total.detach()) == pytest.approx(total, rel=1e-3)


def test_distances_in_cmapkd_are_of_level_against_same_level() -> None:
    module, teacher = tiny.setup("cmapkd", tiny.stage())
    objective: Any = module.objective
    pictures, captions = batch(3)
    ours = objective.pyramid(module.model(pictures, captions))
    theirs = teacher(pictures, captions).pyramid  # type: ignore[misc]
    n = as_numpy(represent(module, teacher, pictures, captions))
    for column, level in enumerate(VISUAL_LEVELS):
        for row in range(3):
            pair = (of.maps[level][row].detach().double().numpy() for of in (ours, theirs))
            assert n["visual_distances"][row, column] == pytest.approx(reference.map_distance(*pair), rel=1e-3)


def test_a_ready_student_of_the_teacher_has_no_distillation_left() -> None:
    """With the teacher's own models and pyramid, every term that compares the two is zero."""
    of = tiny.stage()
    above = tiny.teacher_model()
    objective: Any = tiny.objective("cmapkd", of, above.shapes(), above.shapes())
    teacher = Teacher(above, objective.pyramid, of, taps=True)
    terms = objective.combine(Distillation(above, objective).represent(*batch(), teacher(*batch())))
    for name in ("intra", "align_pyramid", "relation_sample", "relation_layer"):
        assert float(terms.parts[name]) == pytest.approx(0, abs=1e-5), name


# --- what is logged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_alsn_logs_entropies_and_the_mean_weight_of_each_level(count: int) -> None:
    module, teacher = tiny.setup("cmapkd", tiny.stage(count, policy="alsn"))
    r = represent(module, teacher, *batch())
    parts = module.objective.combine(r).parts
    n = as_numpy(r)
    for kind, letter in (("visual", "P"), ("language", "L")):
        weights = n[f"{kind}_weights"]
        numbers = range(2, 6) if letter == "P" else range(1, 5)
        names = [f"weight_{letter}{number}" for number in numbers]
        assert [name for name in parts if name.startswith(f"weight_{letter}")] == names[4 - count :]
        assert [float(parts[name]) for name in names[4 - count :]] == pytest.approx(weights.mean(axis=0).tolist(), rel=1e-5)
        assert float(parts[f"entropy_{kind}"]) == pytest.approx(reference.entropy(weights), abs=1e-5)


@pytest.mark.parametrize("policy", ["uniform", "manual"])
def test_other_policies_log_no_weights_and_have_no_network(policy: str) -> None:
    module, teacher = tiny.setup("cmapkd", tiny.stage(policy=policy))
    parts = module.objective.combine(represent(module, teacher, *batch())).parts
    assert not any(name.startswith(("weight_", "entropy_")) for name in parts)
    assert not any(name.startswith("alsn.") for name in module.objective.state_dict())


@pytest.mark.parametrize("method", objectives.known())
@pytest.mark.parametrize("count", [1, 2])
def test_parts_are_finite_and_carry_no_gradient_for_the_smallest_batches(method: str, count: int) -> None:
    module, teacher = tiny.setup(method, tiny.stage())
    r = represent(module, teacher, *batch(count))
    terms = module.objective.combine(r)
    terms.total.backward()
    assert all(len(value) == count and value.dtype == torch.float32 for value in r.values())
    assert not any(value.requires_grad for name, value in r.items() if name.startswith("teacher_"))
    assert terms.parts and all(bool(torch.isfinite(value)) and not value.requires_grad for value in terms.parts.values())
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", objectives.known())
def test_representations_are_per_sample(method: str) -> None:
    """What accumulation relies on: a micro-batch is represented as it is within the whole batch."""
    module, teacher = tiny.setup(method, tiny.stage())
    pictures, captions = batch(4)
    whole = represent(module, teacher, pictures, captions)
    parts = [represent(module, teacher, pictures[rows], captions[rows]) for rows in (slice(0, 1), slice(1, 4))]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", objectives.known())
def test_a_caption_of_padding_alone_is_harmless(method: str) -> None:
    module, teacher = tiny.setup(method, tiny.stage())
    pictures, captions = batch(3)
    captions[1] = 0
    terms = module.objective.combine(represent(module, teacher, pictures, captions))
    terms.total.backward()
    assert bool(torch.isfinite(terms.total))
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None)


# --- training --------------------------------------------------------------------------------------------------------

PAIRS = 16
# Where a method's defaults weigh the task loss little, it counts fully here: the teacher of these tests knows nothing.
# Prompts have the un-prompted teacher to stay near, and more room than in the other tests.
FOR_THE_TASK: dict[str, dict[str, Any]] = {
    "cmapkd": {"weights": {"task": 1.0}},
    "teacher_prompts": {"tokens": 8, "layers": 9, "image_weight": 0.0, "text_weight": 0.0, "logits_weight": 0.0},
    "promptkd": {"class_prompts": False},
}


def in_batch_accuracy(rows: Tensor, columns: Tensor) -> float:
    """Share of rows nearest to their own column and of columns nearest to their own row."""
    scores, own = rows @ columns.T, torch.arange(len(rows))
    return float(((scores.argmax(dim=1) == own).float().mean() + (scores.argmax(dim=0) == own).float().mean()) / 2)


def accuracy(method: str, module: Distillation, teacher: Teacher | None, pictures: Tensor, captions: Tensor) -> float:
    module.eval()
    with torch.no_grad():
        r = represent(module, teacher, pictures, captions)
        if method == "promptkd":  # retrieval as in inference: the student's picture, the teacher's caption
            objective: Any = module.objective
            r |= {
                "image": torch.nn.functional.normalize(objective.projector(r["image"]), dim=-1),
                "text": objective.bank[: len(pictures)],
            }
    module.train()
    if method != "teacher_pyramid":
        return in_batch_accuracy(r["image"], r["text"])
    unit = {name: torch.nn.functional.normalize(value, dim=-1) for name, value in r.items()}
    return min(in_batch_accuracy(unit["visual_as_language"][:, i], unit["language"][:, i]) for i in range(4))


def overfit(method: str, pictures: Tensor, captions: Tensor) -> tuple[Distillation, Teacher | None, float]:
    """What a method makes of these pairs, and the accuracy before."""
    alsn = {"policy": "alsn"} if tiny.uses_pyramid(method) and method != "teacher_pyramid" else {}
    trains = {"teacher_pyramid": ("pyramid",), "teacher_prompts": ("heads",)}.get(
        method, ("student", "pyramid", "alsn", "heads")
    )
    of = tiny.stage(trains=trains, **alsn)
    module, teacher = tiny.setup(method, of, **FOR_THE_TASK.get(method, {}))
    if method == "promptkd":  # all it knows of the pairs is from its teacher: both stages, one after the other
        prompted: Any = overfit("teacher_prompts", pictures, captions)[0]
        teacher = Teacher(prompted.model, None, of, taps=False, prompts=prompted.objective.prompts, text=False)
        module.objective.start(teacher, tiny.Texts(torch.cat([captions, tiny.tokens(40, seed=9)])))
    outputs = tiny.teach(teacher, pictures, captions)
    before = accuracy(method, module, teacher, pictures, captions)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3 if method in tiny.TEACHER_STAGES else 2e-3, weight_decay=0.01)
    module.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # dropout of ALSN
        for step in range(800):  # how many it takes depends on the processor's rounding
            terms = module(pictures, captions, outputs)
            optimizer.zero_grad()
            terms.total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if step % 20 == 19 and accuracy(method, module, teacher, pictures, captions) >= 0.97:
                break
    return module, teacher, before


@pytest.mark.parametrize("method", objectives.known())
def test_a_method_overfits_sixteen_pairs(method: str) -> None:
    pictures, captions = batch(PAIRS, seed=8)
    module, teacher, before = overfit(method, pictures, captions)
    assert before < 0.5
    assert accuracy(method, module, teacher, pictures, captions) >= 0.97


STAGES: dict[str, list[dict[str, Any]]] = {
    "cmapkd": [
        {"levels": 1, "trains": ("student", "pyramid")},
        {"levels": 2, "trains": ("student", "pyramid"), "policy": "manual"},
        {"trains": ("student", "pyramid", "alsn"), "policy": "alsn"},
        {"trains": ("alsn",), "policy": "alsn"},
        {"trains": ("pyramid",)},
        {"trains": ("student", "pyramid", "alsn"), "policy": "alsn", "name": "extended"},
    ],
    "teacher_pyramid": [{"trains": ("pyramid",)}],
    "llava_kd": [
        {"name": "dpt", "trains": ("projections",)},
        *({"name": name, "trains": ("student",)} for name in ("sft", "dft")),
    ],
    "fitnet": [{"name": "hint", "trains": ("student", "heads")}, {"name": "kd", "trains": ("student", "heads")}],
    "teacher_prompts": [{"trains": ("heads",)}],
    "promptkd": [{"trains": ("student", "heads")}, {"trains": ("heads",)}],
}
EXTENDED = {  # CMAPKD with all that goes beyond it as published
    "similarity": "late",
    "cells": 2,
    "embedding": {"intra": 1.0, "align": 1.0, "cross": 1.0, "relation": 1.0},
    "alsn": {"objective": "task"},
}
OPTIONS: dict[str, dict[str, Any]] = {"promptkd": {"student_prompts": 2}, "extended": EXTENDED}
CASES = [(method, of) for method in objectives.known() for of in STAGES.get(method, [{"trains": ("student", "heads")}])]


@pytest.mark.parametrize(
    ("method", "of"), CASES, ids=[f"{method}-{of.get('name', '')}-{'+'.join(of['trains'])}" for method, of in CASES]
)
def test_what_is_frozen_does_not_change_by_a_bit_and_what_is_trained_does(
    method: str, of: dict[str, Any], one_rank: None
) -> None:
    """Through DeepSpeed, with weight decay: a parameter without a gradient would decay."""
    described = tiny.stage(**of)
    module, teacher = tiny.setup(method, described, **OPTIONS.get(described.name, OPTIONS.get(method, {})))
    bank = getattr(module.objective, "bank", torch.empty(0)).clone()
    groups = {name: module.group_of(name) for name, _ in module.named_parameters()}
    assert set(groups.values()) <= {"student", "projections", "pyramid", "alsn", "heads", "unused"}
    before = {name: value.clone().flatten() for name, value in module.state_dict().items()}
    before_teacher = {name: value.clone() for name, value in teacher.state_dict().items()} if teacher else {}
    engine = tiny.engine(module, teacher, described, batch=4)
    for step in range(2):
        pictures, captions = batch(4, seed=step)
        engine.step({"image": pictures, "text": captions}, step)
    for name, parameter in engine.module.named_parameters():
        same = torch.equal(parameter.detach().flatten(), before[name])
        assert same == (groups[name] not in described.trains), f"{name} of {groups[name]}"
    for name, value in before_teacher.items():
        assert torch.equal(teacher.state_dict()[name], value)  # type: ignore[union-attr]
    assert torch.equal(getattr(module.objective, "bank", torch.empty(0)), bank)


def test_levels_that_a_stage_does_not_use_are_unused() -> None:
    module, _ = tiny.setup("cmapkd", tiny.stage(2))
    unused = {name for name, _ in module.objective.named_parameters() if module.objective.group_of(name) == "unused"}
    modules = {name.removeprefix("pyramid.").rpartition(".")[0] for name in unused}
    assert {"visual.lateral.P2", "visual.smooth.P3", "language.project.L1", "language.attention.L2"} <= modules
    assert not modules & {
        "visual.lateral.P4",
        "visual.smooth.P4",
        "language.attention.L3",
        "visual_to_language",
        "language_to_visual",
    }
    assert not any(module.objective.get_parameter(name).requires_grad for name in unused)


def test_a_model_of_which_nothing_is_trained_keeps_its_dropout_off() -> None:
    frozen, _ = tiny.setup("teacher_pyramid", tiny.stage(trains=("pyramid",)))
    trained, _ = tiny.setup("scratch", tiny.stage(trains=("student",)))
    assert not frozen.train().model.training and frozen.objective.training
    assert trained.train().model.training and not trained.eval().model.training
