"""Figure 5: maps of the visual levels of teacher and student (t-SNE), and how alike levels are by a number (linear CKA).

A t-SNE map (van der Maaten and Hinton, JMLR 2008; scikit-learn, initialised with PCA, seeded, one thread) shows
neighbourhoods, not distances. So each map comes with a number that needs no map: the share of features whose nearest other
feature, by cosine similarity of the features themselves, is of the same level. Below: linear CKA (Kornblith et al., ICML 2019)
of each level of the student and of the teacher, and between the levels of each, as recorded over the whole split when the run
was evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from cmapkd.paper.cells import CAPTION, Cell, Parent, number_of
from cmapkd.paper.context import PaperContext
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.common import (
    Series,
    caption_cells,
    first_split,
    levels_of,
    matrix,
    run_with,
    seeds_text,
    series,
    single_cell,
)
from cmapkd.paper.figures.style import TEXT_WIDTH, cycle, heat, paper_style, save_pdf
from cmapkd.paper.metrics import Metrics

NAME = "figure5"
SIDES = {"teacher": "Teacher", "student": "Student"}
PICTURES = 250  # of each level in a map
PERPLEXITY = 30.0
FEWEST = 5  # features below which no map is drawn
SHARE = (0.0, 1.0)


def build(context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure at ``path``.

    Its numbers: rows P2 to L4 (those the run has) with ``teacher_student``; ``student`` and ``teacher`` with the CKA of each
    pair of levels and, in percent, ``neighbours``, the share of features with a nearest neighbour of the same level.
    """
    split = first_split(context, NAME)
    configured = ("paper.analysis_run", context.analysis_run)
    array = f"levels/{split}/student/P5"
    run = run_with(context, metrics, NAME, array, f"features of levels on {split}", configured, context.full_run)
    seed = context.seeds[0]
    levels = levels_of(metrics, run.name, seed, split, NAME)
    cells: dict[str, dict[str, Cell]] = {}
    parents: list[Parent] = []
    maps: dict[str, np.ndarray | None] = {}
    pictures = 0
    for side in SIDES:
        found = [_features(metrics, run.name, seed, split, side, level) for level in levels["visual"]]
        own = [parent for feature in found for parent in feature.parents]
        parents += own
        pictures = min(PICTURES, *(len(feature.values[0]) for feature in found))
        features = unit(np.concatenate([feature.values[0][:pictures] for feature in found]))  # (levels * pictures, C)
        of = np.repeat(np.arange(len(found)), pictures)
        maps[side] = tsne(features)
        share = 100 * same_level_neighbours(features, of)
        recipe = f"percent of the features of {pictures} pictures whose nearest other feature is of the same level"
        cells[side] = {"neighbours": single_cell(share, own, recipe)}
    for names in levels.values():
        for level in names:
            keys = ("levels", "both", "cka", level)
            found_cell = metrics.mean(run.name, keys, f"{NAME} / {level} / teacher_student", bounds=SHARE)
            cells[level] = {"teacher_student": found_cell}
        for side in SIDES:
            for a, b in combinations(names, 2):
                keys = ("levels", side, "cka", f"{a}-{b}")
                cells[side][f"{a}-{b}"] = metrics.mean(run.name, keys, f"{NAME} / {side} / {a}-{b}", bounds=SHARE)
    cells |= caption_cells(metrics, run.name, split, NAME)
    parents += [parent for row in cells.values() for cell in row.values() for parent in cell.parents]
    with paper_style():
        canvas = _draw(maps, levels, pictures, cells)
        save_pdf(canvas, path, "Levels of teacher and student")
    return Figure(
        name=NAME,
        title="Levels of teacher and student",
        caption=_caption(context, run.shown, split, pictures, levels, maps, cells),
        parents=tuple(dict.fromkeys(parents)),
        cells=cells,
        values={
            "split": split,
            "run": run.name,
            "map_seed": seed,
            "pictures": pictures,
            "maps": {side: None if places is None else matrix(places) for side, places in maps.items()},
        },
    )


def unit(features: np.ndarray) -> np.ndarray:
    """Rows divided by their length, as the training compares them; a row of zeros stays one. (n, C)"""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1.0)


def tsne(features: np.ndarray) -> np.ndarray | None:
    """Places of unit vectors (n, C) on a map, (n, 2); None for fewer than `FEWEST` or when they do not vary.

    The perplexity is `PERPLEXITY`, but at most a third of the other points.
    """
    if len(features) < FEWEST or features.shape[1] < 2 or np.ptp(features, axis=0).max() < 1e-6:
        return None
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    model = TSNE(n_components=2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=0, n_jobs=1)
    with threadpool_limits(1):  # sums in another order would lead to another map
        places: np.ndarray = model.fit_transform(features.astype(np.float32))
    return places


def same_level_neighbours(features: np.ndarray, of: np.ndarray) -> float:
    """Share of unit vectors (n, C) whose nearest other one is of the same level, ``of`` (n,)."""
    similar = features @ features.T
    np.fill_diagonal(similar, -np.inf)
    return float(np.mean(of[similar.argmax(axis=1)] == of))


def _features(metrics: Metrics, run: str, seed: int, split: str, side: str, level: str) -> Series:
    return series(metrics, run, (seed,), f"levels/{split}/{side}/{level}", (None, None), NAME)


