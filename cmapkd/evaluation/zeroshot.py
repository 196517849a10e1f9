"""Zero-shot classification with a prompt ensemble (CLIP, Radford et al. 2021, section 3.1.4).

Per class: every template is filled in, encoded and normalised; the mean is normalised again. ``open_clip`` does exactly that
(``build_zero_shot_classifier``), so its function is used. A picture's class is the one of the largest cosine; ties go to the
class of the lower index, which makes a collapsed model score chance and not 100 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import build_zero_shot_classifier
from torch import Tensor, nn

from cmapkd.errors import UserError
from cmapkd.evaluation.retrieval import finite, full_precision, score_blocks, target_ranks
from cmapkd.files import read_json


@dataclass(frozen=True, slots=True)
class ClassPrompts:
    """Names of the classes, in the order of the labels, and templates with one ``{}`` for the name."""

    names: tuple[str, ...]
    templates: tuple[str, ...]


def read_prompts(directory: str | Path) -> ClassPrompts:
    """The ``classes.json`` of a data set.

    Raises:
        UserError: the data set has none, or it is not usable.
    """
    path = Path(directory) / "classes.json"
    if not path.is_file():
        raise UserError(
            key=str(path), reason="this data set has no zero-shot classes", fix="take its splits out of `evaluation.zeroshot`"
        )
    content = read_json(path, classes=list, templates=list)
    names, templates = (tuple(content.get(key, ())) for key in ("classes", "templates"))
    if not names or not templates or not all("{}" in template for template in templates):
        raise UserError(
            key=str(path), reason="needs `classes` and `templates`, each template with a {}", fix="build the data set again"
        )
    return ClassPrompts(names, templates)


def build_classifier(
    model: nn.Module,
    tokenizer: Callable[..., Tensor],
    prompts: ClassPrompts,
    *,
    device: str | torch.device,
    batch_size: int = 512,
) -> Tensor:
    """Normalised class embeddings (C, D) in fp32 on ``device``; about ``batch_size`` prompts are encoded at a time."""
    weights = build_zero_shot_classifier(
        model,
        tokenizer,
        list(prompts.names),
        # As functions: a template is text of a data set, not a format string.
        [partial(str.replace, template, "{}") for template in prompts.templates],
        num_classes_per_batch=max(1, batch_size // len(prompts.templates)),
        device=device,
    )
    return weights.T.float().contiguous()  # (C, D)


def class_ranks(images: Tensor, classifier: Tensor, labels: Tensor | np.ndarray, chunk: int = 4096) -> np.ndarray:
    """0-based int32 rank (N,) of each picture's own class.

    Args:
        images: (N, D) normalised embeddings.
        classifier: (C, D) class embeddings.
        labels: (N,) index of each picture's class.
        chunk: pictures scored at a time.

    Raises:
        UserError: an embedding is not finite.
    """
    images, classifier = finite(images, "image"), finite(classifier, "class")
    target = torch.as_tensor(labels, dtype=torch.long, device=images.device)
    with full_precision():
        parts = [
            target_ranks(scores, target[first : first + len(scores)])
            for first, scores in score_blocks(images, classifier, chunk)
        ]
    return torch.cat(parts).cpu().numpy()


def zeroshot_metrics(ranks: np.ndarray, classes: int) -> dict[str, Any]:
    """``{"top1", "top5"}`` in percent with the numbers of images and classes."""
    return {
        "top1": float(np.mean(ranks < 1) * 100),
        "top5": float(np.mean(ranks < 5) * 100),
        "images": len(ranks),
        "classes": classes,
    }
