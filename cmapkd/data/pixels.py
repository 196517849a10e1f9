"""Turns a decoded image of any mode into 8-bit pixels without transparency, in one place for all readers.

Pillow's ``convert("RGB")`` clips 16-bit and float pixels to 255 and drops the alpha channel, whatever color lies under it. Here
16-bit gray values are scaled, transparent pixels are composited on a background, and a type without a known scale is refused.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

# A transform scales the shorter side to the model's (up to 336 px): this aspect ratio then costs 45 megapixels.
MAXIMUM_ASPECT = 400
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
SCALELESS = "its pixels are floats or 32-bit integers (Pillow's mode {}), so which value is white cannot be known"
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a size before anything is decoded.

    Raises:
        ValueError: more pixels than ``max_pixels``, or an aspect ratio that a transform could not afford.
    """
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels, more than the limit of {max_pixels}")
    if max(width, height) > MAXIMUM_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAXIMUM_ASPECT} times the other")


def has_alpha(image: Image.Image) -> bool:
    """Whether the mode or the header allows transparent pixels; there need not be any."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def is_deep(image: Image.Image) -> bool:
    """Whether the pixels have more than 8 bits."""
    return image.mode in (*_SIXTEEN, "I", "F")


def flatten(image: Image.Image, background: tuple[int, int, int] = BACKGROUNDS["white"]) -> Image.Image:
    """``image`` in RGB or L with 8 bits; transparent pixels are composited on ``background``.

    Raises:
        ValueError: the pixels have a type without a known scale, or a mode that Pillow does not convert.
    """
    if is_deep(image):
        image = _eight_bits(image)
    try:
        if has_alpha(image):
            layers = image.convert("RGBA")
            if is_translucent(layers):
                base = Image.new("RGBA", image.size, (*background, 255))
                return Image.alpha_composite(base, layers).convert("RGB")
        return image if image.mode in ("RGB", "L") else image.convert("RGB")
    except (ValueError, OSError) as error:
        raise ValueError(f"pixels of the mode {image.mode} cannot be converted to RGB ({error})") from None


def is_translucent(image: Image.Image) -> bool:
    """Whether an image, once decoded, has a pixel that is not opaque."""
    if not has_alpha(image):
        return False
    deep = _eight_bits(image) if is_deep(image) else image
    lowest = deep.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(lowest, int | float) and lowest < 255


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit gray image as L, or as LA where its header names a transparent value; the upper 8 of its bits are kept."""
    if image.mode not in _SIXTEEN:
        raise ValueError(SCALELESS.format(image.mode))
    values = np.asarray(image).astype(np.uint16)  # (H, W)
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    shift = min(16, bits[0] if isinstance(bits, tuple) else bits) - 8  # TIFF may use 12 of the 16 bits
    gray = (values >> shift).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = 255 - gray
    small = Image.fromarray(gray)
    if isinstance(marked := image.info.get("transparency"), int):
        small.putalpha(Image.fromarray(np.where(values == marked, 0, 255).astype(np.uint8)))
    return small