def _draw(
    maps: Mapping[str, np.ndarray | None],
    levels: Mapping[str, tuple[str, ...]],
    pictures: int,
    cells: Mapping[str, Mapping[str, Cell]],
) -> Canvas:
    canvas = Canvas(figsize=(TEXT_WIDTH, 0.86 * TEXT_WIDTH))
    top = canvas.add_gridspec(1, 2, left=0.02, right=0.98, bottom=0.475, top=0.905, wspace=0.06)
    for column, (side, title) in enumerate(SIDES.items()):
        axis = canvas.add_subplot(top[0, column])
        _map(axis, maps[side], levels["visual"], pictures)
        neighbours = number_of(cells[side]["neighbours"].value, 0)
        axis.set_title(f"{title}: {neighbours}% of neighbours of the same level", fontsize=7, pad=3)
    handles = [canvas.axes[0].plot([], [], cycle(i)["marker"], color=cycle(i)["color"], markersize=4)[0] for i in range(4)]
    canvas.legend(handles[: len(levels["visual"])], levels["visual"], loc="upper center", ncols=4, frameon=False, fontsize=7)
    bottom = canvas.add_gridspec(1, 3, left=0.075, right=0.985, bottom=0.075, top=0.395, wspace=0.28, width_ratios=(1.25, 1, 1))
    _alike(canvas.add_subplot(bottom[0, 0]), levels, cells)
    for column, names in enumerate(levels.values()):
        axis = canvas.add_subplot(bottom[0, 1 + column])
        heat(axis, between(names, cells), names, names, low=0, high=1)
        axis.set_title("CKA between levels", fontsize=7, pad=3)
        axis.set_xlabel("above: teacher, below: student", fontsize=5.8, labelpad=3)
    return canvas


def between(names: Sequence[str], cells: Mapping[str, Mapping[str, Cell]]) -> np.ndarray:
    """CKA between levels: the teacher's above the diagonal, the student's below, NaN on it. (levels, levels)"""
    found = np.full((len(names), len(names)), np.nan)
    for (i, a), (j, b) in combinations(enumerate(names), 2):
        found[i, j] = cells["teacher"][f"{a}-{b}"].value
        found[j, i] = cells["student"][f"{a}-{b}"].value
    return found


def _map(axis: Any, places: np.ndarray | None, names: Sequence[str], pictures: int) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(visible=True, linewidth=0.5, color="0.6")
    if places is None:
        axis.text(
            0.5, 0.5, "no map: too few features,\nor they do not vary", ha="center", va="center", transform=axis.transAxes
        )
        return
    for index in range(len(names)):
        part = places[index * pictures : (index + 1) * pictures]
        style = cycle(index)
        axis.plot(*part.T, style["marker"], color=style["color"], markersize=2.2, markeredgewidth=0, alpha=0.7)
    axis.margins(0.04)


def _alike(axis: Any, levels: Mapping[str, tuple[str, ...]], cells: Mapping[str, Mapping[str, Cell]]) -> None:
    """Bars of the CKA of teacher and student, with the deviation over seeds."""
    names = [name for tower in levels.values() for name in tower]
    found = [cells[name]["teacher_student"] for name in names]
    grey = ["0.35" if name in levels["visual"] else "0.7" for name in names]
    axis.bar(range(len(names)), [cell.value for cell in found], color=grey, width=0.7)
    if found[0].std is not None:
        axis.errorbar(
            range(len(names)),
            [cell.value for cell in found],
            yerr=[cell.std or 0.0 for cell in found],
            fmt="none",
            ecolor="#D55E00",
            elinewidth=1,
            capsize=1.5,
        )
    axis.set_xticks(range(len(names)), names, fontsize=6)
    axis.set_ylim(0, 1)
    axis.set_title("CKA, teacher and student", fontsize=7, pad=3)


def _caption(
    context: PaperContext,
    run: str,
    split: str,
    pictures: int,
    levels: Mapping[str, tuple[str, ...]],
    maps: Mapping[str, np.ndarray | None],
    cells: Mapping[str, Mapping[str, Cell]],
) -> str:
    listed = ", ".join(
        f"{level} {number_of(cells[level]['teacher_student'].value, 2)}" for names in levels.values() for level in names
    )
    several = len(context.seeds) > 1
    shares = " and ".join(f"{number_of(cells[side]['neighbours'].value, 1)}% ({side})" for side in SIDES)
    images = cells[CAPTION]["images"].value
    none = (
        "" if all(places is not None for places in maps.values()) else " Where there is no map, features are too few or equal."
    )
    return (
        f"Top: t-SNE of the pooled levels {', '.join(levels['visual'])} of the teacher and of {run}, {pictures} pictures of "
        f"{context.label(split, 'retrieval')}, seed {context.seeds[0]}, unit vectors, perplexity {PERPLEXITY:g} (at most a "
        f"third of the points), each map by itself; distances between groups mean nothing.{none} Features whose nearest other "
        f"feature, without any map, is of the same level: {shares}. "
        f"Bottom, over all {images:,.0f} images, {seeds_text(context)}{' (bars: ± standard deviation)' if several else ''}: "
        f"linear CKA of a level of teacher and student ({listed}), and between levels, the teacher's above the diagonal and "
        f"the student's below. 1: equal up to rotation and scale."
    )
