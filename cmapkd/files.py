"""Files that are never half-written, and their digests."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmapkd.errors import DamagedFileError

LARGEST = 200_000_000  # [bytes] of a JSON file that is read at once


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; on a clean exit it is fsynced and renamed over ``path``, otherwise removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _fsync_directory(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write that fails does not name its file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the whole new one, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, content: Any) -> None:
    """Write readable, key-stable JSON atomically. NaN is refused: it is not JSON, and no result may be one unnoticed."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, kind: type | None = None, /, *, fix: str = "", **keys: type) -> Any:
    """Parse a JSON file as `parse_json` does.

    Args:
        path: of the file.
        kind: type that the content must have (`dict` or `list`); None: any.
        fix: what a user can do about a damaged file; by default, to make or fetch it again.
        keys: keys that an object must have, with the types of their values.

    Raises:
        DamagedFileError: the content is not such JSON.
        OSError: the file cannot be read.
    """
    about = Path(path).stat()
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):  # a pipe would never end
        raise DamagedFileError(key=str(path), reason="is damaged: not a regular file", fix=fix or _AGAIN)
    if about.st_size > LARGEST:
        reason = f"is damaged: {about.st_size / 1e6:,.0f} MB, more than any file of this kind has"
        raise DamagedFileError(key=str(path), reason=reason, fix=fix or _AGAIN)
    return parse_json(Path(path).read_bytes(), str(path), kind, fix=fix, **keys)


def parse_json(raw: str | bytes, origin: str, kind: type | None = None, /, *, fix: str = "", **keys: type) -> Any:
    """Parse JSON strictly: UTF-8, each key once, finite numbers (RFC 8259 and RFC 7493), no lone surrogates.

    Args:
        raw: the text.
        origin: what messages call it.
        kind: as in `read_json`.
        fix: as in `read_json`.
        keys: as in `read_json`.

    Raises:
        DamagedFileError: the text is something else.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite)
        # An escape such as \\ud800 is not a character: no file and no page could hold it.
        json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        reason = f"is damaged: not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})"
    except UnicodeDecodeError as error:
        reason = f"is damaged: not UTF-8 text (byte {error.start + 1:,})"
    except UnicodeEncodeError:
        reason = "is damaged: not valid JSON (an escape \\ud800 to \\udfff that is not a character)"
    except RecursionError:
        reason = "is damaged: not valid JSON of ours (nested too deep)"
    except ValueError as error:
        reason = f"is damaged: not valid JSON ({error})"
    else:
        if (flaw := _flaw(content, dict if keys else kind, keys)) is None:
            return content
        reason = f"is damaged: {flaw}"
    raise DamagedFileError(key=origin, reason=reason, fix=fix or _AGAIN)


def checked(content: Any, origin: str, kind: type | None = None, /, *, fix: str = "", **keys: type) -> Any:
    """A part of a JSON file, checked as by `read_json`.

    Raises:
        DamagedFileError: the part is of another type, or lacks a key.
    """
    if flaw := _flaw(content, dict if keys else kind, keys):
        raise DamagedFileError(key=origin, reason=f"is damaged: {flaw}", fix=fix or _AGAIN)
    return content


_AGAIN = "delete it and run the command again that makes it, or get it again from where it came"
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number", bool: "true or false"}


def _flaw(content: Any, kind: type | None, keys: Mapping[str, type]) -> str | None:
    """What is wrong with the types of a content."""
    if kind is not None and not isinstance(content, kind):
        found = _WORDS.get(type(content), "null")
        return f"{_WORDS.get(kind, kind.__name__)} is expected, and it is {found}"
    for key, wanted in keys.items():
        if key not in content:
            return f"the key {key!r} is missing"
        allowed = (int, float) if wanted is float else wanted
        if not isinstance(content[key], allowed) or (isinstance(content[key], bool) and wanted is not bool):
            return f"{key!r} is not {_WORDS.get(wanted, wanted.__name__)}"
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:index]))
        raise ValueError(f"the key {twice!r} is given twice")
    return content


def _not_finite(word: str) -> float:
    raise ValueError(f"the number {word} is not finite")


def _finite(word: str) -> float:
    value = float(word)
    return value if math.isfinite(value) else _not_finite(word if len(word) < 30 else f"{word[:30]}...")


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any, length: int = 64) -> str:
    """Hex SHA-256 of JSON-able content in canonical form (sorted keys, no white space), cut to ``length`` characters."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def slug(name: str) -> str:
    """A run's name as a directory name in ASCII: accents are dropped, Greek letters spelled, other characters become ``-``."""
    letters = [_spelled(character) for character in unicodedata.normalize("NFKD", name) if not unicodedata.combining(character)]
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9_.-]", "-", "".join(letters))).strip("-.") or "run"


def _spelled(character: str) -> str:
    """A Greek letter by its name, a Latin one without its stroke; any other character itself."""
    name = unicodedata.name(character, "").replace("LAMDA", "LAMBDA")  # as Unicode spells it
    found = re.fullmatch(r"(GREEK|LATIN) (?:SMALL|CAPITAL) LETTER (?:FINAL )?([A-Z]+)(?: WITH .*)?", name)
    if not found or character.isascii() or (found[1] == "LATIN" and len(found[2]) > 2):
        return character
    letters = found[2].lower() if character.islower() else found[2].title()
    return f"-{letters}-" if found[1] == "GREEK" else letters
