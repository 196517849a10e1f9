"""Gradient distillation (CLIP-KD, Yang et al., CVPR 2024): the student's contrastive gradients follow the teacher's.

    d CE(s p k^T) / d p = s / B (P - I) k        d CE(s p k^T) / d k = s / B (P - I)^T p        P = sm(s p k^T)

CE is the mean over the B rows of the global batch. Closed forms, so that no second derivative is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd.training.distributed import gather


def contrastive_gradients(rows: Tensor, columns: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Gradients of the global `CE(scale rows columns^T)` for this rank's rows and for its columns.

    Args:
        rows, columns: (b, E) each; row i belongs to column i.
        scale: inverse temperature.

    Returns:
        (b, E) and (b, E), differentiable.
    """
    all_rows, all_columns = gather(rows), gather(columns)  # (B, E)
    logits = scale * rows @ all_columns.T  # (b, B)
    normaliser = logits.logsumexp(dim=1)  # (b,)
    shares = (logits - normaliser[:, None]).exp()  # (b, B) local rows of P
    # Local columns of P: the normalisers of all rows are enough, so no rank holds the whole B x B matrix.
    of_columns = (scale * all_rows @ columns.T - gather(normaliser)[:, None]).exp()  # (B, b)
    factor = scale / len(all_rows)
    return factor * (shares @ all_columns - columns), factor * (of_columns.T @ all_rows - rows)


def gradient_distillation(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], scale: Tensor | float, teacher_scale: Tensor | float
) -> Tensor:
    """Mean squared error of the gradients for rows and columns, summed over both directions.

    Args:
        student, teacher: image and text embeddings of one width, (b, E) each.

    Returns:
        ()
    """
    total = student[0].new_zeros(())
    for (rows, columns), (their_rows, their_columns) in ((student, teacher), (student[::-1], teacher[::-1])):
        ours = contrastive_gradients(rows, columns, scale)
        with torch.no_grad():
            theirs = contrastive_gradients(their_rows, their_columns, teacher_scale)
        total = total + F.mse_loss(ours[0], theirs[0]) + F.mse_loss(ours[1], theirs[1])
    return total
