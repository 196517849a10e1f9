"""The method as an experiment configures it: models, tapped blocks, sizes of all levels, options, stages. Nothing is measured.

The sizes follow `cmapkd/models/pyramid.py` and `cmapkd/models/towers.py`, which need torch; here they are worked out from
the models' configurations, without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmapkd.config.methods import CMAPKDConfig
from cmapkd.config.schedules import StageConfig
from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.models import configs
from cmapkd.paper.context import PaperStage
from cmapkd.paths import portable_text
from cmapkd.plan import model_settings

VISUAL = ("P2", "P3", "P4", "P5")
LANGUAGE = ("L1", "L2", "L3", "L4")


@dataclass(frozen=True)
class PaperModel:
    """A teacher or student: what its configuration says of its two towers. None: it does not say."""

    name: str
    weights: str  # where its weights come from: `random`, a pretrained tag or a path
    image_size: tuple[int, int]  # [px]
    patch_size: tuple[int, int]  # [px]
    image_layers: int | None
    image_width: int | None
    text_layers: int | None
    text_width: int | None
    context_length: int  # [tokens]
    embed_dim: int

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along the height and the width of a picture."""
        (height, width), (rows, columns) = self.image_size, self.patch_size
        return height // rows, width // columns

    @property
    def level_grids(self) -> dict[str, tuple[int, int]]:
        """Cells of P2 to P5: four times, twice, once and half the grid, half of an odd one rounded up."""
        height, width = self.grid
        scaled = {level: (height * scale, width * scale) for level, scale in (("P2", 4), ("P3", 2), ("P4", 1))}
        return {**scaled, "P5": (-(-height // 2), -(-width // 2))}

    @property
    def image_taps(self) -> tuple[int, ...] | None:
        """Blocks, counted from 1, whose output becomes P2 to P5."""
        return None if self.image_layers is None else quarters(self.image_layers)

    @property
    def text_taps(self) -> tuple[int, ...] | None:
        """Blocks, counted from 1, whose output becomes L1 to L4."""
        return None if self.text_layers is None else quarters(self.text_layers)


@dataclass(frozen=True)
class PaperDesign:
    """The full method of an experiment and the models it distils."""

    run: str
    teacher: PaperModel
    student: PaperModel
    pyramid: Mapping[str, Any]  # the configuration's key `pyramid`
    method: Mapping[str, Any]  # options of the run, tuned values worked in; names as in the configuration
    teacher_pyramid: Mapping[str, Any]  # how the teacher's pyramid is fitted
    stages: tuple[PaperStage, ...]  # as the run goes through them: its factor on the rates and its levels worked in
    decay: tuple[float, float, float, float]  # AdamW: weight decay, both momenta, epsilon

    @property
    def uses_alsn(self) -> bool:
        """Whether any stage lets ALSN weight the levels."""
        return any(stage.policy == "alsn" for stage in self.stages)


def quarters(depth: int) -> tuple[int, int, int, int]:
    """Blocks after which a tower is tapped, counted from 1: d/4, d/2, 3d/4, d (3, 6, 9, 12 of 12)."""
    first, second, third = (round(depth * quarter / 4) for quarter in (1, 2, 3))
    return first, second, third, depth


def paper_design(experiment: ExperimentConfig) -> PaperDesign | None:
    """The design of the experiment's full method; None when that run has no pyramid or does not exist.

    Raises:
        UserError: a model that nobody knows.
    """
    name = experiment.paper.full_run
    method = experiment.runs.get(name)
    if not isinstance(method, CMAPKDConfig):
        return None
    teacher, student, training = experiment.teacher, experiment.student, experiment.training
    models = (
        _model(teacher.model, portable_text(teacher.pretrained or "trained here"), "teacher.model"),
        _model(student.model, portable_text(student.init), "student.model"),
    )
    if models[0] is None or models[1] is None:  # open_clip, which knows them, is not installed
        return None
    stages = method.stages(experiment.schedules[method.schedule])
    return PaperDesign(
        run=name,
        teacher=models[0],
        student=models[1],
        pyramid=experiment.pyramid.model_dump(mode="json"),
        method=method.model_dump(mode="json", exclude={"group", "search", "schedule"}),
        teacher_pyramid={"mode": method.teacher_pyramid, **teacher.pyramid.model_dump(mode="json")},
        stages=tuple(paper_stage(method.schedule, stage, pyramid=True) for stage in stages),
        decay=(training.weight_decay, *training.betas, training.eps),
    )


def paper_stage(schedule: str, stage: StageConfig, *, pyramid: bool) -> PaperStage:
    """A configured stage; ``pyramid``: whether a run with a pyramid goes through it."""
    return PaperStage(
        schedule=schedule,
        name=stage.name,
        epochs=stage.epochs,
        lr=stage.lr,
        lr_end=stage.lr_end,
        trains=stage.trains,
        group_lr=tuple(stage.group_lr.items()),
        visual_levels=stage.visual_levels if pyramid else (),
        language_levels=stage.language_levels if pyramid else (),
        policy=stage.policy if pyramid else "",
    )


def required(design: PaperDesign | None, part: str, full_run: str) -> PaperDesign:
    """The design, for a part of the paper that shows it.

    Raises:
        UserError: there is none.
    """
    if design is None:
        raise UserError(
            key="paper.full_run",
            value=full_run,
            reason=f"is not a run with pyramids of known models, which {part} shows",
            fix=f"name a run of method cmapkd, or leave {part} out",
        )
    return design


def _model(name: str, weights: str, key: str) -> PaperModel | None:
    content = configs.content_of(name, model_settings(name, key)["config"])
    if content is None:
        return None
    vision, text = content.get("vision_cfg", {}), content.get("text_cfg", {})
    # What timm or Hugging Face builds is not described in the configuration of open_clip.
    image_known = "timm_model_name" not in vision and isinstance(vision.get("layers", 12), int)
    text_known = "hf_model_name" not in text
    return PaperModel(
        name=name,
        weights=weights,
        image_size=_pair(vision.get("image_size", 224)),
        patch_size=_pair(vision.get("patch_size", 16)),
        image_layers=int(vision.get("layers", 12)) if image_known else None,
        image_width=int(vision.get("width", 768)) if image_known else None,
        text_layers=int(text.get("layers", 12)) if text_known else None,
        text_width=int(text.get("width", 512)) if text_known else None,
        context_length=int(text.get("context_length", 77)),
        embed_dim=int(content["embed_dim"]),
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
