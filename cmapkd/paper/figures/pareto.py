"""Appendix figure ``pareto``: retrieval against what it costs, for the teacher and every method.

Mean recall (R@1, 5 and 10 in both directions, averaged) against latency of the image tower at batch size one and against all
parameters that inference needs. A method is on the front when no other is at least as good and at least as cheap, and better in
one of the two, by means over seeds; differences smaller than the deviation over seeds decide nothing. Image towers of the same
parameters and FLOPs are equally fast whatever was measured: their latencies show how noisy the measurement is, which the
caption states, and the front takes their median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure as Canvas

from cmapkd.paper.cells import CAPTION, Cell, number_of
from cmapkd.paper.context import TEACHER, PaperContext
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.common import first_split, single_cell
from cmapkd.paper.figures.style import TEXT_WIDTH, cycle, paper_style, plain, save_pdf
from cmapkd.paper.metrics import PERCENT, POSITIVE, Metrics

NAME = "pareto"
COSTS = {  # column -> (metric, scale, what the axis says)
    "latency": ("latency_ms_batch1", 1.0, "latency, image tower (ms/image)"),
    "parameters": ("total_parameters", 1e-6, "parameters at inference (M)"),
}


def build(context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure at ``path``.

    Its numbers: a row for the teacher and each method, with ``mean_recall`` (percent), ``latency`` (ms per image) and
    ``parameters`` (1e6).
    """
    split = first_split(context, NAME)
    labels = {TEACHER: context.teacher_label} | {run.name: run.shown for run in context.students()}
    cells: dict[str, dict[str, Cell]] = {}
    for row in labels:
        keys = ("retrieval", split, "all", "mean_recall")
        cells[row] = {"mean_recall": metrics.mean(row, keys, f"{NAME} / {row} / mean_recall", bounds=PERCENT)}
        for column, (metric, scale, _) in COSTS.items():
            cell = f"{NAME} / {row} / {column}"
            cells[row][column] = metrics.mean(row, ("efficiency", metric), cell, scale=scale, bounds=POSITIVE)
    devices = sorted(
        {
            metrics.text(row, seed, ("efficiency", "device"), f"{NAME} / {row} / latency")
            for row in labels
            for seed in context.seeds_of(row)
        }
    )
    borrowing = [run.name for run in context.students() if run.deploys_teacher]
    alike = same_towers(metrics, context, list(labels))
    costs = {column: {row: cells[row][column].value for row in labels} for column in COSTS}
    for rows in alike:
        costs["latency"] |= dict.fromkeys(rows, median(costs["latency"][row] for row in rows))
    gains = {row: cells[row]["mean_recall"].value for row in labels}
    fronts = {column: front({row: (costs[column][row], gains[row]) for row in labels}) for column in COSTS}
    spread = max(alike, key=len)
    if len(spread) > 1:
        measured = sorted((cells[row]["latency"] for row in spread), key=lambda number: number.value)
        parents = [parent for number in measured for parent in number.parents]
        for end, number, word in (("low", measured[0], "smallest"), ("high", measured[-1], "largest")):
            how = f"{word} latency among {', '.join(spread)}, which have the same image tower"
            cells.setdefault(CAPTION, {})[end] = single_cell(number.value, parents, how)
    with paper_style():
        lines = {column: [(costs[column][row], gains[row]) for row in rows] for column, rows in fronts.items()}
        canvas = _draw(cells, labels, lines, borrowing)
        save_pdf(canvas, path, "Retrieval against cost")
    return Figure(
        name=NAME,
        title="Retrieval against cost",
        caption=_caption(context, split, labels, fronts, borrowing, devices, cells.get(CAPTION, {})),
        parents=tuple(dict.fromkeys(parent for row in cells.values() for cell in row.values() for parent in cell.parents)),
        cells=cells,
        decimals=2,
        values={"split": split, "fronts": fronts},
    )


