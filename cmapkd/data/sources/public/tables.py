"""Rows of a CSV or TSV file by the names of its columns; what makes a cell or a head ambiguous is refused with its row."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from cmapkd.errors import UserError

Error = Callable[[Path, str, str], UserError]
_SEPARATORS = {";": "a semicolon", "\t": "a tab", "|": "a bar", ",": "a comma"}


def is_absent(value: Any) -> bool:
    """Whether a cell holds nothing: None, an empty text, or the NaN that pandas puts into gaps."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def read_head(table: Path, wanted: Collection[str], error: Error) -> list[str]:
    """Names of the columns.

    Args:
        table: a CSV or TSV file in UTF-8.
        wanted: names that the configuration uses; blanks around the others of the head are taken away.
        error: makes the error for a file, what is wrong with it, and what helps.

    Raises:
        UserError: not UTF-8, not a table, or one with another separator.
    """
    with _opened(table, error) as file:
        try:
            return _head(next(_reader(table, file), []), table, wanted, error)
        except (UnicodeDecodeError, csv.Error) as problem:
            raise _damaged(table, problem, 1, error) from None


def read_rows(table: Path, wanted: Collection[str], error: Error) -> Iterator[tuple[int, dict[str, str]]]:
    """Every row by its number from 1; empty lines are skipped.

    Raises:
        UserError: as `read_head`, or a row has more or fewer cells than the head.
    """
    with _opened(table, error) as file:
        reader, number = _reader(table, file), 0
        try:
            head = _head(next(reader, []), table, wanted, error)
            for number, cells in enumerate(filter(None, reader), 1):
                if len(cells) != len(head):
                    more = "more" if len(cells) > len(head) else "fewer"
                    fix = "put quotation marks around cells with a separator in them" if more == "more" else "complete the row"
                    raise error(table, f"row {number} has {more} cells than the head has columns", fix)
                yield number, dict(zip(head, cells, strict=True))
        except (UnicodeDecodeError, csv.Error) as problem:
            raise _damaged(table, problem, number + 1, error) from None


def _opened(table: Path, error: Error) -> TextIO:
    try:
        return table.open(encoding="utf-8-sig", newline="")
    except OSError as problem:
        raise error(table, f"cannot be read: {problem.strerror}", "check its permissions") from None


def _reader(table: Path, file: TextIO) -> Iterator[list[str]]:
    if table.suffix == ".csv":
        return csv.reader(file, strict=True)
    return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)  # quotation marks mean nothing in a TSV


def _head(cells: list[str], table: Path, wanted: Collection[str], error: Error) -> list[str]:
    used = "," if table.suffix == ".csv" else "\t"
    if len(cells) == 1 and cells[0] not in wanted:
        found = [mark for mark in _SEPARATORS if mark != used and mark in cells[0]]
        if found:
            reason = f"is separated by {_SEPARATORS[found[0]]}, not by {_SEPARATORS[used]}: its head is {cells[0][:80]!r}"
            fix = "name it .tsv" if found[0] == "\t" else "save it with commas (CSV) or tabs (TSV)"
            raise error(table, reason, fix if found[0] != "," else "name it .csv")
    return [cell if cell in wanted else cell.strip() for cell in cells]


def _damaged(table: Path, problem: Exception, row: int, error: Error) -> UserError:
    reason = f"is not {table.suffix[1:].upper()} in UTF-8, at row {row}: {problem}"
    if isinstance(problem, UnicodeDecodeError) and problem.object[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return error(table, "is UTF-16, as some programs for Windows write it", "save it as UTF-8")
    if "field limit" in str(problem):
        reason = f"row {row} has a cell of more than {csv.field_size_limit()} characters"
        return error(table, reason, "shorten it; if it is short, a quotation mark before it is not closed")
    fix = "save it as UTF-8" if isinstance(problem, UnicodeDecodeError) else "quote the cell, double its quotation marks"
    return error(table, reason, fix)
