"""Figure 3: the weights that ALSN gives to P2-P5 and L1-L4, against the difficulty of the sample.

Difficulty is the teacher's retrieval margin: the similarity of a picture's best own caption minus that of the best other
picture's caption; a small or negative margin is hard. The hypothesis that is tested, not assumed: easy samples lean on P5,
hard ones on P2 and P3. The test is Spearman's rank correlation between difficulty and each level's weight over the test split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from scipy.stats import spearmanr

from cmapkd.errors import UserError, nearest
from cmapkd.paper.cells import Cell, Parent, number_of
from cmapkd.paper.context import TEACHER, PaperContext
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.style import SERIES, TEXT_WIDTH, paper_style, save_pdf
from cmapkd.paper.metrics import Metrics

NAME = "figure3"
LEVELS = {"visual": ("P2", "P3", "P4", "P5"), "language": ("L1", "L2", "L3", "L4")}
TITLES = {"visual": "Visual pyramid, P2 fine to P5 coarse", "language": "Language hierarchy, L1 token to L4 global"}
WINDOW = 0.1  # share of the samples under the moving average
NARROWEST = 0.1  # half of the smallest range of the weight axis, about 1/4
Z95 = 1.959964  # standard normal quantile of a 95 % interval


def build(context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure at ``path``.

    Its numbers are the rank correlations: rows P2 to P5 and L1 to L4, columns rho, rho_low and rho_high (95 % interval).
    """
    if not context.retrieval:
        raise UserError(
            key="evaluation.retrieval", value=[], reason=f"{NAME} needs a test split", fix="name one, or leave the figure out"
        )
    split = context.retrieval[0]
    run = _weights_run(context, metrics, split)
    margin, origin = metrics.array(TEACHER, context.teacher_seed, f"retrieval/{split}/margin", f"{NAME} / difficulty")
    margin = _checked(margin, (len(margin),), origin)
    order = np.argsort(-margin, kind="stable")  # (N,) easy to hard
    percentile = 100 * np.arange(len(order)) / max(1, len(order) - 1)  # (N,)
    shown = np.unique(np.linspace(0, len(order) - 1, min(context.weights_samples, len(order))).round().astype(int))

    parents, cells, curves = [origin], {}, {}
    weights: dict[str, np.ndarray] = {}
    for tower, levels in LEVELS.items():
        value, tower_parents = _weights(context, metrics, run, f"alsn/{split}/{tower}", len(order))
        weights[tower] = value[order]  # (N, 4), easy to hard
        parents += tower_parents
        for index, level in enumerate(levels):
            cells[level] = _correlation(weights[tower][:, index], origin, tower_parents)
            curves[level] = moving_average(weights[tower][:, index], max(3, round(WINDOW * len(order))))
    with paper_style():
        canvas = _draw(percentile, shown, weights, curves, cells)
        save_pdf(canvas, path, "Layer weights by difficulty")
    return Figure(
        name=NAME,
        title="Layer weights by difficulty",
        caption=_caption(context, run, split, len(order), len(shown), cells),
        parents=tuple(parents),
        cells=cells,
        values={
            "split": split,
            "run": run,
            "percentile": _rounded(percentile[shown]),
            "margin": _rounded(margin[order][shown]),
            "points": {
                level: _rounded(weights[tower][shown, i]) for tower, levels in LEVELS.items() for i, level in enumerate(levels)
            },
            "curves": {
                level: {"mean": _rounded(mean[shown]), "half_width": _rounded(half[shown])}
                for level, (mean, half) in curves.items()
            },
        },
    )


