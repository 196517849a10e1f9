"""Weights of CLIP models in the forms in which they are given out, read without running code that comes with them.

- open_clip's: a state dictionary, as ``.safetensors`` or saved by torch, also with the rest of a training around it;
- OpenAI's (Radford et al. 2021): a TorchScript archive of the whole model in half precision, or its state dictionary;
- Hugging Face's ``CLIPModel``: ``model.safetensors`` or ``pytorch_model.bin``, with ``config.json`` beside it.

Pickled files are read with ``weights_only``, which refuses everything but tensors and plain containers; an archive of
TorchScript is parsed by torch's own reader, which knows no Python objects, and nothing of it is called.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmapkd.errors import UserError
from cmapkd.files import read_json

HF_CONFIG, HF_WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # beside OpenAI's weights
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)")
_PARTS = {  # of a block: Hugging Face's name -> open_clip's
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OTHERS = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # their spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TURNED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}  # y = x @ w, not w @ x
_DROPPED = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}


def read_weights(path: Path, key: str) -> dict[str, Tensor]:
    """Weights by open_clip's names (those of its class ``CLIP``).

    Args:
        path: of a file in one of the forms of this module's header, or of a directory of Hugging Face's.
        key: where the experiment names it.

    Raises:
        UserError: a file that is damaged, holds no weights, or holds Python objects besides.
    """
    if path.is_dir():
        path = next(path / name for name in HF_WEIGHTS if (path / name).is_file())
    content = _read(path, key)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(
            key=key, value=str(path), reason="holds no state dictionary", fix="name the checkpoint of a whole CLIP model"
        )
    weights = {str(name).removeprefix("module."): value for name, value in content.items()}  # of one trained in parallel
    if "vision_model.embeddings.class_embedding" in weights:
        return from_hugging_face(weights, key)
    return {name: value for name, value in weights.items() if name not in _NUMBERS}


def _read(path: Path, key: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # deprecated, but the form in which these weights are given out
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            key=key,
            value=str(path),
            reason=f"holds more than weights, which could run code when it is read: {str(error).splitlines()[0][:200]}",
            fix="where you trust it, save its state dictionary with safetensors, and name that file",
        ) from None
    except (RuntimeError, EOFError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        reason = f"cannot be read: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
        raise UserError(key=key, value=str(path), reason=reason, fix="fetch it again; the file may be incomplete") from None


def _is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript; both forms are zips, and only that one has constants and code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def from_hugging_face(weights: Mapping[str, Tensor], key: str = "pretrained") -> dict[str, Tensor]:
    """Weights of a ``CLIPModel`` by open_clip's names: queries, keys and values in one matrix, projections turned.

    Raises:
        UserError: a name that no CLIP model has.
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in _DROPPED:
            continue
        if name in _OTHERS:
            found[_OTHERS[name]] = value
        elif name in _TURNED:
            found[_TURNED[name]] = value.T.contiguous()
        elif match := _LAYER.fullmatch(name):
            tower, layer, part = match.groups()
            prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{layer}."
            module, _, kind = part.rpartition(".")
            if module in _PARTS:
                found[f"{prefix}{_PARTS[module]}.{kind}"] = value
            elif module == "self_attn.q_proj":
                three = [weights[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
                found[f"{prefix}attn.in_proj_{kind}"] = torch.cat(three)  # (3 D, D) or (3 D,)
            elif module not in ("self_attn.k_proj", "self_attn.v_proj"):
                raise _unknown(name, key)
        else:
            raise _unknown(name, key)
    return found


def _unknown(name: str, key: str) -> UserError:
    return UserError(
        key=key, value=name, reason="is no weight of a CLIPModel", fix="convert the checkpoint to open_clip's form"
    )


def check_hugging_face(directory: Path, quick_gelu: bool, key: str) -> None:
    """Refuse a directory whose activation is not that of the architecture; other shapes are noticed when weights are filled in.

    Raises:
        UserError: of another kind of model, or with another activation.
    """
    config = read_json(directory / HF_CONFIG, dict)
    if config.get("model_type") != "clip":
        reason = f"is of a {config.get('model_type')!r}, not of a CLIPModel ('clip')"
        raise UserError(key=key, value=str(directory), reason=reason, fix="name a directory of CLIP")
    for tower in ("text_config", "vision_config"):
        activation = (config.get(tower) or {}).get("hidden_act", "quick_gelu")  # the default of both towers
        if (activation == "quick_gelu") != quick_gelu:
            reason = f"its {tower} says {activation!r}, the model has {'quick_gelu' if quick_gelu else 'gelu'}"
            fix = "choose the open_clip model of the same name with or without `-quickgelu`"
            raise UserError(key=key, value=str(directory), reason=reason, fix=fix)


def fill(model: Any, weights: Mapping[str, Tensor], key: str, value: str) -> None:
    """Give ``model`` (open_clip's) all of its weights; positions of another grid or context are interpolated as open_clip does.

    Raises:
        UserError: weights are missing, left over or of another shape.
    """
    state = dict(weights)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    if (unused := "text.transformer.embeddings.position_ids") not in own:
        state.pop(unused, None)  # older versions of transformers kept it
    for name in ("logit_scale", "logit_bias"):  # one number, whether as () or (1,)
        if name in state and name in own:
            state[name] = state[name].reshape(own[name].shape)
    if "logit_bias" in own and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(own["logit_bias"])
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    missing = [name for name in own if name not in state]
    left_over = [name for name in state if name not in own]
    if wrong or missing or left_over:
        told = [
            f"{len(names)} {what}, e.g. {names[0]}"
            + (f" {tuple(state[names[0]].shape)} for {tuple(own[names[0]].shape)}" if names is wrong else "")
            for names, what in ((missing, "missing"), (left_over, "left over"), (wrong, "of another shape"))
            if names
        ]
        reason = f"is not of this architecture: weights are {'; '.join(told)}"
        raise UserError(key=key, value=value, reason=reason, fix="name the model that these weights are of")
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()})


def activation_of(model: nn.Module) -> bool:
    """Whether the towers of an open_clip model use QuickGELU."""
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())
