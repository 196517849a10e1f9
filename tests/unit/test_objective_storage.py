"""A stored method is restored exactly; a stage takes over what it shares with the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from cmapkd import objectives
from cmapkd.errors import UserError
from cmapkd.models import towers
from cmapkd.training.stages import load_objective, objective_modules, save_objective

OPTIONS: dict[str, dict[str, Any]] = {"cmapkd": {"alpha": "learned"}, "promptkd": {"student_prompts": 2}}


@pytest.mark.parametrize("method", objectives.known())
def test_a_stored_method_is_restored_exactly(method: str, tmp_path: Path) -> None:
    of = tiny.stage(policy="alsn") if method == "cmapkd" else tiny.stage()
    options = OPTIONS.get(method, {})
    first, teacher = tiny.setup(method, of, seed=0, **options)
    other, _ = tiny.setup(method, of, seed=50, **options)
    if method == "cmapkd":
        torch.nn.init.normal_(first.objective.compatibility)
    name = "tiny-teacher" if method == "teacher_prompts" else "tiny-student"
    towers.save(first.model.model, name, tmp_path)
    save_objective(first.objective, tmp_path / "objective.safetensors")
    towers.load_weights(other.model.model, tmp_path)
    load_objective(other.objective, tmp_path / "objective.safetensors")
    assert first.state_dict().keys() == other.state_dict().keys()
    for name, value in first.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    first.eval(), other.eval()
    pictures, captions = tiny.images(6), tiny.tokens(6)
    taught = tiny.teach(teacher, pictures, captions)
    ours, theirs = (module.represent(pictures, captions, taught) for module in (first, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_stage_takes_over_shared_modules_and_keeps_its_new_ones(tmp_path: Path) -> None:
    """`medium` has no ALSN, `fine` has; `alsn` hands over to nobody."""
    medium, _ = tiny.setup("cmapkd", tiny.stage(2), seed=0)
    fine, _ = tiny.setup("cmapkd", tiny.stage(policy="alsn"), seed=9)
    fresh = {name: value.clone() for name, value in fine.objective.state_dict().items() if name.startswith("alsn.")}
    save_objective(medium.objective, tmp_path / "objective.safetensors")
    assert objective_modules(tmp_path / "objective.safetensors") == {"pyramid"}
    load_objective(fine.objective, tmp_path / "objective.safetensors")
    for name, value in medium.objective.state_dict().items():
        assert torch.equal(fine.objective.state_dict()[name], value)
    assert fresh and all(torch.equal(fine.objective.state_dict()[name], value) for name, value in fresh.items())
    save_objective(fine.objective, tmp_path / "fine.safetensors")
    load_objective(medium.objective, tmp_path / "fine.safetensors")  # a module that this stage lacks is left out


def test_a_module_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = tiny.setup("cmapkd", tiny.stage())
    save_objective(first.objective, tmp_path / "objective.safetensors")
    monkeypatch.setitem(tiny.PYRAMID, "channels", 16)
    other, _ = tiny.setup("cmapkd", tiny.stage())
    with pytest.raises(UserError, match="its module 'pyramid' has another shape"):
        load_objective(other.objective, tmp_path / "objective.safetensors")
