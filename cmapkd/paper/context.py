"""What the paper needs to know of an experiment: names, order, splits, labels and paths; no numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmapkd import commands
from cmapkd.errors import UserError, nearest
from cmapkd.files import digest, slug

if TYPE_CHECKING:
    from cmapkd.paper.design import PaperDesign

TEACHER = "Teacher"
PLANNED_FILE = "config/planned.yaml"
EXPERIMENT_FILE = "experiment.yaml"  # in the results directory: the experiment with every default written out
KEPT_FILE = "kept.json"  # in kept results: the digests of what was kept
KEPT_BY = "Written by `cmapkd paper keep`"  # in their README.md
Task = Literal["retrieval", "zeroshot", "vqa"]


def is_kept(home: Path) -> bool:
    """Whether a results directory is what `cmapkd paper keep` wrote, by its list of digests, or its page and what it lacks."""
    if (home / KEPT_FILE).is_file():
        return True
    page = home / "README.md"
    if any((home / name).exists() for name in ("data", "stages", "runs")) or not page.is_file():
        return False
    return KEPT_BY in page.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class PaperRun:
    """One student run: a row of the tables."""

    name: str  # its name in the experiment; also the row's key
    label: str = ""  # what the tables call it; by default its name
    method: str = ""  # registered objective
    group: Literal["method", "ablation"] = "method"  # tables of methods and the ablation table show different runs
    note: str = ""  # footnote: how it deviates from the published method
    schedule: str = ""
    lr_scale: float = 1.0
    level_temperature: float | None = None  # of the distributions over pairs of levels (`temperature_kd`); None: no levels
    deploys_teacher: bool = False  # inference needs a part of the teacher
    changes: tuple[str, ...] = ()  # of an ablation: the options in which it differs from the full method, "key = value"

    @property
    def shown(self) -> str:
        return self.label or self.name


@dataclass(frozen=True)
class PaperStage:
    """One stage of a schedule as the experiment's file has it."""

    schedule: str
    name: str
    epochs: float
    lr: float
    lr_end: float  # share of ``lr`` at the stage's end
    trains: tuple[str, ...]
    group_lr: tuple[tuple[str, float], ...] = ()
    visual_levels: tuple[str, ...] = ()  # these three are empty when no run of the schedule has a pyramid
    language_levels: tuple[str, ...] = ()
    policy: str = ""


