"""A projector into another model's space: 1x1 convolution, batch norm, ReLU, 1x1 convolution (here on vectors: linear).

The statistics of the batch norm (Ioffe and Szegedy 2015) are those of the **global** batch, gathered with gradient: the
loss then depends neither on the number of ranks nor, as it is applied to all rows at once, on gradient accumulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd.training.distributed import gather


class FullPrecisionBuffers(nn.Module):
    """Buffers follow the module to another device, and stay in their precision when its parameters are trained in half."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, value in kept.items():
            self._buffers[name] = value.to(fn(value).device)
        return self


class GlobalBatchNorm(FullPrecisionBuffers):
    """Batch norm over the rows of all ranks; running mean and unbiased variance, as in torch, for evaluation."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        """(b, width) -> (b, width)"""
        if self.training:
            everyone = gather(rows)  # (B, width)
            mean, var = everyone.mean(dim=0), everyone.var(dim=0, correction=0)
            with torch.no_grad():
                unbiased = var * len(everyone) / max(1, len(everyone) - 1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(unbiased, self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        return (rows - mean) * torch.rsqrt(var + self.eps) * self.weight.to(rows.dtype) + self.bias.to(rows.dtype)


class Projector(nn.Module):
    """From embeddings of width ``inputs`` to ``outputs``, which is the hidden width too.

    The first layer has no bias: the norm after it would take it out again.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, outputs, bias=False)
        self.norm = GlobalBatchNorm(outputs)
        self.second = nn.Linear(outputs, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """(b, inputs) -> (b, outputs), not normalised; in the precision of ``rows``."""
        hidden = F.relu(self.norm(F.linear(rows, self.first.weight.to(rows.dtype))))
        return F.linear(hidden, self.second.weight.to(rows.dtype), self.second.bias.to(rows.dtype))
