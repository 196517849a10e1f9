"""What the trainings of an experiment share."""

from __future__ import annotations

from pydantic import model_validator

from cmapkd.config.base import Config, Field
from cmapkd.config.schedules import Name


class AugmentationConfig(Config):
    """Augmentation of training images; its parameters are a pure function of seed, epoch and sample."""

    scale: tuple[float, float] = Field((0.9, 1.0), unit="share", description="area of the random crop; [1, 1] is no crop")
    ratio: tuple[float, float] = Field((0.75, 1.3333), description="aspect ratios of the random crop")
    flip: bool = Field(False, description="random horizontal flip (captions that say left and right forbid it)")
    views: int | None = Field(
        None,
        ge=1,
        unit="views",
        description="different views of each picture, the same in all trainings; each epoch takes one of them at random. "
        "null: a new one in each epoch and training",
    )

    @property
    def repeatable(self) -> bool:
        """Whether there are only so many views of a picture that a teacher's outputs of all of them can be kept."""
        return self.views is not None or (self.scale == (1, 1) and not self.flip)

    @model_validator(mode="after")
    def _ordered(self) -> AugmentationConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale = {list(self.scale)} must be two shares of the area, ascending, within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio = {list(self.ratio)} must be two positive aspect ratios, ascending")
        return self


class TrainingConfig(Config):
    """Optimiser, batches and everything else that the trainings of an experiment share."""

    global_batch: int = Field(256, ge=2, unit="samples", description="samples of one optimiser step over all ranks")
    ranks: int = Field(
        1,
        ge=1,
        unit="processes",
        description="data-parallel processes of a training, one for each GPU; a cluster's profile says how many a node holds",
    )
    deepspeed: Name = Field(
        "fp32", description="name of a file in `config/deepspeed/`: ZeRO stage, precision, clipping and accumulation"
    )
    activation_checkpointing: bool = Field(
        False,
        description="keep only the inputs of the student's blocks and compute the rest again in the backward pass: less memory "
        "for up to a third more time, the same gradients; not where blocks have prompts (PromptKD)",
    )
    compile: bool = Field(
        False,
        description="`torch.compile` for the blocks of both models: fewer passes over a GPU's memory, the same results to "
        "rounding; a training that cannot (no compiler, prompts) says so and goes on without",
    )
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay; none on norms, biases and logit scales")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW momenta")
    eps: float = Field(1e-6, gt=0, description="AdamW epsilon")
    warmup: float = Field(0.05, ge=0, lt=1, unit="share of a stage", description="linear warm-up at the start of each stage")
    augmentation: AugmentationConfig = Field(AugmentationConfig(), description="augmentation of training images")
    workers: int = Field(
        2, ge=0, unit="processes", description="data-loading processes of each rank; 0 loads in the trainer itself"
    )
    cache_bytes: int = Field(
        0, ge=0, unit="bytes", description="memory for decoded samples; a small data set is then decoded once"
    )
    shuffle_window: int = Field(
        50_000, ge=1, unit="samples", description="samples shuffled together: keeps reads local on data sets that exceed it"
    )
    bad_samples: float = Field(0.001, ge=0, lt=1, unit="share", description="unreadable samples above which a training stops")
    max_pixels: int = Field(50_000_000, ge=1, unit="px", description="pictures with more pixels are refused as bad samples")
    nan_retries: int = Field(
        0,
        ge=0,
        le=3,
        unit="retries",
        description="how often a training whose loss or gradient is not finite goes back to the checkpoint before and on at "
        "half the learning rates (told in its `stage.json`); 0 stops it at once",
    )
    oom_retries: int = Field(
        3,
        ge=0,
        unit="retries",
        description="how often a training that runs out of memory goes on from the last checkpoint with half the micro-batch "
        "and twice the accumulation, the global batch unchanged (told in its `stage.json`); 0 stops it at once",
    )
    log_every: int = Field(10, ge=1, unit="steps", description="steps between two lines of the log")
    checkpoint_minutes: float = Field(
        15.0, gt=0, unit="minutes", description="wall-clock time between two checkpoints of a training"
    )
    stop_margin_minutes: float = Field(
        2.0,
        ge=0,
        unit="minutes",
        description="of a job with a time limit (`cmapkd train --time-limit`), what is left free at its end, beside three "
        "times the longest checkpoint",
    )
    lock_wait_minutes: float = Field(
        10.0, ge=0, unit="minutes", description="how long a training waits for another process that trains the same stage"
    )
    lock_stale_minutes: float = Field(
        5.0, gt=0, unit="minutes", description="after how long without a heart beat such a process counts as dead"
    )
    barrier_minutes: float = Field(
        30.0, gt=0, unit="minutes", description="how long ranks wait for one that is missing, at the start and at checkpoints"
    )
