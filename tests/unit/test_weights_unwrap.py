"""Wrappers and prefixes of trainings are taken off where the result is one CLIP model; otherwise they are named."""

from __future__ import annotations

import itertools
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import weights_forms as forms
from safetensors.torch import save_file
from torch import Tensor

from cmapkd.errors import UserError
from cmapkd.models import towers
from cmapkd.models.unwrap import shared_prefix

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "clip_model.", "_forward_module.")


def read(content: Any, folder: Path) -> Any:
    torch.save(content, folder / "checkpoint.pt")
    return towers.create("tiny-forms-True", forms.CONFIG, str(folder / "checkpoint.pt"), "student.init")


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def test_prefixes_in_any_order(tmp_path: Path) -> None:
    source = forms.model()
    state, expected = source.state_dict(), forms.outputs(source)
    for count in (1, 2, 3):
        for some in itertools.islice(itertools.permutations(PREFIXES, count), 0, None, 7 if count > 1 else 1):
            made = read({"state_dict": prefixed(state, "".join(some)), "epoch": 3}, tmp_path)
            assert torch.equal(forms.outputs(made), expected), some


def _tiny_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = {"visual": "_image_encoder.", "logit_scale": "_logit_scale."}
    return {f"module.{parts.get(n.split('.')[0], '_text_encoder.')}module.{n}": v for n, v in state.items()}


def _compiled_blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {re.sub(r"(resblocks\.\d+\.)", r"\1_orig_mod.", name): value for name, value in state.items()}


WRAPPED = {
    "a list of layers within": lambda s: {"model": s, "epoch": 1},
    "two keys": lambda s: {
        "checkpoint": {"model_state_dict": prefixed(s, "module.")},
        "optimizer": {"state": {0: torch.ones(2)}},
    },
    "ema of lightning": lambda s: {"callbacks": {"ema": {"w": torch.ones(1)}}, "state_dict": prefixed(s, "model.")},
    "ema alone": lambda s: {"ema": prefixed(s, "module."), "step": 7},
    "TinyCLIP": lambda s: {"state_dict": _tiny_clip(s)},
    "blocks that are compiled one by one": _compiled_blocks,
    "the same twice": lambda s: {"model": s, "state_dict": dict(s)},
    "numbers between": lambda s: {**s, "epoch": 3, "name": "run"},
    "text tower of its own": lambda s: {n if n.startswith(("visual", "logit")) else f"text.{n}": v for n, v in s.items()},
    "causal mask of old versions": lambda s: {**s, "attn_mask": torch.full((12, 12), -torch.inf)},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_wrappers_are_taken_off(form: str, tmp_path: Path) -> None:
    source = forms.model()
    assert torch.equal(forms.outputs(read(WRAPPED[form](source.state_dict()), tmp_path)), forms.outputs(source))


def test_prefixes_of_safetensors_and_of_hugging_faces_names(tmp_path: Path) -> None:
    theirs = forms.hugging_face(tmp_path / "hf")
    save_file(prefixed(theirs.state_dict(), "module.clip."), tmp_path / "hf" / "wrapped.safetensors")
    made = towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "hf" / "wrapped.safetensors"))
    assert torch.equal(forms.outputs(made), forms.outputs(towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "hf"))))


def test_averages_are_left_where_the_weights_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, other = forms.model(), forms.model(1).state_dict()
    with caplog.at_level(logging.WARNING):
        made = read({"state_dict": source.state_dict(), "state_dict_ema": other}, tmp_path)
    assert torch.equal(forms.outputs(made), forms.outputs(source))
    assert any("under state_dict are used, not the averages under state_dict_ema" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("nested", [True, False])
def test_several_models_are_named_and_the_fix_keeps_one(nested: bool, tmp_path: Path) -> None:
    source = forms.model()
    first, second = source.state_dict(), forms.model(1).state_dict()
    content = {"student": first, "old": second} if nested else {**prefixed(first, "student."), **prefixed(second, "old.")}
    with pytest.raises(UserError, match="several models") as caught:
        read(content, tmp_path)
    assert "student" in str(caught.value)
    assert "old" in str(caught.value)
    (script,) = re.findall(r'python -c "(.+)"', caught.value.fix)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    made = towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "weights.pt"))
    assert torch.equal(forms.outputs(made), forms.outputs(source))


def test_names_of_another_kind_of_model_show_their_prefix(tmp_path: Path) -> None:
    state = {f"encoder_q.{name}": torch.ones(2) for name in ("conv1.weight", "layer1.0.bn1.weight")}
    with pytest.raises(UserError, match=r"all that are left over begin with 'encoder_q\.'"):
        read({"state_dict": state}, tmp_path)
    assert shared_prefix(["a.b.c", "a.b.d", "a.bc"]) == "a."
    assert shared_prefix(["a", "b"]) == ""


def test_what_more_than_the_model_is_there_is_refused(tmp_path: Path) -> None:
    state = {**prefixed(forms.model().state_dict(), "model."), "criterion.temperature": torch.ones(1)}
    with pytest.raises(UserError, match=r"1 left over, e\.g\. criterion\.temperature"):
        read({"state_dict": state}, tmp_path)


def test_the_keys_of_a_checkpoint_without_weights_are_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no state dictionary; it has 'epoch', 'optimizer'"):
        read({"epoch": 3, "optimizer": {"state": {0: torch.ones(3)}}}, tmp_path)


def test_positions_of_another_size_are_resized_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(forms.model().state_dict(), tmp_path / "small.pt")
    wider = {**forms.CONFIG, "vision_cfg": {**forms.CONFIG["vision_cfg"], "image_size": 64}}
    with caplog.at_level(logging.WARNING):
        made = towers.create("tiny-forms-wider", wider, str(tmp_path / "small.pt"))
    assert made.visual.positional_embedding.shape == (65, 32)
    assert any("of images were resized from 17 to 65" in record.getMessage() for record in caplog.records)
    state = forms.model().state_dict()
    state["visual.positional_embedding"] = torch.ones(15, 32)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="15 rows, which are not those of a square grid"):
        towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "odd.pt"))
    state["visual.positional_embedding"] = torch.ones(17, 24)
    state["positional_embedding"] = torch.ones(12, 24)
    torch.save(state, tmp_path / "narrow.pt")
    with pytest.raises(UserError, match="2 of another shape"):
        towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "narrow.pt"))


def test_the_bias_of_siglip_is_kept_refused_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    biased = {**forms.CONFIG, "init_logit_bias": -10.0, "init_logit_scale": 2.3}
    with torch.random.fork_rng():
        source = towers.create("tiny-forms-siglip", biased, "random")
    torch.save({**source.state_dict(), "logit_bias": torch.tensor([-7.0])}, tmp_path / "siglip.pt")
    made = towers.create("tiny-forms-siglip", biased, str(tmp_path / "siglip.pt"))
    assert made.logit_bias.item() == -7.0
    with pytest.raises(UserError, match=r"1 left over, e\.g\. logit_bias"):
        towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "siglip.pt"))
    torch.save(forms.model().state_dict(), tmp_path / "clip.pt")
    with caplog.at_level(logging.WARNING):
        assert towers.create("tiny-forms-siglip", biased, str(tmp_path / "clip.pt")).logit_bias.item() == 0
    assert any("have no logit_bias" in record.getMessage() for record in caplog.records)
