"""Weights in every form are compared with the named model: contradictions are refused, the unknown is warned of."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import weights_forms as forms
from safetensors.torch import load_file, save_file

from cmapkd.errors import UserError
from cmapkd.models import described, towers, weights


def _archive(folder: Path) -> Path:
    torch.jit.script(forms.openai(forms.model().state_dict())).save(str(folder / "ViT-B-16.pt"))
    return folder / "ViT-B-16.pt"


def _state(folder: Path) -> Path:
    torch.save(forms.openai(forms.model().state_dict()).state_dict(), folder / "state.pt")
    return folder / "state.pt"


def _directory(folder: Path) -> Path:
    towers.save(forms.model(), "tiny-forms-True", folder / "open_clip")
    return folder / "open_clip"


def _renamed_directory(folder: Path) -> Path:
    made = _directory(folder)
    torch.save(load_file(made / weights.WEIGHTS), made / "open_clip_pytorch_model.bin")
    (made / weights.WEIGHTS).unlink()
    return made


def _file_in_directory(folder: Path) -> Path:
    return _renamed_directory(folder) / "open_clip_pytorch_model.bin"


def _hugging_face(folder: Path) -> Path:
    forms.hugging_face(folder / "hf")
    return folder / "hf"


def _hugging_face_file(folder: Path) -> Path:
    return _hugging_face(folder) / "model.safetensors"


def _sharded(folder: Path) -> Path:
    forms.hugging_face(folder / "hf").save_pretrained(folder / "sharded", max_shard_size="200KB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 1
    return folder / "sharded"


def _both(folder: Path) -> Path:
    """A snapshot of the Hub in which only Hugging Face's weights were downloaded."""
    made = _hugging_face(folder)
    shutil.copy(_directory(folder) / weights.CONFIG, made)
    return made


STATING = [
    _archive,
    _state,
    _directory,
    _renamed_directory,
    _file_in_directory,
    _hugging_face,
    _hugging_face_file,
    _sharded,
    _both,
]


@pytest.mark.parametrize("form", STATING)
def test_another_activation_is_refused_in_every_form_that_states_it(form: Callable[[Path], Path], tmp_path: Path) -> None:
    path = form(tmp_path)
    assert torch.isfinite(forms.outputs(towers.create("tiny-forms-True", forms.CONFIG, str(path)))).all()
    for call in (
        lambda: towers.create("tiny-forms-False", forms.GELU, str(path), "student.init"),
        lambda: weights.check_init("tiny-forms-False", str(path), "student.init", forms.GELU),
    ):
        with pytest.raises(UserError, match="trained with quick_gelu, tiny-forms-False has gelu") as caught:
            call()
        assert (caught.value.key, caught.value.fix) == (
            "student.init",
            "set `quick_gelu` to true in the configuration of tiny-forms-False",
        )


def test_the_fix_names_open_clips_model_that_has_the_activation() -> None:
    openai = described.WeightsDescription("OpenAI's checkpoint", activation="quick_gelu")
    plain = described.of_open_clip({"model_cfg": json.loads(described.shipped()["ViT-B-16"].read_text())}, "ViT-B-16")
    with pytest.raises(UserError) as caught:
        described.check(openai, plain, "ViT-B-16", "teacher.pretrained", "ViT-B-16.pt")
    assert caught.value.fix == "use the model ViT-B-16-quickgelu"


@pytest.mark.parametrize("form", [_directory, _hugging_face, _hugging_face_file])
@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("vision_cfg", "layers", 8, "image_layers 4 instead of 8"),
        ("vision_cfg", "head_width", 8, "image_heads 2 instead of 4"),
        ("text_cfg", "heads", 4, "text_heads 2 instead of 4"),
        ("text_cfg", "vocab_size", 64, "vocab_size 96 instead of 64"),
        ("vision_cfg", "patch_size", 16, "patch_size 8 instead of 16"),
    ],
)
def test_another_architecture_is_refused(
    form: Callable[[Path], Path], section: str, key: str, value: int, said: str, tmp_path: Path
) -> None:
    other: dict[str, Any] = {**forms.CONFIG, section: {**forms.CONFIG[section], key: value}}
    with pytest.raises(UserError, match="are not of tiny-other") as caught:
        towers.create("tiny-other", other, str(form(tmp_path)))
    assert said in str(caught.value)


def test_options_without_a_shape_are_compared(tmp_path: Path) -> None:
    path = _directory(tmp_path)
    other = {**forms.CONFIG, "vision_cfg": {**forms.CONFIG["vision_cfg"], "pool_type": "avg"}}
    with pytest.raises(UserError, match=r"vision_cfg.pool_type 'tok' instead of 'avg'"):
        towers.create("tiny-pooled", other, str(path))


def test_a_model_that_fits_is_named() -> None:
    content = json.loads(described.shipped()["ViT-L-14"].read_text())
    given = described.of_open_clip({"model_cfg": content}, "directory")
    other = described.of_open_clip({"model_cfg": json.loads(described.shipped()["ViT-B-16"].read_text())}, "ViT-B-16")
    with pytest.raises(UserError) as caught:
        described.check(given, other, "ViT-B-16", "teacher.pretrained", "folder")
    assert "`model: ViT-L-14`" in caught.value.fix


