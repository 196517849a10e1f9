"""What the tables share: rows, column keys over several splits, and the sentences of captions."""

from __future__ import annotations

from cmapkd.paper.cells import Parent, Row, Text
from cmapkd.paper.context import EXPERIMENT_FILE, TEACHER, PaperContext, PaperRun
from cmapkd.paper.metrics import Metrics


def rows_of(context: PaperContext, students: tuple[PaperRun, ...]) -> tuple[Row, ...]:
    """The teacher, then the students in the experiment's order."""
    teacher = Row(key=TEACHER, label=context.teacher_label, teacher=True, method="teacher")
    return (teacher, *(Row(key=run.name, label=run.shown, method=run.method, note=run.note) for run in students))


def configured(context: PaperContext, *keys: str) -> Parent:
    """The experiment's file as a parent: what was configured, not measured."""
    return Parent(EXPERIMENT_FILE, context.experiment_digest, None, None, keys)


def configured_text(context: PaperContext, text: str, *keys: str) -> Text:
    """Words that follow from the experiment's file."""
    return Text(text, (configured(context, *keys),))


def column_key(metric: str, split: str, splits: tuple[str, ...]) -> str:
    """``i2t_r1`` on the first (primary) split, ``i2t_r1@dataset/split`` on the others."""
    return metric if split == splits[0] else f"{metric}@{split}"


def conditions(context: PaperContext) -> str:
    """Caption sentences that every table of results needs: initialisation and seeds. Tests: ``significance.with_tests``."""
    initialisation = f"Student initialisation: {context.student_initialisation}."
    if len(context.seeds) == 1:
        return f"{initialisation} One seed ({context.seeds[0]})."
    return f"{initialisation} Mean ± sample standard deviation over {len(context.seeds)} seeds (teacher: one)."


def vqa_measure(metrics: Metrics, split: str, run: str, cell: str) -> str:
    """What the VQA accuracy of a split is called: VQAv2's, or exact match where questions have one answer."""
    seed = metrics.context.seeds_of(run)[0]
    exact = metrics.has(run, seed, ("vqa", split, "all", "metric"), cell)
    return "VQA exact match" if exact else "VQA accuracy"


def short(label: str) -> str:
    """A split's label without what stands in brackets, for a panel's heading; the caption has all of it."""
    return label.partition(" (")[0]
