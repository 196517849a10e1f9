"""Looks at an encoded picture before it becomes a sample: its form, whether it is whole, and what is odd about it.

A picture's bytes are kept as they are unless the configuration asks for another size or an upright picture, or the form is one
that the shards do not hold, or its pixels have 16 bits or are transparent (``cmapkd.data.pixels``). Nothing of a picture is
trusted: its size in bytes and in pixels is limited before it is decoded.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from cmapkd.data.pixels import BACKGROUNDS, SCALELESS, check_size, flatten, has_alpha, is_deep, is_translucent

MAXIMUM_BYTES = 256 * 2**20  # of one encoded picture; the largest of the public sets has some 20 MB
ORIENTATION = 0x0112  # the EXIF tag
END = 2**16  # bytes of a file's end in which the end marker is looked for
QUALITY = 95  # of a JPEG that is written anew
# What shards hold. MPO is a JPEG with a further image behind it, which every JPEG decoder ignores (phones write it).
FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}
OTHERS = ("WEBP", "GIF", "BMP", "TIFF")  # what can be converted
# What a file that is no picture is instead, by its first bytes.
_STRANGERS = (
    (b"version https://git-lfs", "it is a pointer of git-lfs: run `git lfs pull`"),
    (b"<", "it is a web page or XML, not an image"),
    (b"%PDF", "it is a PDF"),
    (b"\x1f\x8b", "it is compressed with gzip"),
    (b"PK\x03\x04", "it is a zip"),
    (b"\0\5\x16\7", "it holds macOS metadata (AppleDouble)"),
    (b"\0\0\0\x0cjP  ", "it is JPEG 2000: convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "it is JPEG XL: convert it to JPEG or PNG"),
    (b"\xff\x0a", "it is JPEG XL: convert it to JPEG or PNG"),
)


class UnusableError(ValueError):
    """Why there is no usable picture, for causes other than a missing or damaged file.

    Attributes:
        kind: the cause in a few words; samples are counted by it.
        fix: what helps against it.
    """

    def __init__(self, reason: str, *, kind: str, fix: str) -> None:
        super().__init__(reason)
        self.kind, self.fix = kind, fix


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture that shards may hold.

    Attributes:
        data: PNG or JPEG.
        extension: ``"png"`` or ``"jpg"``, by content and not by the file's name.
        notes: what is odd about it or was done to it: ``greyscale``, ``cmyk``, ``transparent``, ``rotated`` (by an EXIF
            orientation), ``turned``, ``reduced``, ``converted``, ``sixteen_bits`` (scaled to 8), ``on_background``
            (transparent pixels were composited).
    """

    data: bytes
    extension: str
    notes: tuple[str, ...]


def examine(
    data: bytes,
    *,
    max_pixels: int,
    full: bool = False,
    upright: bool = False,
    shorter_side: int | None = None,
    background: str = "white",
) -> Picture:
    """Check an encoded picture and bring it into a form that shards hold.

    Args:
        data: the encoded picture.
        max_pixels: the most that it may declare [pixels].
        full: decode it; otherwise only where its end looks wrong.
        upright: turn it by its EXIF orientation.
        shorter_side: reduce it if its shorter side is longer [px].
        background: name of the color that transparent pixels are composited on.

    Raises:
        ValueError: empty, no picture, too large, too narrow, of pixels without a known scale, or truncated.
    """
    if not data:
        raise ValueError("the file is empty")
    if len(data) > MAXIMUM_BYTES:
        raise ValueError(f"{len(data)} bytes, more than the limit of {MAXIMUM_BYTES}")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", *OTHERS))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, DecompressionBombError, ...
        if (other := _stranger(data)) is not None:
            fix = "convert them to PNG or JPEG or replace them"
            raise UnusableError(f"no picture in a known form ({other})", kind="of another form", fix=fix) from None
        raise ValueError(f"no picture in a known form ({_what(error)})") from None
    try:
        check_size(image.width, image.height, max_pixels)
    except ValueError as error:
        raise UnusableError(str(error), kind="of a size above the limits", fix="reduce them or take them out") from None
    notes = _mode_notes(image)
    if turn := _orientation(image):
        notes.append("rotated")
    reduce = shorter_side is not None and min(image.size) > shorter_side
    convert = image.format not in FORMATS or is_deep(image)
    if full or reduce or convert or (upright and turn) or has_alpha(image) or not _has_end(data, str(image.format)):
        try:
            image.load()
        except Exception as error:
            raise ValueError(f"truncated or damaged ({_what(error)})") from None
    if image.mode in ("I", "F"):
        fix = "scale them to 8 or 16 unsigned bits per channel"
        raise UnusableError(SCALELESS.format(image.mode), kind="with pixels of unknown scale", fix=fix)
    if is_deep(image):
        notes.append("sixteen_bits")
    if is_translucent(image):
        notes.append("on_background")
        convert = True
    if not (reduce or convert or (upright and turn)):
        return Picture(data, FORMATS[str(image.format)], tuple(notes))
    flat = flatten(image, BACKGROUNDS[background])
    return _written_anew(image, flat, notes, turn if upright else 0, shorter_side if reduce else None)


def _written_anew(image: Image.Image, flat: Image.Image, notes: list[str], turn: int, side: int | None) -> Picture:
    """``flat``, the pixels of ``image``, turned and reduced; JPEG stays JPEG, all else becomes PNG."""
    lossy = FORMATS.get(str(image.format)) == "jpg"
    notes = [*notes, *(["converted"] if image.format not in FORMATS else [])]
    picture = flat
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
    if image.mode in ("L", "1", "I", "LA") or image.mode.startswith("I;16"):
        return ["greyscale"]
    if image.mode == "CMYK":
        return ["cmyk"]
    return ["transparent"] if image.mode in ("RGBA", "PA") or "transparency" in image.info else []


def _has_end(data: bytes, form: str) -> bool:
    """Whether the end marker is the last thing in the file; a JPEG's end may be padded with zeros."""
    if form in ("JPEG", "MPO"):
        return data.endswith(b"\xff\xd9") or data[-END:].rstrip(b"\0").endswith(b"\xff\xd9")
    return form == "PNG" and data.endswith(b"IEND\xaeB`\x82")


def _stranger(data: bytes) -> str | None:
    """What the bytes are instead of an image that can be read."""
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace")
        kind = {"avif": "AVIF", "avis": "AVIF"}.get(brand, "HEIC" if brand[:2] in ("he", "mi", "ms") else "")
        return f"it is {kind}: convert it to JPEG or PNG" if kind else f"it is a video or another container ({brand!r})"
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((text for start, text in _STRANGERS if (data if start[0] == 0 else head).startswith(start)), None)


def _what(error: Exception) -> str:
    return str(error).replace("<_io.BytesIO object at ", "").split("0x")[0].strip() or type(error).__name__
