"""Planned numbers, written before any experiment. They are never results: each is a cell marked so, in a column labelled so.

They are shown by the table ``planned`` of the appendix alone.
"""

from __future__ import annotations

import hashlib

from cmapkd.errors import UserError
from cmapkd.paper.cells import Cell, Parent
from cmapkd.paper.context import PLANNED_FILE, PaperContext
from cmapkd.plain_yaml import parse_yaml

PREFIX = "planned:"


def planned_cells(context: PaperContext, table: str, row: str) -> dict[str, Cell]:
    """Planned numbers of one row of a table, by column; empty if none were planned for it.

    Raises:
        UserError: the experiment does not ask for them, or the file is missing or not of the form table -> row -> column ->
            number.
    """
    if not context.planned:
        raise UserError(
            key="paper.planned",
            value=False,
            reason="planned numbers are not asked for",
            fix="set it to true, or leave the table out",
        )
    path = context.planned_file
    if not path.is_file():
        raise UserError(
            key="paper.planned", value=True, reason=f"{path} is missing", fix="restore it or set paper.planned to false"
        )
    raw = path.read_bytes()
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        numbers = parse_yaml(raw.decode(), str(path))[table].get(row, {})
        return {
            column: Cell(
                value=float(value),
                n=1,
                parents=(Parent(PLANNED_FILE, sha256, None, None, (table, row, column)),),
                recipe="written before any experiment; not a measurement",
                planned=True,
            )
            for column, value in numbers.items()
        }
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            key=str(path), reason=f"cannot be read for {table} / {row}: {error}", fix="restore it from the repository"
        ) from error
