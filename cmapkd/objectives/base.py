"""What an objective is. The loop knows nothing of distillation: it asks an objective for representations and for a loss.

An objective works in two steps, so that a loss over the global batch can be computed however that batch is cut into
ranks and micro-batches:

- ``represent``: what the loss needs of each sample, batch-first, from the outputs of student and teacher;
- ``combine``: the loss, from the representations of this rank's whole share of the batch.

With one micro-batch the loss is ``combine(represent(...))``; with several, the loop backpropagates through ``combine``
once and through ``represent`` micro-batch by micro-batch (Gao et al. 2021, "GradCache"), which is exact.
Modules that belong to a loss are members of the objective, so they are trained, averaged over ranks and saved with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from cmapkd.config.schedules import StageConfig
from cmapkd.models.pyramid import PyramidOutputs
from cmapkd.models.towers import Tapped, TapShapes, TowerOutputs

if TYPE_CHECKING:
    from cmapkd.training.stages import Teacher

Representations = dict[str, Tensor]


@dataclass
class Terms:
    """A loss and what it consists of; ``parts`` are logged at every step and carry no gradient."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TeacherOutputs:
    """What the frozen teacher says of a batch, without gradient; ``pyramid`` only where the objective uses one."""

    towers: TowerOutputs
    pyramid: PyramidOutputs | None = None


@dataclass(frozen=True)
class Surroundings:
    """What an objective is built for: the stage, the models' shapes, the pyramid's sizes, its own options."""

    stage: StageConfig
    options: Mapping[str, Any]
    student: TapShapes
    teacher: TapShapes | None
    pyramid: Mapping[str, Any] | None


Chunks = Sequence[tuple[Tensor, Tensor]]  # micro-batches: images (b, 3, H, W) and tokens (b, N)
Teach = Callable[[int], TeacherOutputs | None]  # what the teacher says of one, by its number


class Texts(Protocol):
    """Texts of the training data as tokens, for an objective that computes something from them before its first step."""

    def captions(self, count: int) -> Tensor:
        """At most ``count`` distinct captions, (n, N); which ones depends on the stage's seed alone."""
        ...

    def classes(self) -> list[Tensor]:
        """For every class that the data sets name, the name in all templates, (templates, N)."""
        ...


class Objective(nn.Module, ABC):
    """Base of every objective; see the module header."""

    needs_taps: bool = False  # whether the models must return the outputs of their blocks
    needs_patches: bool = False  # whether they must return their patches in the space of the embeddings, too
    needs_teacher: bool = True  # whether a teacher, where the method has one, must be asked in this stage
    needs_text: bool = True  # whether the models must encode the captions of the batch
    grid: int | None = None  # cells along an axis that the pyramids must keep for late interaction
    recomputes: bool = True  # whether a block's forward pass may be repeated outside of the model's (activation checkpointing)
    teacher_side: ClassVar[bool] = False  # its "student" is the teacher itself, frozen: a stage that writes no model

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__()
        self.surroundings = surroundings

    def start(self, teacher: Teacher, texts: Texts) -> None:
        """Called on every rank once all weights are loaded, before the first step of a stage, resumed or not."""

    def encode(self, model: Tapped, images: Tensor, tokens: Tensor) -> TowerOutputs:
        """What the trained model says of ``images`` (b, 3, H, W) and ``tokens`` (b, N)."""
        return model(images, tokens if self.needs_text else None, taps=self.needs_taps, patches=self.needs_patches)

    @abstractmethod
    def represent(self, student: TowerOutputs, teacher: TeacherOutputs | None) -> Representations:
        """Per-sample tensors of this micro-batch, each (b, ...), float; those of the teacher without gradient."""

    def look_ahead(self, model: Tapped, chunks: Chunks, teach: Teach) -> list[Representations]:
        """More representations of each micro-batch, from what a step on part of the batch would do to the rest.

        Called before ``represent`` with all micro-batches of this rank; the result is added to what that returns. It
        carries no gradient.
        """
        return [{} for _ in chunks]

    @abstractmethod
    def combine(self, representations: Representations) -> Terms:
        """The loss over this rank's rows, batch-wise terms against the global batch."""

    def group_of(self, parameter: str) -> str:
        """The group (of `trains` and `group_lr` in a stage) that a parameter of this objective belongs to.

        ``unused`` names those that this stage does not compute with: they are frozen. Without a gradient they would still
        decay, as the engine gives every trained parameter one.
        """
        return "heads"

    def model_group_of(self, parameter: str) -> str:
        """The same for a parameter of the trained model, by its name in open_clip: ``student``, ``projections``, ``unused``."""
        return "student"

    def logit_scales(self) -> tuple[nn.Parameter, ...]:
        """Scales of this objective's own, as logarithms; like the model's, they are clamped to ln 100 after every step."""
        return ()

    def inference(self, student: Tapped, teacher: Teacher | None) -> nn.Module:
        """What the distilled model is used as: open_clip's ``encode_image``, ``encode_text`` and ``visual``.

        Its parameters are those that inference needs, no others. The teacher is there only for a method that says so by
        ``deploys_teacher`` in its configuration.
        """
        return student.model


def embeddings(student: TowerOutputs) -> Representations:
    """Representations that every method with a task loss needs. The scale is repeated so that it is batch-first too."""
    return {"image": student.image, "text": student.text, "logit_scale": student.logit_scale.expand(len(student.image))}


def both_embeddings(student: TowerOutputs, teacher: TeacherOutputs) -> Representations:
    """Representations that every method needs which compares logits with the teacher's."""
    towers = teacher.towers
    return {
        **embeddings(student),
        "teacher_image": towers.image,
        "teacher_text": towers.text,
        "teacher_logit_scale": towers.logit_scale.expand(len(towers.image)),
    }
