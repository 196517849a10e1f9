"""Numbers with parents, and the tables made of them. A number without a parent cannot be constructed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cmapkd.errors import UserError

CAPTION = "caption"  # row key of the numbers that a caption states
Direction = Literal["up", "down", ""]


@dataclass(frozen=True)
class Parent:
    """Where a number was read: file (relative to the results directory), its SHA-256 then, run, seed, keys within the file.

    Of the experiment's own file the SHA-256 is that of what the paper tells of it (``PaperContext.experiment_digest``).
    """

    file: str
    sha256: str
    run: str | None
    seed: int | None
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One number of the paper: mean over ``n`` seeds, sample standard deviation when n >= 2, and where it comes from."""

    value: float
    n: int
    parents: tuple[Parent, ...]
    std: float | None = None
    recipe: str = "mean over seeds"  # how the value follows from its parents
    planned: bool = False  # written before any experiment; never a result

    def __post_init__(self) -> None:
        if not self.parents:
            raise UserError(
                key="cell", value=self.value, reason="a number without a parent", fix="read it through cmapkd.paper.metrics"
            )
        if not math.isfinite(self.value) or (self.std is not None and not math.isfinite(self.std)):
            raise UserError(key=self.parents[0].file, value=self.value, reason="is not a finite number")
        if (self.std is not None) != (self.n >= 2):
            raise UserError(
                key=self.parents[0].file, value=self.n, reason="a standard deviation is given exactly when there are two seeds"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "std": self.std,
            "n": self.n,
            "recipe": self.recipe,
            **({"planned": True} if self.planned else {}),
            "parents": [{**asdict(parent), "keys": list(parent.keys)} for parent in self.parents],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Cell:
        parents = tuple(
            Parent(file=p["file"], sha256=p["sha256"], run=p["run"], seed=p["seed"], keys=tuple(p["keys"]))
            for p in content["parents"]
        )
        return cls(
            value=content["value"],
            n=content["n"],
            parents=parents,
            std=content["std"],
            recipe=content["recipe"],
            planned=content.get("planned", False),
        )


@dataclass(frozen=True)
class Text:
    """A cell of words (a stage's levels, a rate and where it ends), with parents like a number's. Line breaks are kept."""

    text: str
    parents: tuple[Parent, ...]
    recipe: str = "as configured"

    def __post_init__(self) -> None:
        if not self.parents:
            raise UserError(key="cell", value=self.text, reason="a text without a parent")

    def to_json(self) -> dict[str, Any]:
        parents = [{**asdict(parent), "keys": list(parent.keys)} for parent in self.parents]
        return {"text": self.text, "recipe": self.recipe, "parents": parents}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Text:
        parents = tuple(
            Parent(file=p["file"], sha256=p["sha256"], run=p["run"], seed=p["seed"], keys=tuple(p["keys"]))
            for p in content["parents"]
        )
        return cls(text=content["text"], parents=parents, recipe=content["recipe"])


@dataclass(frozen=True)
class Column:
    """One column. ``key`` names it in ``table<N>.json``, in macros and in ``cmapkd trace``."""

    key: str
    header: str
    group: str = ""  # heading that spans neighbouring columns of the same group
    direction: Direction = "up"  # which way is better
    decimals: int | None = 1  # None: as many as the column's smallest number needs for three digits
    deviation: bool = True  # print the deviation over seeds; pointless for what does not depend on the seed
    ranked: bool = True  # best and second best student are marked
    planned: bool = False
    text: bool = False  # its cells are texts
    signed: bool = False  # a difference: printed with its sign
    optional: bool = False  # a cell may be absent (planned numbers; ratios to the teacher in the teacher's own row)


@dataclass(frozen=True)
class Row:
    """One row: the teacher, a student run, or whatever else a table lists."""

    key: str
    label: str
    teacher: bool = False
    method: str = ""
    note: str = ""
    section: str = ""  # heading above the first of neighbouring rows with the same section
    ruled: bool = False  # a rule above it


@dataclass(frozen=True)
class Panel:
    """Columns shown together; a table with several data sets stacks panels."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[str, ...] = ()  # keys of the rows it shows, in order; empty: all


@dataclass(frozen=True)
class Difference:
    """One significance test of a table: a row against another in a column. Kept in the table's file, not printed as such."""

    row: str
    against: str
    column: str
    difference: float  # percentage points, mean over seeds
    low: float
    high: float
    p: float
    corrected: float  # p corrected for the number of the table's tests
    significant: bool  # corrected p below the table's level


@dataclass(frozen=True)
class Table:
    """A table of numbers with parents. Texts are plain (no LaTeX); they are escaped when the table is typeset.

    ``cells`` maps row key -> column key -> cell; the row ``caption`` holds the numbers the caption states. ``texts`` does
    the same for cells of words.
    """

    name: str  # table2
    title: str  # a few words
    caption: str
    rows: tuple[Row, ...]
    panels: tuple[Panel, ...]
    cells: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, Text]] = field(default_factory=dict)
    tests: tuple[Difference, ...] = ()
    test_parents: tuple[Parent, ...] = ()  # of all tests: the variance between seeds is that of all students

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns()]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{self.name}: column keys are not unique: {keys}")
        for panel in self.panels:
            for row in self.shown(panel):
                for column in panel.columns:
                    found = self.texts if column.text else self.cells
                    if not column.optional and column.key not in found.get(row.key, {}):
                        reason = f"has no {'text' if column.text else 'number'}"
                        raise UserError(
                            key=f"{self.name} / {row.key} / {column.key}", reason=reason, fix="every cell needs a parent"
                        )

    def shown(self, panel: Panel) -> tuple[Row, ...]:
        """The rows of a panel."""
        by_key = {row.key: row for row in self.rows}
        return tuple(by_key[key] for key in panel.rows) if panel.rows else self.rows

    def columns(self) -> Iterator[Column]:
        for panel in self.panels:
            yield from panel.columns

    def cell(self, row: str, column: str) -> Cell | None:
        return self.cells.get(row, {}).get(column)

    def text(self, row: str, column: str) -> Text | None:
        return self.texts.get(row, {}).get(column)

    def significantly_best(self, row: str, column: str) -> bool:
        """Whether a student is the best by mean and, by the table's tests, significantly better than the best of the others."""
        students = (other.key for other in self.rows if not other.teacher)
        order = sorted(
            ((cell.value, key) for key in students if (cell := self.cell(key, column)) is not None), key=lambda entry: -entry[0]
        )
        if len(order) < 2 or order[0][1] != row:
            return False
        second = order[1][1]  # of equals the first in the table, as the tests take it
        for test in self.tests:
            if test.column == column and {test.row, test.against} == {row, second}:
                return test.significant and (test.difference > 0) == (test.row == row)
        return False

    def column(self, key: str) -> Column | None:
        return next((column for column in self.columns() if column.key == key), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "table": self.name,
            "title": self.title,
            "caption": self.caption,
            "rows": [{"row": row.key, "label": row.label, "method": row.method, "teacher": row.teacher} for row in self.rows],
            "columns": [
                {
                    "column": c.key,
                    "header": c.header,
                    "group": c.group,
                    "panel": panel.title,
                    "direction": c.direction,
                    "planned": c.planned,
                    **({"rows": list(panel.rows)} if panel.rows else {}),
                }
                for panel in self.panels
                for c in panel.columns
            ],
            "cells": {row: {column: cell.to_json() for column, cell in cells.items()} for row, cells in self.cells.items()},
            "texts": {row: {column: text.to_json() for column, text in texts.items()} for row, texts in self.texts.items()},
            **({"tests": self._tests()} if self.tests else {}),
        }

    def _tests(self) -> dict[str, Any]:
        parents = [{**asdict(parent), "keys": list(parent.keys)} for parent in self.test_parents]
        return {"tests": [asdict(test) for test in self.tests], "parents": parents}


def decimals_of(values: list[float], fixed: int | None) -> int:
    """Decimals of a column: fixed, or what its smallest non-zero number needs for three significant digits (at most 4)."""
    if fixed is not None:
        return fixed
    if all(value == round(value) for value in values):
        return 0
    smallest = min((abs(value) for value in values if value), default=1.0)
    return min(4, max(0, 2 - math.floor(math.log10(smallest))))


def number_of(value: float, decimals: int) -> str:
    """A number as it is printed; never ``-0.0``."""
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text
