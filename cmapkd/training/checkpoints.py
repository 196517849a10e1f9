"""Checkpoints of a running stage, and the newest complete one to resume from.

DeepSpeed saves no random state, writes `latest` before its closing barrier, and may be killed in the middle. So a
checkpoint is written under a temporary name, each rank's own state (random generators, bad samples) beside it, and
renamed after a barrier; what has its final name is complete. The last two are kept.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cmapkd.files import read_json, sha256_of, write_json
from cmapkd.training import distributed
from cmapkd.training.engine import Engine

log = logging.getLogger(__name__)
_KEEP = 2


def save(engine: Engine, directory: Path, step: int, origin: str) -> None:
    """Write the checkpoint of ``step`` finished steps.

    Args:
        origin: digest of code and settings; a checkpoint of another origin is not resumed from.
    """
    final = directory / f"step-{step:08d}"
    partial = directory / f".partial-{final.name}"
    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    engine.engine.save_checkpoint(str(partial), tag="engine", save_latest=False)
    torch.save(
        {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None},
        partial / f"rank-{distributed.rank()}.pt",
    )
    dist.barrier()
    if distributed.rank() == 0:
        files = {str(file.relative_to(partial)): sha256_of(file) for file in sorted(partial.rglob("*")) if file.is_file()}
        about = {"step": step, "origin": origin, "ranks": distributed.world_size(), "files": files}
        write_json(partial / "checkpoint.json", about)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        # What is ahead was refused by `resume` (other code, damaged): left there, it would push out the new ones.
        ahead = [path for path in complete(directory) if path.name > final.name]
        for old in (*ahead, *[path for path in complete(directory) if path not in ahead][:-_KEEP]):
            shutil.rmtree(old)
    dist.barrier()


def complete(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / "checkpoint.json").is_file())


def resume(engine: Engine, directory: Path, origin: str) -> int:
    """Load the newest whole checkpoint of this origin and return its number of finished steps; 0 without one."""
    # One rank chooses: with a file system that is slow to show files, ranks could come to different ends.
    chosen = [_choose(directory, origin) if distributed.rank() == 0 else None]
    dist.broadcast_object_list(chosen, src=0)
    path = chosen[0]
    if path is None:
        return 0
    engine.engine.load_checkpoint(str(path), tag="engine")
    state = torch.load(path / f"rank-{distributed.rank()}.pt", weights_only=True)
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    return int(read_json(path / "checkpoint.json")["step"])


def _choose(directory: Path, origin: str) -> Path | None:
    """The newest checkpoint that is of this origin and undamaged. A load that fails half-way would leave its weights behind."""
    for path in reversed(complete(directory)):
        try:
            about: dict[str, Any] = read_json(path / "checkpoint.json")
        except ValueError:
            about = {}
        if about.get("origin", origin) != origin:
            log.warning("%s comes from other code or settings: not resumed from", path)
        elif about.get("ranks", distributed.world_size()) != distributed.world_size():
            log.warning("%s was written by %d ranks, not %d: not resumed from", path, about["ranks"], distributed.world_size())
        elif damaged := _damaged(path, about.get("files")):
            log.warning("%s is damaged (%s): trying the one before", path, damaged)
        else:
            return path
    return None


def _damaged(checkpoint: Path, files: dict[str, str] | None) -> str | None:
    """Name of the first file that is missing or not the one that was written; None if all are whole."""
    if files is None:
        return "checkpoint.json"
    whole = ((checkpoint / name).is_file() and sha256_of(checkpoint / name) == digest for name, digest in files.items())
    return next((name for name, good in zip(files, whole, strict=True) if not good), None)


def drop_from(directory: Path, step: int) -> None:
    """Remove the checkpoints of ``step`` or more finished steps."""
    if distributed.rank() == 0:
        for path in complete(directory):
            if path.name >= f"step-{step:08d}":
                shutil.rmtree(path)
    dist.barrier()


def clear(directory: Path) -> None:
    """Remove a stage's checkpoints once it is finished."""
    if distributed.rank() == 0:
        shutil.rmtree(directory, ignore_errors=True)
