"""Figure 3: the weights that ALSN gives to P2-P5 and L1-L4, against the difficulty of the sample.

Difficulty is the teacher's retrieval margin: the similarity of a picture's best own caption minus that of the best other
picture's caption; a small or negative margin is hard. The hypothesis that is tested, not assumed: easy samples lean on P5,
hard ones on P2 and P3. The test is Spearman's rank correlation between difficulty and each level's weight over the test split.
Figure 4 shows the same weights by type of sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from scipy.stats import spearmanr

from cmapkd.paper.cells import Cell, Parent
from cmapkd.paper.context import PaperContext
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.common import (
    TITLES,
    Z95,
    caption_cells,
    first_split,
    levels_of,
    margin_of,
    mean_cell,
    rounded,
    run_with,
    seeds_text,
    signed,
    single_cell,
    weights_of,
)
from cmapkd.paper.figures.style import SERIES, TEXT_WIDTH, paper_style, save_pdf
from cmapkd.paper.metrics import Metrics

NAME = "figure3"
WINDOW = 0.1  # share of the samples under the moving average
NARROWEST = 0.1  # half of the smallest range of the weight axis, about uniform weights
FEWEST = 10  # samples below which no correlation is given
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # mean, lower and upper end of the band, (N,) each


def build(context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure at ``path``.

    Its numbers are the rank correlations: rows P2 to P5 and L1 to L4 (those the run has), columns rho, rho_low and rho_high
    (95 % interval; over several seeds from the lowest lower to the highest upper end).
    """
    split = first_split(context, NAME)
    configured = ("paper.weights_run", context.weights_run)
    run = run_with(context, metrics, NAME, f"alsn/{split}/visual", f"layer weights on {split}", configured)
    levels = levels_of(metrics, run.name, context.seeds[0], split, NAME)
    margin, origin = margin_of(context, metrics, split, NAME)
    order = np.argsort(-margin, kind="stable")  # (N,) easy to hard
    percentile = 100 * np.arange(len(order)) / max(1, len(order) - 1)  # (N,)
    shown = np.unique(np.linspace(0, len(order) - 1, min(context.weights_samples, len(order))).round().astype(int))

    parents: list[Parent] = [origin]
    cells: dict[str, dict[str, Cell]] = {}
    curves: dict[str, Curve] = {}
    weights: dict[str, np.ndarray] = {}
    for tower, names in levels.items():
        found = weights_of(context, metrics, run.name, split, tower, (len(order), len(names)), NAME)
        weights[tower] = found.mean[order]  # (N, levels), easy to hard
        parents += found.parents
        for index, level in enumerate(names):
            values = [value[order, index] for value in found.values]
            cells[level] = _correlation(values, (origin, *found.parents))
            curves[level] = band([moving_average(value, max(3, round(WINDOW * len(order)))) for value in values])
    stated = caption_cells(metrics, run.name, split, NAME)
    with paper_style():
        canvas = _draw(percentile, shown, weights, levels, curves, cells)
        save_pdf(canvas, path, "Layer weights by difficulty")
    return Figure(
        name=NAME,
        title="Layer weights by difficulty",
        caption=_caption(context, run.shown, split, len(order), len(shown), cells),
        parents=tuple(parents),
        cells=cells | stated,
        values={
            "split": split,
            "run": run.name,
            "percentile": rounded(percentile[shown]),
            "margin": rounded(margin[order][shown]),
            "points": {
                level: rounded(weights[tower][shown, i]) for tower, names in levels.items() for i, level in enumerate(names)
            },
            "curves": {
                level: {"mean": rounded(mean[shown]), "low": rounded(low[shown]), "high": rounded(high[shown])}
                for level, (mean, low, high) in curves.items()
            },
        },
    )


