"""An open_clip model as ``CLIPModel`` of ``transformers``, with its tokenizer and picture processor.

The two differ in names, in the joined query, key and value of attention, and in the orientation of projections:

    open_clip                                     transformers
    visual.conv1                                  vision_model.embeddings.patch_embedding
    visual.transformer.resblocks.N.attn.in_proj   vision_model.encoder.layers.N.self_attn.{q,k,v}_proj
    visual.proj (width, embed)                    visual_projection.weight (embed, width)

``CLIPModel`` knows one architecture: a class token, learned positions, LayerNorm before the blocks, GELU or QuickGELU, a
causal text tower that is read at end-of-text, CLIP's vocabulary. An option of open_clip that says anything else has no
equivalent, and is named; nothing is left out in silence. ``convert`` compares the embeddings of both before it returns.

That the text tower lies under ``model.text`` (``custom_text``) is a matter of names and converts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmapkd.errors import UserError
from cmapkd.export.tokenizer import tokenizer_for as tokenizer_for
from cmapkd.files import write_json
from cmapkd.models.towers import Tapped

VOCABULARY, START, END = 49408, 49406, 49407  # of CLIP's byte-pair encoding
TOLERANCE = 1e-4  # between normalised embeddings of both; they differ by rounding
_SHAPE = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "hf_tokenizer_name"},
}  # what is taken over; dropout of patches acts in training alone, tokenizers are checked apart
_WITHOUT_EFFECT = {  # read by another kind of tower, which a key of its own would name
    "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias",
    "timm_drop", "timm_drop_path", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "pad_id", "eos_id",
}  # fmt: skip


def unsupported(config: Mapping[str, Any]) -> list[str]:
    """Options of an open_clip configuration (``model_cfg`` and ``preprocess_cfg``) that ``CLIPModel`` has no equivalent of.

    Returns:
        ``vision_cfg.pool_type = 'avg'`` and the like; empty if the model can be converted.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    model, found = config["model_cfg"], []
    for section, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        usual = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
        for key, value in model.get(section, {}).items():
            if key not in _SHAPE[section] | _WITHOUT_EFFECT and value != usual.get(key):
                found.append(f"{section}.{key} = {value!r}")
    text, vision = model.get("text_cfg", {}), model.get("vision_cfg", {})
    for key in ("patch_size", "image_size"):
        if not isinstance(vision.get(key, 224), int) and len(set(vision[key])) > 1:
            found.append(f"vision_cfg.{key} = {vision[key]!r}")
    if isinstance(vision.get("layers"), list):
        found.append("vision_cfg.layers (a ResNet)")
    if text.get("hf_tokenizer_name") or text.get("vocab_size", VOCABULARY) != VOCABULARY:
        found.append(f"text_cfg: another vocabulary than CLIP's of {VOCABULARY}")
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"}
    found += [f"{key} = {value!r}" for key, value in model.items() if key not in known and value not in (None, False)]
    preprocess = config["preprocess_cfg"]
    if preprocess.get("resize_mode", "shortest") == "longest":
        found.append("preprocess_cfg.resize_mode = 'longest'")
    return found


def convert(model: nn.Module, config: Mapping[str, Any]) -> Any:
    """``CLIPModel`` with the weights of an open_clip model, in evaluation mode.

    Args:
        model: as ``cmapkd.models.towers.load`` returns it.
        config: open_clip's configuration of it.

    Raises:
        UserError: an option without equivalent.
    """
    from transformers import CLIPConfig, CLIPModel

    _refuse(config)
    made = CLIPModel(CLIPConfig(**_configuration(model, config["model_cfg"])))
    made.load_state_dict(_weights(model.state_dict()))  # strict: nothing may be missing or left over
    made.eval()
    difference = largest_difference(model, made, config)
    if not difference <= TOLERANCE:  # also if it is not a number
        reason = f"its embeddings and those of the converted model differ by {difference:.2g}; an option was not understood"
        raise UserError(key="format", value="hf", reason=reason, fix="export as open_clip or onnx, and report this model_cfg")
    return made


def _refuse(config: Mapping[str, Any]) -> None:
    if missing := unsupported(config):
        reason = f"CLIPModel of transformers has no equivalent of {'; '.join(missing)}"
        raise UserError(key="format", value="hf", reason=reason, fix="export as open_clip or onnx")


