"""Made-up per-query arrays that give the made-up metrics of ``synthetic_metrics`` exactly. None of these was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

CAPTIONS = 5  # of each picture
QUESTIONS = (("yes/no", "yes_no", 0.4), ("number", "number", 0.4), ("other", "other", 0.2))  # kind, metric, share
CUTS = (1, 5, 10)


def queries_of(metrics: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Arrays of every retrieval, zero-shot and question split of ``metrics``.

    Which queries are hit is drawn by seed and level: two runs of the same level are the same run.
    """
    level = round(100 * next(iter(metrics["zeroshot"].values()))["all"]["top1"])
    generator = np.random.default_rng([seed, level])
    arrays: dict[str, np.ndarray] = {}
    for split, values in metrics["retrieval"].items():
        found = values["all"]
        for way, count in (("i2t", found["images"]), ("t2i", found["captions"])):
            shares = {k: found[f"{way}_r{k}"] for k in CUTS}
            arrays[f"retrieval/{split}/{way}_ranks"] = ranks(shares, count, generator)
        arrays[f"retrieval/{split}/owner"] = np.repeat(np.arange(found["images"], dtype=np.int32), CAPTIONS)
    for split, values in metrics["zeroshot"].items():
        found = values["all"]
        arrays[f"zeroshot/{split}/ranks"] = ranks({1: found["top1"], 5: found["top5"]}, found["images"], generator)
        arrays[f"zeroshot/{split}/label"] = np.arange(found["images"], dtype=np.int32) % found["classes"]
    for split, values in metrics["vqa"].items():
        found = values["all"]
        count = found["questions"]
        kinds = np.repeat([kind for kind, _, _ in QUESTIONS], [round(share * count) for _, _, share in QUESTIONS])
        scores = np.empty(count)
        for kind, metric, _ in QUESTIONS:
            scores[kinds == kind] = accuracies(found[metric], int((kinds == kind).sum()), generator)
        arrays[f"vqa/{split}/accuracy"], arrays[f"vqa/{split}/type"] = scores, kinds
        arrays[f"vqa/{split}/image"] = (np.arange(count) % (count // 2)).astype(np.int32)  # two of each picture
    return arrays


def ranks(shares: Mapping[int, float], count: int, generator: np.random.Generator) -> np.ndarray:
    """(count,) ranks of which ``shares[k]`` percent are below k, in a random order."""
    found = np.full(count, max(shares) + 7, dtype=np.int32)
    for k in sorted(shares, reverse=True):
        found[: round(shares[k] * count / 100)] = k - 1
    return generator.permutation(found)


def accuracies(percent: float, count: int, generator: np.random.Generator) -> np.ndarray:
    """(count,) accuracies of 0 or 1, but for one in between, whose mean is ``percent``, in a random order."""
    whole, rest = divmod(percent * count / 100, 1)
    found = np.zeros(count)
    found[: int(whole)] = 1
    if rest:
        found[int(whole)] = rest
    return generator.permutation(found)
