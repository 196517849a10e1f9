"""Transforms: evaluation is open_clip's, training agrees with torchvision and draws from the given generator alone."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from fake_source import png
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from cmapkd.data.transforms import EvaluationTransform, TrainTransform, crop_box, decode_image
from cmapkd.errors import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PREPROCESS = {"size": 16, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    return decode_image(png(width, height, seed))


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (8, 30)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_evaluation_is_open_clips(size: tuple[int, int], mode: str) -> None:
    reference = image_transform(16, is_train=False, mean=MEAN, std=STD, resize_mode=mode, interpolation="bicubic")
    ours = EvaluationTransform({**PREPROCESS, "resize_mode": mode})(picture(*size))
    assert ours.shape == (3, 16, 16)
    assert torch.equal(ours, reference(picture(*size)))


def test_evaluation_takes_open_clips_own_configuration() -> None:
    from_class, from_mapping = EvaluationTransform(PreprocessCfg(**PREPROCESS)), EvaluationTransform(PREPROCESS)
    assert torch.equal(from_class(picture()), from_mapping(picture()))


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (8, 30)])
def test_training_without_augmentation_is_evaluation(size: tuple[int, int]) -> None:
    train, evaluation = TrainTransform(PREPROCESS, scale=(1, 1)), EvaluationTransform(PREPROCESS)
    images = torch.stack([train(picture(*size), rng())])
    assert images.dtype == torch.uint8
    assert torch.equal(train.batch(images)[0], evaluation(picture(*size)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(16, 16), (40, 24)])
def test_training_crops_as_torchvision_does(size: tuple[int, int], interpolation: str) -> None:
    image = picture(*size)
    train = TrainTransform({**PREPROCESS, "interpolation": interpolation}, scale=(0.3, 0.9), ratio=(0.75, 1.5))
    mode = InterpolationMode.BICUBIC if interpolation == "bicubic" else InterpolationMode.BILINEAR
    for seed in range(20):
        left, top, width, height = crop_box(*size, (0.3, 0.9), (0.75, 1.5), rng(seed))
        reference = F.resized_crop(image, top, left, height, width, [16, 16], mode)
        ours = train(image, rng(seed))
        assert torch.equal(ours, F.pil_to_tensor(reference))
        assert torch.equal(train.batch(ours[None])[0], F.normalize(F.to_tensor(reference), list(MEAN), list(STD)))


def test_training_is_a_function_of_the_generator() -> None:
    train = TrainTransform(PREPROCESS, scale=(0.3, 1.0), flip=True)
    first = train(picture(), rng(1))
    state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    for _ in range(5):
        assert torch.equal(train(picture(), rng(1)), first)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert any(not torch.equal(train(picture(), rng(seed)), first) for seed in range(2, 6))


def test_flip_mirrors_about_half_of_the_pictures() -> None:
    train = TrainTransform(PREPROCESS, scale=(1, 1), flip=True)
    plain = TrainTransform(PREPROCESS, scale=(1, 1))(picture(), rng())
    flipped = 0
    for seed in range(200):
        image = train(picture(), rng(seed))
        assert torch.equal(image, plain) or torch.equal(image, plain.flip(-1))
        flipped += torch.equal(image, plain.flip(-1))
    assert 70 < flipped < 130


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    seed=st.integers(0, 1000),
)
def test_crops_lie_within_the_picture(width: int, height: int, scale: list, ratio: list, seed: int) -> None:
    left, top, crop_width, crop_height = crop_box(width, height, scale, ratio, rng(seed))
    assert 0 <= left <= left + crop_width <= width
    assert 0 <= top <= top + crop_height <= height
    assert crop_width > 0
    assert crop_height > 0


def test_crops_cover_the_scale_that_was_asked_for() -> None:
    boxes = [crop_box(1000, 1000, (0.2, 0.5), (0.8, 1.25), rng(seed)) for seed in range(2000)]
    areas = np.array([w * h / 1e6 for _, _, w, h in boxes])
    assert areas.min() == pytest.approx(0.2, abs=0.005)
    assert areas.max() == pytest.approx(0.5, abs=0.005)
    assert areas.mean() == pytest.approx(0.35, abs=0.01)
    assert {(left > 200, top > 200) for left, top, _, _ in boxes} == {(a, b) for a in (True, False) for b in (True, False)}


@pytest.mark.parametrize(
    "options", [{"scale": (0, 1)}, {"scale": (0.9, 0.5)}, {"scale": (0.5, 1.5)}, {"ratio": (0, 1)}, {"ratio": (2, 1)}]
)
def test_impossible_augmentation_is_refused(options: dict) -> None:
    with pytest.raises(UserError, match="augmentation"):
        TrainTransform(PREPROCESS, **options)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pictures_become_rgb(mode: str) -> None:
    assert decode_image(png(12, 8, mode=mode)).mode == "RGB"


def test_large_pictures_are_refused_before_they_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4000, 4000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 20_000  # a bomb: 16 megapixels in a few kilobytes
    with pytest.raises(ValueError, match="4000 x 4000 pixels, more than the limit"):
        decode_image(buffer.getvalue(), max_pixels=1_000_000)


def test_undecodable_pictures_are_refused() -> None:
    jpeg = io.BytesIO()
    picture(64, 64).save(jpeg, "JPEG")
    gif = io.BytesIO()
    picture().save(gif, "GIF")
    whole = png(64, 64)
    for data in (b"", b"nonsense", whole[:20], whole[: len(whole) // 2], jpeg.getvalue()[:400], gif.getvalue()):
        with pytest.raises(ValueError, match="the picture cannot be"):
            decode_image(data)
    header = bytearray(whole)
    header[18] ^= 1  # width in IHDR: its CRC no longer fits
    with pytest.raises(ValueError, match="the picture cannot be"):
        decode_image(bytes(header))
