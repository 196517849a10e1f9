"""The state of a training that does not depend on how it is cut: weights and AdamW moments in fp32, by parameter name.

DeepSpeed's own checkpoint belongs to one number of ranks and one ZeRO stage, and its universal checkpoint is a conversion
that must be run in between. Here each rank writes the fragments of parameters that it holds, with their place in the whole
parameter, and reads the fragments that it needs from any rank's file: to the bit the same for the same cut, and for another
number of ranks, ZeRO stage or micro-batch the same numbers in other places. No rank holds more than it does in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmapkd.training import distributed, zero3
from cmapkd.training.engine import Engine

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


@dataclass
class Fragment:
    """A contiguous piece of one trained parameter that this rank optimises.

    Args:
        name: of the parameter in the module.
        start: of the piece in the flattened parameter.
        weight: fp32, any shape.
        owner: what the optimiser knows it by: the weight itself, or the flat buffer that it is a part of.
        offset: of the piece in the flattened ``owner``.
    """

    name: str
    start: int
    weight: Tensor
    owner: Tensor
    offset: int

    def moment(self, optimizer: torch.optim.Optimizer, kind: str) -> Tensor:
        """A view of one of AdamW's two moments of this piece."""
        flat: Tensor = optimizer.state[self.owner][kind].view(-1)
        return flat[self.offset : self.offset + self.weight.numel()]


def fragments(engine: Engine) -> Iterator[Fragment]:
    """The pieces of parameters that this rank optimises, in the order of the module."""
    wrapper = engine.engine.optimizer
    masters: dict[Tensor, Tensor] = {}
    if hasattr(wrapper, "fp32_groups"):  # half precision without ZeRO: each parameter has a master of its own
        for low, high in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            masters.update(zip(low, high, strict=True))
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_stage == zero3.STAGE:
            yield Fragment(name, *zero3.part(wrapper, parameter))
        elif hasattr(parameter, "_hp_mapping"):  # ZeRO 1 and 2: this rank's part of one flat buffer per group, or none
            mapping = parameter._hp_mapping
            if mapping is not None:
                owner = base_optimizer(engine).param_groups[mapping.param_group_index]["params"][0]
                yield Fragment(
                    name,
                    mapping.lp_fragment_address.start,
                    mapping.hp_fragment,
                    owner,
                    mapping.hp_fragment_address.start,
                )
        else:
            master = masters.get(parameter, parameter)
            yield Fragment(name, 0, master, master, 0)


def base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The AdamW inside DeepSpeed's wrapper."""
    wrapper = engine.engine.optimizer
    inner: torch.optim.Optimizer = wrapper if isinstance(wrapper, torch.optim.Optimizer) else wrapper.optimizer
    return inner


def size(engine: Engine) -> int:
    """Bytes that this rank writes, about."""
    return sum(4 * (1 + len(MOMENTS)) * fragment.weight.numel() for fragment in _own(list(fragments(engine))))


def write(engine: Engine, path: Path) -> None:
    """Write this rank's share of weights and moments, its buffers and its random state.

    Parameters that every rank holds whole are shared out by size, so that the ranks write about as much each.
    """
    optimizer = base_optimizer(engine)
    tensors: dict[str, Tensor] = {}

    def put(key: str, value: Tensor) -> None:
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()

    for fragment in _own(list(fragments(engine))):
        put(_key(WEIGHT, fragment.name, fragment.start), fragment.weight.view(-1))
        for kind in MOMENTS:
            put(_key(kind, fragment.name, fragment.start), fragment.moment(optimizer, kind))
    for name, value in _buffers(engine):
        put(_key("buffer", name), value)
    put(_key("random", "cpu"), torch.get_rng_state())
    if torch.cuda.is_available():
        put(_key("random", "cuda"), torch.cuda.get_rng_state())
    save_file(tensors, path)


def counters(engine: Engine) -> dict[str, Any]:
    """What is one number for all ranks: the optimiser's steps, DeepSpeed's counters and the state of the loss scale."""
    states = base_optimizer(engine).state.values()
    return {
        "optimizer_steps": next((float(state["step"]) for state in states if "step" in state), 0.0),
        **{name: int(getattr(engine.engine, name)) for name in _COUNTERS},
        "scaler": {name: value for name, value in vars(_scaler(engine)).items() if type(value) in (bool, int, float)},
    }


