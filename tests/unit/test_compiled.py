"""`training.compile`: the same gradients to rounding, and a training without where it cannot be."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_experiment
import torch
from config_examples import experiment

from cmapkd.config.load import parse_experiment
from cmapkd.files import read_json
from cmapkd.models.towers import Tapped
from cmapkd.plan import make_plan
from cmapkd.training import compiled
from cmapkd.training.loop import train_stage

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_blocks_have_the_gradients_and_names_of_others() -> None:
    module, teacher = tiny.setup("kd", tiny.stage())
    names = list(module.state_dict())
    images, tokens = tiny.images(4), tiny.tokens(4)
    before = gradients(module.model, images, tokens)
    assert compiled.compile_towers(module, teacher) is None
    assert compiled.is_compiled(module)
    assert list(module.state_dict()) == names
    for name, gradient in gradients(module.model, images, tokens).items():
        torch.testing.assert_close(gradient, before[name], rtol=1e-4, atol=1e-5)


def gradients(model: Tapped, images: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    said = model(images, tokens)
    model.zero_grad()
    (said.image.square().sum() + (said.text * said.image).sum() + sum(tap.sin().mean() for tap in said.image_taps)).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("options", [{"student_prompts": 2, "student_prompt_layers": 2}])
def test_blocks_that_are_run_from_outside_stay_as_they_are(options: dict[str, Any]) -> None:
    module, teacher = tiny.setup("promptkd", tiny.stage(), **options)
    assert "run from outside" in str(compiled.compile_towers(module, teacher))
    assert not compiled.is_compiled(module)


def test_blocks_whose_weights_come_and_go_stay_as_they_are() -> None:
    module, teacher = tiny.setup("kd", tiny.stage())
    assert "ZeRO 3" in str(compiled.compile_towers(module, teacher, zero=3))
    assert not compiled.is_compiled(module)


def test_without_a_compiler_a_stage_trains_as_it_does_without_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan, results = tiny_experiment.experiment(tmp_path)
    first = tiny_experiment.stages_of(plan)[0]
    train_stage(first, results, tiny_experiment.OPTIONS)
    directory = results / "stages" / first.address
    plain = tiny_experiment.stream(directory)
    (directory / "stage.json").unlink()

    def broken(function: Any) -> Any:
        raise RuntimeError("C++ compiler not found\nand a page more")

    monkeypatch.setattr(torch, "compile", broken)
    options = type(tiny_experiment.OPTIONS)(**{**tiny_experiment.OPTIONS.model_dump(), "compile": True})
    with caplog.at_level(logging.WARNING):
        train_stage(first, results, options)
    assert "not compiled, RuntimeError: C++ compiler not found" in caplog.text and "a page more" not in caplog.text
    assert [line["loss"] for line in tiny_experiment.stream(directory)] == [line["loss"] for line in plain]
    assert read_json(directory / "stage.json")["summary"]["compiled"] is False


def test_addresses_do_not_depend_on_it() -> None:
    plans = [make_plan(parse_experiment(experiment(training__compile=on))) for on in (False, True)]
    assert list(plans[0].stages) == list(plans[1].stages)
