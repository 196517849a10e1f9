"""Prompts on the frozen teacher: stage 1 of PromptKD (Li et al., CVPR 2024), which takes it from PromptSRC (Khattak et al.,
ICCV 2023).

    L = CE(Z~) + w_i mean|V~ - V| + w_t mean|T~ - T| + w_l / (2 B) [KL(sm(Z) || sm(Z~)) + KL(sm(Z^T) || sm(Z~^T))]

V, T are the un-prompted embeddings and V~, T~ the prompted ones, Z = S V T^T with the teacher's own frozen scale; KL is the
mean over rows, and 1 / B makes it PromptSRC's mean over all logits. Trained are deep prompts of both towers alone
(`cmapkd/models/prompts.py`). In the loop this objective's "student" is the teacher with prompts, its teacher the same
without. Adapted: there are no classes, so the captions of the global batch take their place, both ways; all training
captions instead of 16 pictures a class; AdamW like every training of an experiment, where the paper has SGD with 5e-3;
PromptSRC's Gaussian average of the prompts over epochs and its averaged text templates are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmapkd.models.prompts import Prompts
from cmapkd.models.towers import Tapped, TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, Surroundings, TeacherOutputs, Terms
from cmapkd.objectives.terms.contrastive import info_nce, row_kl, similarity


@register("teacher_prompts")
class TeacherPrompts(Objective):
    """Task loss of the prompted teacher, kept near the un-prompted one."""

    teacher_side = True
    recomputes = False

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        options = surroundings.options
        self.prompts = Prompts(surroundings.student, options["tokens"], options["layers"])

    def encode(self, model: Tapped, images: Tensor, tokens: Tensor) -> TowerOutputs:
        outputs: TowerOutputs = self.prompts(model, images, tokens)
        return outputs

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        assert teacher is not None  # the plan gives this stage the un-prompted teacher
        plain = teacher.towers
        return {
            "image": student.image,
            "text": student.text,
            "plain_image": plain.image,
            "plain_text": plain.text,
            "logit_scale": plain.logit_scale.expand(len(plain.image)),
        }

    def combine(self, representations: Representations) -> Terms:
        options, r = self.surroundings.options, representations
        scale = r["logit_scale"].mean()
        task = info_nce(r["image"], r["text"], scale)
        image, text = ((r[name] - r[f"plain_{name}"]).abs().mean() for name in ("image", "text"))
        prompted, plain = similarity(r["image"], r["text"]), similarity(r["plain_image"], r["plain_text"])
        kls = [row_kl(scale * before, scale * after) for before, after in zip(plain, prompted, strict=True)]
        logits = torch.stack(kls).mean() / prompted[0].shape[1]
        total = task + options["image_weight"] * image + options["text_weight"] * text + options["logits_weight"] * logits
        parts = {"task": task, "image": image, "text": text, "logits": logits}
        return Terms(total, {name: value.detach() for name, value in parts.items()})
