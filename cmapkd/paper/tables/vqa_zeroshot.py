"""Table 3: visual question answering and zero-shot classification.

Each VQA accuracy stands beside that of the same head without the image (question only): what is not above it is not vision.
"""

from __future__ import annotations

from collections.abc import Mapping

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Table
from cmapkd.paper.context import PaperContext
from cmapkd.paper.metrics import PERCENT, Metrics
from cmapkd.paper.queries import Keys
from cmapkd.paper.significance import with_tests
from cmapkd.paper.tables.common import column_key, conditions, rows_of, short, vqa_measure

NAME = "table3"
VQA = {  # column -> (heading, keys below the split)
    "vqa_overall": ("all", ("all", "overall")),
    "vqa_yes_no": ("yes/no", ("all", "yes_no")),
    "vqa_number": ("number", ("all", "number")),
    "vqa_other": ("other", ("all", "other")),
    "vqa_question_only": ("no image", ("question_only", "overall")),
}
ZEROSHOT = {"top1": ("top-1", ("all", "top1")), "top5": ("top-5", ("all", "top5"))}


def build(context: PaperContext, metrics: Metrics) -> Table:
    """Teacher first, then the students. Cells are percent."""
    if not context.vqa and not context.zeroshot:
        raise UserError(
            key="evaluation",
            reason=f"{NAME} needs a split for vqa or zeroshot",
            fix="name one in the configuration, or leave the table out",
        )
    rows = rows_of(context, context.students())
    cells: dict[str, dict[str, Cell]] = {key: {} for key in (*(row.key for row in rows), CAPTION)}
    tested: dict[str, Keys] = {}
    panels, data = [], []
    for index in range(max(len(context.vqa), len(context.zeroshot))):
        columns: list[Column] = []
        titles = []
        if index < len(context.vqa):
            split = context.vqa[index]
            measure = vqa_measure(metrics, split, rows[0].key, f"{NAME} / {CAPTION} / vqa")
            columns += _columns(metrics, cells, tested, "vqa", split, context.vqa, VQA, measure)
            questions = _count(context, metrics, cells, "vqa", split, context.vqa, "questions")
            titles.append(f"VQA: {short(context.label(split, 'vqa'))}")
            data.append(f"VQA: {context.label(split, 'vqa')}, {questions}")
        if index < len(context.zeroshot):
            split = context.zeroshot[index]
            columns += _columns(metrics, cells, tested, "zeroshot", split, context.zeroshot, ZEROSHOT, "zero-shot")
            images = _count(context, metrics, cells, "zeroshot", split, context.zeroshot, "images")
            classes = _count(context, metrics, cells, "zeroshot", split, context.zeroshot, "classes")
            titles.append(f"zero-shot: {short(context.label(split, 'zeroshot'))}")
            data.append(f"zero-shot: {context.label(split, 'zeroshot')}, {images}, {classes}")
        panels.append(Panel("; ".join(titles), tuple(columns)))
    baseline = " “No image” is the accuracy of the same head on the question alone." if context.vqa else ""
    caption = f"Accuracy in percent. {'; '.join(data)}.{baseline} {conditions(context)}"
    return with_tests(context, metrics, Table(NAME, _title(context), caption, rows, tuple(panels), cells), tested)


def _title(context: PaperContext) -> str:
    parts = ["visual question answering"] * bool(context.vqa) + ["zero-shot classification"] * bool(context.zeroshot)
    title = " and ".join(parts)
    return title[0].upper() + title[1:]


def _columns(
    metrics: Metrics,
    cells: dict[str, dict[str, Cell]],
    tested: dict[str, Keys],
    task: str,
    split: str,
    splits: tuple[str, ...],
    headings: Mapping[str, tuple[str, tuple[str, ...]]],
    group: str,
) -> list[Column]:
    """Columns of one task on one split; fills their cells, and where the numbers of those that are tested lie."""
    columns = []
    for metric, (header, keys) in headings.items():
        key = column_key(metric, split, splits)
        ranked = metric != "vqa_question_only"
        columns.append(Column(key=key, header=header, group=group, ranked=ranked))
        if ranked:
            tested[key] = (task, split, *keys)
        for row in cells:
            if row != CAPTION:
                cells[row][key] = metrics.mean(row, (task, split, *keys), f"{NAME} / {row} / {key}", bounds=PERCENT)
    return columns


def _count(
    context: PaperContext,
    metrics: Metrics,
    cells: dict[str, dict[str, Cell]],
    task: str,
    split: str,
    splits: tuple[str, ...],
    what: str,
) -> str:
    key = column_key(f"{task}_{what}", split, splits)
    runs = [row for row in cells if row != CAPTION]
    cells[CAPTION][key] = metrics.common(runs, (task, split, "all", what), f"{NAME} / {CAPTION} / {key}")
    return f"{cells[CAPTION][key].value:,.0f} {what}"
