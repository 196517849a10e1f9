"""What a plan costs: arithmetic against counts on the models themselves, times against made-up measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import open_clip
import pytest
import torch
from config_examples import experiment

from cmapkd.config.load import load_edited, parse_experiment
from cmapkd.costs import flops
from cmapkd.costs.estimate import PARTS, changed, estimate, render
from cmapkd.errors import UserError
from cmapkd.evaluation import efficiency
from cmapkd.models import towers
from cmapkd.models.pyramid import LANGUAGE, VISUAL, Pyramid, Smoothing
from cmapkd.plan import Plan, make_plan, model_settings


def _model(name: str) -> Any:
    config = model_settings(name, "model")["config"]
    with torch.device("meta"):
        if config is None:
            return open_clip.create_model(name, device="meta")
        return open_clip.model.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"})


@pytest.mark.parametrize("name", ["mini-student", "mini-teacher", "ViT-B-16", "ViT-L-14"])
def test_arithmetic_is_that_of_the_model(name: str) -> None:
    model = _model(name).eval()
    shapes = flops.shapes_of(name, model_settings(name, "model")["config"])
    size = model.visual.image_size
    counted = efficiency.flops(
        model,
        torch.zeros(1, 3, *((size, size) if isinstance(size, int) else size), device="meta"),
        torch.zeros(1, shapes.context, dtype=torch.long, device="meta"),
    )
    assert flops.image_tower(shapes) == pytest.approx(counted["image_flops"], rel=0.005)
    assert flops.text_tower(shapes) == pytest.approx(counted["text_flops"], rel=0.005)
    assert flops.parameters(shapes) == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.001)


def test_published_operations_of_the_image_towers() -> None:
    for name, giga in (("ViT-B-16", 35.13), ("ViT-L-14", 162.03)):
        assert flops.image_tower(flops.shapes_of(name, None)) / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("smoothing", get_args(Smoothing))
def test_arithmetic_of_the_pyramid_is_that_of_its_modules(smoothing: str) -> None:
    """Counted on the real module; attention within a window is computed over all tokens there, too."""
    config = model_settings("mini-student", "model")["config"]
    tapped = towers.Tapped(towers.create("mini-student", config, "random"))
    sizes = {"channels": 48, "text_channels": 32, "smoothing": smoothing}
    pyramid = Pyramid(tapped.shapes(), **sizes, heads=4).eval()
    outputs = tapped(torch.zeros(1, 3, 32, 32), torch.ones(1, 16, dtype=torch.long), taps=True)
    counted = efficiency._count(lambda out: pyramid(out), outputs)
    expected = flops.pyramid(flops.shapes_of("mini-student", config), sizes, VISUAL, LANGUAGE)
    assert expected == pytest.approx(counted, rel=0.02)


def test_a_tower_whose_arithmetic_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="ViTs with open_clip's own text tower"):
        flops.shapes_of("RN50", None)


def _plan() -> Plan:
    return make_plan(parse_experiment(experiment()))


def _trained(plan: Plan, results: Path, seconds: Any) -> None:
    for address in plan.stages:
        file = results / plan.experiment.name / "stages" / address / "stage.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        took = seconds(address)
        # A cache of the teacher's outputs trains nothing; what it took is in its provenance alone.
        summary = {"steps": 0} if plan.stages[address].settings["kind"] == "cache" else {"seconds": took, "resumed_at": 0}
        file.write_text(json.dumps({"summary": summary, "provenance": {"wall_seconds": took}}))


@pytest.mark.parametrize("cache", [None, {"precision": "fp16"}])
def test_times_are_learnt_from_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: dict[str, str] | None
) -> None:
    plan = make_plan(parse_experiment(experiment(teacher__cache=cache, training__augmentation={"scale": [1, 1]})))
    assert any(stage.settings["kind"] == "cache" for stage in plan.stages.values()) == (cache is not None)
    monkeypatch.setattr("cmapkd.costs.estimate._samples", lambda *_: 40_000)
    work = {address: (cost.steps, cost.work) for address, cost in estimate(plan, tmp_path, "V100").stages.items()}
    rates = dict(zip(PARTS, (3e-10, 1e-10, 2e-10, 0.05), strict=True))  # [s] per operation, and per step

    def seconds(address: str) -> float:
        steps, parts = work[address]
        return steps * sum(rate * part for rate, part in zip(rates.values(), parts, strict=True))

    _trained(plan, tmp_path, seconds)
    found = estimate(plan, tmp_path)
    for address, cost in found.stages.items():
        assert cost.measured == pytest.approx(seconds(address))
        assert cost.predicted == pytest.approx(seconds(address), rel=0.05)
    last = next(reversed(plan.stages))
    (tmp_path / plan.experiment.name / "stages" / last / "stage.json").unlink()
    missing = estimate(plan, tmp_path).stages[last]
    assert missing.measured is None
    assert missing.predicted == pytest.approx(seconds(last), rel=0.3)
    assert "everything" in render(found, plan)


def test_a_device_is_reckoned_with_and_an_unknown_one_refused(tmp_path: Path) -> None:
    plan = _plan()
    slow, fast = (estimate(plan, tmp_path, "V100", utilisation=share) for share in (0.1, 0.2))
    longest = max(slow.stages, key=lambda address: slow.stages[address].predicted)
    started = slow.stages[longest].predicted, fast.stages[longest].predicted
    assert started[0] - 15 == pytest.approx(2 * (started[1] - 15))
    with pytest.raises(UserError, match="A100"):
        estimate(plan, tmp_path, "A10")
    with pytest.raises(UserError, match="nothing was trained yet"):
        estimate(plan, tmp_path)


def test_what_an_edit_would_train_anew(tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "pictures.yaml"
    file.write_text(yaml.safe_dump(experiment()))
    plan = _plan()
    new = changed(plan, load_edited(file, ["runs.KD.temperature=3"]))
    assert new and {stage.label.partition(",")[0] for stage in new} == {"KD"}
    assert changed(plan, load_edited(file, ["paper.title=Another"])) == []
    assert len(changed(plan, load_edited(file, ["training.global_batch=16"]))) == len(plan.stages)
    with pytest.raises(UserError, match="KEY=VALUE"):
        load_edited(file, ["runs.KD.temperature"])
    with pytest.raises(UserError, match="temperatur"):
        load_edited(file, ["runs.KD.temperatur=3"])
