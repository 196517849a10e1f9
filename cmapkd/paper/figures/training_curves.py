"""Appendix figure ``curves``: the loss and its terms over the steps of a training, for every method, with its stages.

What is plotted are the block means that a metric file keeps of each stage's training log (at most 100 blocks for a stage), mean
over seeds with the range over seeds. A stage's loss is a sum of terms weighted as that stage says, so the loss may jump where a
stage ends; terms are plotted before their weights. Losses of different methods are sums of different terms: nothing follows
from which is lower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from cmapkd.errors import UserError
from cmapkd.paper.cells import Cell, Parent
from cmapkd.paper.context import PaperContext, PaperRun
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.common import checked, mean_cell, rounded, seeds_text, single_cell
from cmapkd.paper.figures.style import TEXT_WIDTH, cycle, paper_style, plain, save_pdf
from cmapkd.paper.metrics import Metrics

NAME = "curves"
LOSS = "loss"
# What a log holds beside losses; and shares, similarities and weights, which some methods report among their terms.
OTHER = {"step", "lr", "learning_rate", "grad_norm", "data_seconds", "samples_per_second", "selected", "cosine", "logit_scale"}
OTHER_STARTS = ("weight_", "entropy_")
WIDE = 5  # terms above which a run gets a whole row, its legend beside it
ACROSS = 3  # small panels in a row
ROW = {True: 1.08, False: 1.28}  # [in] height of a row of a wide panel, and of small ones with their legends
DECADES = 5  # of the loss axis at most: what is smaller is rounding


@dataclass(frozen=True)
class StageCurves:
    """One stage of a run: steps from the run's start at which its blocks lie, and each term there at each seed."""

    name: str
    start: float
    end: float
    steps: np.ndarray  # (k,)
    terms: Mapping[str, np.ndarray]  # name -> (seeds, k)