def band(averages: Sequence[tuple[np.ndarray, np.ndarray]]) -> Curve:
    """Mean over seeds of moving averages, and from the lowest to the highest of the seeds' intervals.

    Args:
        averages: mean and half width at each seed, (N,) each.
    """
    means, halves = (np.stack([average[part] for average in averages]) for part in (0, 1))  # (seeds, N)
    return means.mean(axis=0), (means - halves).min(axis=0), (means + halves).max(axis=0)


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
    """Rank correlation and its 95 % interval; None for a constant series or fewer than `FEWEST`.

    The interval is Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and Wright (Psychometrika 65, 2000).
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0 or len(x) < FEWEST:
        return None
    rho = float(spearmanr(x, y).statistic)
    z = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    error = Z95 * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return rho, math.tanh(z - error), math.tanh(z + error)


def _correlation(weights: Sequence[np.ndarray], parents: tuple[Parent, ...]) -> dict[str, Cell]:
    """Of the weight at each seed, (N,) in order of difficulty; empty if it is constant at a seed."""
    found = [spearman(np.arange(len(weight)), weight) for weight in weights]
    known = [values for values in found if values is not None]
    if len(known) < len(found):
        return {}
    rho, low, high = zip(*known, strict=True)
    return {
        "rho": mean_cell(rho, parents, "Spearman's rank correlation of difficulty and weight"),
        "rho_low": single_cell(min(low), parents, "lower end of its 95 % interval, the lowest over seeds"),
        "rho_high": single_cell(max(high), parents, "upper end of its 95 % interval, the highest over seeds"),
    }


def _draw(
    percentile: np.ndarray,
    shown: np.ndarray,
    weights: Mapping[str, np.ndarray],
    levels: Mapping[str, tuple[str, ...]],
    curves: Mapping[str, Curve],
    cells: Mapping[str, Mapping[str, Cell]],
) -> Canvas:
    canvas = Canvas(figsize=(TEXT_WIDTH, 0.5 * TEXT_WIDTH))
    axes = canvas.subplots(1, 2, sharey=True)
    canvas.subplots_adjust(left=0.095, right=0.985, bottom=0.165, top=0.78, wspace=0.1)
    for axis, (tower, names) in zip(axes, levels.items(), strict=True):
        for index, level in enumerate(names):
            style: dict[str, Any] = SERIES[index]
            colour = style["color"]
            mean, low, high = curves[level]
            axis.plot(
                percentile[shown],
                weights[tower][shown, index],
                style["marker"],
                color=colour,
                markersize=1.7,
                markeredgewidth=0,
                alpha=0.35,
            )
            axis.fill_between(percentile, low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(percentile, mean, color=colour, linestyle=style["linestyle"], label=_legend(level, cells[level]))
        axis.axhline(1 / len(names), color="0.55", linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
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
    uniform = [1 / tower.shape[1] for tower in weights.values()]
    low, high = min(values.min(), min(uniform) - NARROWEST), max(values.max(), max(uniform) + NARROWEST)
    pad = 0.03 * (high - low)
    return low - pad, high + pad


def _legend(level: str, cells: Mapping[str, Cell]) -> str:
    return f"{level}, ρ = {signed(cells['rho'])}" if cells else f"{level}, constant"


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
    listed = ", ".join(
        f"{level} {signed(found['rho'])} [{signed(found['rho_low'])}, {signed(found['rho_high'])}]"
        for level, found in cells.items()
        if found
    )
    without = [level for level, found in cells.items() if not found]
    word = "Constant" if count >= FEWEST else f"Fewer than {FEWEST} samples for a correlation"
    tail = f" {word}: {', '.join(without)}." if without else ""
    several = len(context.seeds) > 1
    return (
        f"Weights that {run} gives to the levels, from easy to hard: {context.label(split, 'retrieval')}, {count:,} images, "
        f"{seeds_text(context)}. Difficulty: the teacher's retrieval margin (similarity of the best own caption minus that of "
        f"the best caption of another picture), falling. Points: {points} samples at equal steps. Lines and bands: moving "
        f"average over {WINDOW:.0%} of all samples with its pointwise 95% interval"
        f"{', from the lowest to the highest of the seeds' if several else ''}. Dotted: uniform weights. Spearman's ρ of "
        f"difficulty and weight over all samples, with 95% interval{' (likewise over seeds)' if several else ''}: "
        f"{listed or 'undefined'}.{tail}"
    )
