"""KD: knowledge distillation (Hinton, Vinyals and Dean 2015) of CLIP's image-text logits.

    L = L_task + w T^2 1/2 [H(sm(Z*/T), sm(Z/T)) + H(sm(Z*^T/T), sm(Z^T/T))]

Z = s v t^T with the student's scale, Z* with the teacher's; `w` = T = 1 is open_clip's distillation loss. Adapted: the
"classes" are the captions (images) of the global batch. With OpenAI's scale of 100 a teacher's row is close to one-hot,
so its effective scale is an option (`teacher_scale`) beside the temperature.
"""

from __future__ import annotations

from cmapkd.models.towers import TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, TeacherOutputs, Terms, both_embeddings
from cmapkd.objectives.terms.contrastive import distil_logits, info_nce, row_cross_entropy


@register("kd")
class KD(Objective):
    """Task loss and cross-entropy to the teacher's rows, both ways."""

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        assert teacher is not None  # the plan gives every method but scratch a teacher
        return both_embeddings(student, teacher)

    def combine(self, representations: Representations) -> Terms:
        options = self.surroundings.options
        temperature = float(options["temperature"])
        scale = representations["logit_scale"].mean()
        teacher_scale = options["teacher_scale"] or representations["teacher_logit_scale"].mean()
        task = info_nce(representations["image"], representations["text"], scale)
        distillation = temperature**2 * distil_logits(
            row_cross_entropy,
            (representations["image"], representations["text"]),
            (representations["teacher_image"], representations["teacher_text"]),
            scale / temperature,
            teacher_scale / temperature,
        )
        total = task + options["weight"] * distillation
        return Terms(total, {"task": task.detach(), "distillation": distillation.detach()})
