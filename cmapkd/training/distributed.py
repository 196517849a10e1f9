"""Collectives that the objectives need: all-gather with gradient, so that batch-wise terms see the global batch.

Each rank computes its local rows against the gathered columns and takes the mean over its rows. The backward of the
gather sums every rank's gradient for a feature; the engine then averages parameter gradients over ranks. Together that
is exactly the gradient of the global mean: one rank of 2B and two ranks of B agree.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(local: Tensor) -> Tensor:
    """Concatenate ``local`` (b, ...) of all ranks along the batch, with gradient: (world_size * b, ...)."""
    if world_size() == 1:
        return local
    if not local.requires_grad:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)
    return torch.cat(differentiable.all_gather(local.contiguous()))


def offset(local_batch: int) -> int:
    """Row of the global batch at which this rank's rows start."""
    return rank() * local_batch


def mean_over_ranks(value: Tensor) -> Tensor:
    """Average a detached tensor over ranks, for logs and decisions that all ranks must agree on."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / world_size()
