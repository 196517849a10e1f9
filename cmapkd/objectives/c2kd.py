"""C2KD: bridging the modality gap for cross-modal knowledge distillation (Huo et al., CVPR 2024).

    L = CE(S) + w_p [KL(T || T') + KL(S || S') + KL(S' || S)] + w_s [O(s' <- t') + O(t' <- s')]
    O(a <- b) = 1/B sum_i 1[kendall(t'_i, s'_i) > 0] KL(sm(b_i) || sm(a_i)) over the non-target candidates

T is the teacher's row of logits for a sample in one modality, S the student's in the other; T', S' are those of their
proxies (linear, norm, LeakyReLU, linear) on the same embeddings. The first argument of each KL is detached. A sample is
distilled across modalities only while both proxies rank the candidates alike (on-the-fly selection).

Adapted to retrieval: the classes are the candidates of the global batch and the target is the sample's own partner; the
teacher's text row guides the student's image row and the mirror of it, both averaged, so CE(S) is L_task. The teacher's
backbone is frozen as for every method here: of its side only the proxy is trained, and CE(T) and KL(T' || T), which
would move the backbone alone, are left out. Proxies return embeddings, compared with the candidates of their own model,
and use layer instead of batch norm, so that a sample's representation does not depend on its batch. Kendall is taken
over the teacher proxy's best candidates. Proxies are dropped at inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd.models.towers import TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, Surroundings, TeacherOutputs, Terms, both_embeddings
from cmapkd.objectives.terms.contrastive import info_nce, row_kl
from cmapkd.objectives.terms.ranking import kendall, selected_kl
from cmapkd.training.distributed import gather

DIRECTIONS = (("text", "image"), ("image", "text"))  # the teacher's modality, the student's


@register("c2kd")
class C2KD(Objective):
    """Task loss, and distillation through four proxies: one of each model and modality."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        assert surroundings.teacher is not None
        ours, theirs = surroundings.student.embed_dim, surroundings.teacher.embed_dim
        self.student_proxy = nn.ModuleDict({name: _proxy(ours) for name in ("image", "text")})
        self.teacher_proxy = nn.ModuleDict({name: _proxy(theirs) for name in ("image", "text")})

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        assert teacher is not None  # the plan gives every method but scratch a teacher
        representations = both_embeddings(student, teacher)
        for side, proxies, towers in (
            ("student", self.student_proxy, student),
            ("teacher", self.teacher_proxy, teacher.towers),
        ):
            for name, proxy in proxies.items():
                representations[f"proxy_{side}_{name}"] = F.normalize(proxy(getattr(towers, name)).float(), dim=-1)  # (b, E)
        return representations

    def combine(self, representations: Representations) -> Terms:
        options, r = self.surroundings.options, representations
        scale, teacher_scale = r["logit_scale"].mean(), r["teacher_logit_scale"].mean()
        task = info_nce(r["image"], r["text"], scale)
        both: dict[str, list[Tensor]] = {}
        for theirs, ours in DIRECTIONS:  # `theirs` is also the modality of the student's candidates, and the other way round
            candidates, teacher_candidates = gather(r[theirs]), gather(r[f"teacher_{ours}"])
            parts = self._one_direction(
                teacher_scale * r[f"teacher_{theirs}"] @ teacher_candidates.T,
                teacher_scale * r[f"proxy_teacher_{theirs}"] @ teacher_candidates.T,
                scale * r[ours] @ candidates.T,
                scale * r[f"proxy_student_{ours}"] @ candidates.T,
            )
            for name, value in parts.items():
                both.setdefault(name, []).append(value)
        means = {name: torch.stack(values).mean() for name, values in both.items()}
        square = options["temperature"] ** 2
        total = (
            task
            + square * options["proxy_weight"] * (means["teacher_proxy"] + means["student_proxy"])
            + square * options["selection_weight"] * (means["to_student"] + means["to_teacher"])
        )
        return Terms(total, {name: value.detach() for name, value in {"task": task, **means}.items()})

    def _one_direction(
        self, teacher: Tensor, teacher_proxy: Tensor, student: Tensor, student_proxy: Tensor
    ) -> dict[str, Tensor]:
        """Terms from the logits of local rows, (b, B) each."""
        chosen = (kendall(teacher_proxy, student_proxy, self.surroundings.options["candidates"]) > 0).float()  # (b,)
        logits = (teacher, teacher_proxy, student, student_proxy)
        teacher, teacher_proxy, student, student_proxy = (of / self.surroundings.options["temperature"] for of in logits)
        return {
            "teacher_proxy": row_kl(teacher.detach(), teacher_proxy),
            "student_proxy": row_kl(student.detach(), student_proxy) + row_kl(student_proxy.detach(), student),
            "to_student": selected_kl(teacher_proxy, student_proxy, chosen),
            "to_teacher": selected_kl(student_proxy, teacher_proxy, chosen),
            "selected": chosen.mean(),
        }


def _proxy(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.LeakyReLU(), nn.Linear(width, width))
