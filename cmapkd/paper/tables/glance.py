"""Results at a glance: every method and the teacher, with the main number of each task and the size of the image tower."""

from __future__ import annotations

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Table
from cmapkd.paper.context import PaperContext, Task
from cmapkd.paper.metrics import PERCENT, POSITIVE, Metrics
from cmapkd.paper.queries import Keys
from cmapkd.paper.significance import with_tests
from cmapkd.paper.tables.common import column_key, conditions, rows_of

NAME = "glance"
MAIN: dict[Task, tuple[str, dict[str, tuple[str, str]]]] = {  # task -> (heading, column -> (heading, metric))
    "retrieval": ("mean recall", {"mean_recall": ("", "mean_recall")}),
    "vqa": ("VQA", {"vqa_overall": ("all", "overall")}),
    "zeroshot": ("zero-shot", {"top1": ("top-1", "top1"), "top5": ("top-5", "top5")}),
}


def build(context: PaperContext, metrics: Metrics) -> Table:
    """Teacher first, then the students. Accuracies and recalls in percent, parameters in 1e6."""
    splits = context.splits
    if not any(splits.values()):
        raise UserError(key="evaluation", reason=f"{NAME} needs a test split", fix="name one, or leave the table out")
    rows = rows_of(context, context.students())
    cells: dict[str, dict[str, Cell]] = {row.key: {} for row in rows}
    columns: list[Column] = []
    tested: dict[str, Keys] = {}
    data = []
    for task, (group, shown) in MAIN.items():
        several = len(splits[task]) > 1
        for place, split in enumerate(splits[task]):
            # Numbers of several splits are told apart by letters that the caption explains.
            letter = "abcdefghij"[place] if several else ""
            for column, (header, metric) in shown.items():
                key = column_key(column, split, splits[task])
                tested[key] = (task, split, "all", metric)
                columns.append(Column(key, " ".join(part for part in (header, letter) if part) or "all", group=group))
            what = f"{group} (R@1, 5 and 10, both ways)" if task == "retrieval" else group
            data.append(" ".join(part for part in ("" if place else what, letter) if part) + f": {context.label(split, task)}")
    for row in cells:
        for key, keys in tested.items():
            cells[row][key] = metrics.mean(row, keys, f"{NAME} / {row} / {key}", bounds=PERCENT)
        where = f"{NAME} / {row} / image_parameters"
        cells[row]["image_parameters"] = metrics.mean(
            row, ("efficiency", "image_parameters"), where, scale=1e-6, bounds=POSITIVE
        )
    size = Column(
        "image_parameters", "image", group="params (M)", direction="down", decimals=None, deviation=False, ranked=False
    )
    caption = f"In percent; {'; '.join(data)}. Parameters: of the image tower. {conditions(context)}"
    table = Table(NAME, "Results at a glance", caption, rows, (Panel("", (*columns, size)),), {**cells, CAPTION: {}})
    return with_tests(context, metrics, table, tested)
