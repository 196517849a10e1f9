"""Agreement of rankings, and divergences without the target: what C2KD (Huo et al., CVPR 2024) selects and distils.

    tau(x, y) = mean over pairs i < j of sign(x_i - x_j) sign(y_i - y_j)         Kendall 1938, tau-a

On rows without ties this is what `scipy.stats.kendalltau` gives. With ties its sign still is; where scipy's is undefined
(all values of a row equal, or a single one) it is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmapkd.objectives.terms.contrastive import kl_of_rows
from cmapkd.training.distributed import offset


def kendall(teacher: Tensor, student: Tensor, candidates: int) -> Tensor:
    """Kendall's tau of each row over the teacher's best candidates.

    Args:
        teacher, student: scores, (b, B) each.
        candidates: how many of the row's columns, by the teacher's score, are compared; memory is b x candidates^2.

    Returns:
        (b,), without gradient.
    """
    teacher, student = teacher.detach(), student.detach()
    columns = teacher.topk(min(candidates, teacher.shape[1]), dim=1).indices  # (b, K)
    first, second = teacher.gather(1, columns), student.gather(1, columns)
    signs = [(x[:, :, None] - x[:, None, :]).sign() for x in (first, second)]  # (b, K, K) each
    count = columns.shape[1]
    return (signs[0] * signs[1]).sum(dim=(1, 2)) / max(1, count * (count - 1))


def without_target(logits: Tensor) -> Tensor:
    """Drop each local row's own column. (b, B) -> (b, B - 1)"""
    size, count = logits.shape
    rest = torch.arange(count - 1, device=logits.device).expand(size, -1)  # (b, B - 1)
    own = torch.arange(size, device=logits.device)[:, None] + offset(size)
    return logits.gather(1, rest + (rest >= own).long())


def selected_kl(teacher: Tensor, student: Tensor, chosen: Tensor) -> Tensor:
    """`1/B sum_i chosen_i KL(sm(teacher_i) || sm(student_i))` over the columns that are not the target.

    Args:
        teacher, student: logits, (b, B) each; the teacher's are detached.
        chosen: rows that count, (b,) of 0 and 1.

    Returns:
        ()
    """
    return (chosen * kl_of_rows(without_target(teacher.detach()), without_target(student))).mean()
