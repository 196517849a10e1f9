"""CMAPKD: adaptive pyramid-based cross-modal knowledge distillation, the method of this project.

    L = 1.0 L_intra + 0.5 L_align + 0.3 L_relation + 0.1 L_task  (+ 0.1 (-H(w_v) - H(w_l)) where ALSN weights the levels)
    L_align = L_single + beta L_pyramid,  L_relation = L_sample + gamma L_layer

Three options go beyond the method as published; each is off by default:

- `similarity: late`: levels meet by late interaction of cells and tokens, in L_pyramid and, for tokens, in L_intra;
- `embedding`: the embedding used at inference is a further level, with terms of each family;
- `alsn.objective: task`: the weights follow what a step on each level's distance would do to the task loss (below).

**ALSN by look-ahead.** After a step on `sum_ki w_ki d_ki` the task loss of held-out pairs changes, to first order, by
`- lr sum_ki w_ki <g, grad d_ki>`, with g the gradient of that task loss in the weights of the student. So the gain of
level i for sample k is `<g, grad d_ki>`, one forward-mode derivative for all samples and levels at once. The held-out pairs
are every second one of the micro-batch, the gains are those of the others. ALSN maximises the weighted gains, scaled to
unit root mean square, and L_intra leaves it alone (a first-order look-ahead, as in Ren et al., ICML 2018).

Student and teacher each have a pyramid (`cmapkd/models/pyramid.py`); the teacher's is fitted once and frozen. The active
levels and the policy that weights them come from the stage. All of this is dropped at inference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmapkd.models.alsn import ALSN, entropy
from cmapkd.models.pyramid import LANGUAGE, VISUAL, Pyramid, PyramidOutputs, segments
from cmapkd.models.towers import Tapped, TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import (
    Chunks,
    Objective,
    Representations,
    Surroundings,
    Teach,
    TeacherOutputs,
    Terms,
    both_embeddings,
)
from cmapkd.objectives.terms import alignment, intra, relation
from cmapkd.objectives.terms.contrastive import diagonal_cross_entropy, distil_logits, info_nce, row_kl
from cmapkd.training import distributed

_VECTORS = ("pooled", "language", "visual_as_language", "language_as_visual")
_SETS = ("cells", "tokens", "token_mask")
_INITIAL_SCALE = math.log(1 / 0.07)  # as CLIP's own


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
        # A vector, so that weight decay, which is for matrices, leaves it alone: it would pull towards equal weights.
        self.compatibility = nn.Parameter(torch.zeros(len(VISUAL) * len(LANGUAGE))) if options["alpha"] == "learned" else None
        self.grid = options["cells"] if options["similarity"] == "late" else None
        self.project: nn.ModuleDict | None = None
        self.cross_scale: nn.Parameter | None = None
        # Without a teacher (when a distilled model is looked at) there is nothing to project to.
        if surroundings.teacher is not None and (options["embedding"]["intra"] or options["embedding"]["cross"]):
            sizes = surroundings.student.embed_dim, surroundings.teacher.embed_dim
            self.project = nn.ModuleDict({name: nn.Linear(*sizes) for name in ("image", "text")})
        if options["embedding"]["cross"]:
            self.cross_scale = nn.Parameter(torch.tensor(_INITIAL_SCALE))
        self.alsn: ALSN | None = None
        if stage.policy == "alsn":
            network = options["alsn"]
            self.alsn = ALSN(
                self.pyramid.channels, self.pyramid.text_channels, network["hidden"], network["dropout"], network["temperature"]
            )
        self.looks_ahead = self.alsn is not None and options["alsn"]["objective"] == "task"
        self.recomputes = not self.looks_ahead  # it runs the model with other weights than its own

    def group_of(self, parameter: str) -> str:
        if parameter.startswith("alsn."):
            return "alsn"
        if self.grid is not None and parameter.startswith("pyramid.language_to_visual."):
            return "unused"  # late interaction is in the space of language
        used = Pyramid.uses(parameter.removeprefix("pyramid."), self.visual_levels, self.language_levels)
        return "pyramid" if used else "unused"

    def logit_scales(self) -> tuple[nn.Parameter, ...]:
        return () if self.cross_scale is None else (self.cross_scale,)

    def levels(self, student: TowerOutputs) -> PyramidOutputs:
        """The student's active levels."""
        return self.pyramid(student, self.visual_levels, self.language_levels, self.grid)

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        assert teacher is not None and teacher.pyramid is not None  # the plan gives this method both
        ours, theirs = self.levels(student), teacher.pyramid
        visual_weights, language_weights = self.level_weights(ours)
        visual_distances, language_distances = self.distances(ours, theirs)
        names = _VECTORS if self.grid is None else (*_VECTORS, *_SETS)
        representations = {
            **both_embeddings(student, teacher),
            **{name: getattr(ours, name) for name in names},
            **{f"teacher_{name}": getattr(theirs, name) for name in names},
            "visual_distances": visual_distances,  # (b, visual levels)
            "language_distances": language_distances,  # (b, language levels)
            "visual_weights": visual_weights,
            "language_weights": language_weights,
        }
        if self.project is not None:
            for name, project in self.project.items():
                representations[f"projected_{name}"] = F.normalize(project(getattr(student, name)).float(), dim=-1)
        return representations

    def distances(self, ours: PyramidOutputs, theirs: PyramidOutputs) -> tuple[Tensor, Tensor]:
        """How far each active level of the student is from the teacher's, (b, visual levels) and (b, language levels)."""
        visual = intra.map_distances(ours.maps, theirs.maps)
        if ours.tokens is None or theirs.tokens is None or ours.token_mask is None:
            return visual, intra.vector_distances(ours.language, theirs.language)
        _, counts = segments(0, ours.tokens.shape[1], self.visual_levels, self.language_levels)
        return visual, intra.token_distances(ours.tokens, theirs.tokens, ours.token_mask, counts)

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
        active = self.compatibility.view(len(VISUAL), len(LANGUAGE))[rows][:, columns].float()
        return F.softmax(active.flatten(), dim=0).view_as(active)

    def similarities(self, r: Representations, prefix: str = "") -> tuple[Tensor, Tensor]:
        """Similarities of the active levels in both directions, (visual levels, language levels, b, B) each.

        Args:
            r: representations, or those of them that describe levels.
            prefix: ``teacher_`` for the teacher's.
        """
        if self.grid is None:
            return alignment.pooled_similarities(*(r[prefix + name] for name in _VECTORS))
        cells, tokens, mask = (r[prefix + name] for name in _SETS)
        counts = segments(cells.shape[1], tokens.shape[1], self.visual_levels, self.language_levels)
        return alignment.late_similarities(cells, tokens, mask > 0, *counts)

    def combine(self, representations: Representations) -> Terms:
        options, r = self.surroundings.options, representations
        weights = options["weights"]

        # Weights that follow the task must not also be pushed towards what is easy to match.
        visual, language = (r[f"{kind}_weights"] for kind in ("visual", "language"))
        shares = (visual.detach(), language.detach()) if self.looks_ahead else (visual, language)
        intra_loss = intra.weighted(r["visual_distances"], shares[0]) + intra.weighted(r["language_distances"], shares[1])

        single = info_nce(
            F.normalize(r["visual_as_language"][:, -1], dim=-1),
            F.normalize(r["language"][:, -1], dim=-1),
            1 / options["temperature"],
        )
        pyramid = alignment.pyramid_alignment(
            self.similarities(r), self.similarities(r, "teacher_"), self.alpha(r["pooled"]), options["temperature_kd"]
        )
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
        for name, term in self._embedding_terms(r).items():
            total = total + options["embedding"][name] * term
            parts[f"embedding_{name}"] = term
        if self.alsn is not None:
            spread = (entropy(visual) + entropy(language)).mean()
            total = total - options["alsn"]["entropy_weight"] * spread
            parts |= self._weight_report(r)
        if self.looks_ahead:
            gain, report = self._gain(r)
            total, parts = total - gain, parts | report
        return Terms(total, {name: value.detach() for name, value in parts.items()})

    def _embedding_terms(self, r: Representations) -> dict[str, Tensor]:
        """Terms of the final embedding as a further level, those whose weight is not 0."""
        wanted = {name for name, weight in self.surroundings.options["embedding"].items() if weight}
        student, teacher = (r["image"], r["text"]), (r["teacher_image"], r["teacher_text"])
        terms = {}
        if "intra" in wanted:
            distances = [2 - 2 * (r[f"projected_{name}"] * r[f"teacher_{name}"]).sum(dim=-1) for name in ("image", "text")]
            terms["intra"] = (distances[0] + distances[1]).mean()
        if "align" in wanted:
            scales = r["logit_scale"].mean(), r["teacher_logit_scale"].mean()
            terms["align"] = distil_logits(row_kl, student, teacher, *scales)
        if self.cross_scale is not None:
            scale = self.cross_scale.float().exp()
            to_text = diagonal_cross_entropy(r["projected_image"], r["teacher_text"], scale)
            terms["cross"] = (to_text + diagonal_cross_entropy(r["projected_text"], r["teacher_image"], scale)) / 2
        if "relation" in wanted:
            terms["relation"] = relation.sample_relation(torch.cat(student, dim=-1), torch.cat(teacher, dim=-1))
        return terms

    @torch.no_grad()
    def look_ahead(self, model: Tapped, chunks: Chunks, teach: Teach) -> list[Representations]:
        """The gain of every active level for every second sample; zero for the others, on which it is measured."""
        if not self.looks_ahead:
            return super().look_ahead(model, chunks, teach)
        count = sum(len(images) for images, _ in chunks)
        held = (torch.arange(count, device=chunks[0][0].device) % 2 == 1).split([len(images) for images, _ in chunks])
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        apart = [(images[rows], tokens[rows]) for (images, tokens), rows in zip(chunks, held, strict=True)]
        gradient = _task_gradient(model, parameters, [chunk for chunk in apart if len(chunk[0])]) if count > 1 else {}
        return [
            self._gains(model, parameters, gradient, chunk, teach(number), ~rows)
            for number, (chunk, rows) in enumerate(zip(chunks, held, strict=True))
        ]

    def _gains(
        self,
        model: Tapped,
        parameters: dict[str, Tensor],
        gradient: dict[str, Tensor],
        chunk: tuple[Tensor, Tensor],
        teacher: TeacherOutputs | None,
        rows: Tensor,
    ) -> Representations:
        """Derivatives of the distances of ``rows`` (b,) along ``gradient``; none without a gradient."""
        assert teacher is not None and teacher.pyramid is not None
        images, tokens = chunk
        visual = images.new_zeros(len(images), len(self.visual_levels))
        language = images.new_zeros(len(images), len(self.language_levels))
        if gradient and bool(rows.any()):
            with forward_ad.dual_level(), _plain_attention():
                moved = {name: forward_ad.make_dual(value, gradient[name]) for name, value in parameters.items()}
                outputs = functional_call(model, moved, (images[rows], tokens[rows]), {"taps": True})
                both = self.distances(self.levels(outputs), teacher.pyramid.rows(rows))
                gains = [forward_ad.unpack_dual(distance).tangent for distance in both]
            visual[rows], language[rows] = gains[0].to(visual.dtype), gains[1].to(language.dtype)
        measured = rows.to(visual.dtype) if gradient else torch.zeros_like(visual[:, 0])
        return {"visual_gains": visual, "language_gains": language, "gains_measured": measured}

    def _gain(self, r: Representations) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted gains in units of their root mean square, and the mean of each level for the log."""
        measured = r["gains_measured"]
        total = measured.new_zeros(())
        report: dict[str, Tensor] = {}
        for kind, names in (("visual", self.visual_levels), ("language", self.language_levels)):
            gains = r[f"{kind}_gains"]
            size = distributed.mean_over_ranks((gains.square() * measured[:, None]).mean()) / measured.mean().clamp(min=1e-6)
            gains = gains / size.sqrt().clamp(min=torch.finfo(gains.dtype).tiny)
            total = total + ((r[f"{kind}_weights"] * gains).sum(dim=1) * measured).sum() / measured.sum().clamp(min=1)
            means = (gains * measured[:, None]).sum(dim=0) / measured.sum().clamp(min=1)
            report |= {f"gain_{level}": means[index] for index, level in enumerate(names)}
        return total, report

    def _weight_report(self, representations: Representations) -> dict[str, Tensor]:
        """Mean entropy and mean weight of each level, logged at every step that uses ALSN."""
        report = {}
        for kind, names in (("visual", self.visual_levels), ("language", self.language_levels)):
            weights = representations[f"{kind}_weights"]
            report[f"entropy_{kind}"] = entropy(weights).mean()
            report |= {f"weight_{level}": weights[:, index].mean() for index, level in enumerate(names)}
        return report


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as products and a softmax: its fused forms and inference's fast path have no forward-mode derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _task_gradient(model: Tapped, parameters: dict[str, Tensor], chunks: Chunks) -> dict[str, Tensor]:
    """Gradient of the task loss of these pairs, taken together, in the model's weights; averaged over ranks.

    Over several micro-batches it is exact: first to the embeddings of all, from there through the model one by one.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    whole = [functional_call(model, parameters, chunk, {"taps": False}) for chunk in chunks] if len(chunks) > 1 else []
    with torch.enable_grad():
        if not whole:
            outputs = functional_call(model, leaves, chunks[0], {"taps": False})
            loss = info_nce(outputs.image.float(), outputs.text.float(), outputs.logit_scale.float())
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            return _averaged(parameters, gradients)
        image, text = (
            torch.cat([getattr(part, name).float() for part in whole]).requires_grad_() for name in ("image", "text")
        )
        scale = whole[0].logit_scale.float().requires_grad_()
        of_image, of_text, of_scale = torch.autograd.grad(info_nce(image, text, scale), (image, text, scale))
        total = leaves["model.logit_scale"].exp().sum() * of_scale.sum()
        start = 0
        for chunk in chunks:
            outputs, rows = functional_call(model, leaves, chunk, {"taps": False}), slice(start, start + len(chunk[0]))
            total = total + (outputs.image * of_image[rows]).sum() + (outputs.text * of_text[rows]).sum()
            start = rows.stop
        return _averaged(parameters, torch.autograd.grad(total, list(leaves.values()), allow_unused=True))


def _averaged(parameters: dict[str, Tensor], gradients: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    """Gradients by name, averaged over ranks; zero for what has none."""
    result = {}
    for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
        result[name] = torch.zeros_like(value) if gradient is None else gradient.contiguous()
        if distributed.world_size() > 1:
            dist.all_reduce(result[name])
            result[name] /= distributed.world_size()
    return result
