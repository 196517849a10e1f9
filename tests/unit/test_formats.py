"""Weights as OpenAI, Hugging Face and open_clip give them out: read exactly, and no code run that a file brings along."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cmapkd.errors import UserError
from cmapkd.models import formats, towers, weights
from cmapkd.training.results import source_of

CONFIG = {**tiny.architecture(image=32, vocab_size=96), "quick_gelu": True}


def model(seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return towers.create("tiny-formats", CONFIG, "random")


def outputs(of: Any) -> list[Tensor]:
    with torch.no_grad():
        return [of.eval().encode_image(tiny.images(2, size=32)), of.encode_text(tiny.tokens(2))]


def same(first: Any, second: Any, **tolerance: float) -> None:
    for ours, theirs in zip(outputs(first), outputs(second), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


class _OpenAI(nn.Module):
    """What OpenAI's archives hold: the weights in half precision under these names, and three numbers beside them."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in {**state, "input_resolution": torch.tensor(32), "context_length": torch.tensor(12),
                            "vocab_size": torch.tensor(96)}.items():  # fmt: skip
            self._put(name, value)

    def _put(self, name: str, value: Tensor) -> None:
        here: nn.Module = self
        *above, last = name.split(".")
        for part in above:
            if not hasattr(here, part):
                here.add_module(part, nn.Module())
            here = getattr(here, part)
        here.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_openais_archive_and_its_state_dictionary(tmp_path: Path) -> None:
    source = model()
    half = {name: value.half() for name, value in source.state_dict().items()}
    torch.jit.script(_OpenAI(half)).save(str(tmp_path / "jit.pt"))
    torch.save(_OpenAI(half).state_dict(), tmp_path / "state.pt")
    rounded = model(1)
    rounded.load_state_dict({name: value.float() for name, value in half.items()})
    for name in ("jit.pt", "state.pt"):
        loaded = towers.create("tiny-formats", CONFIG, str(tmp_path / name))
        same(loaded, rounded, atol=0, rtol=0)
        assert next(loaded.parameters()).dtype == torch.float32


def test_open_clips_checkpoints(tmp_path: Path) -> None:
    source = model()
    state = source.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    training = {"epoch": 3, "name": "run", "state_dict": {f"module.{n}": v for n, v in state.items()}, "optimizer": {"lr": 0.1}}
    torch.save(training, tmp_path / "training.pt")
    save_file(state, tmp_path / "plain.safetensors")
    towers.save(source, "tiny-formats", tmp_path / "directory")
    for name in ("plain.pt", "training.pt", "plain.safetensors", "directory"):
        same(towers.create("tiny-formats", CONFIG, str(tmp_path / name)), source, atol=0, rtol=0)
    wider = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": 64}}
    grown = towers.create("tiny-wider", wider, str(tmp_path / "plain.pt"))
    assert grown.visual.positional_embedding.shape[0] == 65, "positions are interpolated, as open_clip does"


def hugging_face(folder: Path, activation: str = "quick_gelu") -> Any:
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 96}
    text |= {"max_position_embeddings": 12, "eos_token_id": 2}  # 2: pool where the highest id is, as CLIP does
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32}
    vision |= {"patch_size": 8}
    both = [{**tower, "hidden_act": activation} for tower in (text, vision)]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = CLIPModel(CLIPConfig(text_config=both[0], vision_config=both[1], projection_dim=16)).eval()
        for parameter in made.parameters():  # biases start at zero, which would hide an exchange of two
            parameter.data += 0.02 * torch.randn_like(parameter)
    made.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    return made


def test_hugging_faces_model_gives_the_same_embeddings(tmp_path: Path) -> None:
    theirs = hugging_face(tmp_path / "hf")
    ours = towers.create("tiny-formats", CONFIG, str(tmp_path / "hf"))
    images, tokens = tiny.images(2, size=32), tiny.tokens(2)
    with torch.no_grad():
        expected = (
            theirs.visual_projection(theirs.vision_model(pixel_values=images).pooler_output),
            theirs.text_projection(theirs.text_model(input_ids=tokens).pooler_output),
        )
    for own, other in zip(outputs(ours), expected, strict=True):
        assert float(other.std()) > 1e-3
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)
    assert torch.equal(ours.logit_scale, theirs.logit_scale)
    assert towers.preprocess_of(ours).mean == [0.1, 0.2, 0.3]
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    same(towers.create("tiny-formats", CONFIG, str(tmp_path / "pytorch_model.bin")), ours, atol=0, rtol=0)
    assert source_of("tiny-formats", str(tmp_path / "hf"), "teacher.pretrained")["file"] == "model.safetensors"


