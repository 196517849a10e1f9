"""Several ranks for a test, as processes that share the time that importing torch and DeepSpeed takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_ranks(function: Callable[..., Any], count: int, folder: Path) -> list[Any]:
    """Call ``function(folder)`` on ``count`` ranks of a gloo group; what each returned (tensors and plain values)."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    forkserver.set_forkserver_preload(["deepspeed", "tiny", "cmapkd.training.loop"])
    multiprocessing.start_processes(_worker, args=(count, folder, function), nprocs=count, start_method="forkserver")
    return [torch.load(folder / f"{count}-{rank}.pt", weights_only=True) for rank in range(count)]


def _worker(rank: int, count: int, folder: Path, function: Callable[..., Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_SIZE=str(count))
    dist.init_process_group("gloo", init_method=f"file://{folder / f'store-{count}'}", rank=rank, world_size=count)
    torch.save(function(folder), folder / f"{count}-{rank}.pt")
    os._exit(0)  # a group that a test has broken could not be closed
