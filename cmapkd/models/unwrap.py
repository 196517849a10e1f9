"""The weights of a CLIP model within a checkpoint: out of their wrappers, under their own names.

Trainings put around a state dictionary what they need themselves (``{"state_dict": ..., "optimizer": ...}``), and before each
name what they wrap a model in: ``module.`` (DDP), ``_orig_mod.`` (torch.compile), ``model.`` (Lightning),
``_image_encoder.module.`` (TinyCLIP), in any order. A name's own part begins where the first part stands that every CLIP model
has at its top (``visual``, ``token_embedding``, ``text_model``, ...), so whatever stands before it is a prefix.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmapkd.errors import UserError

log = logging.getLogger(__name__)

NUMBERS = ("input_resolution", "context_length", "vocab_size")  # next to OpenAI's weights
_ROOTS = {  # first parts of the names of CLIP models: open_clip's, and Hugging Face's
    "visual", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "logit_scale",
    "logit_bias", "text", "text_decoder", "cls_emb", "attn_mask", "vision_model", "text_model", "visual_projection", *NUMBERS,
}  # fmt: skip
_WITHIN = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # may stand before any part of a name
_TELLING = {"visual", "vision_model", "token_embedding", "text_model"}  # without one of these it is not a CLIP model
_NEVER = ("optim", "sched", "scaler", "grad", "buffer", "callback", "loops")  # not weights, though they may hold tensors
_AVERAGED = ("ema", "swa", "averag", "shadow", "teacher", "momentum")
_DEPTH = 4  # of wrappers within each other


def unwrap(content: Any, path: Path, key: str) -> dict[str, Tensor]:
    """Tensors of the one CLIP model in what a checkpoint holds, by names without prefixes.

    Args:
        content: as it was read: mappings, tensors and plain values.
        path, key: of the file, and where the experiment names it, for messages.

    Raises:
        UserError: no state dictionary, or several models.
    """
    found = list(_states(content)) if isinstance(content, Mapping) else []
    if not found:
        reason = "holds no state dictionary"
        if isinstance(content, Mapping) and content:
            reason += f"; it has {', '.join(map(repr, map(str, list(content)[:5])))}"
        raise UserError(key=key, value=str(path), reason=reason, fix="name the checkpoint of a whole CLIP model")
    models = [(where, state) for where, state in found if any(_TELLING & set(name.split(".")) for name in state)]
    where, state = _choose(models or found, path, key)
    return _named(state, where, path, key) if models else state


def _states(content: Mapping[Any, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """State dictionaries within a checkpoint, each with the keys that lead to it."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    if len(where) < _DEPTH:
        for name, value in content.items():
            if isinstance(value, Mapping) and not any(word in str(name).lower() for word in _NEVER):
                yield from _states(value, (*where, str(name)))


def _choose(found: list[tuple[tuple[str, ...], dict[str, Tensor]]], path: Path, key: str) -> tuple[str, dict[str, Tensor]]:
    """The one state dictionary that is meant; averages are left where there are the weights themselves."""
    plain = [entry for entry in found if not any(word in part.lower() for part in entry[0] for word in _AVERAGED)]
    kept = plain or found
    names = ["/".join(where) or "its top level" for where, _ in kept]
    if any(not _equal(kept[0][1], state) for _, state in kept[1:]):
        reason = f"holds several models, under {' and '.join(names)}"
        raise UserError(key=key, value=str(path), reason=reason, fix=_alone(path, list(kept[0][0]), ""))
    if len(kept) < len(found):
        others = ", ".join("/".join(where) for where, _ in found if where not in [one for one, _ in kept])
        log.warning("%s = %r: the weights under %s are used, not the averages under %s", key, str(path), names[0], others)
    return "/".join(kept[0][0]), kept[0][1]


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def _split(name: str) -> tuple[str, str]:
    """Prefix and own part of a name; the prefix is the name itself where nothing in it is of a CLIP model."""
    parts = name.split(".")
    start = next((place for place, part in enumerate(parts) if part in _ROOTS), None)
    if start is None:
        return "", name
    before = "".join(f"{part}." for part in parts[:start])
    return before, ".".join(part for part in parts[start:] if part not in _WITHIN)


def _named(state: Mapping[str, Tensor], where: str, path: Path, key: str) -> dict[str, Tensor]:
    """Weights by their own names."""
    weights: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, value in state.items():
        prefix, own = _split(name)
        if own in origin and not torch.equal(weights[own], value):
            first, second = (text.removesuffix(".") or "no prefix" for text in (origin[own], prefix))
            reason = f"holds weights of several models: {own} is under {first!r} and under {second!r}"
            fix = _alone(path, where.split("/") if where else [], origin[own] or prefix)
            raise UserError(key=key, value=str(path), reason=reason, fix=fix)
        weights[own], origin[own] = value, prefix
    if prefixes := sorted({prefix for prefix in origin.values() if prefix}):
        log.info("%s = %r: the prefixes %s were taken off", key, str(path), ", ".join(prefixes))
    return weights


def _alone(path: Path, where: list[str], prefix: str) -> str:
    """A line that keeps one model of a checkpoint."""
    inside = "".join(f"[{part!r}]" for part in where)
    select = (
        f".removeprefix({prefix!r}): v for n, v in s.items() if n.startswith({prefix!r})"
        if prefix
        else ": v for n, v in s.items()"
    )
    script = f"import torch; s = torch.load({str(path)!r}, map_location='cpu', weights_only=True){inside}; "
    script += f"torch.save({{n{select}}}, 'weights.pt')"
    return f'keep the one that is meant, and name that file: python -c "{script}"'


def shared_prefix(names: list[str]) -> str:
    """What all names begin with, up to a dot; empty if they share nothing."""
    common = names[0].split(".")[:-1] if names else []
    for name in names:
        parts = name.split(".")
        common = common[: next((place for place, part in enumerate(common) if parts[place : place + 1] != [part]), len(common))]
    return "".join(f"{part}." for part in common)
