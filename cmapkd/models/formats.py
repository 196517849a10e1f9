"""Weights of CLIP models in the forms in which they are given out, read without running code that comes with them.

- open_clip's: a state dictionary, as ``.safetensors`` or saved by torch, also with the rest of a training around it;
- OpenAI's (Radford et al. 2021): a TorchScript archive of the whole model in half precision, or its state dictionary;
- Hugging Face's ``CLIPModel``: ``model.safetensors`` or ``pytorch_model.bin``, with ``config.json`` beside it.

Pickled files are read with ``weights_only``, which refuses everything but tensors and plain containers; an archive of
TorchScript is parsed by torch's own reader, which knows no Python objects, and nothing of it is called.
"""

from __future__ import annotations

import math
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmapkd.errors import UserError
from cmapkd.models.contents import form_of
from cmapkd.models.described import warn_once
from cmapkd.models.places import weight_files
from cmapkd.models.unwrap import NUMBERS, shared_prefix, unwrap

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


@dataclass(frozen=True)
class Given:
    """Weights as they were read.

    Attributes:
        state: by open_clip's names (those of its class ``CLIP``, or those behind ``text.`` of ``CustomTextCLIP``).
        form: what they were given as, for messages.
        hugging_face: whether they had the names of ``CLIPModel``.
        openai: whether the numbers that only OpenAI's archives hold were among them.
    """

    state: dict[str, Tensor]
    form: str
    hugging_face: bool
    openai: bool


def read_weights(path: Path, key: str) -> Given:
    """Weights by open_clip's names.

    Args:
        path: of a file in one of the forms of this module's header, or of a directory.
        key: where the experiment names it.

    Raises:
        UserError: a file that is damaged, holds no weights, or holds Python objects besides.
    """
    files = weight_files(path, key)
    content: Any = _read(files[0], key)
    for shard in files[1:]:
        more = _read(shard, key)
        if not isinstance(content, Mapping) or not isinstance(more, Mapping):
            reason = "holds no state dictionary, although an index lists it"
            raise UserError(key=key, value=str(shard), reason=reason, fix="fetch it again")
        content = {**content, **more}
    weights = unwrap(content, files[0], key)
    openai = all(name in weights for name in NUMBERS)
    weights = {name: value for name, value in weights.items() if name not in NUMBERS}
    if any(name.startswith("vision_model.") for name in weights):
        return Given(from_hugging_face(weights, key), "Hugging Face's checkpoint", True, False)
    return Given(weights, "OpenAI's checkpoint" if openai else "checkpoint", False, openai)


def _read(path: Path, key: str) -> Any:
    form = form_of(path, key)
    try:
        if form == "safetensors":
            return load_file(path)
        if form == "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # deprecated, but the form in which these weights are given out
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        if form == "numpy":
            reason = "holds arrays of numpy; such weights are read only where the file is named .npz"
            raise UserError(key=key, value=str(path), reason=reason, fix="name a checkpoint of torch or safetensors")
        if form == "zip":
            _check_zip(path, key)
        if path.suffix == ".safetensors":  # torch would go by the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=form == "zip")
    except UnpicklingError as error:
        raise _unpickled(error, path, key) from None
    except MemoryError:
        reason = "does not fit into memory"
        raise UserError(key=key, value=str(path), reason=reason, fix="ask for more memory; the file may be damaged") from None
    except _UNREADABLE as error:
        reason = f"cannot be read: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
        raise UserError(key=key, value=str(path), reason=reason, fix="fetch it again; the file may be incomplete") from None


# What torch's and safetensors' readers raise of damaged files, in any of their layers.
_UNREADABLE = (
    RuntimeError, EOFError, ValueError, SafetensorError, zipfile.BadZipFile, OSError, KeyError, IndexError, TypeError,
    AttributeError, AssertionError, OverflowError, struct.error, ImportError, NotImplementedError,
)  # fmt: skip


def _check_zip(path: Path, key: str) -> None:
    """Compare the members of torch's archive with their CRC-32, which torch itself does not; zero stands for none."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.CRC:
                continue
            with archive.open(member) as content:
                while content.read(1 << 20):
                    pass


_PROTOCOLS = 5  # of Python's pickles; the second byte of one


def _unpickled(error: UnpicklingError, path: Path, key: str) -> UserError:
    """Why torch's restricted unpickler refused a file: it holds objects of Python, or is not a pickle at all."""
    with path.open("rb") as file:
        head = file.read(2)
    if head != b"PK" and not (head[:1] == b"\x80" and head[1] <= _PROTOCOLS):
        reason = "is not a checkpoint of torch or safetensors, or its beginning is damaged"
        return UserError(key=key, value=str(path), reason=reason, fix="fetch it again, or name another file")
    named = re.search(r"GLOBAL ([\w.]+) was not an allowed global|Trying to instantiate unsupported class ([\w.]+)", str(error))
    what = f": {named[1] or named[2]}" if named else ""
    script = f"import torch; c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
    script += "torch.save(c.get('state_dict', c), 'weights.pt')"
    return UserError(
        key=key,
        value=str(path),
        reason=f"holds more than weights, which could run code when it is read{what}",
        fix=f'only where you trust its maker, keep the weights alone and name that file: python -c "{script}"',
    )


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
                names = [name.replace("q_proj", f"{which}_proj") for which in "qkv"]
                if any(one not in weights for one in names):
                    continue  # what is missing is named when the model is filled
                three = [weights[one] for one in names]
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


