"""Activations computed again instead of kept: the same gradients, less memory, and not where blocks have prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_experiment
import torch
from torch import Tensor

from cmapkd.config import parse_experiment
from cmapkd.training.loop import train_stage
from cmapkd.training.stages import Distillation

pytestmark = pytest.mark.usefixtures("one_rank")


def gradients(module: Distillation, teacher: Any, seed: int = 0) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and how often a block of the image tower was run."""
    runs: list[int] = []
    block = module.model.model.visual.transformer.resblocks[1]
    block.register_forward_pre_hook(lambda *_: runs.append(1))
    pictures, captions = tiny.images(4, seed), tiny.tokens(4, seed)
    torch.manual_seed(seed)
    module.train()
    terms: Any = module(pictures, captions, tiny.teach(teacher, pictures, captions))
    terms.total.backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return terms.total.detach(), found, len(runs)


@pytest.mark.parametrize("method", ["scratch", "kd", "clip_kd", "fitnet", "c2kd", "llava_kd", "cmapkd"])
def test_gradients_are_the_same(method: str) -> None:
    of = tiny.stage(policy="alsn" if method == "cmapkd" else "uniform")
    kept, keeping = tiny.setup(method, of)
    again, teaching = tiny.setup(method, of)
    assert again.checkpoint_activations()
    loss, expected, once = gradients(kept, keeping)
    same, found, twice = gradients(again, teaching)
    assert (once, twice) == (1, 2)
    assert torch.equal(loss, same)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-7, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_less_is_kept() -> None:
    """Bytes that the backward pass of the image tower holds on to."""

    def held(checkpoint: bool) -> int:
        model, sizes = tiny.student().model, []
        model.set_grad_checkpointing(checkpoint)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            model.encode_image(tiny.images(8))
        return sum(sizes)

    assert held(True) < 0.3 * held(False)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("teacher_prompts", {}),
        ("promptkd", {"student_prompts": 2, "student_prompt_layers": 2}),
        ("cmapkd", {"alsn": {"objective": "task"}}),
    ],
)
def test_blocks_that_are_run_from_outside_keep_theirs(method: str, options: dict[str, Any]) -> None:
    module, _ = tiny.setup(method, tiny.stage(policy="alsn" if method == "cmapkd" else "uniform"), **options)
    assert not module.checkpoint_activations()
    assert not module.model.model.visual.transformer.grad_checkpointing


def test_a_stage_trains_with_it_and_has_the_same_address(tmp_path: Path) -> None:
    content = {**tiny_experiment.OPTIONS.model_dump(), "activation_checkpointing": True}
    plan, results = tiny_experiment.experiment(tmp_path)
    first = tiny_experiment.stages_of(plan)[0]
    train_stage(first, results, tiny_experiment.OPTIONS)
    kept = tiny_experiment.stream(results / "stages" / first.address)
    (results / "stages" / first.address / "stage.json").unlink()
    train_stage(first, results, type(tiny_experiment.OPTIONS)(**content))
    again = tiny_experiment.stream(results / "stages" / first.address)
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in kept], rel=1e-5)


def test_addresses_do_not_depend_on_it() -> None:
    from config_examples import experiment

    from cmapkd.plan import make_plan

    plans = [make_plan(parse_experiment(experiment(training__activation_checkpointing=on))) for on in (False, True)]
    assert list(plans[0].stages) == list(plans[1].stages)
