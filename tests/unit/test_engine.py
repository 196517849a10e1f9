"""The optimiser step: schedule, parameter groups, exact accumulation, the clamped scale, and a loss that is not finite."""

from __future__ import annotations

import gc
import itertools
import json
import math
import weakref
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from cmapkd.objectives.base import Terms
from cmapkd.plan import CONFIG
from cmapkd.training.engine import MAX_LOGIT_SCALE, Engine, lr_factor, parameter_groups

pytestmark = pytest.mark.usefixtures("one_rank")


def batch(count: int = 8, seed: int = 0) -> dict[str, Tensor]:
    return {"image": tiny.images(count, seed), "text": tiny.tokens(count, seed)}


# --- schedule --------------------------------------------------------------------------------------------------------


def test_lr_rises_linearly_and_falls_as_a_cosine() -> None:
    factors = [lr_factor(step, 100, warmup=0.1, end=0.0) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 90)) for step in range(90)])
    assert max(factors) == 1 and factors[10] == 1 and factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 - math.cos(math.pi / 90)))


def test_lr_ends_at_its_share_and_starts_at_the_peak_without_warm_up() -> None:
    factors = [lr_factor(step, 1000, warmup=0.0, end=0.2) for step in range(1000)]
    assert factors[0] == 1 and factors[500] == pytest.approx(0.6) and factors[-1] == pytest.approx(0.2, abs=1e-4)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.99])
def test_lr_of_very_short_stages_is_a_positive_share(steps: int, warmup: float) -> None:
    assert all(0 < lr_factor(step, steps, warmup, 0.0) <= 1 for step in range(steps))


def test_steps_use_the_schedule_of_each_group() -> None:
    of = tiny.stage(lr=1e-3, group_lr={"pyramid": 1e-4, "alsn": 5e-3}, lr_end=0.1, policy="alsn")
    engine = tiny.engine(*tiny.setup("cmapkd", of), of, batch=4, steps=6, warmup=0.5)
    peaks = {"student": 1e-3, "pyramid": 1e-4, "alsn": 5e-3}
    for step in range(6):
        engine.step(batch(4, step), step)
        for group in engine.engine.optimizer.param_groups:
            assert group["lr"] == pytest.approx(peaks[group["name"]] * lr_factor(step, 6, 0.5, 0.1))
    assert {group["name"] for group in engine.engine.optimizer.param_groups} == set(peaks)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_parameter_groups_hold_each_trained_parameter_once_and_decay_matrices_alone() -> None:
    of = tiny.stage(lr=1e-3, group_lr={"alsn": 5e-3}, trains=("student", "pyramid", "alsn"), policy="alsn")
    module, _ = tiny.setup("cmapkd", of, alpha="learned")
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, of, weight_decay=0.1)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed)) and set(listed) == {p for p in module.parameters() if p.requires_grad}
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            assert module.group_of(name) == group["name"]
            assert group["peak_lr"] == group["lr"] == (5e-3 if name.startswith("objective.alsn.") else 1e-3)
            vector = parameter.ndim < 2
            assert group["weight_decay"] == (0.0 if vector else 0.1), name
            if name.endswith(("bias", "logit_scale", "class_embedding")) or ".ln_" in name:
                assert vector, name


def test_frozen_groups_have_no_entry() -> None:
    of = tiny.stage(trains=("alsn",), policy="alsn")
    groups = parameter_groups(tiny.setup("cmapkd", of)[0], of, 0.1)
    assert {group["name"] for group in groups} == {"alsn"}


# --- accumulation ----------------------------------------------------------------------------------------------------


