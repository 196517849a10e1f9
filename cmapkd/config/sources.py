"""Options of every data source. A source is one class here and one file in ``cmapkd/data/sources/``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field as PydanticField
from pydantic import model_validator

from cmapkd.config.base import Config, Field


class SourceConfig(Config):
    """What every source has in common: how its samples are written into shards."""

    shard_size: int = Field(1000, ge=1, unit="samples", description="samples in one webdataset shard")
    seed: int = Field(0, ge=0, description="seed of everything the source draws: splits, scenes, captions, questions")

    split_names: ClassVar[tuple[str, ...]] = ()  # what may stand after the slash of `<dataset>/<split>`


class EmojiScenesConfig(SourceConfig):
    """Emoji Scenes: pictures composed of openly licensed emoji drawings that come inside npm packages."""

    source: Literal["emoji_scenes"] = "emoji_scenes"
    image_size: int = Field(32, ge=16, le=1024, unit="px", description="side of a scene")
    render_size: int = Field(64, ge=16, le=1024, unit="px", description="side of a rendered drawing before it is placed")
    concepts: int = Field(400, ge=20, unit="concepts", description="the best covered concepts that are kept; more is harder")
    held_out_concepts: float = Field(
        0.15, gt=0, lt=0.5, unit="share", description="concepts (whole components) kept out of training for `test_concept`"
    )
    train: int = Field(16000, ge=1, unit="scenes", description="scenes of the `train` split")
    validation: int = Field(
        1000, ge=1, unit="scenes", description="scenes of the `validation` split (known concepts, unseen drawings)"
    )
    test_render: int = Field(
        1000, ge=1, unit="scenes", description="scenes of the `test_render` split (known concepts, unseen drawings)"
    )
    test_concept: int = Field(500, ge=1, unit="scenes", description="scenes of the `test_concept` split (unseen concepts)")
    questions_per_scene: int = Field(2, ge=0, le=8, unit="questions", description="questions asked about each scene")

    split_names: ClassVar[tuple[str, ...]] = ("train", "validation", "test_render", "test_concept")

    @model_validator(mode="after")
    def _drawings_are_not_enlarged(self) -> EmojiScenesConfig:
        if self.render_size < self.image_size:
            raise ValueError(
                f"render_size {self.render_size} is less than image_size {self.image_size}: drawings would be enlarged; "
                f"set render_size to at least {self.image_size}"
            )
        return self


AnySource = Annotated[EmojiScenesConfig, PydanticField(discriminator=None)]
