"""FitNet: hints for thin deep nets (Romero et al., ICLR 2015), for the two towers of CLIP.

    stage `hint`:  L = w_h [MSE(R_v n(s_v), n(t_v)) + MSE(R_t n(s_t), n(t_t))]
    stage `kd`:    L = L_task + w T^2 1/2 [H(sm(Z*/T), sm(Z/T)) + H(sm(Z*^T/T), sm(Z^T/T))]    (as in `kd.py`)

s and t are the outputs of block d/2 of student and teacher (6 of 12, 12 of 24), R a learned regressor, n the
normalisation over channels. Stage `hint` trains the blocks up to d/2 and the regressors; everything above is left alone.
Stage `kd` trains the whole student, the regressors dropped.

Adapted to transformers: patch tokens without CLS, the student's grid resized bilinearly to the teacher's; text tokens up
to end-of-text; regressors are 1x1 (linear) instead of convolutional; features normalised on both sides. The weight of
100 is the usual one for CNNs; alone in its stage, it merely scales the gradient before clipping.
"""

from __future__ import annotations

from torch import nn

from cmapkd.models.towers import TowerOutputs, precedes
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, Surroundings, TeacherOutputs, Terms, both_embeddings
from cmapkd.objectives.terms import features
from cmapkd.objectives.terms.contrastive import distil_logits, info_nce, row_cross_entropy

MIDDLE = 1  # of the taps after d/4, d/2, 3d/4, d


@register("fitnet")
class FitNet(Objective):
    """The hint losses in the stage `hint`, KD in every other."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        ours, theirs = surroundings.student, surroundings.teacher
        assert theirs is not None
        self.needs_taps = self.hints = surroundings.stage.name == "hint"
        self.regress: nn.ModuleDict | None = None
        if self.hints:
            self.regress = nn.ModuleDict(
                {
                    "image": nn.Linear(ours.image_width, theirs.image_width),
                    "text": nn.Linear(ours.text_width, theirs.text_width),
                }
            )

    def model_group_of(self, parameter: str) -> str:
        guided = not self.hints or precedes(parameter, MIDDLE, self.surroundings.student)
        return "student" if guided else "unused"

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        assert teacher is not None  # the plan gives every method but scratch a teacher
        if self.regress is None:
            return both_embeddings(student, teacher)
        assert student.text_mask is not None
        image, hint = (towers.image_taps[MIDDLE].permute(0, 2, 3, 1) for towers in (student, teacher.towers))  # (b, h, w, C)
        text, text_hint = (features.normed(towers.text_taps[MIDDLE]) for towers in (student, teacher.towers))  # (b, N, D)
        image, hint = self.regress["image"](features.normed(image)), features.normed(hint)  # (b, h, w, C'), (b, H, W, C')
        text = self.regress["text"](text)  # (b, N, D')
        return {
            "image_distance": features.map_regression(image.permute(0, 3, 1, 2).float(), hint.permute(0, 3, 1, 2).float()),
            "text_distance": features.token_regression(text.float(), text_hint.float(), student.text_mask),
        }

    def combine(self, representations: Representations) -> Terms:
        options, r = self.surroundings.options, representations
        if self.hints:
            image, text = r["image_distance"].mean(), r["text_distance"].mean()
            return Terms(options["hint_weight"] * (image + text), {"hint_image": image.detach(), "hint_text": text.detach()})
        temperature, scale = float(options["temperature"]), r["logit_scale"].mean()
        teacher_scale = options["teacher_scale"] or r["teacher_logit_scale"].mean()
        student, teacher = (r["image"], r["text"]), (r["teacher_image"], r["teacher_text"])
        task = info_nce(*student, scale)
        distillation = temperature**2 * distil_logits(
            row_cross_entropy, student, teacher, scale / temperature, teacher_scale / temperature
        )
        return Terms(task + options["weight"] * distillation, {"task": task.detach(), "distillation": distillation.detach()})
