"""Table 4: the full method without one of its components at a time."""

from __future__ import annotations

from cmapkd.errors import UserError, nearest
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Row, Table, Text
from cmapkd.paper.context import PaperContext, PaperRun
from cmapkd.paper.metrics import PERCENT, Metrics
from cmapkd.paper.significance import with_tests
from cmapkd.paper.tables.common import conditions, configured_text

NAME = "table4"


def build(context: PaperContext, metrics: Metrics) -> Table:
    """The ablations in the experiment's order, the full method last. Cells are percent, the difference percentage points."""
    if not context.retrieval:
        raise UserError(
            key="evaluation.retrieval", value=[], reason=f"{NAME} needs a test split", fix="name one, or leave the table out"
        )
    full, ablations = _runs(context)
    rows = (*(_row(run) for run in ablations), Row(full.name, full.shown, method=full.method, note=full.note, ruled=True))
    split = context.retrieval[0]
    sources = {  # column -> (column, keys of its number)
        "i2t_r1": (Column("i2t_r1", "I → T", group="R@1"), ("retrieval", split, "all", "i2t_r1")),
        "t2i_r1": (Column("t2i_r1", "T → I", group="R@1"), ("retrieval", split, "all", "t2i_r1")),
        "mean_recall": (Column("mean_recall", "mean", group="recall"), ("retrieval", split, "all", "mean_recall")),
    }
    data = []
    if context.vqa:
        sources["vqa_overall"] = (Column("vqa_overall", "all", group="VQA"), ("vqa", context.vqa[0], "all", "overall"))
        data.append(f"VQA: {context.label(context.vqa[0], 'vqa')}")
    if context.zeroshot:
        sources["top1"] = (Column("top1", "top-1", group="zero-shot"), ("zeroshot", context.zeroshot[0], "all", "top1"))
        data.append(f"Zero-shot: {context.label(context.zeroshot[0], 'zeroshot')}")
    cells: dict[str, dict[str, Cell]] = {}
    for row in rows:
        cells[row.key] = {}
        for key, (_, keys) in sources.items():
            cells[row.key][key] = metrics.mean(row.key, keys, f"{NAME} / {row.key} / {key}", bounds=PERCENT)
        if row.key != full.name:
            keys = sources["mean_recall"][1]
            cells[row.key]["difference"] = metrics.difference(
                row.key, full.name, keys, f"{NAME} / {row.key} / difference", PERCENT
            )
    columns = [column for column, _ in sources.values()]
    columns.insert(3, Column("difference", "Δ", group="recall", direction="", ranked=False, signed=True, optional=True))
    texts: dict[str, dict[str, Text]] = {CAPTION: {}}
    cells[CAPTION] = {}
    sizes = []
    for count in ("images", "captions"):
        cell = metrics.common([row.key for row in rows], ("retrieval", split, "all", count), f"{NAME} / {CAPTION} / {count}")
        cells[CAPTION][count] = cell
        sizes.append(f"{cell.value:,.0f} {count}")
    changes = []
    for run in ablations:
        change = ", ".join(run.changes) or "nothing"
        texts[CAPTION][f"changes:{run.name}"] = configured_text(context, change, "runs", run.name)
        changes.append(f"{run.shown} ({change})")
    caption = (
        f"Each row is {full.shown} with the options in brackets changed: {'; '.join(changes)}. "
        f"Recall in percent: {context.label(split, 'retrieval')}, {sizes[0]} and {sizes[1]}; I → T: image to text; "
        f"mean: over R@1, 5 and 10 of both directions; Δ: minus {full.shown} of the same seed. "
        f"{''.join(f'{entry}. ' for entry in data)}{conditions(context)}"
    )
    table = Table(NAME, "Component ablation", caption, rows, (Panel("", tuple(columns)),), cells, texts)
    return with_tests(context, metrics, table, {key: keys for key, (_, keys) in sources.items()}, full.name)


def _runs(context: PaperContext) -> tuple[PaperRun, list[PaperRun]]:
    """The full method and the ablations."""
    full = next((run for run in context.runs if run.name == context.full_run), None)
    if full is None:
        raise UserError(
            key="paper.full_run",
            value=context.full_run,
            reason=f"is not a run; {NAME} compares the ablations with it",
            fix=nearest(context.full_run, [run.name for run in context.runs]),
        )
    ablations = [run for run in context.students("ablation") if run is not full]
    if not ablations:
        raise UserError(
            key="runs", reason=f"{NAME} needs a run with `group: ablation`", fix="give one that group, or leave the table out"
        )
    return full, ablations


def _row(run: PaperRun) -> Row:
    return Row(run.name, run.shown, method=run.method, note=run.note)
