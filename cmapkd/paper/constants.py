"""Constants of the configuration as drawings and algorithms print them: each is a cell or a text with its parent."""

from __future__ import annotations

from typing import Any

from cmapkd.paper.cells import Cell, Parent, Text
from cmapkd.paper.context import EXPERIMENT_FILE, PaperContext


class Constants:
    """Collects numbers and words of the experiment's file as they are printed."""

    def __init__(self, context: PaperContext) -> None:
        self.context = context
        self.cells: dict[str, dict[str, Cell]] = {}
        self.texts: dict[str, dict[str, Text]] = {}

    def number(self, row: str, column: str, value: float, *keys: str, recipe: str = "as configured") -> str:
        """Keep a number and return it as it is printed: three significant digits, all of a whole number.

        Args:
            row, column: its name, as in ``\\cmapkd{figure1}{<row>}{<column>}``.
            keys: where the experiment's file has what it follows from.
        """
        self.cells.setdefault(row, {})[column] = Cell(value=value, n=1, parents=(self.parent(*keys),), recipe=recipe)
        return plain(value)

    def text(self, row: str, column: str, text: str, *keys: str, recipe: str = "as configured") -> str:
        """Keep words and return them."""
        self.texts.setdefault(row, {})[column] = Text(text, (self.parent(*keys),), recipe)
        return text

    def parent(self, *keys: str) -> Parent:
        return Parent(EXPERIMENT_FILE, self.context.experiment_digest, None, None, keys)

    def parents(self) -> tuple[Parent, ...]:
        """Every parent once."""
        kept = [parent for row in self.cells.values() for cell in row.values() for parent in cell.parents]
        kept += [parent for row in self.texts.values() for text in row.values() for parent in text.parents]
        return tuple(dict.fromkeys(kept))

    def columns(self) -> list[dict[str, Any]]:
        """Decimals of every column, for the macros: a macro prints what `number` returned."""
        needed: dict[str, int] = {}
        for row in self.cells.values():
            for column, cell in row.items():
                needed[column] = max(needed.get(column, 0), decimals(cell.value))
        return [{"column": column, "decimals": places} for column, places in needed.items()]


def plain(value: float) -> str:
    """``0.07``, ``128``, ``2000``, ``0.0015``: three significant digits, never an exponent."""
    return f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Decimals that three significant digits need, without trailing zeros."""
    if value == round(value):
        return 0
    text = f"{value:.3g}"
    places = max(0, -int(f"{value:e}".partition("e")[2]) + 2) if "e" in text else len(text.partition(".")[2])
    return len(f"{float(text):.{places}f}".rstrip("0").partition(".")[2])
