"""What a file given as weights is, by its first bytes and its length: text, cut off, another format, or a form that is read.

A name ending in ``.pt`` proves nothing: a clone without git-lfs leaves a text of three lines in its place, a download behind a
login leaves a web page, and an interrupted one leaves the beginning. Each has another fix. Torch-free.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, Literal

from cmapkd.errors import UserError

Form = Literal["safetensors", "torchscript", "zip", "pickle", "numpy"]

_HEAD = 4096  # [bytes] that are looked at
_FETCH = "fetch it again; the file is incomplete"
_OTHERS = {  # first bytes -> format
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x7fELF": "a program",
}


def form_of(path: Path, key: str) -> Form:
    """How the weights in a file are to be read.

    Raises:
        UserError: an empty or incomplete file, text, or a format that holds no weights of torch; each with its own fix.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise _error(path, key, f"cannot be read: {error.strerror}", "name a file that this user may read") from None
    if not size:
        raise _error(path, key, "is empty (0 bytes)", "fetch it again")
    if (text := _as_text(head)) is not None:
        raise text_error(path, key, text)
    length = int.from_bytes(head[:8], "little")
    if size > 8 and head[8:9] == b"{" and length < 10**8:  # the limit of safetensors itself
        _check_safetensors(path, key, size, length)
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _form_of_zip(path, key)
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    for start, name in _OTHERS.items():
        if head.startswith(start):
            unpack = "unpack it and name the checkpoint" if "archive" in name else "name a checkpoint of torch or safetensors"
            raise _error(path, key, f"is {name}, not a checkpoint", unpack)
    if head[257:262] == b"ustar":
        raise _error(path, key, "is a tar archive, not a checkpoint", "unpack it and name the checkpoint")
    if not head.strip(b"\0"):
        raise _error(path, key, "begins with zeros only: its space was reserved, but nothing was written", "fetch it again")
    if path.suffix == ".safetensors":
        raise _error(path, key, "is not a safetensors file, although its name says so", "fetch it again")
    return "pickle"


def read_description(path: Path, key: str) -> dict[str, Any]:
    """The JSON object of a model's ``config.json`` or of a kin of it.

    Raises:
        UserError: it cannot be read, or is other text (a git-lfs pointer, a web page).
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        if isinstance(content, dict):
            return content
    except OSError as error:
        raise _error(path, key, f"cannot be read: {error.strerror}", "name a directory that this user may read") from None
    except (ValueError, RecursionError):
        if (text := _as_text(raw[:_HEAD])) is not None and not text.lstrip().startswith("{"):
            raise text_error(path, key, text) from None
    raise _error(path, key, "is not a JSON object", "fetch it again") from None


def text_error(path: Path, key: str, text: str) -> UserError:
    """What a text in place of weights is: a pointer of git-lfs, a web page, a server's error, or just text."""
    start = text.lstrip("\ufeff \t\r\n")
    lower = start[:200].lower()
    line = " ".join(start.split())[:80]
    if lower.startswith("version https://git-lfs"):
        size = next((row.split()[1] for row in start.splitlines() if row.startswith("size ") and row.split()[1:]), "?")
        reason = f"is a pointer of git-lfs, not the weights themselves (which have {size} bytes)"
        return _error(path, key, reason, f"run `git lfs install && git lfs pull` in {path.parent}, or download the file itself")
    if lower.startswith(("<!doctype", "<html", "<head", "<body", "<script")):
        reason = f"is a web page, not weights: {line!r}"
        return _error(path, key, reason, "download the file itself; the server may ask for a login or the acceptance of terms")
    if lower.startswith("<"):
        return _error(path, key, f"is XML, not weights: {line!r}", "download it again; this is often an error of the server")
    if lower.startswith(("{", "[")):
        return _error(path, key, f"is JSON, not weights: {line!r}", "download it again; this is often an error of the server")
    return _error(path, key, f"is text, not weights: {line!r}", "name the checkpoint, or download it again")


def _as_text(head: bytes) -> str | None:
    """The first bytes of a file as text, if they are nothing else; None for a binary file."""
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if head.startswith(mark):
            text = head[: len(head) // 2 * 2].decode(encoding, "replace")
            return text if "\ufffd" not in text else None
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < _HEAD:  # else a character is cut by the end of what was read
            return None
        text = head[: error.start].decode("utf-8")
    return text if all(character.isprintable() or character in "\t\r\n\f\ufeff\u00a0" for character in text) else None


def _check_safetensors(path: Path, key: str, size: int, length: int) -> None:
    """Compare a file's length with what its header announces."""
    if size < 8 + length:
        raise _error(path, key, f"is cut off within its header: {size:,} bytes of more than {8 + length:,}", _FETCH)
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            tensors = [value["data_offsets"] for name, value in header.items() if name != "__metadata__"]
            expected = 8 + length + max((int(end) for _, end in tensors), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _error(path, key, "has a damaged header of safetensors", "fetch it again") from None
    if size < expected:
        raise _error(path, key, f"is cut off: {size:,} of {expected:,} bytes", _FETCH)
    if size > expected:
        raise _error(path, key, f"has {size - expected:,} bytes more than its header announces", "fetch it again")


def _form_of_zip(path: Path, key: str) -> Form:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        size = path.stat().st_size
        raise _error(path, key, f"is cut off: a zip archive of {size:,} bytes without its end", _FETCH) from None
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        return "torchscript"
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "zip"
    if names and all(name.endswith(".npy") for name in names):
        return "numpy"
    some = ", ".join(name.rstrip("/").rpartition("/")[2] for name in names[:3]) or "nothing"
    raise _error(path, key, f"is a zip archive, but not a checkpoint: it holds {some}", "unpack it and name the checkpoint")


def _error(path: Path, key: str, reason: str, fix: str) -> UserError:
    return UserError(key=key, value=str(path), reason=reason, fix=fix)
