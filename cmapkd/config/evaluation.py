"""What is measured of every run. A split is named ``<data set>/<split>``, e.g. ``emoji_scenes/test_render``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field as PydanticField

from cmapkd.config.base import Config, Field

SplitRef = Annotated[str, PydanticField(pattern=r"^[A-Za-z0-9_\-]+/[A-Za-z0-9_\-]+$")]


class VqaConfig(Config):
    """Visual questions: a small head on the frozen towers, trained on one split and tested on others."""

    train: SplitRef = Field(..., description="split whose questions train the head and whose answers are its vocabulary")
    test: tuple[SplitRef, ...] = Field(..., min_length=1, description="splits whose questions are answered and scored")
    min_count: int = Field(
        9, ge=1, unit="questions", description="an answer is in the vocabulary when it is the most common answer of that many"
    )
    max_questions: int | None = Field(
        None, ge=1, unit="questions", description="training questions that are used (drawn by picture, seeded); null = all"
    )
    epochs: int = Field(12, ge=1, unit="epochs", description="passes of the head over the training questions")
    lr: float = Field(2e-3, gt=0, unit="1/step", description="peak learning rate of the head (AdamW, one-cycle)")
    weight_decay: float = Field(0.01, ge=0, unit="1", description="AdamW's weight decay of the head's matrices")
    batch_size: int = Field(512, ge=1, unit="questions", description="questions in a step of the head")
    hidden: int = Field(256, ge=1, unit="units", description="width of the head's hidden layer")


class LatencyConfig(Config):
    """How the time of the image tower is taken."""

    threads: int = Field(1, ge=1, unit="threads", description="CPU threads while the clock runs; a GPU ignores it")
    warmup: int = Field(5, ge=0, unit="calls", description="calls before the clock starts, for each batch size")
    repeats: int = Field(30, ge=1, unit="calls", description="timed calls for each batch size; their median is reported")
    batch_sizes: tuple[Annotated[int, PydanticField(ge=1)], ...] = Field(
        (1, 32), min_length=1, unit="images", description="images in a call; the time is divided by it"
    )


class EvaluationConfig(Config):
    """Which splits are evaluated for what."""

    retrieval: tuple[SplitRef, ...] = Field((), description="splits for retrieval between images and captions, both ways")
    validation: tuple[SplitRef, ...] = Field(
        (), description="splits for retrieval that only serve to choose settings: in the metric file, never in a table"
    )
    zeroshot: tuple[SplitRef, ...] = Field((), description="splits for zero-shot classification (their data set needs classes)")
    vqa: VqaConfig | None = Field(None, description="visual questions; null = not asked")
    batch_size: int = Field(256, ge=1, unit="images or texts", description="how many are encoded at a time")
    latency: LatencyConfig = Field(LatencyConfig(), description="how latency is measured")

    def references(self) -> list[str]:
        """Every split that is read, each once, in order of first mention."""
        vqa = (self.vqa.train, *self.vqa.test) if self.vqa else ()
        return list(dict.fromkeys((*self.retrieval, *self.validation, *self.zeroshot, *vqa)))
