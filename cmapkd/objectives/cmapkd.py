"""CMAPKD: adaptive pyramid-based cross-modal knowledge distillation, the method of this project.

    L = 1.0 L_intra + 0.5 L_align + 0.3 L_relation + 0.1 L_task  (+ 0.1 (-H(w_v) - H(w_l)) where ALSN weights the levels)
    L_align = L_single + beta L_pyramid,  L_relation = L_sample + gamma L_layer

Student and teacher each have a pyramid (`cmapkd/models/pyramid.py`); the teacher's is fitted once and frozen. The active
levels and the policy that weights them come from the stage. All of this is dropped at inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd.models.alsn import ALSN, entropy
from cmapkd.models.pyramid import LANGUAGE, VISUAL, Pyramid, PyramidOutputs
from cmapkd.models.towers import TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, Surroundings, TeacherOutputs, Terms, embeddings
from cmapkd.objectives.terms import alignment, intra, relation
from cmapkd.objectives.terms.contrastive import info_nce

_LEVELS = ("pooled", "language", "visual_as_language", "language_as_visual")


@register("cmapkd")
class CMAPKD(Objective):
    """The four loss families over the active levels of both pyramids."""

    needs_taps = True

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        assert surroundings.pyramid is not None
        options, stage = surroundings.options, surroundings.stage
        self.visual_levels, self.language_levels = stage.visual_levels, stage.language_levels
        self.pyramid = Pyramid(surroundings.student, **surroundings.pyramid)
        self.compatibility = nn.Parameter(torch.zeros(len(VISUAL), len(LANGUAGE))) if options["alpha"] == "learned" else None
        self.alsn: ALSN | None = None
        if stage.policy == "alsn":
            network = options["alsn"]
            self.alsn = ALSN(
                self.pyramid.channels, self.pyramid.text_channels, network["hidden"], network["dropout"], network["temperature"]
            )

    def group_of(self, parameter: str) -> str:
        if parameter.startswith("alsn."):
            return "alsn"
        used = Pyramid.uses(parameter.removeprefix("pyramid."), self.visual_levels, self.language_levels)
        return "pyramid" if used else "unused"

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        assert teacher is not None and teacher.pyramid is not None  # the plan gives this method both
        ours = self.pyramid(student, self.visual_levels, self.language_levels)
        theirs = teacher.pyramid
        visual_weights, language_weights = self.level_weights(ours)
        return {
            **embeddings(student),
            **{name: getattr(ours, name) for name in _LEVELS},
            **{f"teacher_{name}": getattr(theirs, name) for name in _LEVELS},
            "visual_distances": intra.map_distances(ours.maps, theirs.maps),  # (b, visual levels)
            "language_distances": intra.vector_distances(ours.language, theirs.language),  # (b, language levels)
            "visual_weights": visual_weights,
            "language_weights": language_weights,
        }

    def level_weights(self, levels: PyramidOutputs) -> tuple[Tensor, Tensor]:
        """Weights of the active levels by the stage's policy, (b, visual levels) and (b, language levels)."""
        if self.alsn is not None:
            return self.alsn(levels.pooled[:, -1], levels.language[:, -1], self.visual_levels, self.language_levels)
        size = len(levels.pooled)
        return (
            self._fixed(VISUAL, self.visual_levels, levels.pooled).expand(size, -1),
            self._fixed(LANGUAGE, self.language_levels, levels.language).expand(size, -1),
        )

    def _fixed(self, names: tuple[str, ...], active: tuple[str, ...], like: Tensor) -> Tensor:
        if self.surroundings.stage.policy == "manual":
            manual = self.surroundings.options["manual_weights"]
            weights = like.new_tensor([manual[names.index(level)] for level in active])
        else:
            weights = like.new_ones(len(active))
        return (weights / weights.sum())[None]  # (1, levels), renormalised over the active ones

    def alpha(self, like: Tensor) -> Tensor:
        """Weights of the active level pairs in the pyramid alignment, (visual levels, language levels)."""
        if self.compatibility is None:
            return alignment.fixed_alpha(self.visual_levels, self.language_levels, like)
        rows = [VISUAL.index(level) for level in self.visual_levels]
        columns = [LANGUAGE.index(level) for level in self.language_levels]
        active = self.compatibility[rows][:, columns].float()
        return F.softmax(active.flatten(), dim=0).view_as(active)

    def combine(self, representations: Representations) -> Terms:
        options, r = self.surroundings.options, representations
        weights = options["weights"]
        ours, theirs = _levels(r, ""), _levels(r, "teacher_")

        intra_loss = intra.weighted(r["visual_distances"], r["visual_weights"])
        intra_loss = intra_loss + intra.weighted(r["language_distances"], r["language_weights"])

        single = info_nce(
            F.normalize(r["visual_as_language"][:, -1], dim=-1),
            F.normalize(r["language"][:, -1], dim=-1),
            1 / options["temperature"],
        )
        pyramid = alignment.pyramid_alignment(ours, theirs, self.alpha(r["pooled"]), options["temperature_kd"])
        align = single + options["beta"] * pyramid

        top = [torch.cat([r[f"{prefix}pooled"][:, -1], r[f"{prefix}language"][:, -1]], dim=-1) for prefix in ("", "teacher_")]
        samples = relation.sample_relation(*top)
        layers = (
            relation.layer_relation(r["pooled"], r["teacher_pooled"])
            + relation.layer_relation(r["language"], r["teacher_language"])
        ) / 2
        relation_loss = samples + options["gamma"] * layers

        task = info_nce(r["image"], r["text"], r["logit_scale"].mean())
        total = (
            weights["intra"] * intra_loss
            + weights["align"] * align
            + weights["relation"] * relation_loss
            + weights["task"] * task
        )
        parts = {
            "intra": intra_loss,
            "align_single": single,
            "align_pyramid": pyramid,
            "relation_sample": samples,
            "relation_layer": layers,
            "task": task,
        }
        if self.alsn is not None:
            spread = (entropy(r["visual_weights"]) + entropy(r["language_weights"])).mean()
            total = total - options["alsn"]["entropy_weight"] * spread
            parts |= self._weight_report(r)
        return Terms(total, {name: value.detach() for name, value in parts.items()})

    def _weight_report(self, representations: Representations) -> dict[str, Tensor]:
        """Mean entropy and mean weight of each level, logged at every step that uses ALSN."""
        report = {}
        for kind, names in (("visual", self.visual_levels), ("language", self.language_levels)):
            weights = representations[f"{kind}_weights"]
            report[f"entropy_{kind}"] = entropy(weights).mean()
            report |= {f"weight_{level}": weights[:, index].mean() for index, level in enumerate(names)}
        return report


def _levels(r: Representations, prefix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        r[f"{prefix}pooled"],
        r[f"{prefix}language"],
        r[f"{prefix}visual_as_language"],
        r[f"{prefix}language_as_visual"],
    )
