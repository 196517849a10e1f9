"""Regression of intermediate features (hints of FitNet, Romero et al., ICLR 2015), per sample.

Both sides are normalised over channels without learned scales (`normed`): the blocks of a transformer add up, so the size
of their outputs says little, and a few channels dominate it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cmapkd.models.pyramid import masked_mean


def normed(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last dimension, (..., C)."""
    return F.layer_norm(features, features.shape[-1:])


def map_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps over channels and positions.

    Args:
        student: (B, C, h, w); resized bilinearly to the teacher's grid.
        teacher: (B, C, H, W).

    Returns:
        (B,)
    """
    if student.shape[-2:] != teacher.shape[-2:]:
        student = F.interpolate(student, size=teacher.shape[-2:], mode="bilinear", align_corners=False)
    return (student - teacher).square().mean(dim=(1, 2, 3))


def token_regression(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of tokens over channels and over the positions of ``mask``.

    Args:
        student, teacher: (B, N, C).
        mask: True where a position counts, (B, N).

    Returns:
        (B,)
    """
    return masked_mean((student - teacher).square().mean(dim=-1, keepdim=True), mask)[:, 0]
