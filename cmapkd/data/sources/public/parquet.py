"""Rows of parquet files, a batch at a time, so that memory does not grow with the file. pyarrow is imported only here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmapkd.data.sources.public.pictures import UnusableError
from cmapkd.errors import UserError

BATCH, LARGE_BATCH = 16, 2  # rows; those with images may have 256 MiB each
RATIO, SMALL = 200, 256 * 2**20  # a column's bytes for each compressed one, and the size up to which that does not matter


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
        UserError: no parquet, damaged, or a column declares more than images and texts ever hold.
    """
    import pyarrow

    with _open(path, key) as file:
        _check_sizes(file, path, key, wanted)
        try:
            # Not memory-mapped and not pre-buffered: what was read is let go of.
            nested = (
                pyarrow.types.is_struct,
                pyarrow.types.is_binary,
                pyarrow.types.is_large_binary,
                pyarrow.types.is_dictionary,
            )
            large = any(test(file.schema_arrow.field(name).type) for name in wanted for test in nested)
            for batch in file.iter_batches(LARGE_BATCH if large else BATCH, columns=wanted, use_threads=False):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(key=key, value=str(path), reason=f"is damaged: {error}", fix="get the file again") from None


NO_BYTES = UnusableError(
    "the cell has no bytes",
    kind="without bytes in their cells",
    fix="write the table with the encoded images in it (Hugging Face: `embed_external_files`)",
)


def without_bytes(name: str) -> UnusableError:
    """Why there is no image: the cell names a file of the machine on which the table was written."""
    reason = f"the cell has no bytes but the path {name!r}, and there is no such file below `root`"
    return UnusableError(reason, kind=NO_BYTES.kind, fix=f"{NO_BYTES.fix}, or put the files below `root`")


def is_text(path: Path, key: str, column: str) -> bool:
    """Whether a column holds text, such as paths."""
    import pyarrow

    with _open(path, key) as file:
        kind = file.schema_arrow.field(column).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind))


def picture(value: Any) -> bytes | str | UnusableError:
    """What a cell holds: the encoded image, or its path, plain or in Hugging Face's struct of ``bytes`` and ``path``."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or value in (b"", ""):
        return NO_BYTES
    if isinstance(value, bytes | str):
        return value
    return UnusableError(
        f"the cell holds a {type(value).__name__}, neither an encoded image nor a path",
        kind="of another type",
        fix="write the table with encoded images (PNG or JPEG) or their paths",
    )


def _check_sizes(file: Any, path: Path, key: str, wanted: list[str]) -> None:
    about = file.metadata
    for group in range(about.num_row_groups):
        for place in range(about.num_columns):
            column = about.row_group(group).column(place)
            if column.path_in_schema.partition(".")[0] not in wanted:
                continue
            size, stored = column.total_uncompressed_size, column.total_compressed_size
            if size > max(SMALL, RATIO * stored) or stored > path.stat().st_size:
                reason = f"column {column.path_in_schema} declares {size} bytes from {stored} compressed ones"
                raise UserError(key=key, value=str(path), reason=reason, fix="write the table again from its source")


def _open(path: Path, key: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = f"is no whole parquet file: {error}"
        raise UserError(key=key, value=str(path), reason=reason, fix="get the file again") from None
