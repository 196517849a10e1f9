"""What a running workflow waits for, in a small file for `cmapkd status`: its jobs in SLURM, and jobs that SLURM refuses."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cmapkd.files import read_json, write_json

FILE = Path(".snakemake/cmapkd-slurm.json")
_OLD = 1800.0  # seconds after which the file of a process on another machine no longer counts; it is written every 5 minutes


@dataclass(frozen=True)
class Waiting:
    """What one workflow waits for.

    Args:
        jobs: SLURM's number of each job -> what it does.
        unsubmitted: jobs that are not accepted yet.
        refusal: SLURM's words at the last refusal; empty: none of them was refused.
        silent: seconds for which SLURM has not answered.
        words: of the last failed question.
    """

    jobs: dict[str, str] = field(default_factory=dict)
    unsubmitted: tuple[str, ...] = ()
    refusal: str = ""
    silent: float = 0.0
    words: str = ""


def write(waiting: Waiting, folder: Path = Path()) -> None:
    """Replace the file. A disk that cannot be written is not this file's business."""
    about = {"process": os.getpid(), "host": socket.gethostname(), "written": time.time()}
    with contextlib.suppress(OSError):
        write_json(folder / FILE, {**asdict(waiting), **about})


def remove(folder: Path = Path()) -> None:
    """Remove the file at the end of a workflow."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)


def read(folder: Path = Path(), proc: Path = Path("/proc")) -> Waiting | None:
    """The file of a workflow that still runs; None without one."""
    try:
        content: dict[str, Any] = read_json(folder / FILE)
        here = content["host"] == socket.gethostname() and proc.is_dir()
        alive = (proc / str(content["process"])).is_dir() if here else time.time() - float(content["written"]) < _OLD
        if not alive:
            return None
        jobs = {str(number): str(what) for number, what in content["jobs"].items()}
        unsubmitted = tuple(map(str, content["unsubmitted"]))
        return Waiting(jobs, unsubmitted, str(content["refusal"]), float(content["silent"]), str(content["words"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def told(waiting: Waiting | None, known: set[str] | None) -> list[str]:
    """Lines for people.

    Args:
        known: numbers of the user's jobs that SLURM shows, ended ones included; None: it does not answer.
    """
    if waiting is None:
        return []
    lines = []
    missing = [number for number in waiting.jobs if known is not None and number not in known]
    if known is None and (waiting.jobs or waiting.unsubmitted):
        why = f" ({waiting.words})" if waiting.words else ""
        lines.append(f"SLURM does not answer{why}: the workflow waits and asks again")
    elif missing and len(missing) == len(waiting.jobs):
        lines.append(
            f"SLURM knows none of the {len(missing)} jobs that the workflow waits for: {_some(missing)}. The workflow asks "
            "again, and then judges them by their files"
        )
    elif missing:
        lines.append(f"SLURM no longer knows {len(missing)} of {len(waiting.jobs)} jobs that are waited for: {_some(missing)}")
    if waiting.unsubmitted and waiting.refusal:
        noun = "job" if len(waiting.unsubmitted) == 1 else "jobs"
        lines.append(f"the workflow waits to submit {len(waiting.unsubmitted)} {noun}: {waiting.refusal}")
    return lines


def _some(numbers: list[str], most: int = 8) -> str:
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(numbers[:most]) + more
