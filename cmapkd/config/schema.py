"""The experiment file, typed. Defaults, JSON schema and ``config/README.md`` are generated from these classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field as PydanticField
from pydantic import model_validator

from cmapkd.config.base import Config, Field
from cmapkd.config.evaluation import EvaluationConfig, SplitRef
from cmapkd.config.methods import AnyMethod, CMAPKDConfig, MethodConfig, Name, StageConfig
from cmapkd.config.paper import PaperConfig
from cmapkd.config.sources import AnySource
from cmapkd.config.tuning import TuningConfig
from cmapkd.errors import nearest


class PyramidConfig(Config):
    """Unified cross-modal pyramid (UCMP) and the bridge between its modalities."""

    channels: int = Field(256, ge=4, unit="channels", description="channels of P2 to P5 (`C`)")
    text_channels: int = Field(256, ge=4, unit="channels", description="width of L1 to L4 (`D`)")
    smoothing: Literal["dense", "low-rank", "separable", "depthwise"] = Field(
        "dense",
        description="3x3 smoothing convolutions of P2 to P4, by falling cost: of all channels, of a quarter as many, of "
        "each alone and then a 1x1, of each alone",
    )
    phrase_window: int = Field(3, ge=1, unit="tokens", description="attention window of the phrase level L2 (odd)")
    heads: int = Field(4, ge=1, description="attention heads of L2 and L3")

    @model_validator(mode="after")
    def _divisible(self) -> PyramidConfig:
        if self.text_channels % self.heads:
            raise ValueError(f"text_channels = {self.text_channels} is not divisible by heads = {self.heads}")
        if self.phrase_window % 2 == 0:
            raise ValueError(f"phrase_window = {self.phrase_window} must be odd, to be centred on a token")
        return self


class TeacherTraining(Config):
    """Contrastive training of a teacher from scratch, for experiments without downloads."""

    epochs: float = Field(..., gt=0, unit="epochs", description="passes over the distillation data")
    lr: float = Field(5e-4, gt=0, description="peak learning rate")
    seed: int = Field(0, ge=0, description="seed of initialisation and data order")


class TeacherPyramidConfig(Config):
    """Fit of the teacher's own pyramid, its backbone frozen: contrastive over P2-L1, P3-L2, P4-L3, P5-L4."""

    epochs: float = Field(1.0, gt=0, unit="epochs", description="passes over the distillation data")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    temperature: float = Field(0.07, gt=0, description="temperature of the contrastive loss of each pair of levels")
    seed: int = Field(0, ge=0, description="seed of initialisation and data order")


class TeacherCacheConfig(Config):
    """What the teacher says of all training samples, computed once and kept on disk, instead of anew in each training.

    Methods that need the tokens of its blocks (FitNet's hints, LLaVA-KD, late interaction) ask the teacher itself.
    """

    precision: Literal["fp32", "fp16", "int8"] = Field(
        "fp16",
        description="how the maps of its pyramid are kept; `int8` has a scale for each channel of a sample, vectors are fp16",
    )


