"""Cross-modal alignment of pyramids: the student's level-to-level similarities follow the teacher's.

    L_pyramid = mean over active (i, j) of alpha_ij KL(P(V_i^T, L_j^T) || P(V_i^S, L_j^S))

P is a row softmax of cosine similarity / tau_kd over the global batch. Image to text uses (V_i, L_j), text to image
(L_j^v, GAP(P_i)), so both projectors of the bridge are trained; the two are averaged. With all levels active the mean
is the 1/16 of the design.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd.models.pyramid import LANGUAGE, VISUAL
from cmapkd.objectives.terms.contrastive import row_kl
from cmapkd.training.distributed import gather


def level_similarities(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosine similarity of every row level with every column level.

    Args:
        rows: (b, I, D); local.
        columns: (b, J, D); gathered here.

    Returns:
        (I, J, b, B)
    """
    rows, columns = F.normalize(rows, dim=-1), gather(F.normalize(columns, dim=-1))
    return torch.einsum("aid,bjd->ijab", rows, columns)


def fixed_alpha(visual_levels: Sequence[str], language_levels: Sequence[str], like: Tensor) -> Tensor:
    """1 where a level meets its partner (P2-L1, P3-L2, P4-L3, P5-L4), 0.5 elsewhere. (I, J)"""
    partners = dict(zip(VISUAL, LANGUAGE, strict=True))
    return like.new_tensor([[1.0 if partners[v] == w else 0.5 for w in language_levels] for v in visual_levels])


def pyramid_alignment(
    student: tuple[Tensor, Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor, Tensor],
    alpha: Tensor,
    temperature: float,
) -> Tensor:
    """`L_pyramid` of the module header.

    Args:
        student, teacher: (pooled (b, I, C), language (b, J, D), visual_as_language (b, I, D), language_as_visual (b, J, C)).
        alpha: weights of the level pairs, (I, J).
        temperature: tau_kd.

    Returns:
        ()
    """
    total = alpha.new_zeros(())
    for (s_rows, s_columns), (t_rows, t_columns), swap in zip(
        _directions(student), _directions(teacher), (False, True), strict=True
    ):
        with torch.no_grad():
            target = level_similarities(t_rows, t_columns) / temperature
        divergence = row_kl(target, level_similarities(s_rows, s_columns) / temperature)  # (I, J) or (J, I)
        total = total + (alpha * (divergence.T if swap else divergence)).mean()
    return total / 2


def _directions(levels: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    pooled, language, visual_as_language, language_as_visual = levels
    return (visual_as_language, language), (language_as_visual, pooled)
