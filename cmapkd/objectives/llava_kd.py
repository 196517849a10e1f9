"""LLaVA-KD: a framework of distilling multimodal large language models (Cai et al., ICCV 2025), re-interpreted.

    stages `dpt`, `dft`:  L = L_task + w_a MDist_answer + w_v MDist_visual + w_r RDist
    stage `sft`:          L = L_task

    MDist_answer = 1/2 [KL(sm Z* || sm Z) + KL(sm Z*^T || sm Z^T)]                each model's own scale
    MDist_visual = mean over patches of KL(sm(S P t'^T) || sm(s p t^T))           patches' logits over all captions
    RDist        = 1 - cos(vec(Z_S Z_S^T), vec(Z_T Z_T^T))                        Z: unit vectors of an image's patches

The published method distils a language model that reads an image: KL on the tokens of the answer and on the positions of
the image, and the similarities among the latter. A dual encoder has neither, so this is a re-interpretation, to be named
so wherever it is reported: the answer is the matching caption (image), and what an image position predicts is which
caption goes with the patch. A patch is the last block's token through the tower's own final norm and projection; the
teacher's grid is resized to the student's by area. The stages keep their meaning: DPT trains what connects frozen
parts (there the projector to the language model, here the projections to the embeddings, and the logit scale), SFT all
of the student on the task, DFT all of it with every term at a tenth of the rate.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cmapkd.models.towers import TowerOutputs, is_projection
from cmapkd.objectives import register
from cmapkd.objectives.base import (
    Objective,
    Representations,
    Surroundings,
    TeacherOutputs,
    Terms,
    both_embeddings,
    embeddings,
)
from cmapkd.objectives.terms.contrastive import distil_logits, info_nce, row_kl
from cmapkd.objectives.terms.patches import patch_relation
from cmapkd.training.distributed import gather


@register("llava_kd")
class LLaVAKD(Objective):
    """Task loss alone in the stage `sft`; with multimodal and relation distillation in every other."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self.distils = surroundings.stage.name != "sft"
        self.needs_taps = self.needs_patches = self.needs_teacher = self.distils

    def model_group_of(self, parameter: str) -> str:
        return "projections" if self.surroundings.stage.name == "dpt" and is_projection(parameter) else "student"

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        if not self.distils:
            return embeddings(student)
        assert teacher is not None and student.patches is not None and teacher.towers.patches is not None
        grid = student.patches.shape[-2:]
        ours, theirs = _vectors(student.patches, grid), _vectors(teacher.towers.patches, grid)  # (b, P, E), (b, P, E')
        return {
            **both_embeddings(student, teacher),
            "patches": ours,
            "teacher_patches": theirs,
            "patch_relation": patch_relation(ours, theirs),  # (b,)
        }

    def combine(self, representations: Representations) -> Terms:
        r, options = representations, self.surroundings.options
        scale = r["logit_scale"].mean()
        student = r["image"], r["text"]
        task = info_nce(*student, scale)
        if not self.distils:
            return Terms(task, {"task": task.detach()})
        teacher_scale = r["teacher_logit_scale"].mean()
        parts = {
            "task": task,
            "answer": distil_logits(row_kl, student, (r["teacher_image"], r["teacher_text"]), scale, teacher_scale),
            "visual": row_kl(
                teacher_scale * r["teacher_patches"] @ gather(r["teacher_text"]).T,  # (b, P, B)
                scale * r["patches"] @ gather(r["text"]).T,
            ).mean(),
            "relation": r["patch_relation"].mean(),
        }
        total = task + sum(options[f"{name}_weight"] * parts[name] for name in ("answer", "visual", "relation"))
        return Terms(total, {name: value.detach() for name, value in parts.items()})


def _vectors(patches: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Unit vectors of the patches resized to ``grid``. (b, E, h, w) -> (b, P, E)"""
    patches = patches.float()
    if patches.shape[-2:] != grid:
        patches = F.interpolate(patches, size=grid, mode="area")
    return F.normalize(patches.flatten(2).mT, dim=-1)
