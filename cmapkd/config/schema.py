"""The experiment file, typed. Defaults, JSON schema and ``config/README.md`` are generated from these classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field as PydanticField
from pydantic import model_validator

from cmapkd.config.base import Config, Field
from cmapkd.config.evaluation import EvaluationConfig, SplitRef
from cmapkd.config.methods import AnyMethod, CMAPKDConfig, MethodConfig
from cmapkd.config.names import check_names, check_texts
from cmapkd.config.paper import PaperConfig
from cmapkd.config.paths import PathText, RepositoryPath, WeightsPath
from cmapkd.config.schedules import DEFAULT_SCHEDULES, Name, StageConfig
from cmapkd.config.sources import AnySource
from cmapkd.config.training import TrainingConfig
from cmapkd.config.tuning import TuningConfig
from cmapkd.errors import nearest

Share = Annotated[float, PydanticField(ge=0, le=1)]
Deviation = Annotated[float, PydanticField(gt=0, le=1)]


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


class PreprocessingConfig(Config):
    """How images are prepared for weights that do not state it themselves, such as a checkpoint without a configuration."""

    mean: tuple[Share, Share, Share] | None = Field(
        None,
        description="mean of red, green and blue in shares of full intensity, e.g. `[0.5, 0.5, 0.5]`; null: the weights' own",
    )
    std: tuple[Deviation, Deviation, Deviation] | None = Field(
        None, description="standard deviation of red, green and blue, likewise; null: the weights' own"
    )
    interpolation: Literal["bicubic", "bilinear"] | None = Field(
        None, description="how images are resized; null: the weights' own"
    )
    resize_mode: Literal["shortest", "longest", "squash"] | None = Field(
        None,
        description="what is resized to the model's size: the shortest side (and then cropped), the longest (and then padded), "
        "or both sides (`squash`); null: the weights' own",
    )

    @model_validator(mode="after")
    def _something(self) -> PreprocessingConfig:
        if not self.given():
            raise ValueError("preprocessing states nothing; give mean, std, interpolation or resize_mode, or leave it out")
        return self

    def given(self) -> dict[str, object]:
        """What is stated, as JSON."""
        return self.model_dump(mode="json", exclude_none=True)


class TeacherConfig(Config):
    """The teacher: pretrained weights, or trained here from scratch. Shared by all runs."""

    model: str = Field("ViT-L-14", description="an open_clip model name, or the name of a file in `config/models/`")
    pretrained: WeightsPath | None = Field(
        None,
        description="an open_clip pretrained tag (`cmapkd weights` fetches it), or the path of a checkpoint or directory of "
        "open_clip's, OpenAI's or Hugging Face's form",
    )
    train: TeacherTraining | None = Field(None, description="train the teacher from scratch instead")
    preprocessing: PreprocessingConfig | None = Field(
        None,
        description="how its images are prepared, where its weights do not state that; null: as they state, or as OpenAI's",
    )
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
    init: WeightsPath = Field(
        "random", description="`random`, an open_clip pretrained tag, or a path, as for `teacher.pretrained`"
    )
    preprocessing: PreprocessingConfig | None = Field(
        None, description="how its images are prepared, as `teacher.preprocessing`"
    )


class ExperimentConfig(Config):
    """A whole experiment: one file in ``config/``."""

    name: Name = Field(..., description="name of the experiment; its results lie in `results/<name>/`")
    extends: PathText | None = Field(
        None,
        exclude=True,  # resolved before anything else sees the experiment (cmapkd.config.extend)
        description="experiment file that this one starts from, beside this file or in `config/`: mappings are merged key by "
        "key, lists are replaced, and `null` takes a key out",
    )
    replaces: tuple[str, ...] | None = Field(
        None,
        exclude=True,  # likewise
        description="with `extends`: keys that are taken from here alone and not merged, e.g. `[runs, datasets]`: the "
        "experiment then has no other runs and data sets than those given here",
    )
    data_root: PathText | None = Field(
        None,
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
    tuned: RepositoryPath | None = Field(
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
        check_names(self.runs, self.datasets, self.schedules)
        labels = {f"paper.labels.{key}": text for key, text in self.paper.labels.items()}
        check_texts({"paper.title": self.paper.title, **labels})
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
