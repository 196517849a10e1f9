"""Table 2: image-text retrieval, recall at 1, 5 and 10 in both directions; one panel for each test split."""

from __future__ import annotations

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Table
from cmapkd.paper.context import PaperContext
from cmapkd.paper.metrics import PERCENT, Metrics
from cmapkd.paper.significance import with_tests
from cmapkd.paper.tables.common import column_key, conditions, rows_of, short

NAME = "table2"
METRICS = {  # metric -> (heading that spans, heading)
    "i2t_r1": ("image → text", "R@1"),
    "i2t_r5": ("image → text", "R@5"),
    "i2t_r10": ("image → text", "R@10"),
    "t2i_r1": ("text → image", "R@1"),
    "t2i_r5": ("text → image", "R@5"),
    "t2i_r10": ("text → image", "R@10"),
    "mean_recall": ("", "mean"),
}


def build(context: PaperContext, metrics: Metrics) -> Table:
    """Teacher first, then the students. Cells are percent."""
    if not context.retrieval:
        raise UserError(
            key="evaluation.retrieval", value=[], reason=f"{NAME} needs a test split", fix="name one, or leave the table out"
        )
    rows = rows_of(context, context.students())
    keys = [row.key for row in rows]
    cells: dict[str, dict[str, Cell]] = {key: {} for key in (*keys, CAPTION)}
    panels, pools, tested = [], [], {}
    for split in context.retrieval:
        columns = []
        for metric, (group, header) in METRICS.items():
            key = column_key(metric, split, context.retrieval)
            columns.append(Column(key=key, header=header, group=group))
            tested[key] = ("retrieval", split, "all", metric)
            for row in keys:
                name = f"{NAME} / {row} / {key}"
                cells[row][key] = metrics.mean(row, tested[key], name, bounds=PERCENT)
        sizes = {}
        for count in ("images", "captions"):
            key = column_key(count, split, context.retrieval)
            cells[CAPTION][key] = metrics.common(keys, ("retrieval", split, "all", count), f"{NAME} / {CAPTION} / {key}")
            sizes[count] = f"{cells[CAPTION][key].value:,.0f} {count}"
        label = context.label(split, "retrieval")
        pools.append(f"{label}, {sizes['images']} and {sizes['captions']}")
        panels.append(Panel(short(label), tuple(columns)))
    caption = f"Recall at k in percent over all of the test set: {'; '.join(pools)}. {conditions(context)}"
    return with_tests(context, metrics, Table(NAME, "Image-text retrieval", caption, rows, tuple(panels), cells), tested)
