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

from cmapkd.files import read_json, write_json
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
        write_json(partial / "checkpoint.json", {"step": step, "origin": origin, "ranks": distributed.world_size()})
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in complete(directory)[:-_KEEP]:
            shutil.rmtree(old)
    dist.barrier()


def complete(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / "checkpoint.json").is_file())


def resume(engine: Engine, directory: Path, origin: str) -> int:
    """Load the newest complete checkpoint of this origin and return its number of finished steps; 0 without one."""
    for path in reversed(complete(directory)):
        about: dict[str, Any] = read_json(path / "checkpoint.json")
        if about["origin"] != origin:
            log.warning("%s comes from other code or settings: not resumed from", path)
            continue
        if about["ranks"] != distributed.world_size():
            log.warning("%s was written by %d ranks, not %d: not resumed from", path, about["ranks"], distributed.world_size())
            continue
        try:
            engine.engine.load_checkpoint(str(path), tag="engine")
            state = torch.load(path / f"rank-{distributed.rank()}.pt", weights_only=True)
        except Exception as error:  # whatever a damaged file raises, the checkpoint before it may be whole
            log.warning("%s cannot be loaded (%s): trying the one before", path, error)
            continue
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"])
        return int(about["step"])
    return 0


def clear(directory: Path) -> None:
    """Remove a stage's checkpoints once it is finished."""
    if distributed.rank() == 0:
        shutil.rmtree(directory, ignore_errors=True)
