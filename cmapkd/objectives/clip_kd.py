"""CLIP-KD: an empirical study of CLIP model distillation (Yang et al., CVPR 2024), its unified method.

    L = L_task + 1 CRD + 1 ICL + 2000 FD  (+ GD + AFD, options that the paper's final method leaves out)

    v' = norm(W_v v), t' = norm(W_t t): the student's embeddings in the teacher's space
    FD  = MSE(v', V) + MSE(t', T)                                      features
    CRD = 1/2 [KL(sm Z* || sm Z) + KL(sm Z*^T || sm Z^T)]              relations; each model's own scale
    ICL = 1/2 [CE(c v' T^T) + CE(c t' V^T)]                            student rows against teacher columns; c learned
    GD  = MSE of the contrastive gradients of (v', t') and (V, T)      `terms/gradients.py`
    AFD = InfoNCE(norm(F_v [v; V]), norm(F_t [t; T]))                  embeddings fused by a linear layer; scale learned

Written from the paper's formulas. Adapted: the projections W and F and the learned scales are members of the objective,
so all ranks start from the same weights, their gradients are averaged, and checkpoints hold them; the learned scales are
clamped to 100 like CLIP's own; W is there for equal embedding sizes too. All of it is dropped at inference.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd.models.towers import TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, Surroundings, TeacherOutputs, Terms, both_embeddings
from cmapkd.objectives.terms.contrastive import diagonal_cross_entropy, distil_logits, info_nce, row_kl
from cmapkd.objectives.terms.gradients import gradient_distillation

INITIAL_SCALE = math.log(1 / 0.07)  # as CLIP's own


@register("clip_kd")
class CLIPKD(Objective):
    """Task loss and up to five distillation terms; a weight of 0 leaves a term and its modules out."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        assert surroundings.teacher is not None
        ours, theirs = surroundings.student.embed_dim, surroundings.teacher.embed_dim
        names = ("crd", "icl", "fd", "gd", "afd")
        self.weights = {name: float(surroundings.options[f"{name}_weight"]) for name in names}
        self.project: nn.ModuleDict | None = None
        self.fuse: nn.ModuleDict | None = None
        self.cross_scale: nn.Parameter | None = None
        self.fusion_scale: nn.Parameter | None = None
        if self.weights["icl"] or self.weights["fd"] or self.weights["gd"]:
            self.project = nn.ModuleDict({name: nn.Linear(ours, theirs) for name in ("image", "text")})
        if self.weights["icl"]:
            self.cross_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        if self.weights["afd"]:
            self.fuse = nn.ModuleDict({name: nn.Linear(ours + theirs, ours) for name in ("image", "text")})
            self.fusion_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))

    def logit_scales(self) -> tuple[nn.Parameter, ...]:
        return tuple(scale for scale in (self.cross_scale, self.fusion_scale) if scale is not None)

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        assert teacher is not None  # the plan gives every method but scratch a teacher
        representations = both_embeddings(student, teacher)
        for name in ("image", "text"):
            ours, theirs = getattr(student, name), getattr(teacher.towers, name)
            if self.project is not None:
                representations[f"projected_{name}"] = _unit(self.project[name](ours))  # (b, E')
            if self.fuse is not None:
                representations[f"fused_{name}"] = _unit(self.fuse[name](torch.cat([ours, theirs], dim=-1)))  # (b, E)
        return representations

    def combine(self, representations: Representations) -> Terms:
        r = representations
        scale, teacher_scale = r["logit_scale"].mean(), r["teacher_logit_scale"].mean()
        student, teacher = (r["image"], r["text"]), (r["teacher_image"], r["teacher_text"])
        parts = {"task": info_nce(*student, scale)}
        if self.weights["crd"]:
            parts["crd"] = distil_logits(row_kl, student, teacher, scale, teacher_scale)
        if self.project is not None:
            image, text = r["projected_image"], r["projected_text"]
            if self.cross_scale is not None:
                cross = self.cross_scale.float().exp()
                parts["icl"] = (
                    diagonal_cross_entropy(image, teacher[1], cross) + diagonal_cross_entropy(text, teacher[0], cross)
                ) / 2
            if self.weights["fd"]:
                parts["fd"] = F.mse_loss(image, teacher[0]) + F.mse_loss(text, teacher[1])
            if self.weights["gd"]:
                parts["gd"] = gradient_distillation((image, text), teacher, scale, teacher_scale)
        if self.fusion_scale is not None:
            parts["afd"] = info_nce(r["fused_image"], r["fused_text"], self.fusion_scale.float().exp())
        total = parts["task"] + sum(self.weights[name] * value for name, value in parts.items() if name != "task")
        return Terms(total, {name: value.detach() for name, value in parts.items()})


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