def test_another_activation_is_refused(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf", "gelu")
    with pytest.raises(UserError, match="were trained with gelu, tiny-formats has quick_gelu"):
        towers.create("tiny-formats", CONFIG, str(tmp_path / "hf"))
    with pytest.raises(UserError, match="trained with QuickGELU") as caught:
        weights.check_init("ViT-L-14", "openai", "teacher.pretrained")
    assert caught.value.fix == "use the model ViT-L-14-quickgelu"
    with pytest.raises(UserError, match="trained with GELU"):
        weights.check_activation("ViT-L-14-quickgelu", "laion2b_s32b_b82k", "teacher.pretrained")


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("torch_saves", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(torch_saves: bool, tmp_path: Path) -> None:
    content = {"state_dict": model().state_dict(), "more": _Bomb(tmp_path / "boom")}
    if torch_saves:
        torch.save(content, tmp_path / "evil.pt")
    else:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as caught:
        towers.create("tiny-formats", CONFIG, str(tmp_path / "evil.pt"))
    assert "holds more than weights" in str(caught.value)
    assert not (tmp_path / "boom").exists()
    if torch_saves:
        torch.load(tmp_path / "evil.pt", weights_only=False)
    else:
        pickle.loads((tmp_path / "evil.pt").read_bytes())  # noqa: S301
    assert (tmp_path / "boom").exists(), "the file was harmless, and this test with it"


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "is cut off: a zip archive"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: torch.save([1, 2], path), "holds no state dictionary"),
        (lambda path: torch.save({"a": 1}, path), "holds no state dictionary"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "missing, e.g. .*1 left over, e.g. a"),
    ],
)
def test_files_that_are_no_such_weights_are_explained(write: Any, reason: str, tmp_path: Path) -> None:
    write(tmp_path / "file.pt")
    with pytest.raises(UserError, match=reason):
        towers.create("tiny-formats", CONFIG, str(tmp_path / "file.pt"))


def test_weights_of_another_width_are_named(tmp_path: Path) -> None:
    state = model().state_dict()
    state["text_projection"] = torch.zeros(32, 8)
    save_file(state, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"1 of another shape, e.g. text_projection \(32, 8\) for \(32, 16\)"):
        towers.create("tiny-formats", CONFIG, str(tmp_path / "narrow.safetensors"))


def test_weights_that_are_not_here_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAPKD_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="the weights openai of ViT-B-16-quickgelu are not in") as caught:
        weights.require("ViT-B-16-quickgelu", "openai", "student.init")
    assert "cmapkd weights" in caught.value.fix
    assert "ViT-B-16.pt" in caught.value.fix

    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", refuse)
    with pytest.raises(UserError, match="fetching them failed: no route to host"):
        weights.fetch("ViT-B-16-quickgelu", "openai", "student.init")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "ViT-B-16.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match="has the SHA-256"):
        weights.find("ViT-B-16-quickgelu", "openai")


def test_the_names_of_full_size_models_are_those_that_are_converted() -> None:
    """Every weight of ViT-L/14 and ViT-B/16 has its place, without filling anything: on the meta device."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {
        "ViT-L-14-quickgelu": ((768, 3072, 12, 12), (1024, 4096, 24, 16, 14), 768),
        "ViT-B-16-quickgelu": ((512, 2048, 12, 8), (768, 3072, 12, 12, 16), 512),
    }
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name, (text, vision, embedding) in sizes.items():
        config = CLIPConfig(
            text_config=dict(zip(keys, text, strict=True)),
            vision_config={**dict(zip(keys, vision[:4], strict=True)), "patch_size": vision[4]},
            projection_dim=embedding,
        )
        with torch.device("meta"):
            theirs, ours = CLIPModel(config), open_clip.create_model(name, device="meta")
        converted = formats.from_hugging_face(theirs.state_dict())
        assert {n: v.shape for n, v in converted.items()} == {n: v.shape for n, v in ours.state_dict().items()}
