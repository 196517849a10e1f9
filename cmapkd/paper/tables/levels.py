"""Appendix: what the levels of the pyramids hold, how much they differ from one another, and how ALSN weighs them."""

from __future__ import annotations

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Row, Table
from cmapkd.paper.context import PaperContext, PaperRun
from cmapkd.paper.metrics import PERCENT, Metrics
from cmapkd.paper.tables.common import conditions

NAME = "levels"
VISUAL, LANGUAGE = ("P2", "P3", "P4", "P5"), ("L1", "L2", "L3", "L4")
PAIRS = tuple(f"{visual}-{language}" for visual, language in zip(VISUAL, LANGUAGE, strict=True))
TEACHER_ROW = "Teacher's pyramid"
SHARE = (0.0, 1.0)


def build(context: PaperContext, metrics: Metrics) -> Table:
    """Runs with a pyramid in the experiment's order, after the teacher's pyramid as the first of them had it.

    Raises:
        UserError: no run has a pyramid.
    """
    runs = [run for run in context.runs if run.method == "cmapkd"]
    if not runs:
        raise UserError(key="runs", reason=f"{NAME} needs a run with a pyramid", fix="add one, or leave the table out")
    cells: dict[str, dict[str, Cell]] = {CAPTION: {}, TEACHER_ROW: _pyramid(metrics, context, runs[0], "teacher", TEACHER_ROW)}
    rows = [Row(TEACHER_ROW, TEACHER_ROW, teacher=True, method="teacher")]
    for run in runs:
        found = _pyramid(metrics, context, run, "student", run.name)
        found |= _read(metrics, context, run, "alike", ("levels", "both", "mean_cka"), run.name, SHARE)
        for tower, levels in (("visual", VISUAL), ("language", LANGUAGE)):
            of_tower = ("levels", "weights", tower, "all")
            for level in levels:
                found |= _read(metrics, context, run, f"weight_{level}", (*of_tower, "mean", level), run.name, SHARE)
            found |= _read(metrics, context, run, f"entropy_{tower}", (*of_tower, "entropy_share"), run.name, SHARE)
        cells[run.name] = found
        rows.append(Row(run.name, run.shown, method=run.method, note=run.note))
    shown = (
        *(Column(pair, pair, group="accuracy", ranked=False, optional=True, decimals=1) for pair in PAIRS),
        Column("cka_visual", "visual", group="CKA between levels", direction="", ranked=False, optional=True, decimals=2),
        Column("cka_language", "language", group="CKA between levels", direction="", ranked=False, optional=True, decimals=2),
        Column("alike", "teacher", group="CKA to", direction="", ranked=False, optional=True, decimals=2),
    )
    weights = (
        *(
            Column(
                f"weight_{level}",
                level,
                group="mean weight",
                direction="",
                ranked=False,
                optional=True,
                decimals=2,
                deviation=False,
            )
            for level in (*VISUAL, *LANGUAGE)
        ),
        *(
            Column(f"entropy_{tower}", tower, group="entropy", direction="", ranked=False, optional=True, decimals=2)
            for tower in ("visual", "language")
        ),
    )
    caption = (
        "Accuracy in percent of each pair of levels among batches of 128 pairs, both directions averaged; linear CKA of pooled "
        "levels, averaged over pairs of different levels (near 1: the levels are copies of each other) and between each level "
        "and the teacher's; mean weights that ALSN gives and their entropy as a share of its maximum (1: equal weights). "
        f"Test pictures with their first caption. {conditions(context)}"
    )
    panels = (Panel("Levels", shown), Panel("Weights", weights))
    return Table(NAME, "Levels of the pyramids", caption, tuple(rows), panels, cells)


def _pyramid(metrics: Metrics, context: PaperContext, run: PaperRun, side: str, row: str) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for pair in PAIRS:
        found |= _read(metrics, context, run, pair, ("levels", side, "accuracy", pair), row, PERCENT)
    for tower in ("visual", "language"):
        found |= _read(metrics, context, run, f"cka_{tower}", ("levels", side, "mean_cka", tower), row, SHARE)
    return found


def _read(
    metrics: Metrics,
    context: PaperContext,
    run: PaperRun,
    column: str,
    keys: tuple[str, ...],
    row: str,
    bounds: tuple[float, float],
) -> dict[str, Cell]:
    """The cell of ``column``, if the run has such levels or weights: those that its configuration lacks are left blank."""
    cell = f"{NAME} / {row} / {column}"
    if not metrics.has(run.name, context.seeds_of(run.name)[0], keys, cell):
        return {}
    return {column: metrics.mean(run.name, keys, cell, bounds=bounds)}
