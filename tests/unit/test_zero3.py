"""ZeRO 3: every method takes the steps it takes without; weights are whole while they are used, and all of them at the end.

One rank is enough for that: its weights come and go as those of several do. `test_portable.py` has two.
"""

from __future__ import annotations

import math
from typing import Any

import open_clip
import pytest
import tiny
import torch
from torch import Tensor

from cmapkd.training import zero3
from cmapkd.training.engine import MAX_LOGIT_SCALE, Engine
from cmapkd.training.zero3 import spread

pytestmark = pytest.mark.usefixtures("one_rank")
STEPS = 2
PERCENT = 0.01 * STEPS * 1e-3  # of what the steps move a weight by: AdamW divides a gradient that is rounding by rounding
EVERY = [*tiny.METHODS, *tiny.TEACHER_STAGES]


def engine(method: str, zero: int, accumulation: int = 1, more: dict[str, Any] | None = None, **options: Any) -> Engine:
    of = tiny.stage(policy="alsn" if method == "cmapkd" else "uniform")
    module, teacher = tiny.setup(method, of)
    config = {"zero_optimization": {"stage": zero}, "gradient_clipping": 1.0, "gradient_accumulation_steps": accumulation}
    shared = {**tiny.TRAINING, "global_batch": 4, **options}
    return Engine(module, teacher, of, shared, {**config, **(more or {})}, STEPS, torch.device("cpu"))


def batch(step: int) -> dict[str, Tensor]:
    return {"image": tiny.images(4, seed=step), "text": tiny.tokens(4, seed=step)}


def trained(of: Engine) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses and gradients' norms of the steps, and the weights after them."""
    losses, norms = [], []
    torch.manual_seed(0)
    for step in range(STEPS):
        losses.append(float(of.step(batch(step), step).total.detach()))
        norms.append(of.grad_norm)
    of.make_whole()
    return losses, norms, {name: value.clone() for name, value in of.module.state_dict().items()}


@pytest.mark.parametrize(("method", "accumulation"), [*((method, 1) for method in EVERY), ("cmapkd", 2), ("promptkd", 2)])
def test_every_method_takes_the_same_steps(method: str, accumulation: int) -> None:
    (losses, norms, expected), (again, same, found) = (trained(engine(method, zero, accumulation)) for zero in (0, 3))
    assert again == pytest.approx(losses, rel=1e-5)
    assert same == pytest.approx(norms, rel=1e-4)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=PERCENT, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_activations_can_be_computed_again() -> None:
    of = tiny.stage()
    losses, _, expected = trained(engine("scratch", 0))
    module, _ = tiny.setup("scratch", of)
    assert module.checkpoint_activations()
    config = {"zero_optimization": {"stage": 3}, "gradient_clipping": 1.0}
    shared = {**tiny.TRAINING, "global_batch": 4}
    again, _, found = trained(Engine(module, None, of, shared, config, STEPS, torch.device("cpu")))
    assert again == pytest.approx(losses, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=PERCENT, rtol=0)


def test_blocks_and_token_embeddings_are_spread_and_little_else() -> None:
    names = {"tiny": tiny.student(), "custom text": tiny.teacher_model()}
    for of in names.values():
        gathered = spread(of)
        rest = {name for name, parameter in of.named_parameters() if parameter not in gathered}
        assert not any("resblocks" in name or "token_embedding" in name for name in rest)
        assert {name.rpartition(".")[2] for name in rest} >= {"logit_scale", "proj", "text_projection", "positional_embedding"}


def test_of_a_model_of_the_paper_one_percent_stays_whole() -> None:
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))
    total = sum(parameter.numel() for parameter in model.parameters())
    kept = total - sum(parameter.numel() for parameter in spread(model))
    assert total == 149_620_737 and kept / total < 0.01


def test_weights_are_there_only_while_they_are_used() -> None:
    made = engine("cmapkd", 3)
    blocks = made.module.model.model.visual.transformer.resblocks
    seen: list[list[int]] = []
    blocks[2].register_forward_hook(lambda *_: seen.append([sum(p.numel() for p in block.parameters()) for block in blocks]))

    def held() -> list[int]:
        return [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]

    assert held() == [0] * len(blocks)
    made.step(batch(0), 0)
    assert held() == [0] * len(blocks)
    assert made.module.model.model.visual.proj.numel() > 0
    made.make_whole()
    assert min(held()) > 0


def test_afterwards_the_module_computes_by_itself() -> None:
    made = engine("cmapkd", 3)
    made.step(batch(0), 0)
    made.make_whole()
    copy, _ = tiny.setup("cmapkd", tiny.stage(policy="alsn"))
    copy.load_state_dict(made.module.state_dict())
    for _ in range(2):
        with torch.no_grad():
            features = [of.model.model.encode_image(tiny.images(2)) for of in (made.module, copy)]
        torch.testing.assert_close(*features)


def test_scales_are_clamped_where_they_are_kept() -> None:
    made = engine("scratch", 3)
    scale = made.module.model.model.logit_scale
    with torch.no_grad():
        zero3.part(made.engine.optimizer, scale)[1].fill_(MAX_LOGIT_SCALE + 1)
    zero3.take_over(made.engine)
    assert float(scale.detach()) > MAX_LOGIT_SCALE
    made.step(batch(0), 0)
    assert float(scale.detach()) == pytest.approx(math.log(100))
    made.step(batch(1), 1)
    assert float(scale.detach()) < math.log(101)
    assert torch.equal(zero3.part(made.engine.optimizer, scale)[1], scale.detach())


def test_a_step_that_overflows_in_half_precision_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    scaling = {"fp16": {"enabled": True, "initial_scale_power": 24, "loss_scale_window": 100, "hysteresis": 1}}
    made = engine("fitnet", 3, more=scaling)
    losses = [float(made.step(batch(0), 0).total.detach()) for _ in range(20)]
    skipped = made.engine.skipped_steps
    assert 0 < skipped < 15
    assert losses[: skipped + 1] == [losses[0]] * (skipped + 1) and losses[-1] < losses[0]
