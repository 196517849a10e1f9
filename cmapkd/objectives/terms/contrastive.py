"""Contrastive terms over the global batch: CLIP's symmetric loss (Radford et al. 2021) and the KL of its rows.

Every function takes local rows (b, E); columns are gathered from all ranks with gradient, so the full B x B matrix
exists on no rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd.training.distributed import gather, offset


def similarity(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Local rows of both directions: rows x gathered columns and columns x gathered rows, each (b, B)."""
    return rows @ gather(columns).T, columns @ gather(rows).T


def info_nce(rows: Tensor, columns: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross-entropy to the diagonal.

    Args:
        rows, columns: L2-normalised, (b, E) each; row i belongs to column i.
        scale: inverse temperature.

    Returns:
        Mean over the local rows and both directions, ().
    """
    return (diagonal_cross_entropy(rows, columns, scale) + diagonal_cross_entropy(columns, rows, scale)) / 2


def diagonal_cross_entropy(rows: Tensor, columns: Tensor, scale: Tensor | float) -> Tensor:
    """CE(scale rows columns^T): row i belongs to column i. Mean over the local rows, ()."""
    target = torch.arange(len(rows), device=rows.device) + offset(len(rows))
    return F.cross_entropy(scale * (rows @ gather(columns).T), target)


def distil_logits(
    divergence: Callable[[Tensor, Tensor], Tensor],
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    scale: Tensor | float,
    teacher_scale: Tensor | float,
) -> Tensor:
    """A divergence of the teacher's rows from the student's, averaged over image to text and text to image.

    Args:
        divergence: `row_cross_entropy` or `row_kl`.
        student, teacher: L2-normalised embeddings of both modalities, (b, E) and (b, E') each.
        scale, teacher_scale: inverse temperatures.

    Returns:
        ()
    """
    pairs = zip(similarity(*teacher), similarity(*student), strict=True)
    return torch.stack([divergence(teacher_scale * theirs, scale * ours) for theirs, ours in pairs]).mean()


def row_cross_entropy(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """H(softmax(teacher), softmax(student)), mean over rows of (b, B). ()"""
    return -(F.softmax(teacher_logits, dim=-1) * F.log_softmax(student_logits, dim=-1)).sum(dim=-1).mean()


def row_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)), mean over rows; leading dimensions are kept. (..., b, B) -> (...)"""
    return kl_of_rows(teacher_logits, student_logits).mean(dim=-1)


def kl_of_rows(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of each row. (..., B) -> (...)"""
    teacher, student = F.log_softmax(teacher_logits, dim=-1), F.log_softmax(student_logits, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1)
