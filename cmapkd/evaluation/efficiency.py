"""Size, arithmetic and speed of the two towers: parameters, FLOPs (2 per multiply-add) and latency per image.

FLOPs are counted by ``torch.utils.flop_counter`` over one image and one text: convolutions and matrix products, attention
included; normalisations and activations are not counted, as in open_clip's published profiles. On full-size models this gives
35.13 G (ViT-B/16) and 162.03 G (ViT-L/14) for the image tower.

Two of PyTorch's shortcuts hide attention from the counter and are switched off while it counts: the fused inference kernel of
``nn.MultiheadAttention`` and, on CPUs, the fused scaled-dot-product kernel.
"""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cmapkd.config.evaluation import LatencyConfig

# Scalars of the contrastive loss; no tower owns them.
_LOSS_PARAMETERS = ("logit_scale", "logit_bias")


def parameters(model: Any) -> dict[str, int]:
    """``{"image_parameters", "text_parameters", "total_parameters"}``: numbers of trainable and frozen weights.

    ``model`` may be what a method is used as: PromptKD's has its projector in ``visual`` and the teacher's text tower.
    The image tower is ``model.visual`` with its projection; the text tower is the rest without the loss's scalars
    (``CLIP`` spreads it over several attributes, ``CustomTextCLIP`` has it in one); the total counts everything.
    """
    total = sum(weight.numel() for weight in model.parameters())
    image = sum(weight.numel() for weight in model.visual.parameters())
    loss = sum(weight.numel() for name, weight in model.named_parameters() if name.rpartition(".")[2] in _LOSS_PARAMETERS)
    return {"image_parameters": image, "text_parameters": total - image - loss, "total_parameters": total}


def flops(model: Any, image: Tensor, text: Tensor) -> dict[str, int]:
    """``{"image_flops", "text_flops", "total_flops"}`` of encoding ``image`` (1, 3, H, W) and ``text`` (1, context).

    Works on the meta device: nothing is computed there.
    """
    counts = {"image_flops": _count(model.encode_image, image), "text_flops": _count(model.encode_text, text)}
    return {**counts, "total_flops": sum(counts.values())}


def _count(encode: Any, argument: Tensor) -> int:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encode(argument)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def latency(model: Any, image: Tensor, config: LatencyConfig) -> dict[str, Any]:
    """Milliseconds per image of the image tower, ``{"latency_ms_batch1", ..., "device"}``: median of repeats after warm-up.

    Args:
        model: in evaluation mode, on the device of ``image``.
        image: (1, 3, H, W).
        config: warm-up, repeats and batch sizes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return _latency(model, image, config)
    finally:
        torch.set_num_threads(before)


def _latency(model: Any, image: Tensor, config: LatencyConfig) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with torch.inference_mode():
        for size in config.batch_sizes:
            batch = image.expand(size, -1, -1, -1).contiguous()  # (size, 3, H, W)
            for _ in range(config.warmup):
                model.encode_image(batch)
            seconds = []
            for _ in range(config.repeats):
                _wait(image.device)
                start = time.perf_counter()
                model.encode_image(batch)
                _wait(image.device)
                seconds.append(time.perf_counter() - start)
            result[f"latency_ms_batch{size}"] = statistics.median(seconds) * 1e3 / size
    return {**result, "device": device_name(image.device)}


def efficiency(model: Any, text: Tensor, config: LatencyConfig) -> dict[str, Any]:
    """Everything of this module for one model, at the picture size of its image tower.

    Args:
        model: an open_clip model in evaluation mode.
        text: (1, context) tokens of any sentence; every length costs the same, texts are padded to the context.
        config: how latency is measured.
    """
    size = model.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    image = torch.zeros(1, 3, height, width, device=text.device, dtype=next(model.visual.parameters()).dtype)
    return {**parameters(model), **flops(model, image, text), **latency(model, image, config)}


def device_name(device: torch.device) -> str:
    """The device in words, e.g. ``"Tesla V100-SXM2-32GB"`` or ``"Intel(R) Xeon(R) Platinum 8481C (2 threads)"``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{_processor()} ({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine() or "CPU"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
