"""Planned numbers, written before any experiment. They are never results: each is a cell marked so, in a column labelled so."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import yaml

from cmapkd.errors import UserError
from cmapkd.paper.cells import Cell, Column, Parent
from cmapkd.paper.context import PLANNED_FILE, PaperContext

PREFIX = "planned:"


def planned_cells(context: PaperContext, table: str, row: str) -> dict[str, Cell]:
    """Planned numbers of one row, by column key with the prefix ``planned:``. Empty unless the experiment asks for them.

    Raises:
        UserError: if the experiment asks for them and the file is missing or not of the form table -> row -> column -> number.
    """
    if not context.planned:
        return {}
    path = context.planned_file
    if not path.is_file():
        raise UserError(
            key="paper.planned", value=True, reason=f"{path} is missing", fix="restore it or set paper.planned to false"
        )
    raw = path.read_bytes()
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        numbers = yaml.safe_load(raw)[table].get(row, {})
        return {
            PREFIX + column: Cell(
                value=float(value),
                n=1,
                parents=(Parent(PLANNED_FILE, sha256, None, None, (table, row, column)),),
                recipe="written before any experiment; not a measurement",
                planned=True,
            )
            for column, value in numbers.items()
        }
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            key=str(path), reason=f"cannot be read for {table} / {row}: {error}", fix="restore it from the repository"
        ) from error


def with_planned(context: PaperContext, columns: tuple[Column, ...], planned: set[str]) -> tuple[Column, ...]:
    """``columns`` and, if the experiment asks for it, a planned column for each whose key is in ``planned``."""
    if not context.planned:
        return columns
    extra = (
        replace(
            column,
            key=PREFIX + column.key,
            planned=True,
            ranked=False,
            optional=True,
        )
        for column in columns
        if column.key in planned
    )
    return (*columns, *extra)
