"""The directory of an export: what may be written where, how it appears whole, and whether it still is. Torch-free."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of

RECORD = "export.json"
NOTES = (".snakemake_timestamp",)  # what Snakemake leaves in a directory that a rule makes; no part of an export


def check_target(directory: Path, overwrite: bool = False) -> None:
    """Refuse to write where something else lies.

    Raises:
        UserError: the directory holds files and is no export, or it is one and may not be replaced.
    """
    if not directory.exists() and not directory.is_symlink():
        return
    if not directory.is_dir() or directory.is_symlink():
        raise UserError(key="--to", value=str(directory), reason="exists and is no directory", fix="name another place")
    if not any(directory.iterdir()):
        return
    if not (directory / RECORD).is_file():
        reason = f"holds files, and no {RECORD} says that an export made them"
        raise UserError(key="--to", value=str(directory), reason=reason, fix="name a new or an empty directory")
    if not overwrite:
        raise UserError(key="--to", value=str(directory), reason="holds an export", fix="add --overwrite to replace it")


def check_licence(licence: str) -> None:
    """Refuse what the Hub would not take for a licence; empty is fine: none was chosen.

    Raises:
        UserError: not in the form of an identifier.
    """
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", licence):
        reason = "is no identifier of a licence as the Hub writes them"
        raise UserError(key="--licence", value=licence, reason=reason, fix="write it like apache-2.0, mit or cc-by-4.0")


def verify(directory: Path) -> dict[str, Any]:
    """The record of an export whose files are all there and unchanged.

    Raises:
        UserError: no export, or a file is missing, changed or not of it.
    """
    path = directory / RECORD
    if not path.is_file():
        raise UserError(key=str(directory), reason=f"has no {RECORD}", fix="export the run again")
    record: dict[str, Any] = read_json(path, files=dict)
    found = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()} - {RECORD, *NOTES}
    odd = sorted(found ^ set(record["files"]))
    odd += [name for name, sha256 in record["files"].items() if name in found and sha256_of(directory / name) != sha256]
    if odd:
        raise UserError(key=str(directory), reason=f"is not as it was exported: {', '.join(odd)}", fix="export the run again")
    return record


@contextmanager
def made_beside(directory: Path) -> Iterator[Path]:
    """A new folder beside ``directory`` that takes its place on a clean exit and is removed otherwise.

    What was there is moved aside first and then deleted; killed between the two, it lies beside as ``.<name>.old-...``.
    """
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{directory.name}.new-", dir=directory.parent))
    try:
        yield folder
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
            if path.is_file():
                _flush(path)
        if directory.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old-", dir=directory.parent))
            directory.replace(aside)  # onto an empty directory
            folder.replace(directory)
            shutil.rmtree(aside)
        else:
            folder.replace(directory)
        _flush(directory.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
