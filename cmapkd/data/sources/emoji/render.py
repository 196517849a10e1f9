"""SVG drawings to pixels with resvg, cropped to what is drawn, and the fingerprints that duplicates are found by.

The perceptual hash is the usual difference hash (64 bits: is each cell brighter than its right neighbour?) over white; since
emoji differ by colour as often as by shape (hearts, circles), two drawings count as near-duplicates only when their hashes
*and* their colours on an 8 x 8 grid agree.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cmapkd.data.sources.emoji.catalogue import Drawing

HASH_DISTANCE = 6  # bits of 64 that may differ between near-duplicates
COLOUR_DISTANCE = 0.05  # mean absolute difference, colours from 0 to 1, that near-duplicates may have


@dataclass(frozen=True)
class Picture:
    """A rendered drawing: square RGBA ``image`` (side ``render_size``) and its fingerprints."""

    drawing: Drawing
    image: Image.Image
    exact: str  # sha256 of the pixels
    bits: np.ndarray  # (64,) bool
    colours: np.ndarray  # (8 * 8 * 3,) float32, over white


def render(drawing: Drawing, size: int) -> Picture | None:
    """Render ``drawing`` and crop it so that every style fills the square alike; ``None`` when it shows nothing."""
    import resvg_py

    box = f"{drawing.left:g} {drawing.top:g} {drawing.width:g} {drawing.height:g}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{size}" height="{size}">{drawing.body}</svg>'
    )
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError:
        return None
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box_drawn = image.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0).getbbox()
    if box_drawn is None:
        return None
    return fingerprint(drawing, _square(image.crop(box_drawn), size))


def _square(image: Image.Image, size: int) -> Image.Image:
    """Scale ``image`` to fit, centred, in a transparent square."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    resized = image.resize((width, height), Image.Resampling.LANCZOS) if (width, height) != image.size else image
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def fingerprint(drawing: Drawing, image: Image.Image) -> Picture:
    """Hash a rendered picture exactly and perceptually."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB")
    grey = np.asarray(flat.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)  # (8, 9)
    colours = np.asarray(flat.resize((8, 8), Image.Resampling.BOX), dtype=np.float32) / 255  # (8, 8, 3)
    return Picture(
        drawing=drawing,
        image=image,
        exact=hashlib.sha256(image.tobytes()).hexdigest(),
        bits=(grey[:, 1:] > grey[:, :-1]).reshape(-1),
        colours=colours.reshape(-1),
    )


def render_all(drawings: Iterable[Drawing], size: int) -> dict[str, Picture]:
    """Drawing id -> picture, without those that render to nothing."""
    pictures = (render(drawing, size) for drawing in drawings)
    return {picture.drawing.id: picture for picture in pictures if picture is not None}


def near_duplicates(left: list[Picture], right: list[Picture], factor: float = 1.0) -> np.ndarray:
    """Boolean matrix (len(left), len(right)): which pictures a person would take for copies of one another.

    ``factor`` scales both thresholds: above 1 it finds pictures that merely look alike.
    """
    if not left or not right:
        return np.zeros((len(left), len(right)), dtype=bool)
    a = np.stack([picture.bits for picture in left]).astype(np.float32)  # (N, 64)
    b = np.stack([picture.bits for picture in right]).astype(np.float32)  # (M, 64)
    distance = a @ (1 - b).T + (1 - a) @ b.T  # Hamming
    close = distance <= HASH_DISTANCE * factor
    rows, columns = np.nonzero(close)
    if len(rows):
        difference = np.stack([p.colours for p in left])[rows] - np.stack([p.colours for p in right])[columns]
        close[rows, columns] = np.abs(difference).mean(axis=1) <= COLOUR_DISTANCE * factor
    return close
