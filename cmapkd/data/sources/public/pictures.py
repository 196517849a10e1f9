"""Looks at an encoded picture before it becomes a sample: its form, whether it is whole, and what is odd about it.

A picture's bytes are kept as they are unless the configuration asks for another size or an upright picture, or the form is one
that the shards do not hold. Nothing of a picture is trusted: its size in bytes and in pixels is limited before it is decoded.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

MAXIMUM_BYTES = 256 * 2**20  # of one encoded picture; the largest of the public sets has some 20 MB
ORIENTATION = 0x0112  # the EXIF tag
END = 2**16  # bytes of a file's end in which the end marker is looked for
QUALITY = 95  # of a JPEG that is written anew
FORMATS = {"JPEG": "jpg", "PNG": "png"}  # what shards hold
OTHERS = ("WEBP", "GIF", "BMP", "TIFF")  # what can be converted


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture that shards may hold.

    Attributes:
        data: PNG or JPEG.
        extension: ``"png"`` or ``"jpg"``, by content and not by the file's name.
        notes: what is odd about it or was done to it: ``greyscale``, ``cmyk``, ``transparent``, ``rotated`` (by an EXIF
            orientation), ``turned``, ``reduced``, ``converted``.
    """

    data: bytes
    extension: str
    notes: tuple[str, ...]


def examine(
    data: bytes, *, max_pixels: int, full: bool = False, upright: bool = False, shorter_side: int | None = None
) -> Picture:
    """Check an encoded picture and bring it into a form that shards hold.

    Args:
        data: the encoded picture.
        max_pixels: the most that it may declare [pixels].
        full: decode it; otherwise only where its end looks wrong.
        upright: turn it by its EXIF orientation.
        shorter_side: reduce it if its shorter side is longer [px].

    Raises:
        ValueError: empty, no picture, too large, or truncated; the message says which.
    """
    if not data:
        raise ValueError("the file is empty")
    if len(data) > MAXIMUM_BYTES:
        raise ValueError(f"{len(data)} bytes, more than the limit of {MAXIMUM_BYTES}")
    try:
        image = Image.open(io.BytesIO(data), formats=(*FORMATS, *OTHERS))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, DecompressionBombError, ...
        raise ValueError(f"no picture in a known form ({_what(error)})") from None
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the limit of {max_pixels}")
    notes = _mode_notes(image)
    if turn := _orientation(image):
        notes.append("rotated")
    reduce = shorter_side is not None and min(image.size) > shorter_side
    convert = image.format not in FORMATS
    if full or reduce or convert or (upright and turn) or not _has_end(data, str(image.format)):
        try:
            image.load()
        except Exception as error:
            raise ValueError(f"truncated or damaged ({_what(error)})") from None
    if not (reduce or convert or (upright and turn)):
        return Picture(data, FORMATS[str(image.format)], tuple(notes))
    return _written_anew(image, notes, turn if upright else 0, shorter_side if reduce else None)


def _written_anew(image: Image.Image, notes: list[str], turn: int, side: int | None) -> Picture:
    """``image`` in RGB or greyscale, turned and reduced; JPEG stays JPEG, all else becomes PNG."""
    lossy = image.format == "JPEG"
    notes = [*notes, *(["converted"] if image.format not in FORMATS else [])]
    picture = image if image.mode in ("RGB", "L") else image.convert("RGB")
    if turn:
        picture = picture.transpose(_TURNS[turn])
        notes.append("turned")
    if side is not None:
        scale = side / min(picture.size)
        size = (max(side, round(picture.width * scale)), max(side, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        notes.append("reduced")
    buffer = io.BytesIO()
    if lossy:
        picture.save(buffer, "JPEG", quality=QUALITY, exif=b"")
    else:
        picture.save(buffer, "PNG", compress_level=6, exif=b"")
    return Picture(buffer.getvalue(), "jpg" if lossy else "png", tuple(notes))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 2 .. 8, or 0 for none."""
    if "exif" not in image.info:
        return 0
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF is common and says nothing about the picture
        return 0
    return value if value in _TURNS else 0


def _mode_notes(image: Image.Image) -> list[str]:
    if image.mode in ("L", "1", "I;16", "I", "LA"):
        return ["greyscale"]
    if image.mode == "CMYK":
        return ["cmyk"]
    return ["transparent"] if image.mode in ("RGBA", "PA") or "transparency" in image.info else []


def _has_end(data: bytes, form: str) -> bool:
    """Whether the end marker is the last thing in the file; a JPEG's end may be padded with zeros."""
    if form == "JPEG":
        return data.endswith(b"\xff\xd9") or data[-END:].rstrip(b"\0").endswith(b"\xff\xd9")
    return form == "PNG" and data.endswith(b"IEND\xaeB`\x82")


def _what(error: Exception) -> str:
    return str(error).replace("<_io.BytesIO object at ", "").split("0x")[0].strip() or type(error).__name__
