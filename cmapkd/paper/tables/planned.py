"""Appendix, on request: what the design had planned beside what was measured. Planned numbers are no results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Row, Table
from cmapkd.paper.context import TEACHER, PaperContext, PaperRun, Task
from cmapkd.paper.metrics import PERCENT, POSITIVE, Metrics
from cmapkd.paper.planned import PREFIX, planned_cells
from cmapkd.paper.queries import Keys
from cmapkd.paper.tables.common import rows_of

NAME = "planned"


@dataclass(frozen=True)
class Shown:
    """A number that was planned: its column, where its measurement lies, and the factor to the column's unit."""

    column: Column
    keys: Keys
    scale: float = 1.0


@dataclass(frozen=True)
class Part:
    """What was planned for one table of the paper, and which of the experiment's rows have which names there."""

    table: str
    title: str
    shown: tuple[Shown, ...]
    names: dict[str, str]


def build(context: PaperContext, metrics: Metrics) -> Table:
    """One panel for each table with planned numbers; rows that have some.

    Raises:
        UserError: ``paper.planned`` is not set, or no row of the experiment has a planned number.
    """
    cells: dict[str, dict[str, Cell]] = {CAPTION: {}}
    panels = []
    for part in _parts(context):
        keys = []
        for row, name in part.names.items():
            planned = planned_cells(context, part.table, name)
            if not planned or not part.shown:
                continue
            keys.append(row)
            for one in part.shown:
                key = one.column.key
                bounds = POSITIVE if one.keys[0] == "efficiency" else PERCENT
                found = metrics.mean(row, one.keys, f"{NAME} / {row} / {key}", scale=one.scale, bounds=bounds)
                cells.setdefault(row, {})[key] = found
                if (metric := key.partition(":")[2]) in planned:
                    cells[row][PREFIX + key] = planned[metric]
        if keys:
            measured = [one.column for one in part.shown]
            beside = [replace(column, key=PREFIX + column.key, planned=True, optional=True) for column in measured]
            panels.append(Panel(part.title, (*measured, *beside), tuple(keys)))
    ablations = [Row(run.name, run.shown, method=run.method, note=run.note) for run in _ablations(context)]
    teacher, *students = rows_of(context, context.students())
    rows = (replace(teacher, label=TEACHER), *students, *ablations)
    caption = (
        "Planned numbers were written down before any experiment, for CLIP ViT-L/14 and ViT-B/16 on COCO 5K, VQAv2 and "
        "ImageNet-1K; they are not results. Image tower: parameters (M), FLOPs (G) and ms for an image. "
        f"Measured: {'; '.join(_data(context))}; mean over {_seeds(context)}."
    )
    return Table(NAME, "Planned versus measured", caption, tuple(row for row in rows if row.key in cells), tuple(panels), cells)


def _ablations(context: PaperContext) -> list[PaperRun]:
    return [run for run in context.students("ablation") if run.name != context.full_run]


def _parts(context: PaperContext) -> Iterator[Part]:
    students = {run.name: run.name for run in context.students()}
    retrieval, vqa, zeroshot = (splits[:1] for splits in (context.retrieval, context.vqa, context.zeroshot))

    def percent(table: str, key: str, header: str, group: str, task: str, split: str, metric: str) -> Shown:
        column = Column(f"{table}:{key}", header, group=group, deviation=False, ranked=False)
        return Shown(column, (task, split, "all", metric))

    recalls = [
        percent("table2", f"{way}_r{k}", f"R@{k}", group, "retrieval", split, f"{way}_r{k}")
        for split in retrieval
        for way, group in (("i2t", "image → text"), ("t2i", "text → image"))
        for k in (1, 5, 10)
    ]
    recalls += [percent("table2", "mean_recall", "mean", "", "retrieval", split, "mean_recall") for split in retrieval]
    yield Part("table2", "Retrieval", tuple(recalls), {TEACHER: TEACHER, **students})

    answers = [
        percent("table3", f"vqa_{kind}", header, "VQA", "vqa", split, kind)
        for split in vqa
        for kind, header in (("overall", "all"), ("yes_no", "yes/no"), ("number", "number"), ("other", "other"))
    ]
    answers += [percent("table3", "top1", "top-1", "zero-shot", "zeroshot", split, "top1") for split in zeroshot]
    yield Part("table3", "Questions and zero-shot", tuple(answers), {TEACHER: TEACHER, **students})

    ablations = [percent("table4", "i2t_r1", "R@1", "image → text", "retrieval", split, "i2t_r1") for split in retrieval]
    ablations += [percent("table4", "vqa_overall", "all", "VQA", "vqa", split, "overall") for split in vqa]
    full = {run.name: "progressive (full)" for run in context.runs if run.name == context.full_run}
    yield Part("table4", "Ablation", tuple(ablations), {**{run.name: run.name for run in _ablations(context)}, **full})

    costs = [
        Shown(
            Column(
                f"table5:{key}", header, group="image tower", direction="down", decimals=None, deviation=False, ranked=False
            ),
            ("efficiency", metric),
            scale,
        )
        for key, header, metric, scale in (
            ("image_parameters", "M", "image_parameters", 1e-6),
            ("image_flops", "GFLOPs", "image_flops", 1e-9),
            ("latency_batch1", "ms", "latency_ms_batch1", 1.0),
        )
    ]
    costs += [percent("table5", "i2t_r1", "R@1", "image → text", "retrieval", split, "i2t_r1") for split in retrieval]
    scratch = {run: "CLIP-B scratch" for run in students if run == "Scratch"}
    yield Part("table5", "Efficiency", tuple(costs), {TEACHER: "CLIP-L", **students, **scratch})


def _data(context: PaperContext) -> list[str]:
    words: dict[Task, str] = {"retrieval": "retrieval", "vqa": "VQA", "zeroshot": "zero-shot"}
    return [f"{words[task]}: {context.label(found[0], task)}" for task, found in context.splits.items() if found]


def _seeds(context: PaperContext) -> str:
    return f"{len(context.seeds)} seeds" if len(context.seeds) > 1 else "one seed"
