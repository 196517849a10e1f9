"""What open_clip's model configurations say before a model is built. Torch-free, so that a plan can refuse early."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import read_json

# Tokenizers that open_clip names by model although their vocabularies are one.
_FAMILIES = (r"timm/ViT-.+-(SigLIP2?(?:-i18n)?)(?:-\d+)?", r"(xlm-roberta)-(?:base|large)", r"facebook/(nllb-200)-.+")


@cache
def shipped() -> dict[str, Path]:
    """Files of open_clip's own architectures by name, without importing it (and torch); empty where it is not installed."""
    spec = find_spec("open_clip")
    folders = spec.submodule_search_locations if spec is not None else None
    return {file.stem: file for folder in folders or () for file in sorted(Path(folder).glob("model_configs/*.json"))}


def content_of(name: str, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The configuration itself: ``config``, or open_clip's of that name; None where open_clip is not installed."""
    if config is not None or name not in shipped():
        return config
    content: Mapping[str, Any] = read_json(shipped()[name], dict)
    return content


def check_patches(name: str, content: Mapping[str, Any]) -> None:
    """Refuse an image size that the patch size does not divide: open_clip would leave out the picture's edge in silence.

    Raises:
        UserError: names the key of the configuration.
    """
    vision = content.get("vision_cfg", {})
    if "timm_model_name" in vision or isinstance(vision.get("layers"), list):  # not cut into patches by open_clip
        return
    sizes, patches = _pair(vision.get("image_size", 224)), _pair(vision.get("patch_size", 16))  # open_clip's defaults
    for size, patch in zip(sizes, patches, strict=True):
        if size % patch:
            raise UserError(
                key=f"{name}.vision_cfg.image_size",
                value=size,
                reason=f"is not divisible by patch_size = {patch}",
                fix=f"use {max(1, size // patch) * patch} or {-(-size // patch) * patch}",
            )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def check_tokenizers(teacher: tuple[str, Mapping[str, Any]], student: tuple[str, Mapping[str, Any]]) -> None:
    """Refuse two models (name and configuration) that do not read the same token ids for the same text.

    Raises:
        UserError: names what of the tokenizer differs.
    """
    theirs, ours = _tokenizer(*teacher), _tokenizer(*student)
    for name, value in ours.items():
        other = theirs[name]
        if value is not None and other is not None and value != other:
            raise UserError(
                key=f"student.model: {name}",
                value=value,
                reason=f"{student[0]} and {teacher[0]} do not read the same tokens: the teacher has {other!r}",
                fix="choose a teacher and a student with one tokenizer, vocabulary and context length",
            )


def _tokenizer(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the token ids, as ``open_clip.get_tokenizer`` reads it; None where the configuration does not tell."""
    text = content.get("text_cfg", {})
    source = text.get("hf_tokenizer_name") or ("SigLIP by name" if "siglip" in name.lower() else "CLIP's BPE")
    for family in _FAMILIES:
        if match := re.fullmatch(family, source):
            source = match[1]
    return {
        "tokenizer": source,
        "tokenizer_kwargs": text.get("tokenizer_kwargs", {}),
        "tokenizer_mode": text.get("tokenizer_mode", ""),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", None if "hf_model_name" in text else 49408),
    }
