"""Pictures by name, in a folder or in the publisher's zip, which is read in place.

Names of members are looked up, never joined to a path, so no archive can reach outside of itself; what a member declares as its
size is checked before it is decompressed. A store's ``digest`` identifies its content without reading the pictures: names and
sizes, and in a zip the CRC-32 of each member.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cmapkd.data.sources.public.ignored import is_ignored
from cmapkd.data.sources.public.pictures import MAXIMUM_BYTES
from cmapkd.errors import UserError


class Store(Protocol):
    """Encoded pictures by name."""

    path: Path

    def __contains__(self, name: str) -> bool: ...

    def __len__(self) -> int: ...

    def read(self, name: str) -> bytes:
        """The bytes of a picture.

        Raises:
            ValueError: it cannot be read; the message says why.
        """
        ...

    def digest(self) -> str:
        """SHA-256 of the list of what is here."""
        ...


class Folder:
    """The files of one folder, without those of folders below."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with os.scandir(path) as entries:
            self._sizes = {
                entry.name: entry.stat().st_size for entry in entries if not is_ignored(entry.name) and entry.is_file()
            }

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def names(self) -> list[str]:
        """Names of the files."""
        return list(self._sizes)

    def read(self, name: str) -> bytes:
        """The bytes of a file of this folder."""
        if self._sizes[name] > MAXIMUM_BYTES:
            raise ValueError(f"{self._sizes[name]} bytes, more than the limit of {MAXIMUM_BYTES}")
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None

    def digest(self) -> str:
        """Of names and sizes."""
        return _digest(f"{name}\0{size}\n" for name, size in sorted(self._sizes.items()))


class Zip:
    """The members of a zip, by the last part of their names.

    Raises:
        UserError: it is no zip, or was truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = open_zip(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._twice: dict[str, tuple[str, str]] = {}  # members of one name in different folders
        for member in self._archive.infolist():
            if member.is_dir() or is_ignored(member.filename):
                continue
            name = member.filename.rpartition("/")[2]
            if (first := self._members.setdefault(name, member)) is not member:
                self._twice[name] = (first.filename, member.filename)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __len__(self) -> int:
        return len(self._members)

    def read(self, name: str) -> bytes:
        """The bytes of a member, with its CRC-32 checked."""
        member = self._members[name]
        if name in self._twice:
            raise ValueError(f"is twice in the zip: {' and '.join(self._twice[name])}")
        if member.file_size > MAXIMUM_BYTES:
            raise ValueError(f"declares {member.file_size} bytes, more than the limit of {MAXIMUM_BYTES}")
        try:
            with self._archive.open(member) as stream:
                data = stream.read(member.file_size + 1)  # reaches the end, where zipfile compares the CRC
        # zipfile raises the last two for a compression that it does not know and for an encrypted member.
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"cannot be read from the zip: {error}") from None
        if len(data) != member.file_size:
            raise ValueError(f"has other than the {member.file_size} bytes it declares")
        return data

    def digest(self) -> str:
        """Of names, sizes and CRC-32."""
        return _digest(f"{name}\0{m.file_size}\0{m.CRC}\n" for name, m in sorted(self._members.items()))


class Several:
    """Stores one after the other; a name belongs to the first that has it."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.path, self._stores = stores[0].path.parent, list(stores)

    def __contains__(self, name: str) -> bool:
        return any(name in store for store in self._stores)

    def __len__(self) -> int:
        return sum(len(store) for store in self._stores)

    def read(self, name: str) -> bytes:
        """The bytes of a picture of the first store that has it."""
        return next(store for store in self._stores if name in store).read(name)

    def digest(self) -> str:
        """Of the stores' digests."""
        return _digest(store.digest() for store in self._stores)


def open_zip(path: Path) -> zipfile.ZipFile:
    """An opened zip.

    Raises:
        UserError: it is no zip, was truncated, or cannot be read.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        reason = f"is no whole zip ({error}); {path.stat().st_size if path.is_file() else 0} bytes are here"
        fix = "a download that broke off? delete it and fetch it again (`cmapkd data fetch`)"
        raise UserError(key=str(path), reason=reason, fix=fix) from None


def find_store(root: Path, names: Sequence[str], *, key: str) -> Store:
    """The first of ``names`` that is a folder or, with ``.zip``, an archive below ``root``.

    Raises:
        UserError: there is none; the message names all places that were looked at.
    """
    for name in names:
        if (root / name).is_dir():
            return Folder(root / name)
        if (root / f"{name}.zip").is_file():
            return Zip(root / f"{name}.zip")
    expected = " or ".join(f"{name}/ or {name}.zip" for name in names)
    here = sorted(path.name for path in root.iterdir())[:8] if root.is_dir() else None
    reason = f"expected {expected} in it, found {', '.join(here) or 'nothing'}" if here is not None else "is no folder"
    raise UserError(key=key, value=str(root), reason=reason, fix="point `root` at the folder that holds the publisher's files")


def tail_digest(path: Path) -> str:
    """SHA-256 of a large file's name, size and last MiB (where parquet and zip keep their directories)."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**20))
        return hashlib.sha256(f"{path.name}\0{size}\0".encode() + file.read()).hexdigest()


def _digest(parts) -> str:  # type: ignore[no-untyped-def]
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()
