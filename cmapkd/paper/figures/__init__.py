"""Registry of figures. A figure is one module here, with ``build(context, metrics, path) -> Figure``, and one line below.

The modules (and matplotlib) are imported when a figure is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmapkd.errors import UserError, nearest
from cmapkd.paper.cells import Cell, Parent

if TYPE_CHECKING:
    from cmapkd.paper.context import PaperContext
    from cmapkd.paper.metrics import Metrics

FIGURES = {
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

    def to_json(self) -> dict[str, Any]:
        return {
            "figure": self.name,
            "title": self.title,
            "caption": self.caption,
            "parents": [{**asdict(parent), "keys": list(parent.keys)} for parent in self.parents],
            "decimals": self.decimals,
            "columns": [{"column": column, "decimals": 0} for column in self.counts],
            "cells": {row: {column: cell.to_json() for column, cell in cells.items()} for row, cells in self.cells.items()},
            "values": dict(self.values),
        }


def draw_figure(name: str, context: PaperContext, metrics: Metrics, path: Path) -> Figure:
    """Draw the figure of that name as a PDF at ``path``."""
    if name not in FIGURES:
        raise UserError(key="figure", value=name, reason="no such figure", fix=nearest(name, list(FIGURES)))
    figure: Figure = import_module(FIGURES[name]).build(context, metrics, path)
    return figure
