"""DeepSpeed around a stage's module: process group, parameter groups, learning rates, and one exact optimiser step.

A step's loss is over the global batch. With gradient accumulation, the batch-wise loss cannot be summed over
micro-batches; it is backpropagated to the representations once, and from there through the model micro-batch by
micro-batch (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup").
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cmapkd.config.schedules import StageConfig
from cmapkd.data.taught import restored
from cmapkd.objectives.base import TeacherOutputs, Terms
from cmapkd.training import distributed, zero3
from cmapkd.training.launch import die_with_parent, keep_freed_memory
from cmapkd.training.stages import Distillation, Teacher

MAX_LOGIT_SCALE = math.log(100)


def start_process_group(minutes: float = 30) -> torch.device:
    """Join the ranks that `torchrun` started, or make a group of one; returns this rank's device."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    if dist.is_initialized():
        return device
    backend = "nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    else:
        # A store in memory: no port, so any number of single-rank jobs run side by side.
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return device


def parameter_groups(module: Distillation, stage: StageConfig, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups of the trained parameters: by learning rate, and without decay for vectors and scales.

    Each carries its ``peak_lr``; the schedule scales it.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        group = module.group_of(name)
        decayed = parameter.ndim > 1  # no decay on norms, biases and scales
        lr = stage.group_lr.get(group, stage.lr)  # type: ignore[call-overload]
        entry = groups.setdefault(
            (group, decayed),
            {"params": [], "name": group, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay if decayed else 0.0},
        )
        entry["params"].append(parameter)
    return list(groups.values())


def lr_factor(step: int, steps: int, warmup: float, end: float) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``: linear warm-up, then cosine decay to ``end``."""
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2


class Engine:
    """A DeepSpeed engine and the step that all objectives share.

    Args:
        module: model and objective.
        teacher: frozen, kept outside the engine: it is neither saved nor partitioned.
        stage: learning rates and trained groups.
        training: the shared training options of the experiment, as in a stage's settings.
        deepspeed_config: content of the file in ``config/deepspeed``.
        steps: optimiser steps of the whole stage.
        accumulation: micro-batches of a step on each rank; None: as ``deepspeed_config`` says.
        barrier_minutes: to wait for a missing rank.
    """

    def __init__(
        self,
        module: Distillation,
        teacher: Teacher | None,
        stage: StageConfig,
        training: Mapping[str, Any],
        deepspeed_config: Mapping[str, Any],
        steps: int,
        device: torch.device,
        accumulation: int | None = None,
        barrier_minutes: float = distributed.BARRIER_MINUTES,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.stage, self.training, self.steps, self.device = stage, training, steps, device
        self.accumulation = accumulation or int(deepspeed_config.get("gradient_accumulation_steps", 1))
        self.zero_stage = zero3.stage_of(deepspeed_config)
        self.barrier_minutes = barrier_minutes
        world = distributed.world_size()
        trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        config = {
            **deepspeed_config,
            "gradient_accumulation_steps": self.accumulation,
            "train_batch_size": training["global_batch"],
            "train_micro_batch_size_per_gpu": training["global_batch"] // (world * self.accumulation),
            "zero_allow_untested_optimizer": True,
            # Of gradients that are sent together: all of them, where DeepSpeed would set two gigabytes aside.
            "zero_optimization": {"reduce_bucket_size": trained, **deepspeed_config.get("zero_optimization", {})},
            "steps_per_print": 10**9,
        }
        # DeepSpeed broadcasts parameters as bytes, and a 0-dimensional one has no such view.
        self._scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]
        for parameter in self._scalars:
            parameter.data = parameter.data.reshape(1)
        groups = parameter_groups(module, stage, training["weight_decay"])
        gathered = zero3.spread(module.model)
        if self.zero_stage == zero3.STAGE:
            zero3.leave_out_warnings()
        # Fused: one pass over parameter, gradient and moments, where each operation alone would be one.
        optimizer = torch.optim.AdamW(groups, betas=tuple(training["betas"]), eps=training["eps"], fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=module.to(device), optimizer=optimizer, config=config, dist_init_required=False
        )
        _clip_by_norm(self.engine)
        if self.zero_stage == zero3.STAGE:
            zero3.keep_the_rest(self.engine, gathered)
        if world == 1 and self.zero_stage == 0 and not (self.engine.fp16_enabled() or self.engine.bfloat16_enabled()):
            _average_nothing(self.engine)
        self.module: Distillation = self.engine.module
        self.dtype = next(parameter.dtype for parameter in self.module.parameters() if parameter.is_floating_point())
        self.teacher = teacher.to(device, self.dtype) if teacher is not None else None
        self.grad_norm = 0.0
        self.lr_share = 1.0  # of all learning rates; less after a step that was not finite

    def step(self, batch: Mapping[str, Any], step: int) -> Terms:
        """One optimiser step on this rank's share of the global batch; returns the loss it was taken on.

        ``batch`` is one of `cmapkd.data.stream`; with ``taught`` in it the teacher is not asked.

        Raises:
            FloatingPointError: the loss is not finite, and no update was made; or its gradient is not, and the weights are
                spoilt (an earlier checkpoint is not).
        """
        factor = lr_factor(step, self.steps, self.training["warmup"], self.stage.lr_end)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor * self.lr_share
        images = batch["image"].to(self.device, self.dtype, non_blocking=True)
        tokens = batch["text"].to(self.device, non_blocking=True)
        self.engine.train()
        kept = {name: value.to(self.device, non_blocking=True) for name, value in batch.get("taught", {}).items()}
        whole = self.accumulation == 1
        terms = self._whole(images, tokens, kept) if whole else self._accumulated(images, tokens, kept)
        if self.zero_stage == zero3.STAGE:
            zero3.gather_kept(self.engine)
        norm = self.engine.get_global_grad_norm()
        self.grad_norm = float(norm) if norm is not None else 0.0
        # In fp16 an overflow is normal: DeepSpeed leaves the step out and lowers its loss scale.
        if self.dtype != torch.float16 and not math.isfinite(self.grad_norm):
            raise FloatingPointError(f"the loss is finite, but the norm of its gradient is {self.grad_norm}")
        self._clamp_logit_scales()
        return terms

    def _whole(self, images: Tensor, tokens: Tensor, kept: Mapping[str, Tensor]) -> Terms:
        taught = self._teach(images, tokens, kept)
        terms: Terms = self.engine(images, tokens, taught, *self.module.look_ahead([(images, tokens)], lambda _: taught))
        self._check(terms)
        self.engine.backward(terms.total)
        self.engine.step()
        return terms

    def _accumulated(self, images: Tensor, tokens: Tensor, kept: Mapping[str, Tensor]) -> Terms:
        chunks = list(zip(images.chunk(self.accumulation), tokens.chunk(self.accumulation), strict=True))
        parts = {name: value.chunk(self.accumulation) for name, value in kept.items()}

        def teach(number: int) -> TeacherOutputs | None:
            return self._teach(*chunks[number], {name: part[number] for name, part in parts.items()})

        states, collected = [], []
        ahead = self.module.look_ahead(chunks, teach)
        with torch.no_grad():
            for number, (chunk, more) in enumerate(zip(chunks, ahead, strict=True)):
                states.append(self._random_state())
                collected.append(self.engine(*chunk, teach(number), more, combine=False))
        after = self._random_state()
        leaves = {name: torch.cat([part[name] for part in collected]).requires_grad_() for name in collected[0]}
        terms = self.module.objective.combine(leaves)
        self._check(terms)
        # Parameters that only `combine` uses (scales, learned weights of levels) get their gradient here.
        own = [parameter for parameter in self.module.objective.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(terms.total, [*leaves.values(), *own], allow_unused=True)
        of_leaves = dict(zip(leaves, gradients[: len(leaves)], strict=True))
        of_own = [(p, g) for p, g in zip(own, gradients[len(leaves) :], strict=True) if g is not None]
        for index, chunk in enumerate(chunks):
            self._random_state(states[index])  # dropout must draw what it drew in the first pass
            again = self.engine(*chunk, teach(index), ahead[index], combine=False)
            surrogate = self._surrogate(again, of_leaves, index)
            if index == 0:
                surrogate = surrogate + sum((p * g).sum() for p, g in of_own)
            self.engine.backward(surrogate, scale_wrt_gas=False)
            self.engine.step()
        self._random_state(after)
        return terms

    @staticmethod
    def _surrogate(representations: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None], index: int) -> Tensor:
        """A scalar whose gradient through the model is that of the loss for this micro-batch."""
        total: Tensor | None = None
        for name, value in representations.items():
            gradient = gradients[name]
            if gradient is None or not value.requires_grad:
                continue
            part = (value * gradient[index * len(value) : (index + 1) * len(value)]).sum()
            total = part if total is None else total + part
        assert total is not None  # an objective whose representations carry no gradient trains nothing
        return total

    def _teach(self, images: Tensor, tokens: Tensor, kept: Mapping[str, Tensor]) -> TeacherOutputs | None:
        """What the teacher says: as it was kept, or of the pictures and texts themselves."""
        if self.teacher is None:
            return None
        said: TeacherOutputs = self.teacher.recall(restored(kept, self.dtype)) if kept else self.teacher(images, tokens)
        return said

    def _check(self, terms: Terms) -> None:
        # On any rank: if one stopped alone, the others would wait for it until the collective's timeout.
        if not bool(torch.isfinite(distributed.mean_over_ranks(terms.total))):
            named = {name: float(value) for name, value in terms.parts.items() if not bool(torch.isfinite(value))}
            raise FloatingPointError(
                f"the loss is {float(terms.total.detach())}; terms that are not finite: {named or 'none of the logged ones'}"
            )

    def _random_state(self, state: tuple[Tensor, Tensor | None] | None = None) -> tuple[Tensor, Tensor | None]:
        cuda = self.device.type == "cuda"
        if state is not None:
            torch.set_rng_state(state[0])
            if cuda and state[1] is not None:
                torch.cuda.set_rng_state(state[1])
        return torch.get_rng_state(), torch.cuda.get_rng_state() if cuda else None

    @torch.no_grad()
    def _clamp_logit_scales(self) -> None:
        for scale in (self.module.model.model.logit_scale, *self.module.objective.logit_scales()):
            if not scale.requires_grad or scale.numel() == 0 or float(scale.detach()) <= MAX_LOGIT_SCALE:
                continue
            scale.clamp_(max=MAX_LOGIT_SCALE)
            if self.zero_stage == zero3.STAGE:
                zero3.part(self.engine.optimizer, scale)[1].clamp_(max=MAX_LOGIT_SCALE)
            elif hasattr(scale, "_hp_mapping"):  # ZeRO and bf16 keep an fp32 master copy
                from deepspeed.utils import safe_set_full_fp32_param

                safe_set_full_fp32_param(scale, torch.full_like(scale, MAX_LOGIT_SCALE, dtype=torch.float32))

    def make_whole(self) -> None:
        """Give 0-dimensional parameters their shape back, and spread ones their values, for saving: the end of training."""
        if self.zero_stage == zero3.STAGE:
            zero3.make_whole(self.engine)
        for parameter in self._scalars:
            parameter.data = parameter.data.reshape(())

    def close(self) -> None:
        """Let go of what DeepSpeed keeps in hooks and globally: another engine in this process has the memory of this one."""
        self.engine.destroy()
        if self.zero_stage == zero3.STAGE:
            zero3.forget(self.module)


def _clip_by_norm(engine: Any) -> None:
    """In plain fp32 DeepSpeed clips by the gradients' norm and forgets it; with ZeRO or half precision it is kept.

    It also multiplies all gradients where there is nothing to clip, one by one.
    """

    def clip() -> None:
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))  # a tuple, which it takes
        engine._global_grad_norm = norm = distributed.mean_over_ranks(norms.square().sum().sqrt())
        share = float(engine.gradient_clipping() / (norm + 1e-6))
        if not share >= 1:  # not finite, too: the step that found it says so
            torch._foreach_mul_(gradients, share)

    engine.clip_fp32_gradients = clip


def _average_nothing(engine: Any) -> None:
    """A single rank has no others to average with: DeepSpeed would copy all gradients into a bucket and back.

    What stays is that every trained parameter has a gradient, with which it decays.
    """

    def fill(**_: Any) -> None:
        for parameter in engine.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    engine.buffered_allreduce_fallback = fill


def _import_deepspeed() -> ModuleType:
    """DeepSpeed, set up for this machine.

    On a CPU it is told so (it would search and warn), and kept from compiling its shared-memory collectives: those cost a
    minute and a compiler, and gloo does the same.
    """
    if torch.cuda.is_available():
        import deepspeed
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
