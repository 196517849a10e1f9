"""What went wrong with a stage, attempt by attempt, and when to stop trying.

Each rank that fails says so in a file of its own, for it may fail alone. The next attempt gathers them into
``failures.json``. An attempt that ended without a word (killed, node lost) is known by the mark that it was running.
Three failures of one kind, without a new checkpoint between them, stop the stage with a summary of all three; a start by hand
(attempt 1) and a success forget them.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import read_json, write_json

FILE, RUNNING, STOPPED = "failures.json", "running.json", "stopped.json"
SAME = 3
JOB = "CMAPKD_JOB"  # SLURM's number of the job, as `cmapkd.jobs` passes it on
MEMORY, DISK, FINITE, LOST, KILLED, ERROR = (
    "out of memory",
    "disk",
    "not finite",
    "lost a rank",
    "ended without a word",
    "error",
)
_ORDER = (MEMORY, DISK, FINITE, ERROR, LOST, KILLED)  # of several ranks' reports of one attempt, the first tells the cause
_GONE = ("Connection closed by peer", "Connection reset by peer", "without an answer of rank 0", "without rank ")


class Failures:
    """The failures of a stage; one rank reads and gathers, each writes its own.

    Args:
        directory: of the stage's checkpoints.
        origin: of code and settings; failures of another one are forgotten.
        label: of the stage, for messages.
        attempt: number that the workflow gives this start; 1: by hand, 0: unknown.
    """

    def __init__(self, directory: Path, origin: str, label: str, attempt: int = 0) -> None:
        self.directory, self.origin, self.label, self.attempt = directory, origin, label, attempt
        self.fresh: dict[str, Any] | None = None  # how the attempt before this one failed
        self.steps: int | None = None  # of the whole training

    def known(self) -> list[dict[str, Any]]:
        """Failures so far, oldest first."""
        content = _read(self.directory / FILE)
        found = content.get("failures") if content.get("origin") == self.origin else None
        return [entry for entry in found if _whole(entry)] if isinstance(found, list) else []

    def gather(self) -> list[dict[str, Any]]:
        """Put what the attempt before left behind into the record; all failures that count. On one rank."""
        found = [] if self.attempt == 1 else self.known()
        left = {path: _report(path) for path in sorted(self.directory.glob("failed-*.json"))}
        reports = [report for report in left.values() if report.get("origin") == self.origin]
        running = _report(self.directory / RUNNING, kind=KILLED, reason="")
        if not reports and running.get("origin") == self.origin:
            reports = [{**running, "kind": KILLED, "reason": "killed from outside, or its node was lost"}]
        reports.sort(key=lambda report: _ORDER.index(report["kind"]))
        self.fresh = reports[0] if reports else None
        added = reports[:1] if self.attempt != 1 or (reports and reports[0]["kind"] == MEMORY) else []
        if added or found != self.known():
            write_json(self.directory / FILE, {"origin": self.origin, "failures": [*found, *added]})
        for path in (*left, self.directory / RUNNING, self.directory / STOPPED):
            path.unlink(missing_ok=True)
        return [*found, *added]

    def check(self, found: list[dict[str, Any]]) -> None:
        """Stop after three of one kind.

        Raises:
            UserError: with a summary of all three.
        """
        last = found[-SAME:]
        if len(last) < SAME or len({(failure["kind"], failure["checkpoint"]) for failure in last}) > 1:
            return
        told = "".join(
            f"\n    {number}. after step {entry['checkpoint']}, rank {entry['rank']} on {entry['host']}: {entry['reason']}"
            for number, entry in enumerate(last, 1)
        )
        raise UserError(
            key=self.label,
            reason=f"has failed {SAME} times in the same way ({last[0]['kind']}) without getting on:{told}",
            fix=f"mend the cause, then start it by hand (--attempt 1), or remove {self.directory / FILE}; "
            "the last checkpoint is kept",
        )

    def running(self, checkpoint: int, steps: int | None = None) -> None:
        """Mark that steps are being taken, of ``steps`` in all. On one rank."""
        self.steps = steps
        write_json(self.directory / RUNNING, {**self._about(0, checkpoint), **self._progress()})

    def stopped(self, step: int, reason: str) -> None:
        """Mark that the attempt ended as it should, with a checkpoint. On one rank."""
        (self.directory / RUNNING).unlink(missing_ok=True)
        write_json(self.directory / STOPPED, {"origin": self.origin, "step": step, "reason": reason, **self._progress()})

    def _progress(self) -> dict[str, Any]:
        # For who submits the job again (`cmapkd.slurm.progress`).
        return {"label": self.label, "steps": self.steps, "job": os.environ.get(JOB) or os.environ.get("SLURM_JOB_ID")}

    def report(self, rank: int, kind: str, reason: str, checkpoint: int) -> None:
        """Say that this rank has failed. A disk that cannot be written is told by the message alone."""
        try:
            path = self.directory / f"failed-{rank:05d}.json"
            write_json(path, {**self._about(rank, checkpoint), "kind": kind, "reason": reason})
            if rank == 0:
                (self.directory / RUNNING).unlink(missing_ok=True)
        except OSError:
            pass

    def _about(self, rank: int, checkpoint: int) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "rank": rank,
            "host": socket.gethostname(),
            # SLURM's name of it; in a container, that may know nothing of SLURM, as `cmapkd.jobs` hands it on.
            "node": os.environ.get("SLURMD_NODENAME") or os.environ.get("CMAPKD_NODE"),
            "attempt": self.attempt,
            "checkpoint": checkpoint,
        }


def left_by_memory(directory: Path) -> bool:
    """Whether a rank of the attempt that ended just now ran out of memory."""
    return any(_read(path).get("kind") == MEMORY for path in directory.glob("failed-*.json"))


def left_by_user(directory: Path) -> bool:
    """Whether the attempt that ended just now met something that a user can mend."""
    return any(_read(path).get("reason", "").startswith("UserError") for path in directory.glob("failed-*.json"))


def was_stopped(directory: Path) -> bool:
    """Whether the attempt that ended just now ended as it should, with a checkpoint."""
    return (directory / STOPPED).is_file()


def lost_a_rank(error: BaseException) -> bool:
    """Whether ``error`` is how a rank learns that another one is gone."""
    return any(text in str(error) for text in _GONE)


def _report(path: Path, **default: str) -> dict[str, Any]:
    """What an attempt left behind; nothing where the record is damaged."""
    content = {**default, **_read(path)}
    return content if _whole(content) else {}


def _whole(report: Any) -> bool:
    """Whether a report of a failure has all that is read of it."""
    kinds = {"kind": str, "reason": str, "checkpoint": int, "rank": int, "host": str}
    return (
        isinstance(report, dict)
        and all(isinstance(report.get(key), kind) for key, kind in kinds.items())
        and (report["kind"] in _ORDER)
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
