"""Collectives that the objectives need: all-gather with gradient, so that batch-wise terms see the global batch.

Each rank computes its local rows against the gathered columns and takes the mean over its rows. The backward of the
gather sums every rank's gradient for a feature; the engine then averages parameter gradients over ranks. Together that
is exactly the gradient of the global mean: one rank of 2B and two ranks of B agree.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