def _configuration(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision, text = CLIPVisionCfg(**given["vision_cfg"]), CLIPTextCfg(**given["text_cfg"])
    assert isinstance(vision.layers, int)  # a ResNet was refused
    activation = "quick_gelu" if given.get("quick_gelu") else "gelu"
    shared = {"hidden_act": activation, "layer_norm_eps": 1e-5, "projection_dim": given["embed_dim"]}
    return {
        "projection_dim": given["embed_dim"],
        "logit_scale_init_value": float(model.logit_scale.detach()),  # type: ignore[operator]
        "vision_config": {
            **shared,
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": _side(vision.image_size),
            "patch_size": _side(vision.patch_size),
        },
        "text_config": {
            **shared,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "bos_token_id": START,
            "eos_token_id": END,
            "pad_token_id": END,  # as its tokenizer pads; what follows end-of-text is not read
        },
    }


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # the spelling of transformers
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}
_PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
          "attn.out_proj": "self_attn.out_proj"}  # fmt: skip


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of ``transformers``, copied, in fp32."""
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.detach().float().cpu()
        name = name.removeprefix("text.")  # where the text tower is a module of its own
        if name in ("visual.proj", "text_projection"):  # (width, embed) -> (embed, width)
            made["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = value.T
        elif name == "text_projection.weight":  # a linear layer already
            made[name] = value
        elif "resblocks" in name:
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, _, part = name.rpartition("resblocks.")[2].partition(".")
            made |= _block(f"{tower}.encoder.layers.{number}", part, value)
        else:
            module, _, kind = name.rpartition(".")
            made[_WHOLE[name] if name in _WHOLE else f"{_WHOLE[module]}.{kind}"] = value
    return {name: value.contiguous().clone() for name, value in made.items()}


def _block(layer: str, part: str, value: Tensor) -> dict[str, Tensor]:
    if part.startswith("attn.in_proj_"):  # (3 D, D) or (3 D,)
        kind = part.removeprefix("attn.in_proj_")
        return {f"{layer}.self_attn.{n}_proj.{kind}": third for n, third in zip("qkv", value.chunk(3), strict=True)}
    module, _, kind = part.rpartition(".")
    return {f"{layer}.{_PARTS[module]}.{kind}": value}


@torch.no_grad()
def largest_difference(model: nn.Module, converted: Any, config: Mapping[str, Any]) -> float:
    """Largest difference of normalised embeddings of the two, on noise and random words of several lengths."""
    shapes = Tapped(model).shapes()
    generator = torch.Generator().manual_seed(0)
    size = _side(config["model_cfg"]["vision_cfg"].get("image_size", 224))
    images = torch.randn(4, 3, size, size, generator=generator)
    tokens = torch.zeros(4, shapes.context_length, dtype=torch.int64)
    for row, end in zip(tokens, (1, 3, shapes.context_length // 2, shapes.context_length - 1), strict=True):
        row[:end] = torch.randint(1, START, (end,), generator=generator)
        row[0], row[end] = START, END
    padded = torch.where((tokens == END).cumsum(1) > 0, END, tokens)  # as the tokenizer of transformers pads
    ours = model.encode_image(images), model.encode_text(tokens)  # type: ignore[operator]
    theirs = (
        converted.get_image_features(pixel_values=images).pooler_output,
        converted.get_text_features(input_ids=padded, attention_mask=(tokens > 0).long()).pooler_output,
    )
    unit = torch.nn.functional.normalize
    return max(float((unit(a, dim=-1) - unit(b, dim=-1)).abs().max()) for a, b in zip(ours, theirs, strict=True))


def processor_config(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """``preprocessor_config.json`` of ``transformers`` for open_clip's ``preprocess_cfg``."""
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    squash = preprocess.get("resize_mode") == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width} if squash else {"shortest_edge": min(height, width)},
        "resample": 2 if preprocess.get("interpolation") == "bilinear" else 3,  # Pillow's numbers; 3 is bicubic
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }


@contextmanager
def quietly() -> Iterator[None]:
    """Without the bars that ``transformers`` draws for every file."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def write(model: nn.Module, config: Mapping[str, Any], directory: Path) -> None:
    """``config.json``, ``model.safetensors``, tokenizer and picture processor of ``transformers`` into ``directory``."""
    converted = convert(model, config)
    with quietly():
        converted.save_pretrained(directory)
    tokenizer_for(converted.config.text_config.max_position_embeddings).save_pretrained(directory)
    write_json(directory / "preprocessor_config.json", processor_config(config["preprocess_cfg"]))
