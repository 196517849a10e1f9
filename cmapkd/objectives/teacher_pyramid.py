"""Fit of the teacher's pyramid: its backbone frozen, pyramid and bridge trained contrastively, then frozen.

    L = mean over (P2-L1, P3-L2, P4-L3, P5-L4) of 1/2 [InfoNCE(f_v2l(GAP(P_i)), L_j) + InfoNCE(f_l2v(L_j), GAP(P_i))]

With late interaction the InfoNCE is over the similarities of cells and tokens instead, and `f_l2v` is left out.
A random frozen pyramid teaches little, and one trained by the student's distance can collapse. In the loop this
objective's "student" is the teacher model itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmapkd.models.pyramid import LANGUAGE, VISUAL, Pyramid, segments
from cmapkd.models.towers import TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, Surroundings, TeacherOutputs, Terms
from cmapkd.objectives.terms.alignment import late_similarities, matched_contrast
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
        late = self.surroundings.options.get("cells") is not None
        return "unused" if late and parameter.startswith("pyramid.language_to_visual.") else "pyramid"

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        levels = self.pyramid(student, grid=self.surroundings.options.get("cells"))
        if levels.cells is not None and levels.tokens is not None and levels.token_mask is not None:
            return {"cells": levels.cells, "tokens": levels.tokens, "token_mask": levels.token_mask}
        return {
            "pooled": levels.pooled,
            "language": levels.language,
            "visual_as_language": levels.visual_as_language,
            "language_as_visual": levels.language_as_visual,
        }

    def combine(self, representations: Representations) -> Terms:
        r, scale = representations, 1 / float(self.surroundings.options["temperature"])
        parts = {}
        if "cells" in r:
            cells, tokens = segments(r["cells"].shape[1], r["tokens"].shape[1], VISUAL, LANGUAGE)
            to_text, to_image = late_similarities(r["cells"], r["tokens"], r["token_mask"] > 0, cells, tokens)
            for index, (visual, language) in enumerate(zip(VISUAL, LANGUAGE, strict=True)):
                parts[f"{visual}-{language}"] = matched_contrast((to_text[index, index], to_image[index, index]), scale)
        else:
            unit = {name: F.normalize(value, dim=-1) for name, value in r.items()}
            for index, (visual, language) in enumerate(zip(VISUAL, LANGUAGE, strict=True)):
                as_language = info_nce(unit["visual_as_language"][:, index], unit["language"][:, index], scale)
                as_visual = info_nce(unit["pooled"][:, index], unit["language_as_visual"][:, index], scale)
                parts[f"{visual}-{language}"] = (as_language + as_visual) / 2
        total = torch.stack(list(parts.values())).mean()
        return Terms(total, {name: value.detach() for name, value in parts.items()})