def fill(model: Any, weights: Mapping[str, Tensor], key: str, value: str) -> None:
    """Give ``model`` (open_clip's) all of its weights; positions of another grid or context are interpolated as open_clip does.

    Raises:
        UserError: weights are missing, left over, of another shape, not of floating point, or not finite.
    """
    state = {name: tensor for name, tensor in weights.items() if name not in ("attn_mask", "text.attn_mask")}  # a constant
    _check_values(state, key, value)
    own = model.state_dict()
    custom = not hasattr(model, "positional_embedding")
    if "positional_embedding" in state and custom:
        state = convert_to_custom_text_state_dict(state)
    elif "text.positional_embedding" in state and not custom:
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    if (unused := "text.transformer.embeddings.position_ids") not in own:
        state.pop(unused, None)  # older versions of transformers kept it
    for name in ("logit_scale", "logit_bias"):  # one number, whether as () or (1,)
        if name in state and name in own and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    if "logit_bias" in own and "logit_bias" not in state:
        warn_once(f"{key} = {value!r}: the weights have no logit_bias, which the model has; it starts at 0, as in open_clip")
        state["logit_bias"] = torch.zeros_like(own["logit_bias"])
    _resize(state, model, own, key, value)
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    missing = [name for name in own if name not in state]
    left_over = [name for name in state if name not in own]
    if wrong or missing or left_over:
        raise _other_architecture(state, own, (missing, left_over, wrong), key, value)
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()})


def _check_values(state: Mapping[str, Tensor], key: str, value: str) -> None:
    """Weights are finite numbers of floating point: integers are quantised, and NaN comes of a failed training."""
    for name, tensor in state.items():
        if name.endswith(("position_ids", "num_batches_tracked")):
            continue
        if tensor.dtype not in _FLOATS:
            reason = (
                f"{name} is of {str(tensor.dtype).removeprefix('torch.')}, not of floating point: the weights are quantised"
            )
            raise UserError(key=key, value=value, reason=reason, fix="name the checkpoint in fp32, fp16 or bf16")
        bad = int((~torch.isfinite(tensor.to(torch.float32))).sum())
        if bad:
            reason = f"{name} has {bad:,} of {tensor.numel():,} values that are not finite (NaN, or beyond fp32)"
            raise UserError(key=key, value=value, reason=reason, fix="name a checkpoint of before; this training has failed")


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _resize(state: dict[str, Tensor], model: Any, own: Mapping[str, Tensor], key: str, value: str) -> None:
    """Interpolate position embeddings to the model's grid and context, and say so."""
    for name, what, resize in (
        ("visual.positional_embedding", "images", resize_pos_embed),
        (
            "text.positional_embedding" if "text.positional_embedding" in own else "positional_embedding",
            "texts",
            resize_text_pos_embed,
        ),
    ):
        ours, theirs = own.get(name), state.get(name)
        if ours is None or theirs is None or ours.shape == theirs.shape:
            continue
        if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
            continue  # of another architecture, which is refused with all shapes
        square = what == "texts" or (len(theirs) > 1 and math.isqrt(len(theirs) - 1) ** 2 == len(theirs) - 1)
        if not square:
            reason = f"{name} has {len(theirs)} rows, which are not those of a square grid and a class token"
            raise UserError(key=key, value=value, reason=reason, fix="name the model that these weights are of")
        state[name] = theirs.float()
        resize(state, model)
        warn_once(
            f"{key} = {value!r}: the position embeddings of {what} were resized from {len(theirs)} to {len(ours)}, as "
            "open_clip does; results differ from those published at the size that the weights were trained for"
        )


def _other_architecture(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], found: tuple[list[str], list[str], list[str]], key: str, value: str
) -> UserError:
    """What is missing, left over and of another shape, and the prefix of names that no model has."""
    missing, left_over, wrong = found
    told = [
        f"{len(names)} {what}, e.g. {names[0]}"
        + (f" {tuple(state[names[0]].shape)} for {tuple(own[names[0]].shape)}" if names is wrong else "")
        for names, what in ((missing, "missing"), (left_over, "left over"), (wrong, "of another shape"))
        if names
    ]
    prefix = shared_prefix(left_over) if len(left_over) > 1 else ""
    known = prefix and any(name.startswith(prefix) for name in own)
    hint = f"; all that are left over begin with {prefix!r}" if prefix and not known else ""
    reason = f"is not of this architecture: weights are {'; '.join(told)}{hint}"
    return UserError(key=key, value=value, reason=reason, fix="name the model that these weights are of")


def activation_of(model: nn.Module) -> bool:
    """Whether the towers of an open_clip model use QuickGELU."""
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which no two share memory, as safetensors wants them: weights that are tied are written twice."""
    seen: set[int] = set()
    found = {}
    for name, value in state.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found