def moving_average(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Centred moving average and half width of its pointwise 95 % confidence interval, windows cut at the ends.

    Args:
        values: (N,) in order.
        window: samples under a full window.

    Returns:
        mean (N,), half width (N,).
    """
    count = len(values)
    half = window // 2
    low = np.maximum(0, np.arange(count) - half)
    high = np.minimum(count, np.arange(count) + half + 1)
    sizes = high - low
    centre = values.mean()  # subtracted for the sums of squares to stay accurate
    total = np.concatenate([[0.0], np.cumsum(values - centre)])
    square = np.concatenate([[0.0], np.cumsum((values - centre) ** 2)])
    mean = (total[high] - total[low]) / sizes
    variance = np.maximum(0.0, (square[high] - square[low]) / sizes - mean**2) * sizes / np.maximum(1, sizes - 1)
    return mean + centre, Z95 * np.sqrt(variance / sizes)


def spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float] | None:
    """Rank correlation and its 95 % interval; None for a constant series.

    The interval is Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and Wright (Psychometrika 65, 2000).
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0 or len(x) < 10:
        return None
    rho = float(spearmanr(x, y).statistic)
    z = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    error = Z95 * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return rho, math.tanh(z - error), math.tanh(z + error)


def _correlation(weight: np.ndarray, origin: Parent, parents: list[Parent]) -> dict[str, Cell]:
    found = spearman(np.arange(len(weight)), weight)
    if found is None:
        return {}
    texts = (
        "Spearman's rank correlation of difficulty and weight",
        "lower end of its 95 % interval",
        "upper end of its 95 % interval",
    )
    return {
        name: Cell(value=value, n=1, parents=(origin, *parents), recipe=text)
        for name, value, text in zip(("rho", "rho_low", "rho_high"), found, texts, strict=True)
    }


def _weights_run(context: PaperContext, metrics: Metrics, split: str) -> str:
    names = [run.name for run in context.runs]
    if context.weights_run:
        if context.weights_run not in names:
            raise UserError(
                key="paper.weights_run",
                value=context.weights_run,
                reason="is not a run",
                fix=nearest(context.weights_run, names),
            )
        return context.weights_run
    for name in names:
        if f"alsn/{split}/visual" in metrics.arrays(name, context.seeds[0], f"{NAME} / {name}"):
            return name
    raise UserError(
        key="paper.figures", value=NAME, reason=f"no run recorded layer weights on {split}", fix=f"leave {NAME} out"
    )


def _weights(context: PaperContext, metrics: Metrics, run: str, name: str, count: int) -> tuple[np.ndarray, list[Parent]]:
    """Weights of one tower, mean over seeds, (N, 4), and their parents."""
    found, parents = [], []
    for seed in context.seeds:
        value, parent = metrics.array(run, seed, name, f"{NAME} / {run} / {name}")
        value = _checked(value, (count, 4), parent)
        if np.abs(value.sum(axis=1) - 1).max(initial=0) > 1e-3:
            raise UserError(
                key=parent.file, reason=f"{name}: the weights of a sample do not add up to one", fix="evaluate the run again"
            )
        found.append(value)
        parents.append(parent)
    return np.mean(found, axis=0), parents


def _checked(values: np.ndarray, shape: tuple[int, ...], parent: Parent) -> np.ndarray:
    where = f"{' / '.join(parent.keys)} (needed for {NAME})"
    if values.shape != shape or not len(values):
        raise UserError(
            key=parent.file, value=values.shape, reason=f"{where}: the shape should be {shape}", fix="evaluate the run again"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(key=parent.file, reason=f"{where}: holds a number that is not finite", fix="evaluate the run again")
    return values


def _draw(
    percentile: np.ndarray,
    shown: np.ndarray,
    weights: Mapping[str, np.ndarray],
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    cells: Mapping[str, Mapping[str, Cell]],
) -> Canvas:
    canvas = Canvas(figsize=(TEXT_WIDTH, 0.5 * TEXT_WIDTH))
    axes = canvas.subplots(1, 2, sharey=True)
    canvas.subplots_adjust(left=0.095, right=0.985, bottom=0.165, top=0.78, wspace=0.1)
    for axis, (tower, levels) in zip(axes, LEVELS.items(), strict=True):
        for index, level in enumerate(levels):
            style: dict[str, Any] = SERIES[index]
            colour = style["color"]
            mean, half = curves[level]
            axis.plot(
                percentile[shown],
                weights[tower][shown, index],
                style["marker"],
                color=colour,
                markersize=1.7,
                markeredgewidth=0,
                alpha=0.35,
            )
            axis.fill_between(percentile, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
            axis.plot(percentile, mean, color=colour, linestyle=style["linestyle"], label=_legend(level, cells[level]))
        axis.axhline(0.25, color="0.55", linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
        axis.set_xlim(-1, 101)
        axis.set_xticks([0, 25, 50, 75, 100])
        axis.set_xlabel("difficulty, percentile (easy → hard)")
        _legend_above(axis, TITLES[tower])
    axes[0].set_ylim(*_limits(weights, shown))
    axes[0].yaxis.set_major_formatter("{x:.2f}")
    axes[0].set_ylabel("weight")
    return canvas


def _limits(weights: Mapping[str, np.ndarray], shown: np.ndarray) -> tuple[float, float]:
    """Range of the weight axis: what is plotted, but never so narrow that noise about uniform weights looks like an effect."""
    values = np.concatenate([tower[shown].ravel() for tower in weights.values()])
    low, high = min(values.min(), 0.25 - NARROWEST), max(values.max(), 0.25 + NARROWEST)
    pad = 0.03 * (high - low)
    return low - pad, high + pad


def _legend(level: str, cells: Mapping[str, Cell]) -> str:
    return f"{level}, ρ = {_signed(cells['rho'])}" if cells else f"{level}, constant"


def _legend_above(axis: Axes, title: str) -> None:
    """Title and legend above the axes, where they cannot cover data."""
    legend = axis.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 0.99),
        ncols=2,
        frameon=False,
        handlelength=2.8,
        columnspacing=1.6,
        borderaxespad=0.2,
        title=title,
    )
    legend.get_title().set_fontsize(7.0)


def _caption(
    context: PaperContext, run: str, split: str, count: int, points: int, cells: Mapping[str, Mapping[str, Cell]]
) -> str:
    label = next(candidate.shown for candidate in context.runs if candidate.name == run)
    seeds = f"mean of {len(context.seeds)} seeds" if len(context.seeds) > 1 else f"seed {context.seeds[0]}"
    listed = ", ".join(
        f"{level} {_signed(found['rho'])} [{_signed(found['rho_low'])}, {_signed(found['rho_high'])}]"
        for level, found in cells.items()
        if found
    )
    constant = [level for level, found in cells.items() if not found]
    tail = f" Constant: {', '.join(constant)}." if constant else ""
    return (
        f"Weights that {label} gives to the levels, from easy to hard: {context.label(split, 'retrieval')}, {count:,} images, "
        f"{seeds}. Difficulty: the teacher's retrieval margin (similarity of the best own caption minus that of the best "
        f"caption of another picture), falling. Points: {points} samples at equal steps. Lines and bands: moving average over "
        f"{WINDOW:.0%} of all samples with its pointwise 95% interval. Dotted: uniform weights. Spearman's ρ of difficulty and "
        f"weight over all samples, with 95% interval: {listed or 'undefined'}.{tail}"
    )


def _signed(cell: Cell) -> str:
    """A correlation with its sign, as typeset; what rounds to zero has none."""
    text = number_of(cell.value, 2)
    return text.replace("-", "−") if text.startswith("-") or float(text) == 0 else f"+{text}"


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