@dataclass(frozen=True)
class Bootstrap:
    """How differences are tested."""

    samples: int = 10_000
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True)
class PaperContext:
    """An experiment as the paper sees it.

    Raises:
        UserError: on construction, when two runs share a name or a directory, or a run is called like the teacher's row.
    """

    name: str
    results: Path  # results/<experiment>
    runs: tuple[PaperRun, ...]  # in the order of the tables
    seeds: tuple[int, ...]
    retrieval: tuple[str, ...] = ()  # split refs "<dataset>/<split>"; the first is the primary one
    zeroshot: tuple[str, ...] = ()
    vqa: tuple[str, ...] = ()
    teacher_label: str = TEACHER
    teacher_seed: int = 0
    student_initialisation: str = "random"
    title: str = "Adaptive Pyramid-Based Cross-Modal Knowledge Distillation"
    tables: tuple[str, ...] = ()
    appendix: tuple[str, ...] = ()  # tables after those
    figures: tuple[str, ...] = ()
    appendix_figures: tuple[str, ...] = ()  # figures after the tables of the appendix
    algorithms: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    planned: bool = False
    planned_file: Path = Path(PLANNED_FILE)
    weights_run: str = ""  # "": the first run that recorded ALSN weights
    weights_samples: int = 100
    analysis_run: str = ""  # "": the full run, or the first run that recorded what a figure shows
    full_run: str = "CMAPKD"  # what the ablations are compared with
    stages: tuple[PaperStage, ...] = ()  # of every schedule that a run uses
    global_batch: int = 0
    warmup: float = 0.0  # share of each stage
    bootstrap: Bootstrap = Bootstrap()
    design: PaperDesign | None = None  # of the full method; None when it has no pyramid
    tuned_file: Path | None = None  # what the search of hyper-parameters found
    manuscript: Path | None = None  # the article that uses all this
    config_file: Path | None = None  # the experiment's file, for the commands that `trace` prints

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UserError(key="seeds", value=[], reason="no seed is configured", fix="list at least one seed")
        self.directories  # noqa: B018 - refuses names that collide

    @property
    def directories(self) -> dict[str, str]:
        """Directory below ``metrics/`` of the teacher and of each run.

        Raises:
            UserError: two names share a directory (also when only upper and lower case differ, for file systems that fold it).
        """
        found: dict[str, str] = {}
        taken: dict[str, str] = {}
        for name in (TEACHER, *(run.name for run in self.runs)):
            directory = slug(name)
            if directory.casefold() in taken:
                reason = f"shares the directory name {directory!r} with {taken[directory.casefold()]!r}"
                raise UserError(key=f"runs.{name}", reason=reason, fix="rename one of the two")
            taken[directory.casefold()] = name
            found[name] = directory
        return found

    @property
    def splits(self) -> dict[Task, tuple[str, ...]]:
        """Test splits of each task."""
        return {"retrieval": self.retrieval, "vqa": self.vqa, "zeroshot": self.zeroshot}

    @property
    def all_tables(self) -> tuple[str, ...]:
        """Tables of the text and of the appendix."""
        return (*self.tables, *self.appendix)

    def part_title(self, name: str) -> str:
        """What the paper calls a table or figure: ``Table 2``, ``Table A1`` in the appendix, ``Figure 3``."""
        if name in self.appendix:
            return f"Table A{self.appendix.index(name) + 1}"
        if name in self.appendix_figures:
            return f"Figure A{self.appendix_figures.index(name) + 1}"
        if name in self.tables:
            return f"Table {table_numbers(self.tables)[name]}"
        kind = name.rstrip("0123456789")
        return f"{kind} {name[len(kind) :]}".strip().capitalize()

    @property
    def all_figures(self) -> tuple[str, ...]:
        """Figures of the text and of the appendix."""
        return (*self.figures, *self.appendix_figures)

    @property
    def all_parts(self) -> tuple[str, ...]:
        """Tables, figures and algorithms: all that has numbers."""
        return (*self.all_tables, *self.all_figures, *self.algorithms)

    @property
    def experiment_digest(self) -> str:
        """SHA-256 of what the paper tells of the experiment's file: schedules, what runs make of them, the full method."""
        runs = [[run.name, run.group, run.schedule, run.lr_scale, run.changes, run.level_temperature] for run in self.runs]
        stages, design = [asdict(stage) for stage in self.stages], asdict(self.design) if self.design is not None else None
        return digest([stages, runs, self.global_batch, self.warmup, self.full_run, design])

    @property
    def tuned_name(self) -> str:
        """The tuned file as parents record it: relative to the repository, and outside of it by its name alone."""
        assert self.tuned_file is not None
        repository = self.planned_file.parent.parent
        inside = self.tuned_file.is_relative_to(repository)
        return self.tuned_file.relative_to(repository).as_posix() if inside else self.tuned_file.name

    @property
    def paper(self) -> Path:
        """Directory of the paper's files."""
        return self.results / "paper"

    def students(self, group: str = "method") -> tuple[PaperRun, ...]:
        """Runs of one group, in order."""
        return tuple(run for run in self.runs if run.group == group)

    def seeds_of(self, run: str) -> tuple[int, ...]:
        """Configured seeds of a run; the teacher has one."""
        return (self.teacher_seed,) if run == TEACHER else self.seeds

    def metric_file(self, run: str, seed: int) -> Path:
        """Where a run's metrics of one seed are."""
        directories = self.directories
        if run not in directories:
            raise UserError(key="run", value=run, reason="is not a run of this experiment", fix=nearest(run, list(directories)))
        return self.results / "metrics" / directories[run] / f"{seed}.json"

    def relative(self, path: Path) -> str:
        """A file's name as parents record it: relative to the results directory, so that results can be moved."""
        return path.relative_to(self.results).as_posix()

    def resolve(self, file: str) -> Path:
        """The inverse of ``relative``."""
        if file == PLANNED_FILE:
            return self.planned_file
        if self.tuned_file is not None and file == self.tuned_name:
            return self.tuned_file
        return self.results / file

    def label(self, split: str, task: Task) -> str:
        """What the paper calls a split in one task; without a configured label the split's own name."""
        return self.labels.get(f"{task}:{split}") or self.labels.get(split) or split

    @property
    def kept(self) -> bool:
        """Whether these are results that `cmapkd paper keep` copied: no arrays, no models, and made elsewhere."""
        return is_kept(self.results)

    @property
    def made_in(self) -> Path:
        """Folder of all results in which the workflow makes this experiment; of a copy that is the project's own."""
        return self.results.parent if self.results.name == self.name and not self.kept else commands.default_results()

    def recompute(self, *targets: Path) -> str:
        """The command that makes files of the experiment again; without any, all that is not up to date."""
        names = [target.relative_to(self.results) if target.is_relative_to(self.results) else target for target in targets]
        return commands.snakemake([f"{self.name}/{name.as_posix()}" for name in names], self.config_file, self.made_in)

    def command(self, *words: str) -> str:
        """A command of the command line for this experiment."""
        return commands.cmapkd(words, self.config_file, self.made_in)


def table_numbers(names: tuple[str, ...]) -> dict[str, int]:
    """``table2`` is Table 2, whatever else the text shows; a table without a number takes the first that is free, from 0."""
    fixed = {name: int(name.removeprefix("table")) for name in names if name.removeprefix("table").isdigit()}
    free = (number for number in itertools.count() if number not in fixed.values())
    return {name: fixed[name] if name in fixed else next(free) for name in names}
