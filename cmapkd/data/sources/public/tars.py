"""Samples of a webdataset tar: members by their full path up to the first dot of the file name, wherever they are in the tar.

A first pass reads the headers, so that members that are not adjacent are regrouped and a damaged header is found before any
sample is read; a second pass reads one sample at a time. Memory holds the places of the members and one sample, whatever sizes
the headers declare. ``tarfile`` takes a damaged header for the end of the archive: the first pass compares where it stopped.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cmapkd.data.sources.public.ignored import is_ignored
from cmapkd.errors import UserError

BLOCK = tarfile.BLOCKSIZE
MAXIMUM_HEADER = 2**20  # bytes of one header with its extensions (PAX, long names)
MAXIMUM_MEMBERS = 2_000_000  # of one tar; img2dataset writes three for each of 10,000 samples
CHUNK = 2**20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class TarSample:
    """One sample of a tar.

    Attributes:
        path: the members' common path up to the first dot of the file name, e.g. ``a/000``.
        members: the content by extension in lower case (all after the first dot), as far as it was wanted.
        extensions: all extensions, wanted or not.
    """

    path: str
    members: Mapping[str, bytes]
    extensions: tuple[str, ...]


def read_tar(path: Path, limits: Mapping[str, int], error: Callable[[Path, str], UserError]) -> Iterator[TarSample]:
    """Every sample of a tar, in the order of its first member.

    Args:
        path: the tar.
        limits: the extensions that are read, and the most bytes that a member of each may have.
        error: makes the error for a tar and what is wrong with it.

    Raises:
        UserError: truncated, a damaged header, a size that is impossible or above the limit, or a member twice in one sample.
    """

    def refuse(reason: str) -> UserError:
        return error(path, reason)

    try:
        with path.open("rb") as file:
            places = _scan(file, limits, refuse)
            for name, members in places.items():
                read = {extension: _read(file, *members[extension]) for extension in limits if extension in members}
                yield TarSample(name, read, tuple(members))
    # tarfile raises the last of these for headers that tell nonsense, e.g. about sparse members.
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError, IndexError, AttributeError) as problem:
        raise refuse(f"is no whole tar ({problem})") from None


def _scan(
    file: BinaryIO, limits: Mapping[str, int], refuse: Callable[[str], UserError]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Offset and size of every member, by sample and extension."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * BLOCK))
    if file.read() != bytes(2 * BLOCK):
        raise tarfile.ReadError("it lacks the end mark")
    file.seek(0)
    places: dict[str, dict[str, tuple[int, int]]] = {}
    count, last = 0, "none"
    with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
        for member in archive:
            archive.members.clear()  # tarfile remembers every member otherwise
            count += 1
            if member.size < 0 or member.offset_data + member.size > size or archive.offset <= member.offset:
                raise refuse(f"is no whole tar: {member.name} declares {member.size} bytes, the tar has {size}")
            if count > MAXIMUM_MEMBERS:
                raise refuse(f"has more than {MAXIMUM_MEMBERS} members")
            link = member.issym() or member.islnk()
            if not (member.isreg() or link) or is_ignored(member.name):
                continue
            if member.issparse():
                raise refuse(f"holds the sparse member {member.name}: write the tar without `--sparse`")
            name, extension = split_name(member.name)
            if link:  # never followed, and never read as if it were missing
                places.setdefault(name, {})[f"{extension} (a link)"] = (0, 0)
                continue
            if member.size > limits.get(extension, member.size):
                raise refuse(f"{member.name} declares {member.size} bytes, more than the limit of {limits[extension]}")
            members = places.setdefault(name, {})
            if extension in members:
                raise refuse(f"holds {name}.{extension} twice: which of them belongs to the sample cannot be known")
            members[extension] = (member.offset_data, member.size)
            last = member.name
        end = archive.offset
    if not _only_zeros(file, end):
        raise refuse(f"is no whole tar: the header at byte {end} is damaged (after {last}, member {count})")
    return places


class _Headers:
    """A file for tarfile, which reads headers through it and nothing else: no declared size becomes memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.name = file.seek, file.tell, file.name

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAXIMUM_HEADER:
            raise tarfile.ReadError(f"a header declares {size} bytes")
        return self._file.read(size)


def split_name(name: str) -> tuple[str, str]:
    """The sample and the extension that a member's name gives: webdataset's key ends at the first dot of the file name."""
    path = PurePosixPath(name)  # takes `./` away, as `tar cf x.tar .` writes it
    head, _, extension = path.name.partition(".")
    parent = "" if str(path.parent) == "." else f"{path.parent}/"
    return f"{parent}{head}", extension.lower()


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise tarfile.ReadError(f"a member has {len(data)} of {size} bytes")
    return data


def _only_zeros(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    return all(not any(chunk) for chunk in iter(lambda: file.read(CHUNK), b""))
