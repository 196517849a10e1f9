"""Registry of algorithms. An algorithm is one module here, with ``build(context) -> Algorithm``, and one line below.

They show the method as it is configured, in the words of algorithm2e; nothing in them is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cmapkd.errors import UserError, nearest
from cmapkd.paper.cells import Cell, Parent, Text

if TYPE_CHECKING:
    from cmapkd.paper.context import PaperContext

ALGORITHMS = {
    "algorithm1": "cmapkd.paper.algorithms.selection",
    "algorithm2": "cmapkd.paper.algorithms.distillation",
}


@dataclass(frozen=True)
class Algorithm:
    """An algorithm: its lines in the words of algorithm2e, and the constants in them with their parents."""

    name: str
    title: str
    latex: str  # a complete ``algorithm`` environment
    parents: tuple[Parent, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    texts: Mapping[str, Mapping[str, Text]]
    columns: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "algorithm": self.name,
            "title": self.title,
            "parents": [{**asdict(parent), "keys": list(parent.keys)} for parent in self.parents],
            "columns": [dict(column) for column in self.columns],
            "cells": {row: {column: cell.to_json() for column, cell in cells.items()} for row, cells in self.cells.items()},
            "texts": {row: {column: text.to_json() for column, text in texts.items()} for row, texts in self.texts.items()},
        }


def compute_algorithm(name: str, context: PaperContext) -> Algorithm:
    """The algorithm of that name."""
    if name not in ALGORITHMS:
        raise UserError(key="algorithm", value=name, reason="no such algorithm", fix=nearest(name, list(ALGORITHMS)))
    algorithm: Algorithm = import_module(ALGORITHMS[name]).build(context)
    return algorithm
