"""Taps against open_clip's own forward, masks, refusals, and checkpoints that plain open_clip reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cmapkd.errors import UserError
from cmapkd.models import towers
from cmapkd.models.pyramid import Pyramid
from cmapkd.training.stages import seeded

CLASSES = {"CLIP": False, "CustomTextCLIP": True}


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Architectures with a text tower of `transformers` that lies in a local directory: BERT and RoBERTa, with both poolers."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    small = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 32}  # fmt: skip
    found = {}
    kinds = {"bert": (BertConfig, BertModel, 0, "cls_pooler"), "roberta": (RobertaConfig, RobertaModel, 1, "mean_pooler")}
    for kind, (config, cls, padding, pooler) in kinds.items():
        folder = tmp_path_factory.mktemp(kind)
        with seeded(5):
            cls(config(**small, pad_token_id=padding)).save_pretrained(folder)
        text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_pooler_type": pooler, "hf_proj_type": "mlp"}
        base = tiny.architecture()
        found[kind] = {**base, "text_cfg": {**text, "context_length": tiny.CONTEXT}}
    return found


def by_hooks(blocks: nn.ModuleList, call: Any) -> list[Tensor]:
    """What each block returns while ``call`` runs."""
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda m, i, out: seen.append(out)) for block in blocks]
    call()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("custom_text", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_embeddings_are_open_clips_own_with_and_without_taps(custom_text: bool, grad: bool) -> None:
    tapped = tiny.model(custom_text=custom_text)
    assert type(tapped.model).__name__ == ("CustomTextCLIP" if custom_text else "CLIP")
    pictures, captions = tiny.images(3), tiny.tokens(3)
    with torch.set_grad_enabled(grad):
        expected = tapped.model(pictures, captions)
        for outputs in (tapped(pictures, captions, taps=True), tapped(pictures, captions, taps=False)):
            assert torch.equal(outputs.image, expected["image_features"])
            assert torch.equal(outputs.text, expected["text_features"])
            assert torch.equal(outputs.logit_scale, expected["logit_scale"])


@pytest.mark.parametrize("custom_text", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize(("patch", "layers"), [(8, 4), (4, 8), (12, 5)])
def test_taps_are_the_outputs_of_the_blocks_at_quarter_depths(custom_text: bool, patch: int, layers: int) -> None:
    tapped = tiny.model(custom_text=custom_text, patch=patch, layers=layers)
    pictures, captions = tiny.images(2), tiny.tokens(2)
    text = tapped.model.text if custom_text else tapped.model
    with torch.no_grad():
        outputs = tapped(pictures, captions)
        visual = by_hooks(tapped.model.visual.transformer.resblocks, lambda: tapped.model.encode_image(pictures))
        language = by_hooks(text.transformer.resblocks, lambda: tapped.model.encode_text(captions))
    grid = tiny.IMAGE // patch
    assert len(visual) == layers
    for tap, index in zip(outputs.image_taps, towers.quarter_depths(layers), strict=True):
        expected = visual[index][:, 1:]  # (2, grid * grid, 32) without the class token
        assert torch.equal(tap, expected.transpose(1, 2).reshape(2, 32, grid, grid))
    for tap, index in zip(outputs.text_taps, towers.quarter_depths(4), strict=True):
        assert torch.equal(tap, language[index])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_hugging_face_text_tower(kind: str, hugging_face: dict[str, dict[str, Any]]) -> None:
    config = hugging_face[kind]
    tapped = towers.Tapped(towers.create(f"tiny-{kind}", config, "random")).eval()
    padding = tapped.model.text.config.pad_token_id
    captions = torch.randint(2, tiny.VOCABULARY, (3, tiny.CONTEXT), generator=torch.Generator().manual_seed(0))
    captions[1, 5:] = padding
    pictures = tiny.images(3)
    with torch.no_grad():
        expected = tapped.model(pictures, captions)
        outputs = tapped(pictures, captions)
        hidden = tapped.model.text.transformer(captions, (captions != padding).long(), output_hidden_states=True).hidden_states
    assert torch.equal(outputs.image, expected["image_features"])
    assert torch.equal(outputs.text, expected["text_features"])
    for tap, depth in zip(outputs.text_taps, (2, 4, 6, 8), strict=True):
        assert torch.equal(tap, hidden[depth])  # hidden[0] is the embedding layer
    assert outputs.text_mask is not None and outputs.summary is not None
    assert outputs.text_mask.sum(dim=1).tolist() == [tiny.CONTEXT, 5, tiny.CONTEXT]
    assert outputs.summary.tolist() == [0, 0, 0]
    assert tapped.shapes().text_width == 32
    assert tapped.model.text.transformer.config.output_hidden_states is False  # as before
    levels = Pyramid(tapped.shapes(), **tiny.PYRAMID)(outputs)
    assert all(bool(torch.isfinite(value).all()) for value in tiny.pyramid_tensors(levels).values())


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (4, (0, 1, 2, 3)), (32, (7, 15, 23, 31)), (8, (1, 3, 5, 7))],
)
def test_quarter_depths(depth: int, expected: tuple[int, ...]) -> None:
    assert towers.quarter_depths(depth) == expected


def test_quarter_depths_of_any_depth_ascend_and_end_at_the_last_block() -> None:
    for depth in range(4, 60):
        indices = towers.quarter_depths(depth)
        assert sorted(set(indices)) == list(indices) and indices[0] >= 0 and indices[-1] == depth - 1
        assert all(abs(index + 1 - depth * quarter / 4) <= 0.5 for index, quarter in zip(indices, (1, 2, 3, 4), strict=True))


def test_too_shallow_a_tower_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers = 3.*four blocks"):
        tiny.model(layers=3)


@pytest.mark.parametrize("custom_text", CLASSES.values(), ids=CLASSES)
def test_mask_holds_end_of_text_and_no_padding(custom_text: bool) -> None:
    tapped = tiny.model(custom_text=custom_text)
    captions = tiny.tokens(6, seed=3)
    outputs = tapped(tiny.images(6), captions)
    assert outputs.text_mask is not None and outputs.summary is not None
    assert torch.equal(outputs.text_mask, captions != 0)  # no word of these captions has the id of padding
    assert torch.equal(captions[torch.arange(6), outputs.summary], torch.full((6,), tiny.END))


def test_a_truncated_caption_keeps_end_of_text() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    captions = tokenizer(["a very long caption about a great many things that do not fit", "short"])
    tapped = towers.Tapped(towers.create("tiny-words", tiny.architecture(vocab_size=49408, context_length=8), "random"))
    outputs = tapped(tiny.images(2), captions)
    assert outputs.summary is not None and outputs.text_mask is not None
    assert outputs.summary.tolist() == [7, 2] and captions[0, 7] == 49407
    assert outputs.text_mask.sum(dim=1).tolist() == [8, 3]


@pytest.mark.parametrize(("pool", "positions"), [("argmax", [4, 8]), ("eos", [2, 3]), ("last", [11, 11]), ("first", [0, 0])])
@pytest.mark.parametrize("custom_text", CLASSES.values(), ids=CLASSES)
def test_summary_is_the_token_that_open_clip_pools(custom_text: bool, pool: str, positions: list[int]) -> None:
    tapped = tiny.model(name=f"tiny-{pool}", custom_text=custom_text, pool_type=pool, eos_id=7)
    captions = torch.tensor([[9, 3, 7, 5, 60, 0, 0, 0, 0, 0, 0, 0], [9, 8, 3, 7, 6, 5, 4, 3, 61, 0, 0, 0]])
    text = tapped.model.text if custom_text else tapped.model
    with torch.no_grad():
        outputs = tapped(tiny.images(2), captions)
        assert outputs.summary is not None and outputs.text_mask is not None
        assert outputs.summary.tolist() == positions
        top = text.ln_final(outputs.text_taps[3][torch.arange(2), outputs.summary])  # (2, 32)
        projection = text.text_projection
        embedding = nn.functional.normalize(projection(top) if isinstance(projection, nn.Module) else top @ projection, dim=-1)
    torch.testing.assert_close(embedding, outputs.text)
    if pool in ("first", "last"):
        assert torch.equal(outputs.text_mask, captions != 0)


def test_shapes_of_odd_and_even_grids() -> None:
    assert tiny.student().shapes() == towers.TapShapes(32, 32, (3, 3), tiny.CONTEXT, 4, 4, 16)
    assert tiny.teacher_model().shapes() == towers.TapShapes(48, 32, (6, 6), tiny.CONTEXT, 5, 4, 24)


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"tiny-odd\.vision_cfg\.image_size = 24: is not divisible by patch_size = 7") as caught:
        towers.create("tiny-odd", tiny.architecture(patch=7), "random")
    assert "21 or 28" in caught.value.fix


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"model = 'ViT-B-61'") as caught:
        towers.create("ViT-B-61", None, "random")
    assert "ViT-B-16" in caught.value.fix


def test_an_unknown_tag_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"pretrained = 'opnai'.*no tag of ViT-B-16") as caught:
        towers.create("ViT-B-16", None, "opnai")
    assert caught.value.fix.startswith("did you mean 'openai'? All tags: ") and "laion2b_s34b_b88k" in caught.value.fix


def test_a_tower_that_is_no_vit_is_refused() -> None:
    config = tiny.architecture(image=32)
    config["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    with pytest.raises(UserError, match="taps a ViT"):
        towers.Tapped(towers.create("tiny-resnet", config, "random"))


def test_registering_a_name_again_takes_the_new_architecture() -> None:
    assert tiny.model(name="tiny-again", patch=8).shapes().grid == (3, 3)
    assert tiny.model(name="tiny-again", patch=4).shapes().grid == (6, 6)


PLAIN = """
import sys, torch, open_clip
inputs, found = torch.load(sys.argv[1] + "/inputs.pt"), {}
for name in ("CLIP", "CustomTextCLIP"):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}/{name}")
    model.eval()
    assert type(model).__name__ == name, type(model)
    with torch.no_grad():
        image, text = model.encode_image(inputs["images"], normalize=True), model.encode_text(inputs["tokens"], normalize=True)
    found[name] = {"image": image, "text": text, "scale": model.logit_scale.detach()}
