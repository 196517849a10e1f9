"""Figure 4: the weights that ALSN gives to the levels, by type of sample, as radar plots; and how little or much they differ.

Types are the data set's strata (simple and complex scene, fine-grained, abstract concept); one without strata is cut into
quarters of the teacher's retrieval margin. Radars start at zero and show weight over uniform weight, so that a difference
looks as large as it is; below them the same differences enlarged, with intervals. The largest difference between two types
is chosen among many, so it is judged by permuting the types of the samples: p is the share of permutations whose own largest
difference is at least as large (add-one estimate of Phipson and Smyth, 2010).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke

from cmapkd.paper.cells import CAPTION, Cell, Parent, number_of
from cmapkd.paper.context import PaperContext
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.common import (
    TITLES,
    Z95,
    Series,
    Types,
    caption_cells,
    first_split,
    levels_of,
    mean_cell,
    minus,
    probability,
    run_with,
    seeds_text,
    signed,
    single_cell,
    standard_error,
    types_of,
    weights_of,
)
from cmapkd.paper.figures.style import TEXT_WIDTH, cycle, paper_style, plain, save_pdf
from cmapkd.paper.metrics import Metrics

NAME = "figure4"
PERMUTATIONS = 1999
NARROWEST = 0.005  # half of the smallest range of the enlarged axis: noise about equal weights is not an effect
VISIBLE = 0.05  # share of the radar's radius below which the caption says that its polygons coincide


@dataclass(frozen=True)
class Shares:
    """Mean weights of one tower by type: mean over seeds, and from the lowest to the highest of the seeds' 95 % intervals."""

    mean: np.ndarray  # (types, levels)
    low: np.ndarray  # NaN for a type with a single sample
    high: np.ndarray
    overall: np.ndarray  # (levels,), over all samples with a type


