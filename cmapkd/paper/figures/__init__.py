"""Registry of figures. A figure is one module here, with ``build(context, metrics, path) -> Figure``, and one line below.

A figure of results is drawn by matplotlib as a PDF. A drawing shows the method as it is configured: its module has
``build(context) -> Figure``, whose TikZ is typeset where there is LaTeX. The modules are imported when a figure is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmapkd.errors import UserError, nearest
from cmapkd.paper.cells import Cell, Parent, Text

if TYPE_CHECKING:
    from cmapkd.paper.context import PaperContext
    from cmapkd.paper.metrics import Metrics

DRAWINGS = {
    "figure1": "cmapkd.paper.figures.framework",
    "figure2": "cmapkd.paper.figures.pyramids",
}
FIGURES = {
    **DRAWINGS,
    "figure3": "cmapkd.paper.figures.weights_by_difficulty",
    "figure4": "cmapkd.paper.figures.weights_by_type",
    "figure5": "cmapkd.paper.figures.level_maps",
    "figure6": "cmapkd.paper.figures.level_attention",
    "curves": "cmapkd.paper.figures.training_curves",
    "pareto": "cmapkd.paper.figures.pareto",
}


@dataclass(frozen=True)
class Figure:
    """A figure's text, its numbers (with parents, like a table's) and the values it plots. Texts are plain, not LaTeX."""

    name: str
    title: str
    caption: str
    parents: tuple[Parent, ...]
    cells: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    decimals: int = 2  # of its numbers in prose
    counts: tuple[str, ...] = ("images",)  # columns of numbers without decimals
    values: Mapping[str, Any] = field(default_factory=dict)  # JSON-able, as plotted
    texts: Mapping[str, Mapping[str, Text]] = field(default_factory=dict)
    columns: tuple[Mapping[str, Any], ...] = ()  # decimals of single columns of its numbers, where they differ
    tikz: str = ""  # of a drawing: a tikzpicture

    def to_json(self) -> dict[str, Any]:
        return {
            "figure": self.name,
            "title": self.title,
            "caption": self.caption,
            "parents": [{**asdict(parent), "keys": list(parent.keys)} for parent in self.parents],
            "decimals": self.decimals,
            "cells": {row: {column: cell.to_json() for column, cell in cells.items()} for row, cells in self.cells.items()},
            "texts": {row: {column: text.to_json() for column, text in texts.items()} for row, texts in self.texts.items()},
            "columns": [*({"column": column, "decimals": 0} for column in self.counts), *(dict(c) for c in self.columns)],
            "values": dict(self.values),
        }


def draw_figure(name: str, context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure of that name as a PDF at ``path``."""
    figure: Figure = _module(name).build(context, metrics, path)
    return figure


def draw_tikz(name: str, context: PaperContext) -> Figure:
    """The drawing of that name."""
    figure: Figure = _module(name).build(context)
    return figure


def _module(name: str) -> Any:
    if name not in FIGURES:
        raise UserError(key="figure", value=name, reason="no such figure", fix=nearest(name, list(FIGURES)))
    return import_module(FIGURES[name])
