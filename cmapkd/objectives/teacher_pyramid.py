"""Fit of the teacher's pyramid: its backbone frozen, pyramid and bridge trained contrastively, then frozen.

    L = mean over (P2-L1, P3-L2, P4-L3, P5-L4) of 1/2 [InfoNCE(f_v2l(GAP(P_i)), L_j) + InfoNCE(f_l2v(L_j), GAP(P_i))]

A random frozen pyramid teaches little, and one trained by the student's distance can collapse. In the loop this
objective's "student" is the teacher model itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmapkd.models.pyramid import LANGUAGE, VISUAL, Pyramid
from cmapkd.models.towers import TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, Surroundings, TeacherOutputs, Terms
from cmapkd.objectives.terms.contrastive import info_nce


@register("teacher_pyramid")
class TeacherPyramid(Objective):
    """The contrastive loss over matched levels."""

    needs_taps = True
    teacher_side = True

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        assert surroundings.pyramid is not None
        self.pyramid = Pyramid(surroundings.student, **surroundings.pyramid)

    def group_of(self, parameter: str) -> str:
        return "pyramid"

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        levels = self.pyramid(student)
        return {
            "pooled": levels.pooled,
            "language": levels.language,
            "visual_as_language": levels.visual_as_language,
            "language_as_visual": levels.language_as_visual,
        }

    def combine(self, representations: Representations) -> Terms:
        scale = 1 / float(self.surroundings.options["temperature"])
        unit = {name: F.normalize(value, dim=-1) for name, value in representations.items()}
        parts = {}
        for index, (visual, language) in enumerate(zip(VISUAL, LANGUAGE, strict=True)):
            as_language = info_nce(unit["visual_as_language"][:, index], unit["language"][:, index], scale)
            as_visual = info_nce(unit["pooled"][:, index], unit["language_as_visual"][:, index], scale)
            parts[f"{visual}-{language}"] = (as_language + as_visual) / 2
        total = torch.stack(list(parts.values())).mean()
        return Terms(total, {name: value.detach() for name, value in parts.items()})