def same_towers(metrics: Metrics, context: PaperContext, rows: Sequence[str]) -> list[list[str]]:
    """Rows with image towers of the same parameters and FLOPs, in groups."""
    found: dict[tuple[float, ...], list[str]] = {}
    for row in rows:
        seed = context.seeds_of(row)[0]
        names = ("image_parameters", "image_flops")
        size = tuple(metrics.number(row, seed, ("efficiency", name), f"{NAME} / {row} / {name}", POSITIVE)[0] for name in names)
        found.setdefault(size, []).append(row)
    return list(found.values())


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (cost, gain) that no other dominates, by rising cost. Equal points are all on it."""

    def dominated(cost: float, gain: float) -> bool:
        return any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points.values())

    return sorted((name for name, point in points.items() if not dominated(*point)), key=lambda name: points[name])


def _draw(
    cells: Mapping[str, Mapping[str, Cell]],
    labels: Mapping[str, str],
    lines: Mapping[str, Sequence[tuple[float, float]]],
    borrowing: Sequence[str],
) -> Canvas:
    rows = -(-len(labels) // 4)  # of the legend
    height = 0.42 * TEXT_WIDTH + 0.15 * rows
    canvas = Canvas(figsize=(TEXT_WIDTH, height))
    axes = canvas.subplots(1, 2, sharey=True)
    canvas.subplots_adjust(left=0.105, right=0.985, bottom=0.36 / height, top=1 - (0.15 * rows + 0.1) / height, wspace=0.08)
    for axis, (column, (_, _, text)) in zip(axes, COSTS.items(), strict=True):
        for index, row in enumerate(labels):
            _point(axis, cells[row][column], cells[row]["mean_recall"], index, labels[row], hollow=row in borrowing)
        axis.plot(*zip(*lines[column], strict=True), color="0.6", linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
        axis.set_xscale("log")
        axis.margins(x=0.1, y=0.1)
        ticks = _ticks([cells[row][column].value for row in labels])
        axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(text)
    axes[0].set_ylabel("mean recall (%)")
    handles, names = axes[0].get_legend_handles_labels()
    canvas.legend(
        handles, names, loc="upper center", ncols=4, frameon=False, fontsize=6.2, handletextpad=0.2, columnspacing=1.2,
        borderaxespad=0.2, labelspacing=0.35,
    )  # fmt: skip
    return canvas


def _point(axis: Any, cost: Cell, gain: Cell, index: int, label: str, *, hollow: bool) -> None:
    style = cycle(index)
    if gain.std is not None or cost.std is not None:
        axis.errorbar(
            cost.value, gain.value, xerr=cost.std, yerr=gain.std, fmt="none", ecolor=style["color"], elinewidth=0.7, zorder=2
        )
    axis.plot(
        cost.value,
        gain.value,
        style["marker"],
        color=style["color"],
        markerfacecolor="white" if hollow else style["color"],
        markersize=4.5,
        markeredgewidth=0.9,
        linestyle="none",
        zorder=3,
        label=plain(label),
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """A few places on a logarithmic axis with round labels: smallest and largest cost and, if far apart, what lies between."""
    low, high = min(values), max(values)
    middle = [(low * high) ** 0.5] if high > 1.5 * low else []
    return sorted({float(f"{value:.2g}") for value in (low, *middle, high)})


def _caption(
    context: PaperContext,
    split: str,
    labels: Mapping[str, str],
    fronts: Mapping[str, Sequence[str]],
    borrowing: Sequence[str],
    devices: Sequence[str],
    spread: Mapping[str, Cell],
) -> str:
    several = len(context.seeds) > 1
    seeds = f"mean ± standard deviation of {len(context.seeds)} seeds (teacher: one)" if several else f"seed {context.seeds[0]}"
    on = "; ".join(f"{column}: {', '.join(labels[row] for row in names)}" for column, names in fronts.items())
    where = (
        f"Latency at batch size 1 on {devices[0]}."
        if len(devices) == 1
        else f"Latencies were measured on different devices ({'; '.join(devices)}) and cannot be compared."
    )
    if spread:
        low, high = (number_of(spread[end].value, 2) for end in ("low", "high"))
        where += (
            f" Models with the same image tower were measured at {low} to {high} ms: that is the noise of the measurement, and "
            "the dashed line takes their median."
        )
    names = ", ".join(labels[row] for row in borrowing)
    note = f" Hollow: {names} uses the teacher's text tower at inference; its parameters count that." if borrowing else ""
    return (
        f"Mean recall (R@1, 5, 10, both directions) on {context.label(split, 'retrieval')} against cost at inference, {seeds}. "
        f"{where}{note} Costs on logarithmic axes. Dashed: no other model is as good and as cheap, by "
        f"{'means' if several else 'this one seed'} ({on}); nothing is tested here."
    )
