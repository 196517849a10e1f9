"""Downloads of publishers' files: resumed after a break, verified, never half there under their own name.

A download goes to ``<name>.part`` and goes on from there (HTTP Range, RFC 9110 section 14) when it is started again; the
server's ETag is kept beside it, so that the halves of two versions are never joined (If-Range). The file gets its name when
size and digest are right. What a file's name, size and digest are stands in the source's own module.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cmapkd.data.sources.fetched import FetchedFile
from cmapkd.errors import UserError
from cmapkd.files import digest, read_json, write_json

log = logging.getLogger(__name__)

CHUNK = 2**20  # bytes read at a time
TIMEOUT = 60  # seconds without a byte
LEAST_RATE = 1_000  # [bytes/s] over `WINDOW` seconds; below it, the connection is given up and made again
WINDOW = 120  # [s]
LARGEST = 500e9  # [bytes] of a file of unknown size; the largest known one has 168 GB
LONGEST = 7 * 86_400  # [s] of all attempts at one file
ATTEMPTS = 5  # without progress between them
PAUSE = 1.0  # seconds before the second attempt; doubled for each further one


@dataclass(frozen=True)
class PublicFile:
    """One file of a publisher.

    Attributes:
        name: path below the data set's folder.
        url: where it is fetched from; None: the terms or the publisher forbid that, ``how`` says what to do.
        size: bytes, where known.
        hashes: hex digests by algorithm (``sha256``, ``md5``), where somebody has published them.
        instead: what makes it unnecessary, such as the folder that an archive was unpacked to.
        how: how to get it by hand.
    """

    name: str
    url: str | None = None
    size: int | None = None
    hashes: tuple[tuple[str, str], ...] = ()
    instead: tuple[str, ...] = ()
    how: str = ""

    def present(self, root: Path) -> Path | None:
        """The file, or what stands in for it; None when there is neither. ``instead`` may hold patterns (``*.tar``)."""
        for name in (self.name, *self.instead):
            if "*" in name:
                if next(iter(root.glob(name)), None) is not None:
                    return (root / name).parent
            elif (root / name).exists():
                return root / name
        return None


def fetch_files(files: Sequence[PublicFile], root: Path, *, source: str) -> list[FetchedFile]:
    """Bring all ``files`` to ``root`` and verify them; what is there is only verified.

    Raises:
        UserError: a file has to be got by hand, cannot be fetched, or is not the publisher's.
    """
    by_hand = [file for file in files if file.present(root) is None and file.url is None]
    if by_hand:
        ways = "\n  ".join(f"{file.name}: {file.how}" for file in by_hand)
        raise UserError(
            key=f"data fetch ({source})",
            value=str(root),
            reason=f"{', '.join(file.name for file in by_hand)} cannot be fetched automatically",
            fix=f"put into {root} (key `root`):\n  {ways}",
        )
    return [_fetch_one(file, root, source) for file in files]


def describe(files: Sequence[PublicFile], root: Path) -> list[tuple[str, str, str, str]]:
    """Rows for people: name, size, whether it is there, and where it comes from."""
    rows = []
    for file in files:
        size = f"{file.size / 1e9:.2f} GB" if file.size else "unknown size"
        rows.append((file.name, size, "here" if file.present(root) else "missing", file.url or f"by hand: {file.how}"))
    return rows


def _fetch_one(file: PublicFile, root: Path, source: str) -> FetchedFile:
    path, fetched = file.present(root), False
    if path is None:
        assert file.url is not None
        path, fetched = root / file.name, True
        download(file, path)
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        return FetchedFile(file.name, f"{len(names)} files", path, digest(names), False)
    return FetchedFile(file.name, source, path, _verified(file, path), fetched)


def download(file: PublicFile, path: Path) -> None:
    """Fetch ``file`` to ``path``, going on from ``<path>.part``.

    Raises:
        UserError: no such file there, no network, no room, or not the publisher's bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    _check_room(file, part)
    failures, pause, until = 0, PAUSE, time.monotonic() + LONGEST
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _receive(file, part, until)
            break
        except ValueError as error:  # an address that is none, or a redirect to one
            raise UserError(key=file.name, value=file.url, reason=f"is not an address: {error}", fix="mend `url`") from None
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                fix = f"open {file.url} in a browser; if it has moved, put the file at {path} by hand"
                raise UserError(
                    key=file.name, value=file.url, reason=f"the server answered {error.code} {error.reason}", fix=fix
                ) from None
            reason, slow = f"{error.code} {error.reason}", False
        except (OSError, HTTPException, _IncompleteError) as error:  # URLError and timeouts are OSErrors
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            slow = isinstance(error, _SlowError)
        after = part.stat().st_size if part.is_file() else 0
        failures = 0 if after > before and not slow else failures + 1
        if failures >= ATTEMPTS or time.monotonic() > until:
            raise UserError(
                key=file.name,
                value=file.url,
                reason=f"could not be fetched: {reason}; {after} bytes are in {part.name}",
                fix=f"check the network and run again, it goes on from there; or put the file at {path} by hand",
            )
        log.warning("%s: %s; goes on after %d bytes", file.name, reason, after)
        time.sleep(pause if failures else 0)
        pause = min(60.0, 2 * pause) if failures else PAUSE
    found = _hashes(part, file)
    if flaw := _flaw(file, part, found):
        part.unlink()
        _tag(part).unlink(missing_ok=True)
        fix = f"run again; if it happens again, the publisher has changed the file: check {file.url}"
        raise UserError(key=file.name, value=file.url, reason=f"is not the expected file: {flaw}", fix=fix)
    part.replace(path)
    _tag(part).unlink(missing_ok=True)
    _note(path, found["sha256"])


