"""Figure 6: which language level each visual level goes with, in the student and in the teacher.

"Attention" of visual level i to language level j is defined here, as nothing in the method computes one. With s_ij(n) the
recorded similarity of picture n's level i to its own caption's level j and m_j its mean over pictures and visual levels,

    a_ij(n) = softmax_j((s_ij(n) - m_j) / tau),        a_ij = mean over n,

tau being the temperature with which the method compares levels (`temperature_kd`). Without m_j a language level that is closer
to everything would get all rows; the softmax takes care of a visual level that is. What is left is how they interact, on the
method's own scale. Only a picture's own caption enters, so a pair of levels that is close whatever the content counts, too.
Dividing by a deviation too (z-scores) would give tau another meaning and is not done.

The hypothesis "P2 goes with L1, ..., P5 with L4" is tested, not assumed: the mean of the diagonal against that of every
permutation of the language levels (exact, so p is never below 1/24), and the diagonal less the rest with an interval from a
bootstrap over pictures. To first order m_j has no part in that difference, so it is kept fixed in the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Parent, number_of
from cmapkd.paper.context import PaperContext
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.common import (
    LEVELS,
    bootstrap_interval,
    caption_cells,
    first_split,
    levels_of,
    matrix,
    mean_cell,
    run_with,
    seeds_text,
    series,
    signed,
    single_cell,
)
from cmapkd.paper.figures.style import TEXT_WIDTH, heat, paper_style, save_pdf
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables.common import configured

NAME = "figure6"
SIDES = {"student": "Student", "teacher": "Teacher"}


def build(context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure at ``path``.

    Its numbers: rows ``student`` and ``teacher`` with the attention of each pair (``P2-L1``, ...), ``diagonal``, ``rest``,
    ``difference``, ``low``, ``high`` (its 95 % interval), ``p`` and ``p_uncentred``; ``temperature`` in row ``caption``.

    Raises:
        UserError: no run recorded similarities of levels, or the temperature of the run is not known.
    """
    split = first_split(context, NAME)
    configured_run = ("paper.analysis_run", context.analysis_run)
    array = f"levels/{split}/student/similarity"
    run = run_with(context, metrics, NAME, array, f"similarities of levels on {split}", configured_run, context.full_run)
    if run.level_temperature is None:
        raise UserError(
            key=f"runs.{run.name}", reason=f"{NAME} needs its temperature_kd", fix=f"show another run, or leave {NAME} out"
        )
    levels = levels_of(metrics, run.name, context.seeds[0], split, NAME)
    visual, language = levels["visual"], levels["language"]
    matched = matched_levels(visual, language)
    temperature = single_cell(
        run.level_temperature, (configured(context, "runs", run.name, "temperature_kd"),), "as configured"
    )
    cells = caption_cells(metrics, run.name, split, NAME)
    cells[CAPTION]["temperature"] = temperature
    maps: dict[str, np.ndarray] = {}
    plain: dict[str, np.ndarray] = {}
    parents: list[Parent] = []
    for side in SIDES:
        # The teacher is the same whatever the student's seed.
        seeds = context.seeds if side == "student" else context.seeds[:1]
        shape = (None, len(visual), len(language))
        found = series(metrics, run.name, seeds, f"levels/{split}/{side}/similarity", shape, NAME)
        parents += found.parents
        own = (*found.parents, *temperature.parents)
        samples = [attention(value, temperature.value) for value in found.values]
        maps[side] = np.mean([value.mean(axis=0) for value in samples], axis=0)  # (V, L)
        uncentred = [attention(value, temperature.value, centred=False).mean(axis=0) for value in found.values]
        plain[side] = np.mean(uncentred, axis=0)
        cells[side] = {
            f"{v}-{w}": mean_cell([value[:, i, j].mean() for value in samples], own, "mean attention over pictures")
            for i, v in enumerate(visual)
            for j, w in enumerate(language)
        }
        cells[side] |= _tests(samples, maps[side], plain[side], matched, own)
    with paper_style():
        canvas = _draw(maps, visual, language, matched)
        save_pdf(canvas, path, "Visual against language levels")
    return Figure(
        name=NAME,
        title="Visual against language levels",
        caption=_caption(context, run.shown, split, visual, language, matched, cells),
        parents=tuple(parents),
        cells=cells,
        decimals=3,
        values={
            "split": split,
            "run": run.name,
            "visual": list(visual),
            "language": list(language),
            "attention": {side: matrix(value) for side, value in maps.items()},
            "attention_uncentred": {side: matrix(value) for side, value in plain.items()},
        },
    )


def attention(similarity: np.ndarray, temperature: float, *, centred: bool = True) -> np.ndarray:
    """Softmax over language levels of similarities, each language level centred over pictures and visual levels.

    Args:
        similarity: (n, visual levels, language levels).

    Returns:
        The same shape; each row adds up to one.
    """
    logits = (similarity - similarity.mean(axis=(0, 1)) * centred) / temperature
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return result


def matched_levels(visual: Sequence[str], language: Sequence[str]) -> list[tuple[int, int]]:
    """Places (row, column) of the pairs P2-L1, ..., P5-L4 of which both levels are there."""
    pairs = zip(LEVELS["visual"], LEVELS["language"], strict=True)
    return [(visual.index(v), language.index(w)) for v, w in pairs if v in visual and w in language]


def permutation_p(square: np.ndarray) -> float:
    """Share of all permutations of the columns whose diagonal has a mean at least as large, the given order among them."""
    rows = np.arange(len(square))
    sums = [square[rows, list(order)].sum() for order in permutations(range(len(square)))]
    return float(np.mean(np.asarray(sums) >= sums[0] - 1e-12))  # the first permutation is the identity


