"""ZeRO 3: the weights of blocks and token embeddings are spread over the ranks, too, and come together while they are used.

DeepSpeed gathers a parameter for the module that owns it, from the module's call to the end of its backward pass. Much of a
CLIP is used in another way: projections by a method of the tower, taps beside the call of the model, scales and heads by the
loss after it. What is in no block of the trained model therefore stays whole on each rank (1 % of ViT-B/16, and the modules
of the objective); its gradients and optimiser states are spread like all others.

Some of this is DeepSpeed's own interior (of the version in the lock); the tests of `test_zero3.py` would notice a change.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

STAGE = 3
_LINEAR = nn.functional.linear


def stage_of(deepspeed: Mapping[str, Any]) -> int:
    """The ZeRO stage of DeepSpeed's settings."""
    return int(deepspeed.get("zero_optimization", {}).get("stage", 0))


def spread(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of a model that are gathered when they are needed: those of repeated blocks and of token embeddings."""
    found: set[nn.Parameter] = set()
    for owner in model.modules():
        if isinstance(owner, nn.ModuleList | nn.Sequential):
            found.update(parameter for block in owner if list(block.children()) for parameter in block.parameters())
        elif isinstance(owner, nn.Embedding):
            found.update(owner.parameters())
    return found


def leave_out_warnings() -> None:
    """What DeepSpeed says in this stage that concerns none of its users; called before it starts."""
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    # DeepSpeed's own calls; their successors are not in the oldest torch that it supports.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


def keep_the_rest(engine: Any, gathered: set[nn.Parameter]) -> None:
    """Have each rank keep all parameters but ``gathered`` whole, from now on.

    Args:
        engine: DeepSpeed's, of stage 3.
    """
    kept = [parameter for parameter in engine.module.parameters() if parameter not in gathered]
    for parameter in engine.module.parameters():
        parameter.ds_persist = parameter.is_external_param = parameter not in gathered
    engine.optimizer.persistent_parameters[:] = kept
    gather(kept)


def _is_news(record: logging.LogRecord) -> bool:
    """Not what DeepSpeed says of modules whose outputs it does not know: ours own no parameters that it gathers."""
    return "unknown inputs or outputs type" not in record.getMessage()


def gather_kept(engine: Any) -> None:
    """After a step: where DeepSpeed leaves one out, because half precision overflowed, it does not gather them again."""
    gather(engine.optimizer.persistent_parameters)


def gather(parameters: list[Any]) -> None:
    """Make parameters whole on every rank."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    missing = [parameter for parameter in parameters if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE]
    if missing:
        missing[0].all_gather(missing)


def part(optimizer: Any, parameter: Any) -> tuple[int, Tensor, Tensor, int]:
    """The part of a trained parameter that this rank optimises.

    Args:
        optimizer: DeepSpeed's, of stage 3.

    Returns:
        Where it starts in the flattened parameter; its fp32 values, a view, none where the parameter has fewer values than
        there are ranks; the flat buffer that holds it, by which AdamW knows it; and its place in there.
    """
    group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = torch.distributed.get_rank() * length
    owner = optimizer.fp32_partitioned_groups_flat[group]
    return start, owner[offset : offset + max(0, min(length, parameter.ds_numel - start))], owner, offset


def take_over(engine: Any) -> None:
    """Compute with the fp32 values from now on, after they were changed from outside."""
    optimizer = engine.optimizer
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    gather_kept(engine)


def make_whole(engine: Any) -> None:
    """Give every rank all weights, in modules without DeepSpeed's hooks: the end of training."""
    gather(list(engine.module.parameters()))
    engine.optimizer.parameter_offload.destroy()
    for module in engine.module.modules():
        module._parameters = dict(module._parameters)


def forget(module: nn.Module) -> None:
    """Undo what DeepSpeed does to the whole process in this stage.

    It keeps the outermost module in its list of those that are being called, and puts a linear layer of its own, which has no
    forward-mode derivative, in the place of torch's.
    """
    from deepspeed.runtime.zero import parameter_offload

    own = set(module.modules())
    parameter_offload.FWD_MODULE_STACK[:] = [other for other in parameter_offload.FWD_MODULE_STACK if other not in own]
    nn.functional.linear = _LINEAR