class _IncompleteError(Exception):
    """The connection ended before the file did."""


class _SlowError(_IncompleteError):
    """Bytes come, and too few of them."""


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Connections that are cut where the header of an answer takes longer than `WINDOW` seconds, byte by byte."""

    def do_open(self, http_class, req, **arguments):  # type: ignore[no-untyped-def]
        made: list[socket.socket] = []

        class Noted(http_class):
            def connect(self) -> None:
                super().connect()
                made.append(self.sock)

        late = threading.Event()

        def cut() -> None:
            late.set()
            for one in made:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(WINDOW, cut)
        timer.daemon = True
        timer.start()
        try:
            return super().do_open(Noted, req, **arguments)
        except (OSError, HTTPException) as error:
            if late.is_set():
                raise urllib.error.URLError(f"no answer came within {WINDOW} s") from error
            raise
        finally:
            timer.cancel()


class _SameKind(urllib.request.HTTPRedirectHandler):
    """Redirects within http and https, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new != "https" and (old, new) != ("http", "http"):
            fix = f"the publisher may have moved it: open {req.full_url} in a browser, and put the file there by hand"
            raise UserError(key=newurl, reason=f"a redirect from {old} to {new or 'nothing'} is not followed", fix=fix)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Watch:
    """Whether bytes come fast enough, over the last `WINDOW` seconds."""

    def __init__(self, until: float) -> None:
        self.until, self.began, self.bytes = until, time.monotonic(), 0

    def took(self, count: int) -> None:
        """Count bytes.

        Raises:
            _IncompleteError: too few have come, or it took too long in all.
        """
        now = time.monotonic()
        self.bytes += count
        if now > self.until:
            raise _IncompleteError(f"it took longer than {LONGEST / 3600:g} hours")
        if now - self.began >= WINDOW:
            if self.bytes < LEAST_RATE * (now - self.began):
                raise _SlowError(f"fewer than {LEAST_RATE} bytes a second have come for {WINDOW} s")
            self.began, self.bytes = now, 0


