"""One process trains a stage. A requeued job and the ghost of its first life never both write.

The lock is a file that is written under another name and linked to its own, which is atomic on local file systems and on NFS
(without hard links: O_CREAT | O_EXCL); `flock` is not used, since many clusters' file systems leave it out. It names its
holder, whose heart beats by touching it. A lock is taken over when its heart has stopped for long, by the file system's own
clock, or when its process on this machine is gone. Who lost the lock finds another's word in it: the checkpoints it writes
have names of their own until that was looked at.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import read_json, write_json

log = logging.getLogger(__name__)
FILE = "lock.json"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # by file systems without hard links


class LostLock(UserError):  # noqa: N818 - as the errors it is one of are named by what happened
    """Another process has taken over the stage; nothing more may be written."""


class StageLock:
    """The lock of a stage's directory, held within a ``with`` block.

    Args:
        directory: of the stage.
        label: of the stage, for messages.
        wait: seconds to wait for a living holder.
        stale: seconds without a heart beat after which a holder counts as dead.
        beat: seconds between two beats.
        poll: seconds between two looks while waiting.
        stop: asked while waiting; True gives up.
    """

    def __init__(
        self,
        directory: Path,
        label: str,
        wait: float,
        stale: float,
        beat: float | None = None,
        poll: float = 1.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.path, self.label, self.wait, self.stale, self.poll, self.stop = directory / FILE, label, wait, stale, poll, stop
        self.beat = min(20.0, stale / 6) if beat is None else beat
        self.token = secrets.token_hex(8)
        self.lost = self.waited = self.held = False
        self._seen: tuple[tuple[float, object], float] | None = None  # a beat from the future, and when it was first seen
        self._done = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> StageLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + self.wait
        told = False
        while not self._create():
            holder = self.holder()
            if holder is None:
                continue  # given back just now
            dead = self._dead(holder)
            if dead is not None:
                if self._take_over(holder, dead):
                    break
                continue
            if time.monotonic() >= until or self.stop():
                raise UserError(
                    key=self.label,
                    reason=f"is being trained by {describe(holder)}, for which this process waited {self.wait / 60:g} minutes",
                    fix=f"let it finish or end it; if it is gone, its lock falls after {self.stale / 60:g} minutes without a "
                    f"heart beat ({self.path})",
                )
            if not told:
                log.info("%s: waiting for %s, which trains it", self.label, describe(holder))
                told = self.waited = True
            time.sleep(self.poll)
        self.held = True
        self._remove_left()
        self._heart = threading.Thread(target=self._live, name="lock", daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        if self._heart is not None:
            self._heart.join(timeout=5)
        if self.held and self.mine():
            with contextlib.suppress(OSError):  # a disk that has gone read-only keeps it; it falls by itself
                self.path.unlink()

    def holder(self) -> dict[str, Any] | None:
        """Who holds the lock; None if nobody does. A file cut short by a kill names nobody, and ages like any other."""
        try:
            content = read_json(self.path)
        except FileNotFoundError:
            return None
        except ValueError:
            content = {}
        return content if isinstance(content, dict) else {}

    def mine(self) -> bool:
        """Whether this process still holds it."""
        try:
            return (self.holder() or {}).get("token") == self.token
        except OSError:
            return not self.lost  # a network file system that does not answer says nothing about it

    def check(self) -> None:
        """Before anything is written.

        Raises:
            LostLock: another process has taken over.
        """
        if not self.mine():
            self.lost = True
            holder = self.holder()
            raise LostLock(
                key=self.label,
                reason="this process has lost its lock, after it had not run for a while, to "
                + (describe(holder) if holder else "nobody: the lock was removed"),
                fix="nothing: that process goes on from the last checkpoint, and this one has written nothing since",
            )

    def _create(self) -> bool:
        """Make the lock, complete at once: written under another name and linked. On a full disk nothing is left."""
        own = self.path.with_name(f".{FILE}.{self.token}")
        try:
            _write_new(own, json.dumps(self._about()))
            try:
                os.link(own, self.path)
            except FileExistsError:
                return own.stat().st_nlink > 1  # NFS may repeat a request that had succeeded
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._create_in_place()
            return True
        finally:
            own.unlink(missing_ok=True)

    def _remove_left(self) -> None:
        """Remove what processes left that were killed while they made the lock."""
        with contextlib.suppress(OSError):
            for left in self.path.parent.glob(f".{FILE}.*"):
                if self._now() - left.stat().st_mtime > self.stale:
                    left.unlink(missing_ok=True)

    def _create_in_place(self) -> bool:
        """The same on a file system without hard links."""
        try:
            _write_new(self.path, json.dumps(self._about()))
        except FileExistsError:
            return False
        return True

    def _about(self) -> dict[str, Any]:
        return {
            "token": self.token,
            **identity(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }

    def _dead(self, holder: dict[str, Any]) -> str | None:
        """Why the holder counts as dead; None if it lives."""
        if holder and _gone(holder):
            return "whose process is gone"
        try:
            silent = self._now() - self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        if silent < 0:  # stamped in the future: a clock was set back, so this process's own clock counts
            seen = (self.path.stat().st_mtime, holder.get("token"))
            if self._seen is None or self._seen[0] != seen:
                self._seen = (seen, time.monotonic())
            silent = time.monotonic() - self._seen[1]
        return f"whose heart stopped {silent / 60:.1f} minutes ago" if silent > self.stale else None

    def _now(self) -> float:
        """The time on the file system's own clock, which is what the heart beats are stamped with."""
        probe = self.path.with_name(f".{FILE}.{self.token}")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now

    def _take_over(self, holder: dict[str, Any], why: str) -> bool:
        """Put this process's name in place of a dead holder's. Of several that try, one succeeds."""
        guard = self.path.with_name(f"{FILE}.takeover")
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if self._now() - guard.stat().st_mtime > self.stale:  # who made it died over it
                    guard.unlink()
            time.sleep(min(self.poll, 0.1))
            return False
        try:
            if self.holder() != holder or self._dead(holder) is None:
                return False
            write_json(self.path, self._about())
        finally:
            guard.unlink(missing_ok=True)
        log.warning("%s: took over the lock of %s, %s", self.label, describe(holder), why)
        return True

    def _live(self) -> None:
        while not self._done.wait(self.beat):
            if not self.mine():
                self.lost = True
                return
            with contextlib.suppress(OSError):  # a file system that hiccups may come back before the lock is stale
                os.utime(self.path)


def _write_new(path: Path, text: str) -> None:
    """Write a file that must not exist; nothing is left of it where the disk refuses."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def identity() -> dict[str, Any]:
    """This process, so that another on the same machine can tell whether it still lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()), "space": _space()}


def describe(holder: dict[str, Any]) -> str:
    """A holder for people."""
    if not holder:
        return "a process that left no name"
    job = f", SLURM job {holder['slurm_job']}" if holder.get("slurm_job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('began')}{job})"


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the process is surely gone: known only of the same boot and process space, which containers have of their own."""
    if holder.get("host") != socket.gethostname() or holder.get("space") != _space() or _space() is None:
        return False
    pid = holder.get("pid")
    return isinstance(pid, int) and _born(pid) != holder.get("born")  # without a number, it ages like any other


def _born(pid: int) -> str | None:
    """Start time of a process in ticks since boot: a number that was given again to another process does not deceive."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _space() -> str | None:
    """Boot and process namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_bytes().decode().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None