def gradients_of_a_step(engine: Engine, of: dict[str, Tensor], seed: int) -> tuple[Terms, dict[str, Tensor]]:
    """The gradients that the optimiser saw, before clipping."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:

            def note(p: Tensor, name: str = name) -> None:
                assert p.grad is not None
                seen[name] = p.grad.detach().clone()  # of several micro-batches the last one leaves the sum

            handles.append(parameter.register_post_accumulate_grad_hook(note))
    torch.manual_seed(seed)
    terms = engine.step(of, 0)
    for handle in handles:
        handle.remove()
    return terms, seen


@pytest.mark.parametrize(
    "method",
    ["scratch", "kd", "clip_kd", "fitnet", "c2kd", "llava_kd", "cmapkd", "promptkd", "teacher_pyramid", "teacher_prompts"],
)
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_equals_the_whole_batch(method: str, accumulation: int) -> None:
    of = tiny.stage(policy="alsn" if method == "cmapkd" else "uniform")
    options: dict[str, Any] = {"alpha": "learned", "alsn": {"dropout": 0.0}} if method == "cmapkd" else {}
    results = []
    for cut in (1, accumulation):
        engine = tiny.engine(*tiny.setup(method, of, **options), of, batch=8, accumulation=cut)
        results.append((*gradients_of_a_step(engine, batch(), 0), engine.grad_norm))
    (whole, gradients, norm), (cut_terms, cut_gradients, cut_norm) = results
    torch.testing.assert_close(cut_terms.total, whole.total, atol=1e-5, rtol=1e-5)
    assert cut_terms.parts.keys() == whole.parts.keys()
    assert cut_gradients.keys() == gradients.keys() and gradients
    assert cut_norm == pytest.approx(norm, rel=1e-4) and norm > 0
    # 1e-5, or one unit of rounding of a gradient whose norm is large: CLIP-KD's is 1,400, and sums come in another order.
    atol = max(1e-5, 1e-7 * norm)
    for name, value in gradients.items():
        torch.testing.assert_close(cut_gradients[name], value, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulation_replays_dropout() -> None:
    """Both passes over a micro-batch draw the same masks, so that the gradient belongs to the loss that was reported."""
    of = tiny.stage(policy="alsn")
    options = {"alsn": {"dropout": 0.5, "temperature": 0.05, "entropy_weight": 5.0}}
    module, teacher = tiny.setup("cmapkd", of, **options)
    twin, _ = tiny.setup("cmapkd", of, **options)
    twin.train()
    torch.manual_seed(3)
    parts = []
    for rows in (slice(0, 4), slice(4, 8)):
        pictures, captions = (value[rows] for value in batch().values())
        parts.append(twin.represent(pictures, captions, tiny.teach(teacher, pictures, captions)))
    after = torch.get_rng_state()
    expected = twin.objective.combine({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    expected.total.backward()

    engine = tiny.engine(module, teacher, of, batch=8, accumulation=2)
    terms, gradients = gradients_of_a_step(engine, batch(), seed=3)
    assert torch.equal(torch.get_rng_state(), after)  # as if there had been one pass
    torch.testing.assert_close(terms.total, expected.total, atol=1e-6, rtol=1e-6)
    own = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    assert own.keys() == gradients.keys()
    for name, value in own.items():
        torch.testing.assert_close(
            gradients[name].reshape(value.shape), value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert float(own["objective.alsn.visual.weight"].abs().max()) > 1e-3  # dropout matters here


# --- scale -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_logit_scale_is_clamped_at_one_hundred(accumulation: int) -> None:
    of = tiny.stage()
    module, teacher = tiny.setup("scratch", of)
    with torch.no_grad():
        module.model.model.logit_scale.fill_(6.0)
    engine = tiny.engine(module, teacher, of, batch=4, accumulation=accumulation)
    engine.step(batch(4), 0)
    assert float(module.model.model.logit_scale.detach()) == pytest.approx(MAX_LOGIT_SCALE)
    assert float(module.model.model.logit_scale.detach().exp()) == pytest.approx(100)


def test_a_frozen_scale_and_one_below_the_limit_are_left_alone() -> None:
    of = tiny.stage(trains=("pyramid",))
    module, teacher = tiny.setup("cmapkd", of)
    with torch.no_grad():
        module.model.model.logit_scale.fill_(6.0)
    tiny.engine(module, teacher, of, batch=4).step(batch(4), 0)
    assert float(module.model.model.logit_scale) == 6.0
    module, teacher = tiny.setup("scratch", tiny.stage())
    engine = tiny.engine(module, teacher, tiny.stage(lr=1e-6), batch=4)
    before = float(module.model.model.logit_scale.detach())
    engine.step(batch(4), 0)
    assert float(module.model.model.logit_scale.detach()) == pytest.approx(before, abs=1e-4)


def test_the_scale_has_its_own_shape_again_when_the_weights_are_saved() -> None:
    of = tiny.stage()
    module, teacher = tiny.setup("scratch", of)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    engine = tiny.engine(module, teacher, of, batch=4)
    engine.step(batch(4), 0)
    engine.make_whole()
    assert {name: value.shape for name, value in engine.module.state_dict().items()} == shapes
    assert shapes["model.model.logit_scale"] == ()


# --- trouble ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_is_named_and_changes_nothing(accumulation: int) -> None:
    of = tiny.stage()
    engine = tiny.engine(*tiny.setup("cmapkd", of), of, batch=4, accumulation=accumulation)
    engine.step(batch(4), 0)
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}
    bad = batch(4, seed=1)
    bad["image"][2, 0, 3, 3] = math.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan; terms that are not finite: .*task"):
        engine.step(bad, 1)
    for name, value in engine.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    engine.step(batch(4, seed=2), 1)  # and it can go on
    assert all(bool(torch.isfinite(value).all()) for value in engine.module.state_dict().values())


def test_a_gradient_that_is_not_finite_is_named() -> None:
    of = tiny.stage()
    module, teacher = tiny.setup("scratch", of)
    engine = tiny.engine(module, teacher, of, batch=4)
    module.model.model.ln_final.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="the loss is finite, but the norm of its gradient is nan"):
        engine.step(batch(4), 0)


def test_gradients_are_clipped() -> None:
    of = tiny.stage()
    engine = tiny.engine(*tiny.setup("scratch", of), of, batch=4)
    engine.step(batch(4), 0)
    moments = [state["exp_avg"] for state in engine.engine.optimizer.state.values()]
    applied = math.sqrt(sum(float(moment.square().sum()) for moment in moments)) / (1 - 0.9)
    assert engine.grad_norm > 1 and applied == pytest.approx(1, rel=1e-3)


def test_bf16_with_partitioned_optimiser_states() -> None:
    """The file that clusters use: fp32 master weights, of which the scale must be clamped too."""
    config = json.loads((CONFIG / "deepspeed" / "bf16-zero1.json").read_text())
    of = tiny.stage(policy="alsn")
    module, teacher = tiny.setup("cmapkd", of)
    with torch.no_grad():
        module.model.model.logit_scale.fill_(6.0)
    engine = Engine(module, teacher, of, {**tiny.TRAINING, "global_batch": 8}, config, 4, torch.device("cpu"))
    assert engine.dtype == torch.bfloat16
    losses = []
    for step in range(4):
        terms = engine.step(batch(8), step)
        assert terms.total.dtype == torch.float32
        losses.append(float(terms.total.detach()))
        assert float(engine.module.model.model.logit_scale.detach()) <= MAX_LOGIT_SCALE + 0.02
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("zero", "fails"), [*((zero, False) for zero in range(4)), *((zero, True) for zero in range(3))])
def test_the_memory_of_an_engine_is_free_after_it(zero: int, fails: bool) -> None:
    """Another attempt in the same process needs it, above all after there was too little (then with a single rank, for which
    nobody takes ZeRO 3: several end together)."""

    def used() -> weakref.ref[Any]:
        of = tiny.stage()
        module, teacher = tiny.setup("kd", of)
        shared = {**tiny.TRAINING, "global_batch": 4}
        made = Engine(module, teacher, of, shared, {"zero_optimization": {"stage": zero}}, 2, torch.device("cpu"))
        made.step(batch(4), 0)
        if fails:
            module.model.model.visual.transformer.resblocks[2].mlp.register_forward_hook(out_of_memory)
            with pytest.raises(torch.OutOfMemoryError):
                made.step(batch(4), 1)
        made.close()
        return weakref.ref(made.engine.optimizer)

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("as on a GPU")

    linear = torch.nn.functional.linear
    left = used()
    gc.collect()
    assert left() is None
    assert torch.nn.functional.linear is linear