assert not any(name.split(".")[0] == "cmapkd" for name in sys.modules)
torch.save(found, sys.argv[1] + "/outputs.pt")
"""


def test_plain_open_clip_reads_saved_models(tmp_path: Path) -> None:
    models = {name: tiny.model(seed=4, custom_text=custom_text).eval() for name, custom_text in CLASSES.items()}
    for name, custom_text in CLASSES.items():
        tiny.model(custom_text=custom_text)  # registers this architecture under the name
        towers.save(models[name].model, "tiny", tmp_path / name)
    inputs = {"images": tiny.images(3), "tokens": tiny.tokens(3)}
    torch.save(inputs, tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", PLAIN, str(tmp_path)], check=True, cwd=tmp_path, timeout=120)
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    for name, tapped in models.items():
        with torch.no_grad():
            outputs = tapped(inputs["images"], inputs["tokens"])
        assert torch.equal(found[name]["image"], outputs.image)
        assert torch.equal(found[name]["text"], outputs.text)
        assert found[name]["scale"].shape == () and torch.equal(found[name]["scale"].exp(), outputs.logit_scale)


def test_a_model_with_a_hugging_face_tower_is_saved_and_loaded(hugging_face: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    tapped = towers.Tapped(towers.create("tiny-bert", hugging_face["bert"], "random")).eval()
    towers.save(tapped.model, "tiny-bert", tmp_path)
    loaded = towers.Tapped(towers.load(tmp_path)).eval()
    pictures, captions = tiny.images(2), tiny.tokens(2)
    with torch.no_grad():
        ours, theirs = tapped(pictures, captions), loaded(pictures, captions)
    assert torch.equal(ours.text, theirs.text) and torch.equal(ours.image, theirs.image)


def test_saved_weights_come_back_exactly(tmp_path: Path) -> None:
    first, other = tiny.model(seed=1), tiny.model(seed=2)
    towers.save(first.model, "tiny", tmp_path)
    towers.load_weights(other.model, tmp_path)
    loaded = towers.load(tmp_path)
    for name, value in first.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)
        assert torch.equal(loaded.state_dict()[name], value)
    again = towers.create("tiny", tiny.architecture(), str(tmp_path))  # a directory as `init`
    assert torch.equal(again.state_dict()["positional_embedding"], first.model.state_dict()["positional_embedding"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == [towers.CONFIG, towers.WEIGHTS]


def test_half_precision_is_saved_as_fp32(tmp_path: Path) -> None:
    tapped = tiny.model()
    towers.save(tapped.model.bfloat16(), "tiny", tmp_path)
    assert {value.dtype for value in load_file(tmp_path / towers.WEIGHTS).values()} == {torch.float32}
