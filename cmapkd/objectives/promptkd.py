"""PromptKD: unsupervised prompt distillation (Li et al., CVPR 2024), in the dual-encoder setting.

    L = (lambda / C) tau^2 KL(sm(S V W^T / tau) || sm(S p W^T / tau)),  p = norm(projector(student image embedding))

KL is the mean over the batch; W (C, D) are frozen text embeddings of the prompted teacher, shared by both models; V are its
image embeddings and S its frozen logit scale, used on both sides (in the paper both are 100). The projector (1x1, batch
norm, ReLU, 1x1) leads into the teacher's space. No captions of the batch are used, neither by the student nor by the teacher.

Adapted:
- Retrieval has no classes. W holds `bank` distinct training captions, drawn by the seed, and the class prompts of the
  distillation data (mean over templates; a method that knows class names has an advantage in zero-shot classification on
  them: `class_prompts: false` takes it away). A fixed bank, not the captions of each batch: that is the paper's shared W,
  it makes the teacher's text tower run once instead of at every step, and it has more entries than a batch.
- W is computed at the start of a stage, after the prompted teacher's weights are loaded, and again when a run is resumed.
- A student from random weights has nothing that prompts could steer, so its image tower is trained; student prompts are an
  option. The paper's variant is `student_prompts: 4` with the schedule `prompts` on a pretrained student.
- AdamW like every method here, where the paper has SGD with 5e-3; the batch norm's statistics are of the global batch.
- The student's text tower is not used: inference needs the teacher's, with its prompts, and costs are counted so.

What it does not do: a row's softmax is the same when all its logits are shifted, so a picture's offset over all texts is
free. Image to text is taught directly, text to image only as far as W leaves the embedding no other choice.

Stage 1, which learns the teacher's prompts, is `cmapkd/objectives/teacher_prompts.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd.models.projector import FullPrecisionBuffers, Projector
from cmapkd.models.prompts import Prompts
from cmapkd.models.towers import Tapped, TowerOutputs
from cmapkd.objectives import register
from cmapkd.objectives.base import Objective, Representations, Surroundings, TeacherOutputs, Terms, Texts
from cmapkd.objectives.terms.contrastive import row_kl

if TYPE_CHECKING:
    from cmapkd.training.stages import Teacher

_CHUNK = 256  # captions encoded at a time


@register("promptkd")
class PromptKD(FullPrecisionBuffers, Objective):
    """The KL over the bank; the batch's captions are not read."""

    needs_text = False
    bank: Tensor  # (C, D), empty before `start`

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        assert surroundings.teacher is not None  # the plan gives this method a teacher
        options = surroundings.options
        self.prompts: Prompts | None = None
        if options["student_prompts"]:
            self.recomputes = False
            layers = options["student_prompt_layers"]
            self.prompts = Prompts(surroundings.student, options["student_prompts"], layers, text=False)
        self.projector = Projector(surroundings.student.embed_dim, surroundings.teacher.embed_dim)
        # Not stored: it follows from the teacher, the data and the seed.
        self.register_buffer("bank", torch.empty(0, surroundings.teacher.embed_dim), persistent=False)

    def model_group_of(self, parameter: str) -> str:
        return "student" if parameter.startswith("visual.") else "unused"

    def start(self, teacher: Teacher, texts: Texts) -> None:
        device = next(teacher.parameters()).device
        captions = texts.captions(self.surroundings.options["bank"])  # (n, N)
        entries = [teacher.encode_text(part.to(device)) for part in captions.split(_CHUNK)]
        for prompts in texts.classes() if self.surroundings.options["class_prompts"] else []:
            mean = teacher.encode_text(prompts.to(device)).mean(dim=0, keepdim=True)
            entries.append(F.normalize(mean, dim=-1))  # as in zero-shot classification
        self.bank = torch.cat(entries).float().to(self.bank.device)

    def encode(self, model: Tapped, images: Tensor, tokens: Tensor) -> TowerOutputs:
        """The student's image embeddings alone, not normalised: the projector comes first."""
        image = embed(model, self.prompts, images)
        return TowerOutputs(image, image.new_zeros(len(image), 0), model.model.logit_scale.exp())

    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        assert teacher is not None
        towers = teacher.towers
        return {
            "image": student.image,
            "teacher_image": towers.image,
            "teacher_logit_scale": towers.logit_scale.expand(len(towers.image)),
        }

    def combine(self, representations: Representations) -> Terms:
        assert len(self.bank)  # `start` comes before the first step
        options, r = self.surroundings.options, representations
        # Here and not in `represent`, whose rows may be a part of the batch: the batch norm needs them all.
        projected = F.normalize(self.projector(r["image"]), dim=-1)  # (b, D)
        scale = r["teacher_logit_scale"].mean() / options["temperature"]
        theirs, ours = (scale * rows @ self.bank.T for rows in (r["teacher_image"], projected))  # (b, C)
        distillation = options["temperature"] ** 2 * row_kl(theirs, ours)
        cosine = (projected * r["teacher_image"]).sum(dim=-1).mean()
        total = options["weight"] / len(self.bank) * distillation
        return Terms(total, {"distillation": distillation.detach(), "cosine": cosine.detach()})

    def inference(self, student: Tapped, teacher: Teacher | None) -> nn.Module:
        assert teacher is not None
        return ProjectedStudent(student, self.prompts, self.projector, teacher)


def embed(model: Tapped, prompts: Prompts | None, images: Tensor) -> Tensor:
    """Image embeddings (b, E) of the student, prompted if it has prompts, not normalised."""
    if prompts is not None:
        return prompts.encode_image(model, images, normalize=False)
    embeddings: Tensor = model.model.encode_image(images, normalize=False)
    return embeddings


class ProjectedStudent(nn.Module):
    """The student's image tower with prompts and projector beside the teacher's text tower, in open_clip's interface.

    It takes both models apart: neither is of use afterwards.
    """

    def __init__(self, student: Tapped, prompts: Prompts | None, projector: Projector, teacher: Teacher) -> None:
        super().__init__()
        self.visual = _ProjectedVisual(student, prompts, projector)
        self.teacher = teacher
        del teacher.model.model.visual
        if teacher.prompts is not None:
            teacher.prompts.vision = None

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """(b, 3, H, W) -> (b, D)"""
        features: Tensor = self.visual(images)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """(b, N) -> (b, D)"""
        del normalize  # the teacher's are normalised in any case
        return self.teacher.encode_text(tokens)


class _ProjectedVisual(nn.Module):
    def __init__(self, student: Tapped, prompts: Prompts | None, projector: Projector) -> None:
        super().__init__()
        self.tower, self.prompts, self.projector = student.model.visual, prompts, projector
        self.image_size = student.model.visual.image_size
        # In a tuple, so that the student's text tower is no part of this module; its image tower is, and moves with it.
        self._student = (student,)

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projector(embed(self._student[0], self.prompts, images))
        return projected
