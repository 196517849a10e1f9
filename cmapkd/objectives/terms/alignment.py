"""Cross-modal alignment of pyramids: the student's level-to-level similarities follow the teacher's.

    L_pyramid = mean over active (i, j) of alpha_ij KL(P(V_i^T, L_j^T) || P(V_i^S, L_j^S))

P is a row softmax of similarity / tau_kd over the global batch, image to text and text to image, averaged. With all levels
active the mean is the 1/16 of the design. Levels are compared as pooled vectors, whose cosine is (V_i, L_j) image to text
and (L_j^v, GAP(P_i)) text to image, so both projectors of the bridge are trained; or by late interaction of their cells
and tokens, both directions in the space of language.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd.models.pyramid import LANGUAGE, VISUAL
from cmapkd.objectives.terms.contrastive import row_kl
from cmapkd.training.distributed import gather, offset


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


def pooled_similarities(
    pooled: Tensor, language: Tensor, visual_as_language: Tensor, language_as_visual: Tensor
) -> tuple[Tensor, Tensor]:
    """Similarities of levels that are one vector each: (V_i, L_j) image to text, (L_j^v, GAP(P_i)) text to image.

    Args:
        pooled, visual_as_language: (b, I, C) and (b, I, D).
        language, language_as_visual: (b, J, D) and (b, J, C).

    Returns:
        Both (I, J, b, B): local pictures against all texts, and local texts against all pictures.
    """
    return level_similarities(visual_as_language, language), level_similarities(language_as_visual, pooled).transpose(0, 1)


def late_similarities(
    cells: Tensor, tokens: Tensor, mask: Tensor, cell_counts: Sequence[int], token_counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Late interaction of levels that are sets of vectors (Yao et al., ICLR 2022, "FILIP").

    Image to text: each cell's best token, averaged over the cells; text to image: each token's best cell, averaged over
    the tokens that are no padding.

    Args:
        cells: those of all visual levels one after the other, (b, R, D); ``cell_counts`` sum to R.
        tokens: those of all language levels, (b, S, D); ``token_counts`` sum to S.
        mask: True where ``tokens`` are not padding, (b, S). A text without any is similar to nothing: 0.

    Returns:
        Both (I, J, b, B), as `pooled_similarities`.
    """
    cells, tokens = F.normalize(cells, dim=-1), F.normalize(tokens, dim=-1)
    all_tokens, all_masks = gather(tokens), gather(mask.to(tokens.dtype)) > 0
    forward = torch.einsum("ard,bsd->abrs", cells, all_tokens)  # (b, B, R, S): local pictures, all texts
    alone = len(all_tokens) == len(tokens)  # one rank: the same products serve the other direction
    backward = forward if alone else torch.einsum("ard,bsd->abrs", gather(cells), tokens)  # (B, b, R, S)
    lowest = torch.finfo(forward.dtype).min
    to_text, to_image = [], []
    for text, seen, picture_mask in zip(
        forward.masked_fill(~all_masks[None, :, None], lowest).split(tuple(token_counts), dim=3),
        backward.split(tuple(token_counts), dim=3),
        mask.split(tuple(token_counts), dim=1),
        strict=True,
    ):
        best = text.amax(dim=3)  # (b, B, R)
        best = torch.where(best == lowest, 0, best)
        to_text.append([part.mean(dim=2) for part in best.split(tuple(cell_counts), dim=2)])
        share = picture_mask.to(seen.dtype) / picture_mask.sum(dim=1, keepdim=True).clamp(min=1)  # (b, S_j)
        nearest = [part.amax(dim=2) for part in seen.split(tuple(cell_counts), dim=2)]  # (B, b, S_j) each
        to_image.append([torch.einsum("abs,bs->ba", part, share) for part in nearest])
    return _by_pair(to_text), _by_pair(to_image)


def _by_pair(by_language: list[list[Tensor]]) -> Tensor:
    """Lists over J of lists over I of (b, B) as one tensor (I, J, b, B)."""
    return torch.stack([torch.stack(row) for row in by_language], dim=1)


def pyramid_alignment(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], alpha: Tensor, temperature: float
) -> Tensor:
    """`L_pyramid` of the module header.

    Args:
        student, teacher: similarities of the levels in both directions, (I, J, b, B) each.
        alpha: weights of the level pairs, (I, J).
        temperature: tau_kd.

    Returns:
        ()
    """
    divergences = [row_kl(theirs / temperature, ours / temperature) for ours, theirs in zip(student, teacher, strict=True)]
    return (alpha * torch.stack(divergences)).mean()


def matched_contrast(similarities: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """CLIP's symmetric loss of one pair of levels from its similarities in both directions, (b, B) each. ()"""
    target = torch.arange(len(similarities[0]), device=similarities[0].device) + offset(len(similarities[0]))
    return torch.stack([F.cross_entropy(scale * rows, target) for rows in similarities]).mean()