def test_heads_of_openais_models_are_known_by_their_width() -> None:
    shapes = {"visual.class_embedding": (768,), "visual.conv1.weight": (768, 3, 16, 16), "token_embedding.weight": (49408, 512)}
    found = described.of_shapes(shapes, "OpenAI's", openai=True)
    assert (found.image_heads, found.text_heads, found.activation) == (12, 8, "quick_gelu")
    assert described.of_shapes(shapes, "checkpoint", openai=False).image_heads is None


def test_config_and_weights_in_one_directory_must_agree(tmp_path: Path) -> None:
    made = _hugging_face(tmp_path)
    config = json.loads((made / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 6
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="image_layers 4 instead of 6"):
        towers.create("tiny-forms-True", forms.CONFIG, str(made))
    config["vision_config"] |= {"num_hidden_layers": 4, "layer_norm_eps": 1e-6}
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="layer_norm_eps 1e-06"):
        towers.create("tiny-forms-True", forms.CONFIG, str(made))


def test_what_a_file_does_not_say_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(forms.model().state_dict(), tmp_path / "plain.safetensors")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "plain.safetensors"), "teacher.pretrained")
    (warning,) = [record.getMessage() for record in caplog.records if "plain.safetensors" in record.getMessage()]
    assert "does not say which activation (quick_gelu is used)" in warning
    assert "which mean and std of images" in warning
    assert "`teacher.preprocessing` sets another" in warning


def test_what_everything_says_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        towers.create("tiny-forms-True", forms.CONFIG, str(_directory(tmp_path)))
    assert [record for record in caplog.records if "does not say" in record.getMessage()] == []


def test_preprocessing_next_to_weights_is_taken_over(tmp_path: Path) -> None:
    for path in (_hugging_face(tmp_path), _hugging_face_file(tmp_path)):
        made = towers.preprocess_of(towers.create("tiny-forms-True", forms.CONFIG, str(path)))
        assert (made.mean, made.std, made.interpolation) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "bilinear")
    source = forms.model()
    towers.save(source, "tiny-forms-True", tmp_path / "own")
    config = json.loads((tmp_path / "own" / weights.CONFIG).read_text())
    config["preprocess_cfg"] |= {"mean": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    (tmp_path / "own" / weights.CONFIG).write_text(json.dumps(config))
    made = towers.preprocess_of(towers.create("tiny-forms-True", forms.CONFIG, str(tmp_path / "own" / weights.WEIGHTS)))
    assert (made.mean, made.resize_mode) == ([0.5, 0.5, 0.5], "squash")


def test_directories_that_hold_no_weights_say_what_is_missing(tmp_path: Path) -> None:
    made = _directory(tmp_path)
    (made / weights.WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"with open_clip_config\.json, but without open_clip_model\.safetensors"):
        weights.check_init("ViT-B-16", str(made), "student.init")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it holds nothing"):
        weights.check_init("ViT-B-16", str(tmp_path / "empty"), "student.init")
    (tmp_path / "one").mkdir()
    torch.save(forms.model().state_dict(), tmp_path / "one" / "epoch_32.pt")
    with pytest.raises(UserError) as caught:
        weights.check_init("ViT-B-16", str(tmp_path / "one"), "student.init")
    assert caught.value.fix == f"name the checkpoint itself: {tmp_path / 'one' / 'epoch_32.pt'}"
    (tmp_path / "stage").mkdir()
    towers.save(forms.model(), "tiny-forms-True", tmp_path / "stage" / "model")
    with pytest.raises(UserError) as caught:
        weights.check_init("ViT-B-16", str(tmp_path / "stage"), "student.init")
    assert caught.value.fix == f"name the directory within it: {tmp_path / 'stage' / 'model'}"
    shard = next(_sharded(tmp_path).glob("model-00002*"))
    shard.unlink()
    with pytest.raises(UserError, match=rf"are missing, e.g. {shard.name}"):
        weights.check_init("ViT-B-16", str(shard.parent), "student.init")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00", b"<!DOCTYPE html><p>Sign in", b'{"model_cfg": 3}', b"{}"])
def test_descriptions_that_cannot_be_read_are_errors(content: bytes, tmp_path: Path) -> None:
    made = _directory(tmp_path)
    (made / weights.CONFIG).write_bytes(content)
    with pytest.raises(UserError, match=weights.CONFIG):
        towers.create("tiny-forms-True", forms.CONFIG, str(made))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"model_type": "clip", "text_config": 3}'),
        ("config.json", '{"model_type": "clip", "vision_config": {"patch_size": {}}}'),
        ("preprocessor_config.json", '{"image_mean": [0.5]}'),
        ("preprocessor_config.json", '{"image_mean": ["a", "b", "c"]}'),
        ("preprocessor_config.json", "version https://git-lfs.github.com/spec/v1"),
    ],
)
def test_descriptions_of_transformers_that_make_no_sense_are_errors(file: str, content: str, tmp_path: Path) -> None:
    made = _hugging_face(tmp_path)
    (made / file).write_text(content)
    with pytest.raises(UserError) as caught:
        towers.create("tiny-forms-True", forms.CONFIG, str(made))
    assert caught.value.fix
