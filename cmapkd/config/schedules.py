"""Stages of a training, and the schedules that are there without being written down."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic import Field as PydanticField

from cmapkd.config.base import Config, Field
from cmapkd.config.names import is_device


def _safe_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", value):
        raise ValueError(
            "a name becomes a file: up to 100 letters, digits, '_', '-' and '.' only, starting with a letter or digit"
        )
    if is_device(value):
        raise ValueError("a file of this name is a device on Windows; use another name")
    return value


Name = Annotated[str, AfterValidator(_safe_name)]
VisualLevel = Literal["P2", "P3", "P4", "P5"]
LanguageLevel = Literal["L1", "L2", "L3", "L4"]
VISUAL_LEVELS: tuple[VisualLevel, ...] = ("P2", "P3", "P4", "P5")
LANGUAGE_LEVELS: tuple[LanguageLevel, ...] = ("L1", "L2", "L3", "L4")
Policy = Literal["uniform", "manual", "alsn"]
Group = Literal["student", "projections", "pyramid", "alsn", "heads"]


class StageConfig(Config):
    """One stage of a schedule."""

    name: Name = Field(..., description="name of the stage")
    epochs: float = Field(..., gt=0, unit="epochs", description="passes over the distillation data; a fraction is allowed")
    lr: float = Field(..., gt=0, description="peak learning rate of every trained group not named in `group_lr`")
    group_lr: dict[Group, Annotated[float, PydanticField(gt=0)]] = Field({}, description="peak learning rates of single groups")
    lr_end: float = Field(
        0.0, ge=0, le=1, unit="share of lr", description="learning rate at the end of the stage's cosine decay"
    )
    trains: tuple[Group, ...] = Field(
        ("student", "heads"),
        description="parameter groups that are trained; the rest is frozen (`projections`: see `llava_kd`)",
    )
    visual_levels: tuple[VisualLevel, ...] = Field(VISUAL_LEVELS, description="active levels of the visual pyramid")
    language_levels: tuple[LanguageLevel, ...] = Field(LANGUAGE_LEVELS, description="active levels of the language hierarchy")
    policy: Policy = Field("uniform", description="how the active levels are weighted")


def _stage(
    name: str, epochs: float, lr: float, levels: int, trains: tuple[str, ...], policy: str, **rest: object
) -> StageConfig:
    visual, language = ("P2", "P3", "P4", "P5")[4 - levels :], ("L1", "L2", "L3", "L4")[4 - levels :]
    return StageConfig.model_validate(
        dict(
            name=name,
            epochs=epochs,
            lr=lr,
            visual_levels=visual,
            language_levels=language,
            trains=trains,
            policy=policy,
            **rest,
        )
    )


_PAIR, _ALL = ("student", "pyramid"), ("student", "pyramid", "alsn")
DEFAULT_SCHEDULES: dict[str, tuple[StageConfig, ...]] = {
    "standard": (StageConfig(name="train", epochs=25, lr=5e-5),),
    "fitnet": (StageConfig(name="hint", epochs=5, lr=5e-5), StageConfig(name="kd", epochs=20, lr=5e-5)),
    "llava_kd": (
        StageConfig(name="dpt", epochs=5, lr=5e-5, trains=("projections",)),
        StageConfig(name="sft", epochs=10, lr=5e-5),
        StageConfig(name="dft", epochs=10, lr=5e-6),
    ),
    "progressive": (
        _stage("coarse", 5, 5e-5, 1, _PAIR, "uniform"),
        _stage("medium", 5, 3e-5, 2, _PAIR, "uniform"),
        _stage("fine", 10, 1e-5, 4, _ALL, "alsn", group_lr={"pyramid": 5e-6, "alsn": 5e-5}),
        _stage("alsn", 5, 1e-4, 4, ("alsn",), "alsn"),
    ),
    "alsn_joint": (
        _stage("warmup", 5, 5e-5, 4, _PAIR, "uniform", group_lr={"pyramid": 1e-5}),
        _stage("policy", 5, 1e-4, 4, ("alsn",), "alsn"),
        _stage("joint", 10, 1e-5, 4, _ALL, "alsn", group_lr={"pyramid": 5e-6, "alsn": 5e-5}),
    ),
    # PromptKD on a pretrained student, as in its paper: the student's prompts and the projector alone.
    "prompts": (StageConfig(name="train", epochs=25, lr=1e-3, trains=("heads",)),),
    "one_stage": (_stage("all", 25, 5e-5, 4, _ALL, "alsn"),),
}
