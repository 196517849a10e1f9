"""Rows of parquet files, a batch at a time, so that memory does not grow with the file. pyarrow is imported only here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError

BATCH = 64  # rows, as each may hold a picture


def columns(path: Path, key: str) -> list[str]:
    """Names of the columns.

    Raises:
        UserError: no parquet, or truncated.
    """
    with _open(path, key) as file:
        return list(file.schema_arrow.names)


def rows(path: Path, key: str, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Every row, with the ``wanted`` columns.

    Raises:
        UserError: no parquet, or damaged.
    """
    import pyarrow

    with _open(path, key) as file:
        try:
            # Not memory-mapped and not pre-buffered: what was read is let go of.
            for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(key=key, value=str(path), reason=f"is damaged: {error}", fix="get the file again") from None


def picture_bytes(value: Any) -> bytes | None:
    """The bytes in a cell: plain, or Hugging Face's struct of ``bytes`` and ``path``."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def _open(path: Path, key: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = f"is no whole parquet file: {error}"
        raise UserError(key=key, value=str(path), reason=reason, fix="get the file again") from None