class TeacherConfig(Config):
    """The teacher: pretrained weights, or trained here from scratch. Shared by all runs."""

    model: str = Field("ViT-L-14", description="an open_clip model name, or the name of a file in `config/models/`")
    pretrained: str | None = Field(
        None,
        description="an open_clip pretrained tag (`cmapkd weights` fetches it), or the path of a checkpoint or directory of "
        "open_clip's, OpenAI's or Hugging Face's form",
    )
    train: TeacherTraining | None = Field(None, description="train the teacher from scratch instead")
    pyramid: TeacherPyramidConfig = Field(TeacherPyramidConfig(), description="how the teacher's pyramid is fitted")
    cache: TeacherCacheConfig | None = Field(
        None, description="keep its outputs on disk; needs views that can be repeated (`training.augmentation`); null: do not"
    )
    expected: dict[str, dict[str, Annotated[float, PydanticField(ge=0, le=100)]]] = Field(
        {},
        unit="percent",
        description="what is known of the teacher, as `<task>:<dataset>/<split>` to metrics, e.g. `retrieval:coco/test: "
        "{i2t_r1: 56.34}`: nothing is trained before it measures that; empty: not asked. Set it before the first training: "
        "it is an input of all, so setting it later trains anew",
    )
    tolerance: float = Field(
        0.3, ge=0, le=100, unit="points", description="how far a number of `expected` may be off, either way"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherConfig:
        if (self.pretrained is None) == (self.train is None):
            raise ValueError("give exactly one of `pretrained` (a tag or a path) and `train` (from scratch)")
        return self


class StudentConfig(Config):
    """The student's architecture and where its weights start."""

    model: str = Field("ViT-B-16", description="an open_clip model name, or the name of a file in `config/models/`")
    init: str = Field("random", description="`random`, an open_clip pretrained tag, or a path, as for `teacher.pretrained`")


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


class ExperimentConfig(Config):
    """A whole experiment: one file in ``config/``."""

    name: Name = Field(..., description="name of the experiment; its results lie in `results/<name>/`")
    extends: str | None = Field(
        None,
        exclude=True,  # resolved before anything else sees the experiment (cmapkd.config.extend)
        description="experiment file that this one starts from, beside this file or in `config/`: mappings are merged key by "
        "key, lists are replaced, and `null` takes a key out",
    )
    data_root: str | None = Field(
        None,
        min_length=1,
        exclude=True,  # likewise
        description="folder with those of public data sets: what their `root` and `images` are relative to, e.g. `~/data`",
    )
    seeds: tuple[Annotated[int, PydanticField(ge=0)], ...] = Field(
        (0,), min_length=1, description="seeds of every run; tables print mean and deviation over them"
    )
    datasets: dict[Name, AnySource] = Field(..., min_length=1, description="the data sets, by a name of one's own")
    distillation: tuple[SplitRef, ...] = Field(..., min_length=1, description="splits trained on, as `<dataset>/<split>`")
    teacher: TeacherConfig = Field(..., description="the teacher")
    student: StudentConfig = Field(StudentConfig(), description="the student")
    pyramid: PyramidConfig = Field(PyramidConfig(), description="the pyramid of both models")
    training: TrainingConfig = Field(TrainingConfig(), description="what all trainings share")
    schedules: dict[Name, tuple[StageConfig, ...]] = Field(
        DEFAULT_SCHEDULES, description="stages by schedule name; a name given here replaces the default schedule of that name"
    )
    runs: dict[str, AnyMethod] = Field(
        ...,
        min_length=1,
        description="rows of the tables; `base: <run>` starts from another run and changes only the keys given",
    )
    evaluation: EvaluationConfig = Field(..., description="what is measured on every run")
    tuning: TuningConfig = Field(TuningConfig(), description="how `cmapkd tune` searches the settings of the runs")
    tuned: str | None = Field(
        None,
        description="file that `cmapkd tune` wrote, relative to the repository or to this file: each run it names "
        "gets the values found; a value given here wins, unless it is the one that the search started from",
    )
    paper: PaperConfig = Field(PaperConfig(), description="what is printed")
    export: tuple[str, ...] = Field(
        (),
        description="runs whose students the workflow also writes as open_clip, `transformers` and ONNX, with a model card "
        "(`cmapkd export`); needs the extra `export`",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        for run, method in self.runs.items():
            if method.schedule not in self.schedules:
                hint = nearest(method.schedule, list(self.schedules))
                raise ValueError(f"runs.{run}.schedule = {method.schedule!r} is not a schedule; {hint}")
            _check_levels(run, method, self.schedules[method.schedule])
            _check_names(run, method, self.schedules[method.schedule])
        if "Teacher" in self.runs:
            raise ValueError("runs.Teacher: the name is reserved for the teacher's own row")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} names a seed twice")
        for key, reference in self._references():
            dataset, _, split = reference.partition("/")
            if dataset not in self.datasets:
                raise ValueError(
                    f"{key} = {reference!r} names no data set of `datasets`; {nearest(dataset, list(self.datasets))}"
                )
            splits = self.datasets[dataset].split_names
            if split not in splits:
                raise ValueError(f"{key} = {reference!r} names no split of {dataset}; {nearest(split, splits)}")
            if split not in (built := self.datasets[dataset].built()):
                written = ", ".join(built)
                raise ValueError(f"{key} = {reference!r}: datasets.{dataset}.splits writes only {written}; name {split} there")
        self._check_expected()
        for run in self.tuning.runs:
            if run not in self.runs:
                raise ValueError(
                    f"tuning.runs = {list(self.tuning.runs)} names no run {run!r}; {nearest(run, list(self.runs))}"
                )
        for run in self.export:
            if run not in self.runs:
                raise ValueError(f"export = {list(self.export)} names no run {run!r}; {nearest(run, list(self.runs))}")
        if self.paper.weights_run and self.paper.weights_run not in self.runs:
            run = self.paper.weights_run
            raise ValueError(f"paper.weights_run = {run!r} names no run; {nearest(run, list(self.runs))}")
        self._check_paper()
        if self.teacher.cache is not None and not self.training.augmentation.repeatable:
            raise ValueError(
                "teacher.cache keeps what the teacher says of each view of a picture, and training.augmentation makes a new "
                "one in each epoch; give it a number of `views`, or no crop and no flip (scale: [1, 1])"
            )
        batch, ranks = self.training.global_batch, self.training.ranks
        if batch % ranks:
            raise ValueError(f"training.global_batch = {batch} is not divisible by training.ranks = {ranks}")
        return self

    def _check_expected(self) -> None:
        """What the teacher is expected to measure has to be measured."""
        evaluation = self.evaluation
        vqa = evaluation.vqa.test if evaluation.vqa is not None else ()
        measured = {"retrieval": evaluation.retrieval, "zeroshot": evaluation.zeroshot, "vqa": vqa}
        known = [f"{task}:{reference}" for task, references in measured.items() for reference in references]
        for key in self.teacher.expected:
            if key not in known:
                raise ValueError(f"teacher.expected names {key!r}, which `evaluation` does not measure; {nearest(key, known)}")

    def _check_paper(self) -> None:
        """What a table needs is asked for before anything is trained."""
        tables = (*self.paper.tables, *self.paper.appendix)
        if "table4" in tables:
            full = self.paper.full_run
            if full not in self.runs:
                raise ValueError(f"paper.full_run = {full!r} names no run, table4 needs it; {nearest(full, list(self.runs))}")
            if not any(method.group == "ablation" for name, method in self.runs.items() if name != full):
                raise ValueError("paper.tables names table4, but no run has `group: ablation`")
        shown = (*(name for name in self.paper.figures if name in ("figure1", "figure2")), *self.paper.algorithms)
        method = self.runs.get(self.paper.full_run)
        if shown and method is None:
            reason = nearest(self.paper.full_run, list(self.runs))
            raise ValueError(f"paper.full_run = {self.paper.full_run!r} names no run, {shown[0]} shows it; {reason}")
        if shown and method is not None and not method.uses_pyramid:
            raise ValueError(f"paper.full_run = {self.paper.full_run!r} has no pyramids, which {shown[0]} shows; leave it out")
        if "tuned" in tables and getattr(self, "tuned", None) is None:
            raise ValueError("tuned: paper.tables or paper.appendix names the table `tuned`, which needs this file")

    def _references(self) -> Iterator[tuple[str, str]]:
        """Every reference to a split, with the key that makes it."""
        evaluation = self.evaluation
        yield from (("distillation", reference) for reference in self.distillation)
        for key in ("retrieval", "validation", "zeroshot"):
            yield from ((f"evaluation.{key}", reference) for reference in getattr(evaluation, key))
        if evaluation.vqa is not None:
            yield "evaluation.vqa.train", evaluation.vqa.train
            yield from (("evaluation.vqa.test", reference) for reference in evaluation.vqa.test)
        yield from (("paper.labels", label.rpartition(":")[2]) for label in self.paper.labels)


def _check_names(run: str, method: MethodConfig, stages: tuple[StageConfig, ...]) -> None:
    """A method that tells its stages apart by name would take one of another name for its last."""
    for stage in stages:
        if method.stage_names and stage.name not in method.stage_names:
            known = ", ".join(method.stage_names)
            raise ValueError(
                f"runs.{run}.schedule = {method.schedule!r} has a stage {stage.name!r}; stages of this method are named {known}"
            )


def _check_levels(run: str, method: MethodConfig, stages: tuple[StageConfig, ...]) -> None:
    """A stage whose levels a method's pyramid lacks altogether would train nothing."""
    if not isinstance(method, CMAPKDConfig):
        return
    for stage in stages:
        for key in ("visual_levels", "language_levels"):
            top, levels = "P5" if key == "visual_levels" else "L4", getattr(stage, key)
            if top not in levels:
                where = f"schedules.{method.schedule}.{stage.name}.{key}"
                raise ValueError(f"{where} = {list(levels)} must hold {top}: the terms of runs.{run} need it")
