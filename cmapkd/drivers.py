"""Who drives the workflow in a folder: Snakemake locks it, and says of a lock that it finds only that it is there.

A lock is a file in ``.snakemake/locks``; it names no process. Those of this machine are known from `/proc`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

LOCKS = Path(".snakemake/locks")


@dataclass(frozen=True)
class Drivers:
    """What was found of a folder.

    Args:
        locked: a workflow has locked it, or was killed and has left its locks.
        processes: numbers of the Snakemake processes of this machine that work there, this one left out.
    """

    locked: bool
    processes: tuple[int, ...]


def look(folder: Path, proc: Path = Path("/proc")) -> Drivers:
    """Look at a folder; jobs that a workflow started there are no drivers."""
    found = []
    for entry in proc.glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if int(entry.name) == os.getpid() or not _drives(words) or (entry / "cwd").readlink() != folder.resolve():
                continue
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
        found.append(int(entry.name))
    return Drivers(any((folder / LOCKS).glob("*.lock")), tuple(sorted(found)))


def _drives(words: list[str]) -> bool:
    named = any(Path(word).name == "snakemake" for word in words[:3])
    other = "--unlock" in words or "-n" in words or "--dry-run" in words or any(word == "--mode" for word in words)
    return named and not other


def told(found: Drivers) -> str:
    """Who has locked the folder and what to do, for people; empty where nobody has."""
    if not found.locked:
        return ""
    if found.processes:
        numbers = ", ".join(map(str, found.processes))
        return (
            f"snakemake already works in this folder (process {numbers} of this machine): a second one is refused. Let it "
            "finish, or end it with Ctrl-C"
        )
    return (
        "this folder is locked, and no snakemake of this machine works in it: one on another machine does, or one was killed. "
        "If none runs any more, add --unlock to the snakemake command once; its jobs may still run (`squeue --me`)"
    )
