"""Floating-point operations and parameters of open_clip's CLIP models and of the pyramid, from their configurations alone.

Two operations per multiply-add; convolutions and matrix products, attention included, as ``cmapkd.evaluation.efficiency``
counts them on the model itself. Backward passes cost twice their forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmapkd.errors import UserError
from cmapkd.models import configs

VISUAL = ("P2", "P3", "P4", "P5")
TAPS = 4


@dataclass(frozen=True)
class Shapes:
    """What the arithmetic needs of one model. ``tokens`` without the class token; widths in channels."""

    image_width: int
    image_layers: int
    patch: int
    grid: tuple[int, int]
    image_ratio: float
    text_width: int
    text_layers: int
    text_ratio: float
    context: int
    vocabulary: int
    embedding: int


def shapes_of(name: str, config: Mapping[str, Any] | None) -> Shapes:
    """Shapes of a model by its open_clip name, or of a configuration of one's own.

    Raises:
        UserError: not a ViT with open_clip's own text tower, whose arithmetic is not known here.
    """
    content = configs.content_of(name, config)
    if content is None:
        raise UserError(key="model", value=name, reason="its configuration is not known here", fix="install open_clip_torch")
    vision, text = content.get("vision_cfg", {}), content.get("text_cfg", {})
    if "timm_model_name" in vision or "hf_model_name" in text or isinstance(vision.get("layers", 12), list):
        raise UserError(key="model", value=name, reason="costs are known of ViTs with open_clip's own text tower alone")
    patch = vision.get("patch_size", 16)
    size = vision.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return Shapes(
        image_width=vision.get("width", 768),
        image_layers=vision.get("layers", 12),
        patch=patch,
        grid=(height // patch, width // patch),
        image_ratio=vision.get("mlp_ratio", 4.0),
        text_width=text.get("width", 512),
        text_layers=text.get("layers", 12),
        text_ratio=text.get("mlp_ratio", 4.0),
        context=text.get("context_length", 77),
        vocabulary=text.get("vocab_size", 49408),
        embedding=content["embed_dim"],
    )


def transformer(tokens: int, width: int, layers: int, ratio: float) -> float:
    """Forward operations of a transformer over ``tokens`` of one sample."""
    projections = 2 * tokens * width * width * 4  # queries, keys, values, output
    attention = 2 * 2 * tokens * tokens * width
    mlp = 2 * 2 * tokens * width * ratio * width
    return layers * (projections + attention + mlp)


def image_tower(s: Shapes) -> float:
    """Forward operations of one picture."""
    cells = s.grid[0] * s.grid[1]
    stem = 2 * cells * 3 * s.patch**2 * s.image_width
    body = transformer(cells + 1, s.image_width, s.image_layers, s.image_ratio)
    return stem + body + 2 * s.image_width * s.embedding


def text_tower(s: Shapes) -> float:
    """Forward operations of one caption; every length costs the same, as captions are padded."""
    return transformer(s.context, s.text_width, s.text_layers, s.text_ratio) + 2 * s.text_width * s.embedding


def parameters(s: Shapes) -> int:
    """Weights of both towers, with norms and biases."""

    def body(width: int, layers: int, ratio: float) -> int:
        hidden = int(width * ratio)
        return layers * (4 * width * width + 4 * width + 2 * width * hidden + hidden + width + 4 * width)

    cells = s.grid[0] * s.grid[1]
    image = 3 * s.patch**2 * s.image_width + s.image_width * (cells + 2) + 4 * s.image_width + s.image_width * s.embedding
    text = (s.vocabulary + s.context) * s.text_width + 2 * s.text_width + s.text_width * s.embedding
    image += body(s.image_width, s.image_layers, s.image_ratio)
    text += body(s.text_width, s.text_layers, s.text_ratio)
    return image + text + 1


def smoothing(channels: int, kind: str) -> float:
    """Multiplications of a smoothing convolution of a pyramid for one cell."""
    rank = max(1, channels // 4)
    of = {"separable": 9 * channels + channels**2, "low-rank": 10 * channels * rank, "depthwise": 9 * channels}
    return of.get(kind, 9 * channels**2)


def pyramid(s: Shapes, sizes: Mapping[str, Any], visual: Sequence[str], language: Sequence[str]) -> float:
    """Forward operations of both pyramids of one pair, of the active levels and those they are built on."""
    channels, text_channels = sizes["channels"], sizes["text_channels"]
    cells = s.grid[0] * s.grid[1]
    lowest = min((VISUAL.index(level) for level in visual), default=3)
    total = 0.0
    for place in range(lowest, len(VISUAL)):
        total += 2 * cells * s.image_width * channels  # the lateral, on the small grid
        if place < 3:  # smoothing, on the level's own
            area = cells * (2 ** (2 - place)) ** 2
            total += 2 * area * smoothing(channels, sizes.get("smoothing", "dense"))
    for level in language:
        if level in ("L2", "L3"):
            total += transformer(s.context, s.text_width, 1, 0.0)
        total += 2 * s.text_width * text_channels
    return total + 2 * 2 * channels * text_channels * (len(visual) + len(language))