def read(engine: Engine, paths: list[Path], numbers: dict[str, Any], same_ranks: bool) -> None:
    """Take over the state that ``paths`` hold together, of which ``paths[r]`` was written by rank r.

    Args:
        numbers: of `counters`.
        same_ranks: written by as many ranks as there are now; then each takes its own buffers and random state.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        pieces = _Pieces(files)
        optimizer = base_optimizer(engine)
        _make_moments(engine, numbers["optimizer_steps"])
        with torch.no_grad():
            for fragment in fragments(engine):
                length = fragment.weight.numel()
                found = pieces.read(WEIGHT, fragment.name, fragment.start, length)
                fragment.weight.view(-1).copy_(found)
                for kind in MOMENTS:
                    fragment.moment(optimizer, kind).copy_(pieces.read(kind, fragment.name, fragment.start, length))
            whole = [] if engine.zero_stage == zero3.STAGE else list(engine.module.named_parameters())
            for name, parameter in whole:
                if parameter.requires_grad:  # what the model computes with: whole on each rank, in its own precision
                    parameter.view(-1).copy_(pieces.read(WEIGHT, name, 0, parameter.numel()))
            if engine.zero_stage == zero3.STAGE:
                zero3.take_over(engine.engine)
            mine = files[distributed.rank() if same_ranks else 0]
            for name, value in _buffers(engine):
                value.copy_(mine.get_tensor(_key("buffer", name)))
        if same_ranks:
            torch.set_rng_state(mine.get_tensor(_key("random", "cpu")))
            if torch.cuda.is_available() and _key("random", "cuda") in mine.keys():  # noqa: SIM118 - no mapping
                torch.cuda.set_rng_state(mine.get_tensor(_key("random", "cuda")))
    for name in _COUNTERS:
        setattr(engine.engine, name, numbers[name])
    engine.engine.micro_steps = numbers["global_steps"] * engine.accumulation  # else a step would end within the batch
    for name, value in numbers["scaler"].items():
        setattr(_scaler(engine), name, value)


def _make_moments(engine: Engine, steps: float) -> None:
    """AdamW makes its moments at the first step; here they are needed before."""
    optimizer = base_optimizer(engine)
    spread = engine.engine.optimizer.fp32_partitioned_groups_flat if engine.zero_stage == zero3.STAGE else []
    for owner in (*spread, *(owner for group in optimizer.param_groups for owner in group["params"])):
        state = optimizer.state[owner]
        for kind in MOMENTS:
            state.setdefault(kind, torch.zeros_like(owner, memory_format=torch.preserve_format))
        state["step"] = torch.tensor(steps, dtype=torch.float32, device=owner.device)  # where a fused step wants it
    link = getattr(engine.engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


class _Pieces:
    """Reads any part of a parameter from the files that hold it in pieces."""

    def __init__(self, files: list[Any]) -> None:
        self._where: dict[tuple[str, str], list[tuple[int, Any, str]]] = {}
        for file in files:
            for key in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                kind, name, start = key.split("|")
                self._where.setdefault((kind, name), []).append((int(start), file, key))

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """(length,) values of ``name`` from ``start`` on."""
        found = torch.empty(length)
        filled = 0
        for begin, file, key in self._where.get((kind, name), ()):
            part = file.get_slice(key)
            first, last = max(start, begin), min(start + length, begin + part.get_shape()[0])
            if first < last:
                found[first - start : last - start] = part[first - begin : last - begin]
                filled += last - first
        if filled != length:
            raise ValueError(f"{kind} of {name}: {filled} of {length} values are in the checkpoint")
        return found


def _own(found: list[Fragment]) -> Iterable[Fragment]:
    """Of parameters that all ranks hold whole, those that this rank writes; of partitioned ones, all it has."""
    if not found or any(fragment.owner is not fragment.weight for fragment in found) or distributed.world_size() == 1:
        return found
    load = [0] * distributed.world_size()
    mine = []
    for fragment in sorted(found, key=lambda fragment: -fragment.weight.numel()):
        least = load.index(min(load))
        load[least] += fragment.weight.numel()
        if least == distributed.rank():
            mine.append(fragment)
    return mine


def _buffers(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """State of the module that is no parameter, such as statistics of batch norms."""
    parameters = {name for name, _ in engine.module.named_parameters()}
    for name, value in engine.module.state_dict().items():
        if name not in parameters:
            yield name, value


def _scaler(engine: Engine) -> Any:
    """Where DeepSpeed keeps the loss scale of half precision; an empty object where there is none."""
    wrapper = engine.engine.optimizer
    for name in ("loss_scale_config", "loss_scaler"):
        found = getattr(wrapper, name, None)
        if found is not None:
            return found
    return _Nothing()


class _Nothing:
    pass


def _key(kind: str, name: str, start: int = 0) -> str:
    return f"{kind}|{name}|{start}"
