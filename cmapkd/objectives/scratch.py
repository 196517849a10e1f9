"""Scratch: CLIP's symmetric contrastive loss (Radford et al., ICML 2021), without a teacher.

    L_task = 1/2 [CE(s v t^T) + CE(s t v^T)],  s = exp(logit_scale), clamped to 100

The baseline of every table, and how the embedded teacher is trained.
"""

from __future__ import annotations

from cmapkd.models.towers import TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, TeacherOutputs, Terms, embeddings
from cmapkd.objectives.terms.contrastive import info_nce


@register("scratch")
class Scratch(Objective):
    """The task loss alone."""

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        return embeddings(student)

    def combine(self, representations: Representations) -> Terms:
        task = info_nce(representations["image"], representations["text"], representations["logit_scale"].mean())
        return Terms(task, {"task": task.detach()})
