"""Appendix: what the layer selection does. How far its weights are from equal ones, what they follow, what they are worth."""

from __future__ import annotations

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Row, Table, Text
from cmapkd.paper.context import PaperContext, PaperRun
from cmapkd.paper.metrics import PERCENT, Metrics
from cmapkd.paper.tables.common import conditions, configured_text

NAME = "alsn"
TOWERS = ("visual", "language")
SHARE = (0.0, 1.0)
POLICY, WEIGHTS = "policy = ", "manual_weights = "


def _pair(name: str, group: str, decimals: int) -> tuple[Column, ...]:
    return tuple(
        Column(f"{name}_{tower}", tower, group=group, direction="", decimals=decimals, ranked=False, optional=True)
        for tower in TOWERS
    )


# Two panels: in one, nine columns with deviations would be too small to read.
PANELS = (
    Panel("How even", (Column("mean_recall", "recall", group="mean", ranked=False), *_pair("entropy", "entropy", 3))),
    Panel(
        "What they follow",
        (*_pair("samples", "over samples", 3), *_pair("strata", "over strata", 3), *_pair("nearest", "nearest (%)", 0)),
    ),
)


def build(context: PaperContext, metrics: Metrics) -> Table:
    """Runs whose weights come from ALSN, then those with fixed weights.

    Raises:
        UserError: no run recorded ALSN's weights, or there is no test split of retrieval.
    """
    if not context.retrieval:
        raise UserError(
            key="evaluation.retrieval", value=[], reason=f"{NAME} needs a test split", fix="name one, or leave the table out"
        )
    learned = [run for run in context.runs if run.method == "cmapkd" and _has(metrics, context, run)]
    if not learned:
        raise UserError(key="runs", reason=f"{NAME} needs a run with the policy alsn", fix="add one, or leave the table out")
    fixed = [run for run in context.runs if run not in learned and any(change.startswith(POLICY) for change in run.changes)]
    cells: dict[str, dict[str, Cell]] = {CAPTION: {}}
    texts: dict[str, dict[str, Text]] = {CAPTION: {}}
    keys = ("retrieval", context.retrieval[0], "all", "mean_recall")
    for run in (*learned, *fixed):
        recall = metrics.mean(run.name, keys, f"{NAME} / {run.name} / mean_recall", bounds=PERCENT)
        cells[run.name] = {"mean_recall": recall}
    for run in learned:
        for tower in TOWERS:
            cells[run.name] |= _of_tower(metrics, context, run, tower)
    said = []
    for run in fixed:
        for change in run.changes:
            if change.startswith(WEIGHTS):
                key, text = f"weights:{run.name}", change.removeprefix(WEIGHTS)
                texts[CAPTION][key] = configured_text(context, text, "runs", run.name, "manual_weights")
                said.append(f"{run.shown}: {text} for P2-P5 and L1-L4 (divided by their sum)")
    rows = [
        *(Row(run.name, run.shown, method=run.method, note=run.note, section="weights by ALSN") for run in learned),
        *(Row(run.name, run.shown, method=run.method, note=run.note, section="fixed weights") for run in fixed),
    ]
    caption = (
        f"{context.label(context.retrieval[0], 'retrieval')}. Entropy of the weights as a share of its maximum (1: equal "
        "weights). Over samples: largest standard deviation of a level's weight. Over strata: largest difference between the "
        "mean weights of two strata. Nearest: share of the samples whose largest weight is on the level that is nearest to the "
        f"teacher's, the easiest to match (chance: one in four). {''.join(f'{entry}. ' for entry in said)}{conditions(context)}"
    )
    return Table(NAME, "What the layer selection does", caption, tuple(rows), PANELS, cells, texts)


def _has(metrics: Metrics, context: PaperContext, run: PaperRun) -> bool:
    return metrics.has(run.name, context.seeds_of(run.name)[0], ("levels", "follows"), f"{NAME} / {run.name}")


def _of_tower(metrics: Metrics, context: PaperContext, run: PaperRun, tower: str) -> dict[str, Cell]:
    first, where = context.seeds_of(run.name)[0], f"{NAME} / {run.name}"
    above = ("levels", "weights", tower)
    levels = metrics.names(run.name, first, (*above, "all", "mean"), where)
    strata = [name for name in metrics.names(run.name, first, above, where) if name != "all"]
    found = {
        f"entropy_{tower}": metrics.mean(
            run.name, (*above, "all", "entropy_share"), f"{where} / entropy_{tower}", bounds=(0.0, 1.0 + 1e-6)
        ),
        f"samples_{tower}": metrics.combined(
            run.name,
            [(*above, "all", "deviation", level) for level in levels],
            f"{where} / samples_{tower}",
            max,
            "largest standard deviation over samples",
            SHARE,
        ),
        f"nearest_{tower}": metrics.mean(
            run.name, ("levels", "follows", tower, "easiest"), f"{where} / nearest_{tower}", scale=100, bounds=SHARE
        ),
    }
    if len(strata) >= 2:
        found[f"strata_{tower}"] = metrics.combined(
            run.name,
            [(*above, stratum, "mean", level) for level in levels for stratum in strata],
            f"{where} / strata_{tower}",
            lambda values: largest_range(values, len(strata)),
            "largest difference between strata",
            SHARE,
        )
    return found


def largest_range(values: list[float], size: int) -> float:
    """The largest range among consecutive groups of ``size`` values."""
    groups = [values[first : first + size] for first in range(0, len(values), size)]
    return max(max(group) - min(group) for group in groups)
