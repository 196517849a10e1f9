"""Checkpoints of a running stage, and the newest complete one to resume from.

A checkpoint is a directory with one file of each rank (`state.py`: what it holds does not depend on ranks, ZeRO stage or
micro-batch) and ``checkpoint.json``, which has a checksum of its own content. It is written under a temporary name, every file
flushed to the disk, and renamed after all ranks have finished; what has its final name is complete. The last two are kept.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cmapkd.files import digest, read_json, sha256_of, write_json
from cmapkd.provenance import machine
from cmapkd.training import distributed, state
from cmapkd.training.engine import Engine
from cmapkd.training.stages import derive_seed
from cmapkd.training.storage import flush_directory, flush_file, writing

log = logging.getLogger(__name__)
_KEEP = 2
_FILE = "rank-{:05d}.safetensors"
_RECORD = "checkpoint.json"
_KEYS = {"step", "origin", "ranks", "zero", "accumulation", "machine", "files", "numbers"}


def save(
    engine: Engine, directory: Path, step: int, origin: str, guard: Callable[[], None] | None = None, owner: str = ""
) -> float:
    """Write the checkpoint of ``step`` finished steps; returns the seconds it took.

    Args:
        origin: digest of code and settings; a checkpoint of another origin is not resumed from.
        guard: called on rank 0 before anything gets its final name; raises if this process may not write any more.
        owner: a word that no other process has, so that two never write under one temporary name.

    Raises:
        UserError: a disk that is full or read-only, or a rank that did not come. The checkpoints before are whole.
    """
    began = time.monotonic()
    final = directory / f"step-{step:08d}"
    # Rank 0 holds the lock, so its word makes the name of all.
    partial = directory / distributed.share(f".partial-{owner}{final.name}")[0]
    kept = _kept(directory)

    def begin() -> None:
        if distributed.rank() == 0:
            with writing(partial, kept):
                if guard is not None:
                    guard()
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)

    def own() -> tuple[str, str]:
        path = partial / _FILE.format(distributed.rank())
        with writing(path, kept, state.size(engine)):
            state.write(engine, path)
            flush_file(path)
        return path.name, sha256_of(path)

    def end() -> None:
        if distributed.rank() == 0:
            with writing(final, kept):
                write_json(partial / _RECORD, {**about, "checksum": digest(about)})
                flush_directory(partial)
                if guard is not None:
                    guard()
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                flush_directory(directory)
            _remove_old(directory, final)

    distributed.barrier("a checkpoint", engine.barrier_minutes)
    try:
        distributed.together(begin, "making a checkpoint")
        files = dict(distributed.together(own, "writing a checkpoint"))
        about = {
            "step": step,
            "origin": origin,
            **cut_of(engine),
            "machine": machine(),
            "files": files,
            "numbers": state.counters(engine),
        }
        distributed.together(end, "completing a checkpoint")
    except BaseException:
        if distributed.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return time.monotonic() - began


def cut_of(engine: Engine) -> dict[str, int]:
    """How the global batch is cut."""
    return {"ranks": distributed.world_size(), "zero": engine.zero_stage, "accumulation": engine.accumulation}


def _remove_old(directory: Path, newest: Path) -> None:
    # What is ahead was refused by `resume` (other code, damaged): left there, it would push out the new ones.
    ahead = [path for path in complete(directory) if path.name > newest.name]
    old = [path for path in complete(directory) if path not in ahead][:-_KEEP]
    for path in (*ahead, *old, *(left for left in directory.glob(".partial-*"))):
        shutil.rmtree(path, ignore_errors=True)


def _kept(directory: Path) -> str:
    found = complete(directory)
    return f"the checkpoint {found[-1].name} is whole" if found else "there is no checkpoint yet"


def complete(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / _RECORD).is_file())


def resume(engine: Engine, directory: Path, origin: str, seed: int = 0) -> int:
    """Load the newest whole checkpoint of this origin and return its number of finished steps; 0 without one.

    Args:
        seed: of the random state, for a checkpoint of another number of ranks: its ranks' states are not those of these.
    """
    # One rank chooses: with a file system that is slow to show files, ranks could come to different ends.
    chosen = [_choose(directory, origin) if distributed.rank() == 0 else None]
    dist.broadcast_object_list(chosen, src=0)
    path = chosen[0]
    if path is None:
        return 0
    about = read_json(path / _RECORD)
    step, ranks = int(about["step"]), int(about["ranks"])
    same = ranks == distributed.world_size()
    state.read(engine, [path / _FILE.format(number) for number in range(ranks)], about["numbers"], same)
    if not same:
        torch.manual_seed(derive_seed(seed, "resumed", step, distributed.rank()))
    if distributed.rank() == 0:
        _tell(path, about, engine)
    return step


def _tell(path: Path, about: dict[str, Any], engine: Engine) -> None:
    """Say so where a training goes on in another way than it began."""
    now = cut_of(engine)
    words = {"ranks": "ranks", "zero": "ZeRO stage", "accumulation": "micro-batches a step"}
    changed = [f"{words[key]} {about[key]} -> {value}" for key, value in now.items() if about[key] != value]
    if changed:
        more = "; random draws start anew, and" if about["ranks"] != now["ranks"] else ":"
        log.warning(
            "%s was written for another cut of the batch (%s)%s the result is the same to rounding only",
            path, ", ".join(changed), more,
        )  # fmt: skip
    here = machine()
    other = [f"{key} {about['machine'].get(key)} -> {here[key]}" for key in here if about["machine"].get(key) != here[key]]
    if other:
        log.warning("%s was written elsewhere (%s): the result is the same to rounding only", path, ", ".join(other))


def _choose(directory: Path, origin: str) -> Path | None:
    """The newest checkpoint that is of this origin and undamaged. A load that fails half-way would leave its weights behind."""
    for path in reversed(complete(directory)):
        about = _record(path)
        if about is None:
            log.warning("%s is damaged (%s): trying the one before", path, _RECORD)
        elif about["origin"] != origin:
            log.warning("%s comes from other code, settings, data or weights: not resumed from", path)
        elif damaged := _damaged(path, about["files"]):
            log.warning("%s is damaged (%s): trying the one before", path, damaged)
        else:
            return path
    return None


def _record(checkpoint: Path) -> dict[str, Any] | None:
    """Content of ``checkpoint.json``; None if it is not what was written for this directory."""
    try:
        about = read_json(checkpoint / _RECORD)
        checksum = about.pop("checksum")
        sound = about.keys() == _KEYS and digest(about) == checksum and checkpoint.name == f"step-{about['step']:08d}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return about if sound else None


def _damaged(checkpoint: Path, files: dict[str, str]) -> str | None:
    """Name of the first file that is missing or not the one that was written; None if all are whole."""
    whole = ((checkpoint / name).is_file() and sha256_of(checkpoint / name) == digest for name, digest in files.items())
    return next((name for name, good in zip(files, whole, strict=True) if not good), None)


def drop_from(directory: Path, step: int) -> None:
    """Remove the checkpoints of ``step`` or more finished steps."""
    if distributed.rank() == 0:
        for path in complete(directory):
            if path.name >= f"step-{step:08d}":
                shutil.rmtree(path)
    distributed.barrier("going back to an earlier checkpoint")


def clear(directory: Path) -> None:
    """Remove a stage's checkpoints once it is finished."""
    if distributed.rank() == 0:
        shutil.rmtree(directory, ignore_errors=True)