def build(context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure at ``path``.

    Its numbers: a row for each run, with ``steps`` and the mean of the last block of every term of its last stage.

    Raises:
        UserError: no run of the comparison recorded curves.
    """
    runs = sorted(context.students(), key=lambda run: run.name != context.full_run)  # stable: the full method first
    curves: dict[str, list[StageCurves]] = {}
    cells: dict[str, dict[str, Cell]] = {}
    for run in runs:
        stages, parents = _stages(context, metrics, run)
        if not stages:
            continue
        curves[run.name] = stages
        cells[run.name] = {"steps": single_cell(round(stages[-1].end), parents, "steps of all stages, from the log's blocks")}
        for term, values in stages[-1].terms.items():
            cells[run.name][f"last {term}"] = mean_cell(values[:, -1].tolist(), parents, "mean over the last block of steps")
    if not curves:
        raise UserError(key="paper", value=NAME, reason="no run recorded training curves", fix=f"leave {NAME} out")
    labels = {run.name: run.shown for run in runs}
    with paper_style():
        canvas = _draw(curves, labels)
        save_pdf(canvas, path, "Training curves")
    every = [parent for row in cells.values() for cell in row.values() for parent in cell.parents]
    return Figure(
        name=NAME,
        title="Training curves",
        caption=_caption(context, [labels[run.name] for run in runs if run.name not in curves]),
        parents=tuple(dict.fromkeys(every)),
        cells=cells,
        decimals=3,
        counts=("steps",),
        values={
            run: [
                {
                    "stage": stage.name,
                    "steps": rounded(stage.steps),
                    "terms": {term: rounded(values.mean(axis=0)) for term, values in stage.terms.items()},
                }
                for stage in stages
            ]
            for run, stages in curves.items()
        },
    )


def stage_length(steps: np.ndarray) -> float:
    """Steps of a stage from the mean steps of its blocks, (k,): equal blocks but for one step more in the first ones."""
    last = float(steps[-1])
    if len(steps) == 1:
        return 2 * last + 1
    return float(np.floor(last + (last - float(steps[-2]) + 1) / 2 + 1e-3))


def _stages(context: PaperContext, metrics: Metrics, run: PaperRun) -> tuple[list[StageCurves], list[Parent]]:
    """The stages of which every seed has curves, in order, and the array files they come from.

    Raises:
        UserError: seeds differ in their stages or steps, or a value is not finite.
    """
    cell = f"{NAME} / {run.name}"
    found = [name for name in metrics.arrays(run.name, context.seeds[0], cell) if name.startswith("curves/")]
    places = sorted({(int(place), stage) for _, place, stage, _ in (name.split("/", 3) for name in found)})
    stages: list[StageCurves] = []
    parents: dict[Parent, None] = {}
    start = 0.0
    for place, stage in places:
        prefix = f"curves/{place}/{stage}/"
        names = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
        terms = [name for name in names if name not in OTHER and not name.startswith(OTHER_STARTS)]
        values: dict[str, list[np.ndarray]] = {name: [] for name in ("step", *terms)}
        for seed in context.seeds:
            for name in values:
                value, parent = metrics.array(run.name, seed, prefix + name, cell)
                shape = values["step"][0].shape if values["step"] else (None,)
                values[name].append(checked(value, shape, parent, NAME))
                parents[Parent(parent.file, parent.sha256, parent.run, parent.seed, ("curves",))] = None
        steps = values.pop("step")[0]
        length = stage_length(steps)
        joined = {name: np.stack(value) for name, value in values.items()}
        stages.append(StageCurves(stage, start, start + length, start + steps, joined))
        start += length
    return stages, list(parents)


def _draw(curves: Mapping[str, Sequence[StageCurves]], labels: Mapping[str, str]) -> Canvas:
    terms = {run: list(dict.fromkeys(term for stage in stages for term in stage.terms)) for run, stages in curves.items()}
    wide = [run for run in curves if len(terms[run]) > WIDE + 1]
    small = [run for run in curves if run not in wide]
    height = ROW[True] * len(wide) + ROW[False] * -(-len(small) // ACROSS) + 0.12  # [in]
    canvas = Canvas(figsize=(TEXT_WIDTH, height))
    for run in curves:
        if run in wide:
            left, width, tall = 0.085, 0.66, 0.72
            top = ROW[True] * wide.index(run) + 0.16  # [in] from the upper edge
        else:
            row, column = divmod(small.index(run), ACROSS)
            left, width, tall = 0.085 + column * 0.322, 0.245, 0.53
            top = ROW[True] * len(wide) + ROW[False] * row + 0.58
        axis = canvas.add_axes((left, 1 - (top + tall) / height, width, tall / height))
        _panel(axis, curves[run], terms[run])
        _legend(axis, plain(labels[run]), beside=run in wide, names=len(curves[run]) > 1)
        if run in (small or wide)[-ACROSS:]:
            axis.set_xlabel("step", labelpad=1)
    return canvas


def _panel(axis: Any, stages: Sequence[StageCurves], terms: Sequence[str]) -> None:
    every = np.concatenate([values.ravel() for stage in stages for values in stage.terms.values()])
    if every.min() > 0 and every.max() > 30 * every.min():
        axis.set_yscale("log")
        axis.set_ylim(max(every.min() / 1.3, every.max() / 10**DECADES), every.max() * 1.3)
        axis.minorticks_off()
    else:
        axis.locator_params(axis="y", nbins=4)
    for index, term in enumerate(terms):
        style = cycle(index)
        label: str | None = term.replace("_", " ")
        for stage in stages:
            if term not in stage.terms:
                continue
            values = stage.terms[term]
            axis.plot(
                stage.steps,
                values.mean(axis=0),
                color=style["color"],
                linestyle=style["linestyle"],
                linewidth=1.5 if term == LOSS else 0.9,
                marker=style["marker"] if len(stage.steps) < 3 else None,
                markersize=2,
                label=label,
            )
            axis.fill_between(stage.steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.2, linewidth=0)
            label = None
    axis.set_xlim(0, stages[-1].end)
    axis.tick_params(labelsize=5.5, pad=1.5)
    for stage in stages[1:]:
        axis.axvline(stage.start, color="0.6", linewidth=0.5, linestyle=(0, (2, 2)), zorder=0)
    if len(stages) > 1:
        for stage in stages:
            centre = (stage.start + stage.end) / 2
            axis.text(centre, 1.01, stage.name, transform=axis.get_xaxis_transform(), ha="center", va="bottom", fontsize=5)


def _legend(axis: Any, title: str, *, beside: bool, names: bool) -> None:
    """Beside a wide panel or above a small one (and above the ``names`` of its stages), where it cannot cover data."""
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.16)} if beside else {}
    place = place or {"loc": "lower center", "bbox_to_anchor": (0.5, 1.13 if names else 1.02), "ncols": 2}
    legend = axis.legend(
        frameon=False,
        fontsize=5.2,
        title=title,
        handlelength=2.2,
        columnspacing=0.8,
        labelspacing=0.2,
        borderaxespad=0.1,
        **place,
    )
    legend.get_title().set_fontsize(6.5)


def _caption(context: PaperContext, without: Sequence[str]) -> str:
    several = len(context.seeds) > 1
    missing = f" No curves were recorded of {', '.join(without)}." if without else ""
    return (
        f"Loss and its terms, before their weights, over the steps of each method's training, {seeds_text(context)}"
        f"{'; bands: range over seeds' if several else ''}. Means over at most 100 blocks of steps for each stage; dashed "
        f"lines: stages. Axes are logarithmic where terms differ much, over at most {DECADES} decades. The loss of a stage is "
        f"the sum of its own weighted terms (less what is rewarded), so it jumps where stages meet and cannot be compared "
        f"between methods."
        f"{missing}"
    )
