"""Relations among the patches of one image (RDist of LLaVA-KD, Cai et al., ICCV 2025).

L_patches = 1 - cos(vec(Z_S Z_S^T), vec(Z_T Z_T^T))        Z: unit vectors of the patches
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def patch_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """`L_patches` of each image; unit vectors of the same patches, (b, P, E) and (b, P, E'). (b,)"""
    ours, theirs = ((patches @ patches.mT).flatten(1) for patches in (student, teacher))  # (b, P * P)
    return 1 - F.cosine_similarity(ours, theirs, dim=1)
