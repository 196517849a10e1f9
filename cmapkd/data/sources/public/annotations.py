"""Publishers' annotation files: JSON, plain or within the zip it is distributed in, whole or one element at a time.

A file of another data set is told by the keys it lacks, before anything is built from it.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cmapkd.data.sources.public.stores import open_zip
from cmapkd.errors import UserError

MAXIMUM_BYTES = 4 * 2**30  # of one annotation file; Visual Genome's largest has 0.7 GB
MAXIMUM_LOADED = 2**30  # of one that is read at once; VQAv2's largest has 0.4 GB
MAXIMUM_ELEMENT = 64 * 2**20  # characters of one element of a list
CHUNK = 2**20  # characters read at a time
RATIO = 200  # bytes of a zip's member for each compressed one; annotations reach 30
SMALL = 64 * 2**20  # bytes up to which the ratio does not matter


class Annotations:
    """One annotation file below a folder.

    Args:
        root: the data set's folder.
        names: where the file may lie, in this order; ``archive.zip!member`` is a member of a zip, by its name or the end of it.
        key: the configuration key that a message names.

    Raises:
        UserError: none of them is there.
    """

    def __init__(self, root: Path, names: Sequence[str], *, key: str) -> None:
        self.root, self.key = root, key
        for name in names:
            archive, _, member = name.partition("!")
            path = root / archive
            if path.is_file():
                self.path, self.member = path, member
                self.name = f"{path}!{member}" if member else str(path)
                return
        here = sorted(path.name for path in root.iterdir())[:8] if root.is_dir() else None
        found = f"found {', '.join(here) or 'nothing'}" if here is not None else "which is no folder"
        raise UserError(
            key=key,
            value=str(root),
            reason=f"expected {' or '.join(names)} in it, {found}",
            fix="fetch the data set (`cmapkd data fetch`) or point `root` at the folder that holds the publisher's files",
        )

    @contextmanager
    def open(self) -> Iterator[IO[str]]:
        """The text, decoded from UTF-8.

        Raises:
            UserError: it cannot be read, is no UTF-8, or the zip lacks the member.
        """
        try:
            if not self.member:
                with self.path.open(encoding="utf-8-sig") as file:
                    yield file
                return
            with open_zip(self.path) as archive, archive.open(self._member(archive)) as stream:
                yield io.TextIOWrapper(stream, "utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(f"is not UTF-8 ({error.reason} at byte {error.start})") from None
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise self.error(f"cannot be read: {error}") from None

    def load(self, expected: Mapping[str, type], of: str) -> dict[str, Any]:
        """The whole file, an object with the ``expected`` keys and types.

        Args:
            expected: keys that it must have.
            of: which file this should be, for the message.

        Raises:
            UserError: no JSON, or JSON of something else.
        """
        if not self.member and (size := self.path.stat().st_size) > MAXIMUM_LOADED:
            raise self.error(f"has {size} bytes, more than the limit of {MAXIMUM_LOADED}")
        with self.open() as file:
            try:
                content = json.load(file)
            except (ValueError, RecursionError) as error:
                raise self.error(f"is no JSON ({error}): truncated or damaged") from None
        if not isinstance(content, dict):
            raise self.error(f"holds a {_kind(content)}, expected the object of {of} with {', '.join(expected)}")
        for name, kind in expected.items():
            if not isinstance(content.get(name), kind):
                has = ", ".join(list(content)[:6]) or "nothing"
                raise self.error(f"is not {of}: expected a {_KINDS.get(kind, 'value')} `{name}`; the file has {has}")
        return content

    @property
    def fix(self) -> str:
        """What to do about a file that differs from the publisher's."""
        return (
            "compare it with the publisher's file (`cmapkd data fetch --list` says where that is) and correct or replace it; "
            "data of your own fit the source `own` (docs/data/own.md)"
        )

    def elements(self, of: str) -> Iterator[dict[str, Any]]:
        """The objects of a file that is one list, parsed one at a time, so that memory does not grow with the file.

        Raises:
            UserError: no JSON list of objects.
        """
        with self.open() as file:
            yield from _elements(file, lambda reason: self.error(f"{reason}; expected {of}"))

    def error(self, reason: str, where: str = "") -> UserError:
        """What is wrong with this file."""
        value = f"{self.name}: {where}" if where else self.name
        return UserError(key=self.key, value=value, reason=reason, fix=self.fix)

    def records(self, items: Iterable[Any], keys: Mapping[str, type | tuple[type, ...]], what: str) -> Iterator[dict[str, Any]]:
        """``items``, each checked to be an object with ``keys``.

        Raises:
            UserError: names the first item that is not, and its number.
        """
        for number, item in enumerate(items):
            if not isinstance(item, dict):
                raise self.error(f"is a {_kind(item)}, expected an object", f"{what}[{number}]")
            for key, kind in keys.items():
                if not isinstance(item.get(key), kind) or isinstance(item.get(key), bool):
                    has = ", ".join(list(item)[:8])
                    raise self.error(f"has no usable `{key}`; it has {has or 'nothing'}", f"{what}[{number}]")
            yield item

    def _member(self, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
        for member in archive.infolist():
            if member.filename == self.member or member.filename.endswith(f"/{self.member}"):
                if member.file_size > MAXIMUM_BYTES:
                    raise self.error(f"declares {member.file_size} bytes, more than the limit of {MAXIMUM_BYTES}")
                if member.file_size > max(RATIO * member.compress_size, SMALL):
                    raise self.error(
                        f"declares {member.file_size} bytes from {member.compress_size}: no annotations compress that well"
                    )
                return member
        has = ", ".join(archive.namelist()[:6])
        raise self.error(f"the zip has no such member; it has {has or 'nothing'}")


def _elements(file: IO[str], error: Callable[[str], UserError]) -> Iterator[dict[str, Any]]:
    decoder, text, at, opened, ended = json.JSONDecoder(), "", 0, False, False
    while True:
        at = _after_space(text, at)
        if not opened and at < len(text):
            if text[at] != "[":
                raise error("holds no list")
            at, opened = at + 1, True
            continue
        if opened and text[at : at + 1] == "]":
            return
        try:
            item, end = decoder.raw_decode(text, at)
            end = _after_space(text, end)
            if text[end : end + 1] not in (",", "]") or end == len(text):
                raise ValueError
        except (ValueError, RecursionError):
            if ended:
                raise error("is no whole JSON list: truncated or damaged") from None
            # Doubling keeps a long element from being parsed anew for each chunk.
            if len(text) - at > MAXIMUM_ELEMENT:
                raise error(f"has an element of more than {MAXIMUM_ELEMENT} characters") from None
            more = file.read(max(CHUNK, len(text) - at))
            ended, text, at = not more, text[at:] + more, 0
            continue
        if not isinstance(item, dict):
            raise error(f"has a {_kind(item)} in its list")
        yield item
        at = end + (text[end] == ",")


_SPACE = re.compile(r"\s*")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


_KINDS = {dict: "object", list: "list", str: "text", int: "number", float: "number", bool: "truth value", type(None): "null"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def valid(text: str) -> str:
    """``text`` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(text: str) -> str:
    """A caption or question without white space around it, as ``valid`` leaves it."""
    return valid(text).strip()


# Letters and symbols by their category, but drawn as nothing: Hangul fillers and the empty Braille cell.
_UNSEEN = "\u115f\u1160\u2800\u3164\uffa0"


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, control and format characters (U+200B, U+FEFF), marks without a letter."""
    return all(character in _UNSEEN or unicodedata.category(character)[0] in "CZM" for character in text)