def diagonal_and_rest(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the diagonal and of all other entries of (..., m, m) matrices, (...) each."""
    size = square.shape[-1]
    diagonal = np.trace(square, axis1=-2, axis2=-1)
    rest = square.sum(axis=(-2, -1)) - diagonal
    return diagonal / size, rest / (size * size - size)


def _square(values: np.ndarray, matched: Sequence[tuple[int, int]]) -> np.ndarray:
    """Rows and columns of the matched levels, (..., m, m)."""
    rows, columns = ([pair[place] for pair in matched] for place in (0, 1))
    return values[..., rows, :][..., columns]


def _tests(
    samples: Sequence[np.ndarray],
    mean: np.ndarray,
    plain: np.ndarray,
    matched: Sequence[tuple[int, int]],
    parents: tuple[Parent, ...],
) -> dict[str, Cell]:
    """Cells of the hypothesis; none when fewer than two pairs of levels are there."""
    if len(matched) < 2:
        return {}
    parts = [diagonal_and_rest(_square(value, matched)) for value in samples]  # (n,) each, at each seed
    intervals = [bootstrap_interval(diagonal - rest) for diagonal, rest in parts]
    known = [interval for interval in intervals if interval is not None]
    exact = "share of all permutations of the language levels with as large a mean of the diagonal"
    cells = {
        "diagonal": mean_cell([d.mean() for d, _ in parts], parents, "mean attention of matched levels"),
        "rest": mean_cell([r.mean() for _, r in parts], parents, "mean attention of levels that are not matched"),
        "difference": mean_cell([(d - r).mean() for d, r in parts], parents, "matched less not matched"),
        "p": single_cell(permutation_p(_square(mean, matched)), parents, exact),
        "p_uncentred": single_cell(permutation_p(_square(plain, matched)), parents, f"{exact}, similarities not centred"),
    }
    if len(known) == len(intervals):
        how = "end of its 95 % interval, bootstrap over pictures, the"
        cells["low"] = single_cell(min(low for low, _ in known), parents, f"lower {how} lowest over seeds")
        cells["high"] = single_cell(max(high for _, high in known), parents, f"upper {how} highest over seeds")
    return cells


def _draw(
    maps: Mapping[str, np.ndarray], visual: Sequence[str], language: Sequence[str], matched: Sequence[tuple[int, int]]
) -> Canvas:
    canvas = Canvas(figsize=(TEXT_WIDTH, 0.47 * TEXT_WIDTH))
    axes = canvas.subplots(1, 2)
    canvas.subplots_adjust(left=0.08, right=0.86, bottom=0.13, top=0.9, wspace=0.2)
    uniform = 1 / len(language)
    # From none to twice uniform attention at least: what differs by little looks alike.
    high = max(2 * uniform, *(float(value.max()) for value in maps.values()))
    for axis, (side, title) in zip(axes, SIDES.items(), strict=True):
        image = heat(axis, maps[side], visual, language, low=0.0, high=high, outlined=matched)
        axis.set_title(title, pad=4)
        axis.set_xlabel("language level")
    axes[0].set_ylabel("visual level")
    bar = canvas.colorbar(image, cax=canvas.add_axes((0.89, 0.17, 0.022, 0.69)))
    bar.outline.set_linewidth(0.4)
    bar.set_ticks(sorted({0.0, uniform, high}), labels=[number_of(tick, 2) for tick in sorted({0.0, uniform, high})])
    bar.ax.tick_params(labelsize=6, width=0.4, length=2)
    return canvas


def _caption(
    context: PaperContext,
    run: str,
    split: str,
    visual: Sequence[str],
    language: Sequence[str],
    matched: Sequence[tuple[int, int]],
    cells: Mapping[str, Mapping[str, Cell]],
) -> str:
    stated = cells[CAPTION]
    head = (
        f"Attention of each visual level (row) to the language levels: softmax over language levels of the similarity of a "
        f"picture's level to its own caption's, less that language level's mean over pictures and visual levels, over the "
        f"method's temperature of {stated['temperature'].value:g}; mean over {stated['images'].value:,.0f} images of "
        f"{context.label(split, 'retrieval')}. Student: {run}, {seeds_text(context)}. Colour from 0; "
        f"{number_of(1 / len(language), 2)} is uniform."
    )
    pairs = ", ".join(f"{visual[i]}-{language[j]}" for i, j in matched)
    if len(matched) < 2:
        return f"{head} With {pairs or 'no pair'} alone there is no order of levels to test."
    several = ", from the lowest to the highest of the seeds'" if len(context.seeds) > 1 else ""
    count = len(list(permutations(matched)))
    sentences = []
    for side, title in SIDES.items():
        found = cells[side]
        interval = f" [{signed(found['low'], 3)}, {signed(found['high'], 3)}]" if "low" in found else ""
        sentences.append(
            f"{title}: {number_of(found['diagonal'].value, 3)} against {number_of(found['rest'].value, 3)}, difference "
            f"{signed(found['difference'], 3)}{interval}; p = {number_of(found['p'].value, 3)} "
            f"({number_of(found['p_uncentred'].value, 3)} without centring)."
        )
    return (
        f"{head} Outlined: the hypothesis ({pairs}). Mean of those cells against the others, with 95% bootstrap interval over "
        f"images{several}; p: share of all {count} permutations of the language levels with as large a mean, at least "
        f"1/{count}. {' '.join(sentences)}"
    )
