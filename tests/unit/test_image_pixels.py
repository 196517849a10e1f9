"""Images of every type of pixels: 16 bits are scaled, transparency is composited, floats and narrow strips are refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import public_fixtures as make
import pytest
from PIL import Image
from public_fixtures import build, read
from pydantic import ValidationError

from cmapkd.config.sources import OwnConfig
from cmapkd.data.contact import contact_sheet
from cmapkd.data.overlap import hash_picture
from cmapkd.data.sources.public.pictures import examine
from cmapkd.data.transforms import decode_image

LIMIT = 50_000_000
RAMP = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)


def encoded(image: Image.Image, form: str = "PNG", **keys: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **keys)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data), np.int16)  # (H, W, 3)


@pytest.mark.parametrize(("form", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_sixteen_bits_keep_their_upper_eight(form: str, mode: str) -> None:
    image = Image.frombytes(mode, (64, 48), RAMP.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    data = encoded(image, form)
    picture = examine(data, max_pixels=LIMIT)
    assert "sixteen_bits" in picture.notes
    assert picture.extension == "png"
    for each in (picture.data, *([data] if form == "PNG" else [])):  # also as older shards hold it
        assert np.array_equal(pixels(each), np.repeat((RAMP >> 8)[..., None], 3, axis=2))


def test_all_readers_agree_on_sixteen_bits(tmp_path: Path) -> None:
    deep, shallow = encoded(Image.fromarray(RAMP)), encoded(Image.fromarray((RAMP >> 8).astype(np.uint8)))
    assert hash_picture(deep) == hash_picture(shallow) is not None
    for name, data in (("deep", deep), ("shallow", shallow)):
        make.write(tmp_path / name / "a.png", data)
        make.write(tmp_path / name / "a.txt", "a ramp")
        build(OwnConfig, tmp_path / name, tmp_path / name / "out")
        contact_sheet(read(tmp_path / name / "out", "train"), tmp_path / f"{name}.png")
    assert (tmp_path / "deep.png").read_bytes() == (tmp_path / "shallow.png").read_bytes()


def test_twelve_bits_of_a_tiff_are_scaled_by_twelve() -> None:
    packed = np.zeros((2, 4), np.uint16)
    packed[:, 2:] = 4095
    bits = "".join(f"{value:012b}" for value in packed.ravel())
    body = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    entries = [(256, 4, 4), (257, 4, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 2)]
    entries += [(279, 4, len(body))]
    table = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    start = (8 + len(body)).to_bytes(4, "little")
    data = b"II*\0" + start + body + len(entries).to_bytes(2, "little") + table + bytes(4)
    assert pixels(examine(data, max_pixels=LIMIT).data)[..., 0].tolist() == [[0, 0, 255, 255]] * 2


def test_white_is_zero_in_a_tiff_of_sixteen_bits() -> None:
    data = encoded(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    assert np.array_equal(pixels(examine(data, max_pixels=LIMIT).data)[..., 0], 255 - (RAMP >> 8).astype(np.int16))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_scale_are_refused_for_that_reason(kind: type, tmp_path: Path) -> None:
    data = encoded(Image.fromarray((RAMP / 65535).astype(kind)), "TIFF")
    with pytest.raises(ValueError, match="which value is white cannot be known"):
        examine(data, max_pixels=LIMIT)
    make.write(tmp_path / "a.tif", data)
    make.write(tmp_path / "a.txt", "depth")
    with pytest.raises(Exception, match=r"with pixels of unknown scale(.|\n)*fix: scale them to 8 or 16"):
        build(OwnConfig, tmp_path, tmp_path / "out")


def transparent(mode: str) -> Image.Image:
    """Left half opaque red, right half transparent over hidden blue."""
    color = np.zeros((8, 16, 4), np.uint8)
    color[:, :8] = (255, 0, 0, 255)
    color[:, 8:] = (0, 0, 255, 0)
    image = Image.fromarray(color)
    if mode == "P":
        return image.quantize(8)
    return image.convert(mode)


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0), ("gray", 128)])
@pytest.mark.parametrize(("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
def test_transparent_pixels_show_the_background(mode: str, form: str, background: str, value: int) -> None:
    keys = {"lossless": True} if form == "WEBP" else {}
    picture = examine(encoded(transparent(mode), form, **keys), max_pixels=LIMIT, background=background)
    assert "on_background" in picture.notes
    assert (pixels(picture.data)[:, 8:] == value).all()
    if mode != "LA":
        assert (pixels(picture.data)[:, :8] == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_a_color_that_the_header_declares_transparent_shows_the_background(mode: str) -> None:
    if mode == "I;16":
        image, mark = Image.fromarray(np.array([[0, 300, 40000]], np.uint16)), 300
    else:
        image, mark = Image.new(mode, (3, 1)), (9, 9, 9) if mode == "RGB" else 9
        image.putpixel((1, 0), mark)
    data = encoded(image, transparency=mark)
    assert pixels(examine(data, max_pixels=LIMIT).data)[0, :, 0].tolist()[:2] == [0, 255]
    assert pixels(data)[0, 1].tolist() == [255, 255, 255]


def test_half_transparent_pixels_are_mixed() -> None:
    data = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 51)))
    assert (pixels(examine(data, max_pixels=LIMIT).data) == 204).all()


def test_an_opaque_alpha_channel_keeps_the_bytes() -> None:
    for mode in ("RGBA", "LA"):
        data = make.png(3, mode)
        assert examine(data, max_pixels=LIMIT).data == data


def test_the_background_is_counted_and_decides_the_shards(tmp_path: Path) -> None:
    make.write(tmp_path / "a.png", encoded(transparent("RGBA")))
    make.write(tmp_path / "a.txt", "half of it")
    white = build(OwnConfig, tmp_path, tmp_path / "white")
    black = build(OwnConfig, tmp_path, tmp_path / "black", background="black")
    assert white["leakage"]["train"]["pictures"]["on_background"] == 1
    assert white["digest"] != black["digest"]
    # White is what earlier experiments had: it is not a part of their addresses.
    assert "background" not in OwnConfig().model_dump(mode="json")
    assert OwnConfig(background="black").model_dump(mode="json")["background"] == "black"
    with pytest.raises(ValidationError):
        OwnConfig.model_validate({"background": "pink"})


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (2, 801)])
def test_strips_that_a_transform_could_not_afford_are_refused(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size))
    with pytest.raises(ValueError, match="one side is more than 400 times the other"):
        examine(data, max_pixels=LIMIT)
    with pytest.raises(ValueError, match="one side is more than 400 times the other"):
        decode_image(data)


def test_a_long_image_within_the_limit_is_kept() -> None:
    data = encoded(Image.new("RGB", (4, 1600)))
    assert examine(data, max_pixels=LIMIT).data == data


@pytest.mark.parametrize("keys", [{}, {"upright": True}, {"shorter_side": 32}])
def test_a_jpeg_with_a_second_image_stays_a_jpeg(keys: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    first, second = (Image.fromarray(make.pixels(seed)) for seed in (1, 2))
    data = encoded(first, "MPO", save_all=True, append_images=[second], exif=exif, quality=90)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    picture = examine(data, max_pixels=LIMIT, **keys)
    assert picture.extension == "jpg"
    assert "converted" not in picture.notes
    assert (picture.data == data) == (not keys)
    sizes = {"": (64, 48), "upright": (48, 64), "shorter_side": (43, 32)}
    assert decode_image(picture.data).size == sizes["".join(keys)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\5\26\7\0\2\0\0Mac OS X", "AppleDouble"),
    ],
)
def test_files_of_another_form_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        examine(data, max_pixels=LIMIT)
