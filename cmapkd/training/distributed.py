"""Collectives that the objectives need: all-gather with gradient, so that batch-wise terms see the global batch.

Each rank computes its local rows against the gathered columns and takes the mean over its rows. The backward of the
gather sums every rank's gradient for a feature; the engine then averages parameter gradients over ranks. Together that
is exactly the gradient of the global mean: one rank of 2B and two ranks of B agree.

Beside it, what keeps ranks together where one of them may be missing or may fail alone: a barrier that names who is missing,
and an action whose failure on one rank ends all. Both speak over gloo, whatever the training uses, since a collective of NCCL
only hangs.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cmapkd.errors import UserError

BARRIER_MINUTES = 30.0
_side: Any = None  # a gloo group of all ranks
_hosts: list[str] = []


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(local: Tensor) -> Tensor:
    """Concatenate ``local`` (b, ...) of all ranks along the batch, with gradient: (world_size * b, ...)."""
    return local if world_size() == 1 else _Gather.apply(local)


class _Gather(torch.autograd.Function):
    """`torch.distributed.nn.functional.all_gather` scrambles a gradient that arrives with permuted strides (as `einsum` and
    matrix products leave it): on gloo it receives into a buffer of those strides what was sent in memory order."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty(local.shape, dtype=local.dtype, device=local.device) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Pooled features are small, so a plain sum over ranks does; a reduce-scatter is not there on every backend.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        size = len(total) // world_size()
        return total[offset(size) : offset(size) + size]


def offset(local_batch: int) -> int:
    """Row of the global batch at which this rank's rows start."""
    return rank() * local_batch


def mean_over_ranks(value: Tensor) -> Tensor:
    """Average a detached tensor over ranks, for logs and decisions that all ranks must agree on."""
    value = value.detach()
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def side_group(minutes: float = BARRIER_MINUTES) -> Any:
    """The gloo group of all ranks, made at the first call, which all ranks must make together."""
    global _side
    if _side is None:
        _side = dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes))
        _hosts[:] = share(socket.gethostname())
    return _side


def share(value: Any) -> list[Any]:
    """``value`` of every rank, in the order of ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=side_group())
    return found


def barrier(what: str, minutes: float = BARRIER_MINUTES) -> None:
    """Wait for all ranks.

    Args:
        what: is about to happen, for the message.
        minutes: to wait.

    Raises:
        UserError: a rank did not come; rank 0 knows which, and where it runs.
    """
    if world_size() == 1:
        return
    group = side_group()
    try:
        dist.monitored_barrier(group=group, timeout=timedelta(minutes=minutes), wait_all_ranks=True)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        named = re.search(r"Ranks? ([\d, ]+) failed to pass", first) if rank() == 0 else None
        missing = [int(number) for number in re.findall(r"\d+", named.group(1))] if named else []
        where = ", ".join(f"rank {number} on {_hosts[number]}" for number in missing if number < len(_hosts))
        raise UserError(
            key=f"rank {rank()}",
            reason=f"waited {minutes:g} minutes before {what}, without " + (where or f"an answer of rank 0 ({first})"),
            fix="look at that rank's log and node; the same command goes on from the last checkpoint",
        ) from error


def together(action: Callable[[], Any], what: str) -> list[Any]:
    """Do something that may fail on some ranks; all ranks go on, or none does.

    Returns:
        What ``action`` returned on each rank.

    Raises:
        Exception: what ``action`` raised on this rank, or a UserError that tells of the first other rank where it failed.
    """
    result: Any = None
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure = error
    outcomes = share((None if failure is None else f"{type(failure).__name__}: {failure}", result))
    if failure is not None:
        raise failure
    for number, (message, _) in enumerate(outcomes):
        if message is not None:
            raise UserError(key=f"rank {number}", reason=f"failed at {what}: {message}")
    return [found for _, found in outcomes]
