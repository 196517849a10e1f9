"""Relational distillation (after Park et al., CVPR 2019): relations between samples and between levels.

    L_sample = || G_T - G_S ||_F^2 / B^2     G: cosine Gram matrix of [GAP(P5); L4] over the global batch
    L_layer  = || R_T - R_S ||_F^2           R: correlation over channels of the levels' batch-mean pooled features

R is taken within each modality (4 x 4 for P2-P5 and 4 x 4 for L1-L4) and the two are averaged: levels of one modality
share their channels, so their correlation means something.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cmapkd.training.distributed import gather


def sample_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of cosine Gram matrices; local rows against gathered columns.

    Args:
        student, teacher: features of the same samples, (b, F) and (b, F').

    Returns:
        ()
    """
    return (_gram(student) - _gram(teacher)).square().mean()


def layer_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared Frobenius distance of the levels' correlation matrices; (b, levels, C) each. ()"""
    return (_correlation(student) - _correlation(teacher)).square().sum()


def _gram(features: Tensor) -> Tensor:
    features = F.normalize(features, dim=-1)
    return features @ gather(features).T  # (b, B)


def _correlation(levels: Tensor) -> Tensor:
    mean = gather(levels).mean(dim=0)  # (levels, C) over the global batch
    centred = F.normalize(mean - mean.mean(dim=-1, keepdim=True), dim=-1)
    return centred @ centred.T
