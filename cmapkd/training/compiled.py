"""`torch.compile` for the blocks of the towers, an option: the rest of a step is either cheap or changes shape.

Every block of a tower has the same code, so it is compiled once for a tower and not once for a depth. Names of parameters stay.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from cmapkd.models.towers import Tapped, text_tower
from cmapkd.training import zero3
from cmapkd.training.stages import Distillation, Teacher

log = logging.getLogger(__name__)


def compile_towers(module: Distillation, teacher: Teacher | None, device: str = "cpu", zero: int = 0) -> str | None:
    """Have the blocks of the student's and the teacher's towers compiled when they are first called.

    Returns:
        Why nothing is compiled; None if it is. A block that cannot be traced later on runs as it is.
    """
    if not module.objective.recomputes:
        return "its blocks are run from outside (prompts, or ALSN that looks ahead)"
    if zero == zero3.STAGE:
        return "with ZeRO 3 the weights of a block come and go"
    if (reason := cannot(device)) is not None:
        return reason
    torch._dynamo.config.suppress_errors = True
    for tapped in (module.model, *(() if teacher is None else (teacher.model,))):
        for block in blocks(tapped):
            block.compile()
    return None


def blocks(tapped: Tapped) -> list[nn.Module]:
    """The blocks of both towers; none of a tower that is not built as open_clip's are."""
    towers: tuple[Any, ...] = (tapped.model.visual, text_tower(tapped.model))
    return [block for tower in towers for block in getattr(getattr(tower, "transformer", None), "resblocks", ())]


def is_compiled(module: Distillation) -> bool:
    """Whether `compile_towers` had the blocks of the student compiled."""
    return any(block._compiled_call_impl is not None for block in blocks(module.model))


def cannot(device: str) -> str | None:
    """Why nothing can be compiled for ``device``: tried on a line of code, which alone tells whether a compiler works."""

    def line(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x) * 2

    x = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(line)(x).sum().backward()
    except Exception as error:  # whatever compilers do
        return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'without a reason')[:200]}"
    finally:
        torch.compiler.reset()
    return None
