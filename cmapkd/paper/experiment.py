"""From an experiment's configuration to what the paper needs to know of it."""

from __future__ import annotations

from pathlib import Path

from cmapkd.config.schema import ExperimentConfig
from cmapkd.paper.context import PaperContext, PaperRun
from cmapkd.plan import CONFIG, TEACHER
from cmapkd.runs import teacher_seed


def paper_context(experiment: ExperimentConfig, results: Path, config_file: Path | None = None) -> PaperContext:
    """The experiment as the paper sees it: names, order, splits and labels."""
    evaluation, paper = experiment.evaluation, experiment.paper
    return PaperContext(
        name=experiment.name,
        results=results / experiment.name,
        runs=tuple(PaperRun(name=name, method=method.method, note=method.note) for name, method in experiment.runs.items()),
        seeds=experiment.seeds,
        retrieval=tuple(evaluation.retrieval),
        zeroshot=tuple(evaluation.zeroshot),
        vqa=tuple(evaluation.vqa.test) if evaluation.vqa else (),
        teacher_label=f"{TEACHER} ({experiment.teacher.model})",
        teacher_seed=teacher_seed(experiment),
        student_initialisation=experiment.student.init,
        title=paper.title,
        tables=tuple(paper.tables),
        figures=tuple(paper.figures),
        labels=paper.labels,
        planned=paper.planned,
        planned_file=CONFIG / "planned.yaml",
        weights_run=paper.weights_run,
        weights_samples=paper.weights_samples,
        config_file=config_file,
    )
