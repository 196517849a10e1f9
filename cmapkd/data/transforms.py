"""From an encoded picture to a model's input, in training and in evaluation.

Evaluation is ``open_clip.transform.image_transform(is_train=False)`` itself. Training follows open_clip's training
transform (random resized crop, bicubic) with two differences: every random number comes from the generator that is
passed in, never from a global one, so that a sample's augmentation is a pure function of (seed, epoch, sample); and
normalisation is done once for a batch. The crop's parameters are drawn as in Szegedy et al., "Going deeper with
convolutions" (2015), adapted from torchvision's ``RandomResizedCrop.get_params``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image

from cmapkd.data.pixels import check_size, flatten, has_alpha
from cmapkd.errors import UserError

if TYPE_CHECKING:
    from open_clip.transform import PreprocessCfg

# 50 megapixels: larger than any picture of COCO, CC3M or ImageNet, and 150 MB once decoded.
MAX_PIXELS = 50_000_000


class Transform(Protocol):
    """What the stream needs: a picture to a tensor, then a batch of these to the model's input."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """(3, H, W), uint8 or float32."""

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, H, W) as ``__call__`` returned them -> (b, 3, H, W) float32, normalised."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode PNG or JPEG bytes to an RGB picture; 16 bits are scaled to 8, transparency is composited on white.

    Args:
        data: the encoded picture.
        max_pixels: a picture that declares more is refused before it is decompressed [pixels].

    Raises:
        ValueError: too large, too narrow, of another format, truncated or otherwise undecodable.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except Exception as error:
        raise ValueError(f"the picture cannot be opened: {error}") from None
    try:
        check_size(image.width, image.height, max_pixels)
    except ValueError as error:
        raise ValueError(f"the picture has {error}") from None
    try:
        image.load()
        if image.mode == "RGB" and not has_alpha(image):
            return image
        flat = flatten(image)
        return flat if flat.mode == "RGB" else flat.convert("RGB")
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise ValueError(f"the picture cannot be decoded: {error}") from None


class EvaluationTransform:
    """open_clip's evaluation transform for a model's ``preprocess_cfg``; uses no random numbers.

    Args:
        preprocess: open_clip's ``PreprocessCfg``, or a mapping with its fields: ``size``, ``mean``, ``std``,
            ``interpolation``, ``resize_mode``, ``fill_color``; those that are missing take open_clip's defaults.
    """

    def __init__(self, preprocess: PreprocessCfg | Mapping[str, Any]) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.cfg = PreprocessCfg(**preprocess) if isinstance(preprocess, Mapping) else preprocess
        self._transform = image_transform_v2(self.cfg, is_train=False)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> torch.Tensor:
        """RGB picture -> (3, H, W) float32, normalised. ``rng`` is not used."""
        return self._transform(image)

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """The identity: the pictures are normalised already."""
        return images


class TrainTransform:
    """Random resized crop and horizontal flip; (3, size, size) uint8, normalised by ``batch``.

    With ``scale`` (1, 1) there is no crop: the picture's geometry is that of evaluation, and a picture that has the
    model's size already is not resampled at all.

    Args:
        preprocess: the model's ``preprocess_cfg`` (see ``EvaluationTransform``).
        scale: smallest and largest share of the picture's area that a crop covers.
        ratio: smallest and largest aspect ratio (width / height) of a crop.
        flip: mirror every second picture at random; off by default, as it makes captions with "left of" untrue.

    Raises:
        UserError: impossible ``scale`` or ``ratio``.
    """

    def __init__(
        self,
        preprocess: PreprocessCfg | Mapping[str, Any],
        *,
        scale: Sequence[float] = (0.9, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool = False,
    ) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(
                key="augmentation.scale", value=scale, reason="must be two shares of the area, 0 < low <= high <= 1"
            )
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise UserError(key="augmentation.ratio", value=ratio, reason="must be two ratios width / height, 0 < low <= high")
        self.scale, self.ratio, self.flip = tuple(scale), tuple(ratio), flip
        self.fixed = self.scale == (1, 1) and not flip  # nothing is drawn: a picture always becomes the same tensor
        self._evaluation = EvaluationTransform(preprocess)
        cfg = self._evaluation.cfg
        self.size = (cfg.size, cfg.size) if isinstance(cfg.size, int) else (cfg.size[0], cfg.size[1])  # height, width
        self.resample = Image.Resampling.BILINEAR if cfg.interpolation == "bilinear" else Image.Resampling.BICUBIC
        self.mean = torch.tensor(cfg.mean, dtype=torch.float32).view(-1, 1, 1)  # (3, 1, 1)
        self.std = torch.tensor(cfg.std, dtype=torch.float32).view(-1, 1, 1)  # (3, 1, 1)
        # open_clip's evaluation steps that work on a picture; ToTensor and Normalize come after them.
        self._geometry = [
            step for step in self._evaluation._transform.transforms if type(step).__name__ not in ("MaybeToTensor", "Normalize")
        ]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """RGB picture -> (3, H, W) uint8; all random numbers come from ``rng``."""
        height, width = self.size
        if self.scale != (1, 1):
            left, top, crop_width, crop_height = crop_box(image.width, image.height, self.scale, self.ratio, rng)
            image = image.crop((left, top, left + crop_width, top + crop_height))
            if image.size != (width, height):
                image = image.resize((width, height), self.resample)
        elif image.size != (width, height):
            for step in self._geometry:
                image = step(image)
        pixels = np.asarray(image)  # (H, W, 3) uint8
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # (3, H, W)

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, H, W) uint8 -> float32, normalised with the operations (and rounding) of torchvision."""
        return images.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


def crop_box(
    width: int, height: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, width and height [px] of a crop with a random share of the area and a random aspect ratio.

    Ten attempts, then the largest central crop of an allowed aspect ratio, as in torchvision.
    """
    area = width * height
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = area * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        crop_width, crop_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.random() * (height - crop_height + 1))
            left = int(rng.random() * (width - crop_width + 1))
            return left, top, crop_width, crop_height
    if width / height < ratio[0]:
        crop_width, crop_height = width, max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        crop_width, crop_height = max(1, min(width, round(height * ratio[1]))), height
    else:
        crop_width, crop_height = width, height
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