def build(context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure at ``path``.

    Its numbers: a row for each type, with the mean weight of each level and ``images``; rows ``largest visual`` and
    ``largest language`` with the largest difference of two types (difference, low, high, p).
    """
    split = first_split(context, NAME)
    configured = ("paper.analysis_run", context.analysis_run)
    array = f"alsn/{split}/visual"
    run = run_with(context, metrics, NAME, array, f"layer weights on {split}", configured, context.full_run)
    levels = levels_of(metrics, run.name, context.seeds[0], split, NAME)
    types = types_of(context, metrics, split, NAME)
    cells: dict[str, dict[str, Cell]] = {
        name: {"images": single_cell(mask.sum(), types.parents, "samples of this type")} for name, mask in types.groups()
    }
    shares: dict[str, Shares] = {}
    words: dict[str, str] = {}
    parents: list[Parent] = list(types.parents)
    for tower, names in levels.items():
        found = weights_of(context, metrics, run.name, split, tower, (len(types.of), len(names)), NAME)
        parents += found.parents
        shares[tower] = shares_of(found.values, types)
        for type_name, mask in types.groups():
            for index, level in enumerate(names):
                values = [value[mask, index].mean() for value in found.values]
                cells[type_name][level] = mean_cell(values, (*found.parents, *types.parents), "mean weight of the type")
        cells[f"largest {tower}"], words[tower] = _largest(found, types, names)
    cells |= caption_cells(metrics, run.name, split, NAME)
    radius = max(1.25, *(1.1 * float(np.nanmax([s.mean, s.high])) * s.mean.shape[1] for s in shares.values()))
    with paper_style():
        canvas = _draw(shares, types, levels, radius)
        save_pdf(canvas, path, "Layer weights by type of sample")
    return Figure(
        name=NAME,
        title="Layer weights by type of sample",
        caption=_caption(context, run.shown, split, types, cells, shares, words, radius),
        parents=tuple(parents),
        cells=cells,
        decimals=3,
        values={"split": split, "run": run.name, "types": list(types.names), "definition": types.definition, "radius": radius},
    )


def shares_of(weights: Sequence[np.ndarray], types: Types) -> Shares:
    """Mean weights by type.

    Args:
        weights: (N, levels) at each seed.
    """
    means, lows, highs = [], [], []
    for value in weights:
        mean = np.stack([value[mask].mean(axis=0) for _, mask in types.groups()])
        error = np.stack([[standard_error(column) for column in value[mask].T] for _, mask in types.groups()])
        means.append(mean)
        lows.append(mean - Z95 * error)
        highs.append(mean + Z95 * error)
    overall = np.mean([value[types.of >= 0].mean(axis=0) for value in weights], axis=0)
    return Shares(np.mean(means, axis=0), np.min(lows, axis=0), np.max(highs, axis=0), overall)


def largest_difference(weights: np.ndarray, types: Types) -> tuple[int, int, int, float]:
    """The two types and the level whose mean weights differ most: (type with more, type with less, level, p of a permutation).

    Args:
        weights: (N, levels); samples without a type are left out.
    """
    kept = types.of >= 0
    values, of = weights[kept], types.of[kept]
    values = values - values.mean(axis=0)  # (n, levels)
    member = (of[:, None] == np.arange(len(types.names))) / np.bincount(of, minlength=len(types.names))  # (n, types)
    means = member.T @ values  # (types, levels)
    spread = np.ptp(means, axis=0)
    level = int(spread.argmax())
    generator = np.random.default_rng(0)
    reached = 1
    for _ in range(PERMUTATIONS):
        permuted = member.T @ values[generator.permutation(len(values))]
        reached += bool(np.ptp(permuted, axis=0).max() >= spread[level] * (1 - 1e-9))
    return int(means[:, level].argmax()), int(means[:, level].argmin()), level, reached / (PERMUTATIONS + 1)


def _largest(found: Series, types: Types, names: Sequence[str]) -> tuple[dict[str, Cell], str]:
    """Cells of the largest difference, and which it is in words; nothing when the weights do not differ at all."""
    more, less, level, p = largest_difference(found.mean, types)
    if len(types.names) < 2 or np.ptp(found.mean, axis=0).max() < 1e-6:
        return {}, ""
    values, lows, highs = [], [], []
    for value in found.values:
        a, b = value[types.of == more, level], value[types.of == less, level]
        difference = a.mean() - b.mean()
        error = Z95 * math.hypot(standard_error(a), standard_error(b))
        values.append(difference)
        lows.append(difference - error)
        highs.append(difference + error)
    parents = (*found.parents, *types.parents)
    words = f"{names[level]}, {types.names[more]} against {types.names[less]}"
    cells = {
        "difference": mean_cell(values, parents, f"largest difference of mean weights of two types ({words})"),
        "p": single_cell(p, parents, f"share of {PERMUTATIONS} permutations of the types with as large a largest difference"),
    }
    if not math.isnan(lows[0]):
        cells["low"] = single_cell(min(lows), parents, "lower end of its 95 % interval, the lowest over seeds")
        cells["high"] = single_cell(max(highs), parents, "upper end of its 95 % interval, the highest over seeds")
    return cells, words


def _draw(shares: Mapping[str, Shares], types: Types, levels: Mapping[str, tuple[str, ...]], radius: float) -> Canvas:
    canvas = Canvas(figsize=(TEXT_WIDTH, 0.82 * TEXT_WIDTH))
    grid = canvas.add_gridspec(2, 2, height_ratios=(1.5, 1), left=0.135, right=0.99, bottom=0.07, top=0.845)
    grid.update(hspace=0.3, wspace=0.1)
    for column, (tower, names) in enumerate(levels.items()):
        _radar(canvas, grid[0, column], shares[tower], names, radius)
        canvas.text(0.135 + 0.855 * (0.245 + 0.505 * column), 0.905, TITLES[tower], ha="center", va="bottom", fontsize=7)
    half = max(NARROWEST, *(1.08 * np.nanmax(np.abs([s.mean - s.overall, s.low - s.overall, s.high - s.overall]))
                            for s in shares.values()))  # fmt: skip
    first: Any = None
    for column, (tower, names) in enumerate(levels.items()):
        axis = canvas.add_subplot(grid[1, column], sharey=first)
        _differences(axis, shares[tower], types, names)
        if first is None:
            axis.set_ylim(-half, half)
            axis.set_ylabel("weight − mean of all")
            axis.yaxis.set_major_formatter(lambda value, _: "0" if abs(value) < 1e-12 else minus(f"{value:+.2g}"))
            handles = axis.get_legend_handles_labels()
            canvas.legend(*handles, loc="upper center", ncols=len(types.names), frameon=False, handlelength=3, fontsize=7)
        else:
            axis.tick_params(labelleft=False)
        first = first or axis
    return canvas


def _radar(canvas: Canvas, place: Any, shares: Shares, names: Sequence[str], radius: float) -> None:
    """Weight over uniform weight, from zero; a dotted ring of one is uniform weights."""
    if len(names) < 3:
        axis: Any = canvas.add_subplot(place)
        axis.axis("off")
        axis.text(0.5, 0.5, f"{' and '.join(names)} only:\nno radar", ha="center", va="center", transform=axis.transAxes)
        return
    axis = canvas.add_subplot(place, projection="polar")
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    closed = np.append(angles, angles[0])
    axis.plot(closed, np.ones(len(closed)), color="0.45", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for index in range(len(shares.mean)):
        style = cycle(index)
        scaled = [np.append(part[index], part[index][0]) * len(names) for part in (shares.mean, shares.low, shares.high)]
        if np.isfinite(scaled[1]).all():
            axis.fill_between(closed, np.maximum(0, scaled[1]), scaled[2], color=style["color"], alpha=0.15, linewidth=0)
        axis.plot(closed, scaled[0], color=style["color"], linestyle=style["linestyle"], linewidth=1.2)
        axis.plot(angles, scaled[0][:-1], style["marker"], color=style["color"], markersize=2.6, markeredgewidth=0)
    axis.set_xticks(angles, names, fontsize=7)
    axis.tick_params(axis="x", pad=-1)
    axis.set_ylim(0, radius)
    axis.set_yticks(np.arange(0.5, radius, 0.5 if radius < 2.5 else 1.0).tolist())
    axis.set_rlabel_position(45)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.tick_params(axis="y", labelsize=5.5)
    for label in axis.get_yticklabels():
        label.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
    axis.grid(linewidth=0.4, color="0.85")
    axis.spines["polar"].set(linewidth=0.4, color="0.7")


def _differences(axis: Any, shares: Shares, types: Types, names: Sequence[str]) -> None:
    """Each type's mean weights less those of all samples, with the interval of the type's mean."""
    axis.axhline(0, color="0.55", linewidth=0.6, zorder=0)
    offsets = np.linspace(-0.27, 0.27, len(types.names)) if len(types.names) > 1 else np.zeros(1)
    for index, name in enumerate(types.names):
        style = cycle(index)
        centre, low, high = (part[index] - shares.overall for part in (shares.mean, shares.low, shares.high))
        places = np.arange(len(names)) + offsets[index]
        axis.vlines(places, low, high, color=style["color"], linewidth=1.0)
        axis.plot(places, centre, style["marker"], color=style["color"], markersize=3.4, markeredgewidth=0)
        # Only for the legend, which shows dash and marker together.
        axis.plot(
            [],
            [],
            color=style["color"],
            linestyle=style["linestyle"],
            marker=style["marker"],
            markersize=3.4,
            label=plain(name),
        )
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, len(names) - 0.5)


def _caption(
    context: PaperContext,
    run: str,
    split: str,
    types: Types,
    cells: Mapping[str, Mapping[str, Cell]],
    shares: Mapping[str, Shares],
    words: Mapping[str, str],
    radius: float,
) -> str:
    counts = ", ".join(f"{name} {cells[name]['images'].value:,.0f}" for name in types.names)
    alone = [name for name in types.names if cells[name]["images"].value < 2]
    missing = f" No interval for a type with one sample ({', '.join(alone)})." if alone else ""
    several = ", from the lowest to the highest of the seeds'" if len(context.seeds) > 1 else ""
    visible = {tower: float(np.ptp(s.mean, axis=0).max() * s.mean.shape[1] / radius) for tower, s in shares.items()}
    hidden = [tower for tower, share in visible.items() if share < VISIBLE]
    scale = (
        f" At that scale the polygons of the {' and the '.join(hidden)} weights coincide within "
        f"{VISIBLE:.0%} of the radius; the differences are in the lower panels only."
        if hidden
        else ""
    )
    sentences = []
    for tower, text in words.items():
        found = cells[f"largest {tower}"]
        if not found:
            sentences.append(f"{tower}: none, the weights are constant")
            continue
        interval = f" [{signed(found['low'], 3)}, {signed(found['high'], 3)}]" if "low" in found else ""
        sentences.append(f"{tower}: {text}, {signed(found['difference'], 3)}{interval}, {probability(found['p'])}")
    images = cells[CAPTION]["images"].value
    return (
        f"Mean weights that {run} gives to the levels: {context.label(split, 'retrieval')}, {images:,.0f} images, "
        f"{seeds_text(context)}. Types of sample: {types.definition} ({counts}). Top: weight over uniform weight, from 0 to "
        f"{number_of(radius, 2)}; dotted: uniform weights. Bands and bars: 95% interval of the mean{several}.{missing}{scale} "
        f"Bottom: a type's mean weight less that of all samples. Largest difference of two types with its 95% interval; p: "
        f"share of {PERMUTATIONS:,} permutations of the types, and the types as they are, with as large a largest difference. "
        f"{'; '.join(sentences)}."
    )
