"""From an experiment's configuration to what the paper needs to know of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmapkd.config.methods import MethodConfig
from cmapkd.config.schema import ExperimentConfig
from cmapkd.paper.context import Bootstrap, PaperContext, PaperRun, PaperStage
from cmapkd.paper.design import paper_design, paper_stage
from cmapkd.paths import portable_text
from cmapkd.plan import CONFIG, TEACHER
from cmapkd.runs import teacher_seed


def paper_context(experiment: ExperimentConfig, results: Path, config_file: Path | None = None) -> PaperContext:
    """The experiment as the paper sees it: names, order, splits and labels."""
    evaluation, paper = experiment.evaluation, experiment.paper
    tuned = experiment.tuned
    return PaperContext(
        name=experiment.name,
        results=results / experiment.name,
        runs=tuple(_run(experiment, name, method) for name, method in experiment.runs.items()),
        seeds=experiment.seeds,
        retrieval=tuple(evaluation.retrieval),
        zeroshot=tuple(evaluation.zeroshot),
        vqa=tuple(evaluation.vqa.test) if evaluation.vqa else (),
        teacher_label=f"{TEACHER} ({experiment.teacher.model})",
        teacher_seed=teacher_seed(experiment),
        student_initialisation=portable_text(experiment.student.init),
        title=paper.title,
        tables=tuple(paper.tables),
        appendix=_appendix(experiment),
        figures=tuple(paper.figures),
        appendix_figures=tuple(paper.appendix_figures),
        algorithms=tuple(paper.algorithms),
        labels=paper.labels,
        planned=paper.planned,
        planned_file=CONFIG / "planned.yaml",
        weights_run=paper.weights_run,
        weights_samples=paper.weights_samples,
        analysis_run=paper.analysis_run,
        full_run=paper.full_run,
        stages=tuple(_stages(experiment)),
        global_batch=experiment.training.global_batch,
        warmup=experiment.training.warmup,
        bootstrap=Bootstrap(**paper.bootstrap.model_dump()),
        design=paper_design(experiment),
        manuscript=Path(paper.manuscript) if paper.manuscript else None,
        tuned_file=Path(tuned) if tuned else None,
        config_file=config_file,
    )


def _appendix(experiment: ExperimentConfig) -> tuple[str, ...]:
    """Tables of the appendix; planned numbers come last if nothing else is said."""
    paper = experiment.paper
    return (*paper.appendix, "planned") if paper.planned and "planned" not in paper.appendix else tuple(paper.appendix)


def _run(experiment: ExperimentConfig, name: str, method: Any) -> PaperRun:
    full = experiment.runs.get(experiment.paper.full_run)
    return PaperRun(
        name=name,
        method=method.method,
        group=method.group,
        note=method.note,
        schedule=method.schedule,
        lr_scale=method.lr_scale,
        level_temperature=method.temperature_kd if method.uses_pyramid else None,
        deploys_teacher=method.deploys_teacher,
        changes=_changes(method, full) if method.group == "ablation" and full is not None else (),
    )


def _changes(method: MethodConfig, full: MethodConfig) -> tuple[str, ...]:
    """Options in which a run differs from the full method, as ``weights.align = 0``."""
    own, other = (dict(_flat(config.model_dump(mode="json", exclude={"group", "search"}))) for config in (method, full))
    return tuple(f"{key} = {_text(value)}" for key, value in own.items() if key not in other or other[key] != value)


def _flat(options: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_text(entry) for entry in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _stages(experiment: ExperimentConfig) -> Iterator[PaperStage]:
    """Stages of every schedule that a run uses, that of the full method first, then in the order of the runs."""
    methods = list(experiment.runs.values())
    full = experiment.runs.get(experiment.paper.full_run)
    for schedule in dict.fromkeys(method.schedule for method in ([full] if full is not None else []) + methods):
        pyramid = any(method.uses_pyramid for method in methods if method.schedule == schedule)
        for stage in experiment.schedules[schedule]:
            yield paper_stage(schedule, stage, pyramid=pyramid)
