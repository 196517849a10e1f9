"""Intra-modal distillation: each level of the student's pyramid against the teacher's, weighted per sample.

    L_intra^v = 1/4 sum_i w_v^i MSE(S_v^i, T_v^i), the same for language

Features are normalised over channels, squared differences summed over channels and averaged over positions, so a term
is 2 - 2 cos. Averaged over the channels too it would be 1/C of that and vanish beside the other terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

_EPS = 1e-8  # of a norm, as in `F.cosine_similarity`
LEVELS = 4  # the constant factor 1/4, whatever the number of active levels: their weights sum to one


def map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over positions of 2 - 2 cos over channels.

    Args:
        student: (B, C, h, w).
        teacher: (B, C, H, W); resized by area to the student's grid.

    Returns:
        (B,)
    """
    if teacher.shape[-2:] != student.shape[-2:]:
        teacher = F.interpolate(teacher, size=student.shape[-2:], mode="area")
    return (2 - 2 * _cosine(student, teacher)).mean(dim=(1, 2))


class _Cosine(torch.autograd.Function):
    """`F.cosine_similarity` over the second dimension, with a gradient for the first argument alone, in closed form.

    d cos / d s = (t / |t| - cos s / |s|) / |s|. The maps of P2 are the largest tensors of a step, and torch's own function goes
    over them about four times as often.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = (torch.linalg.vector_norm(maps, dim=1, keepdim=True).clamp_(min=_EPS) for maps in (student, teacher))
        cosine = (student * teacher).sum(dim=1, keepdim=True) / theirs / ours  # (B, 1, h, w)
        ctx.save_for_backward(student, teacher, ours, theirs, cosine)
        return cosine[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        student, teacher, ours, theirs, cosine = ctx.saved_tensors
        share = gradients[0][:, None] / ours
        return (teacher * (share / theirs)).addcmul_(student, share * cosine / ours, value=-1), None


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """(B, h, w) of maps (B, C, h, w); the teacher's get no gradient."""
    if forward_ad.unpack_dual(student).tangent is not None:  # ALSN that looks ahead
        return F.cosine_similarity(student, teacher, dim=1)
    return _Cosine.apply(student, teacher.detach())


def map_distances(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """`map_distance` of every level of the student, (B, levels)."""
    return torch.stack([map_distance(maps, teacher[level]) for level, maps in student.items()], dim=1)


def vector_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """2 - 2 cos of vectors (B, levels, D). (B, levels)"""
    return 2 - 2 * F.cosine_similarity(student, teacher, dim=-1)


def token_distances(student: Tensor, teacher: Tensor, mask: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean over the tokens of each level, padding apart, of 2 - 2 cos over channels.

    Args:
        student, teacher: tokens of all levels one after the other, (B, S, D); ``counts`` sum to S.
        mask: True where they are no padding, (B, S).

    Returns:
        (B, levels)
    """
    distance = (2 - 2 * F.cosine_similarity(student, teacher, dim=-1)) * mask  # (B, S)
    parts = zip(distance.split(tuple(counts), dim=1), mask.split(tuple(counts), dim=1), strict=True)
    return torch.stack([part.sum(dim=1) / valid.sum(dim=1).clamp(min=1) for part, valid in parts], dim=1)


def weighted(distances: Tensor, weights: Tensor) -> Tensor:
    """`1/4 sum_i w_i d_i`, averaged over the batch; both (B, levels). ()"""
    return (weights * distances).sum(dim=1).mean() / LEVELS
