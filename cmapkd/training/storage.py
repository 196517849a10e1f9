"""What a training writes survives a power cut, and a disk that is full or read-only ends it with a word.

A file is on the disk when it and its directory were flushed; only then may a marker or a rename say that it is there.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmapkd.errors import UserError, free_space

_ERRORS = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network file system has gone",
}


def flush_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path, kept: str, needs: int = 0) -> Iterator[None]:
    """Turn a disk that refuses into a user's error that tells where, how much is free, and what is not lost.

    Args:
        path: that is written.
        kept: what a new start goes on from.
        needs: bytes of the file; 0: unknown.
    """
    try:
        yield
    except Exception as error:
        told = disk_error(error, path, kept, needs)
        if told is None:
            raise
        raise told from error


def disk_error(error: Exception, path: Path, kept: str, needs: int = 0) -> UserError | None:
    """The user's error for a disk that refuses; None if ``error`` is something else."""
    number = _number(error)
    if number not in _ERRORS:
        return None
    wanted = f", and the file takes {needs / 1e6:,.1f} MB" if needs else ""
    return UserError(
        key=str(path),
        reason=f"cannot be written: {_ERRORS[number]} ({free_space(path)}{wanted})",
        fix=f"make room or have the file system mended, then run the same command again; {kept}",
    )


def is_disk_error(error: BaseException) -> bool:
    """Whether ``error`` comes from a disk that refuses, also where it was put into words already."""
    return any(_number(cause) in _ERRORS for cause in (error, error.__cause__) if cause is not None)


def _number(error: BaseException) -> int | None:
    """Number of an operating system's error; torch and safetensors keep it in their text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    if found is not None:
        return int(found.group(1))
    named = {os.strerror(number): number for number in _ERRORS}
    return next((number for text, number in named.items() if text in str(error)), None)