def _receive(file: PublicFile, part: Path, until: float) -> None:
    """One request: from where ``part`` ends, or from the start where the server knows no ranges or has another version."""
    assert file.url is not None
    if not file.url.startswith(("https://", "http://")):
        raise UserError(key=file.name, value=file.url, reason="only http and https are fetched")
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "cmapkd", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag := _tag(part).read_text(encoding="utf-8") if _tag(part).is_file() else "":
            headers["If-Range"] = tag
    try:
        opener = urllib.request.build_opener(_SameKind, _Connections)
        answer = opener.open(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT)  # noqa: S310 - checked
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after what is here: it is whole, or not a part of this file
            total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if total == str(have):
                return
            part.unlink()
            raise _IncompleteError("the part here is longer than the file; starts anew") from None
        raise
    with answer:
        resumed = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        if answer.status == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise _IncompleteError("the server sent another range than asked for; starts anew")
        length = answer.headers.get("Content-Length")
        expected = (have if resumed else 0) + int(length) if length and length.isdigit() else None
        chunked = "chunked" in (answer.headers.get("Transfer-Encoding") or "").lower()
        if expected is None and file.size is None and not file.hashes and not chunked:
            reason = "the server does not say how long it is, and neither size nor digest are known"
            raise UserError(key=file.name, value=file.url, reason=reason, fix="get it by hand, and check it")
        if tag := answer.headers.get("ETag") or "":
            _tag(part).write_text(tag if not tag.startswith("W/") else "")
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(
                desc=Path(file.name).name,
                unit="B",
                unit_scale=True,
                total=expected or file.size,
                initial=have if resumed else 0,
                disable=None,
            ) as bar,
        ):
            watch = _Watch(until)
            while block := answer.read1(CHUNK):  # what has come, so that a slow server is noticed
                out.write(block)
                bar.update(len(block))
                watch.took(len(block))
                if file.size is None and out.tell() > LARGEST:
                    reason = f"goes on after {LARGEST / 1e9:,.0f} GB, and its size is not known"
                    raise UserError(key=file.name, value=file.url, reason=reason, fix="get it by hand, and check it")
                if file.size is not None and out.tell() > file.size:
                    break  # not the expected file, found out by its size
    size = part.stat().st_size
    if expected is not None and size < expected:
        raise _IncompleteError(f"the connection broke off after {size} of {expected} bytes")


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _check_room(file: PublicFile, part: Path) -> None:
    if file.size is None:
        return
    wanted = file.size - (part.stat().st_size if part.is_file() else 0)
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        reason = f"needs {wanted} bytes, {free} are free at {part.parent}"
        raise UserError(key=file.name, reason=reason, fix="free some, or set `root` to a folder on a larger disk")


def _hashes(path: Path, file: PublicFile) -> dict[str, str]:
    """SHA-256 and whatever else the file is known by, in one reading."""
    hashers: dict[str, Any] = {name: hashlib.new(name) for name in {"sha256", *(name for name, _ in file.hashes)}}
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            for hasher in hashers.values():
                hasher.update(block)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def _flaw(file: PublicFile, path: Path, found: dict[str, str]) -> str | None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size} bytes instead of {file.size}"
    for name, expected in file.hashes:
        if found[name] != expected:
            return f"its {name} is {found[name]} instead of {expected}"
    return None


def _verified(file: PublicFile, path: Path) -> str:
    """SHA-256 of a file that is here, which is read once: a note beside it holds for as long as size and time stay.

    Raises:
        UserError: it is not the publisher's.
    """
    about, note = path.stat(), path.with_name(f".{path.name}.verified.json")
    try:
        known = read_json(note, dict)
        if (known["size"], known["time"]) == (about.st_size, about.st_mtime_ns):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    own = file if path.name == Path(file.name).name else PublicFile(file.name)  # what stands in has other bytes
    found = _hashes(path, own)
    if flaw := _flaw(own, path, found):
        fix = f"delete it and run `cmapkd data fetch`, or get it again from {file.url or 'its publisher'}"
        raise UserError(key=str(path), reason=f"is not the publisher's file: {flaw}", fix=fix)
    _note(path, found["sha256"])
    return found["sha256"]


def _note(path: Path, sha256: str) -> None:
    about = path.stat()
    try:
        content = {"sha256": sha256, "size": about.st_size, "time": about.st_mtime_ns}
        write_json(path.with_name(f".{path.name}.verified.json"), content)
    except OSError:  # a folder that may only be read: it is verified each time
        log.debug("%s cannot be noted as verified", path)
