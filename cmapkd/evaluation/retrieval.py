"""Image-text retrieval: exact ranks, recall at k and margins, in both directions.

Rules (Karpathy test splits of COCO and Flickr30K, as CLIP and open_clip report them): an image counts as found when *any* of
its captions is in the top k (denominator: images); a caption counts as found when its image is (denominator: captions).
Scores are dot products in fp32. A tie is broken by index, ``rank = #(score > target) + #(score == target and lower index)``, so
a model that maps everything to one point scores k / N and not 100 %.

Adapted: scores are computed in blocks of rows and dropped, so memory grows with N + M and never with N * M.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmapkd.errors import UserError

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What retrieval says of each query.

    Attributes:
        i2t: (N,) int32, 0-based rank of each image's best own caption among all captions.
        t2i: (M,) int32, 0-based rank of each caption's image among all images.
        margin: (N,) float32, cosine of the best own caption minus cosine of the best caption of another image; low = hard.
            NaN when there is no other image.
    """

    i2t: np.ndarray
    t2i: np.ndarray
    margin: np.ndarray


def retrieve(images: Tensor, texts: Tensor, owner: Tensor | np.ndarray, chunk: int = 1024) -> Retrieval:
    """Exact ranks and margins of every query.

    Args:
        images: (N, D) L2-normalised embeddings.
        texts: (M, D) L2-normalised embeddings; captions of one image need not be neighbours.
        owner: (M,) index into ``images`` of each caption's image; every image has at least one caption.
        chunk: rows scored at a time; peak memory is about ``6 * chunk * max(N, M)`` bytes.

    Raises:
        UserError: an embedding is not finite (comparisons with NaN are false, which would look like perfect retrieval).
        ValueError: the shapes do not fit, or an image has no caption.
    """
    images, texts = finite(images, "image"), finite(texts, "text")
    owners = torch.as_tensor(owner, dtype=torch.long, device=images.device)  # (M,)
    count = len(images)
    if owners.shape != (len(texts),) or images.shape[1:] != texts.shape[1:]:
        raise ValueError(f"images {tuple(images.shape)}, texts {tuple(texts.shape)}, owner {tuple(owners.shape)} do not fit")
    if not torch.equal(owners.unique(), torch.arange(count, device=owners.device)):
        raise ValueError("every image needs at least one caption, and every owner must be the index of an image")

    order = torch.argsort(owners, stable=True)  # captions grouped by image, in order of index within a group
    starts = torch.searchsorted(owners[order], torch.arange(count + 1, device=owners.device))
    # Results are written in place: small tensors kept from each block would pin the holes that its large ones leave.
    i2t, margin = torch.empty(count, dtype=torch.int32), torch.empty(count)
    t2i = torch.empty(len(texts), dtype=torch.int32)
    with full_precision():
        for first, scores in score_blocks(images, texts, chunk):  # (rows, M)
            rows = slice(first, first + len(scores))
            own = order[starts[first] : starts[rows.stop]]  # columns of the captions of these rows
            row = owners[own] - first
            value = scores[row, own]
            best = value.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, value, "amax")  # (rows,)
            # The lowest index among the best own captions; the others of a row are parked beyond the last column.
            column = torch.where(value == best[row], own, len(texts))
            target = own.new_full((len(scores),), len(texts)).scatter_reduce(0, row, column, "amin")
            scores[row, own] = -torch.inf  # an own caption never outranks the best own one
            i2t[rows] = _rank(scores, best, target).cpu()
            margin[rows] = (best - scores.amax(1)).cpu()
        for first, scores in score_blocks(texts, images, chunk):  # (rows, N)
            rows = slice(first, first + len(scores))
            t2i[rows] = target_ranks(scores, owners[rows]).cpu()
    margin[~margin.isfinite()] = torch.nan
    return Retrieval(i2t.numpy(), t2i.numpy(), margin.numpy())


def ranks(images: Tensor, texts: Tensor, owner: Tensor | np.ndarray, chunk: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """0-based int32 ranks ``(i2t (N,), t2i (M,))``; see ``retrieve`` for arguments, rules and errors."""
    found = retrieve(images, texts, owner, chunk)
    return found.i2t, found.t2i


def recall(ranks: np.ndarray, ks: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Share of queries found in the top k, in percent: ``{"r1": ..., "r5": ..., "r10": ...}``.

    Raises:
        ValueError: there are no queries.
    """
    if not len(ranks):
        raise ValueError("recall of no queries is undefined")
    return {f"r{k}": float(np.mean(ranks < k) * 100) for k in ks}


def retrieval_metrics(found: Retrieval, owner: np.ndarray, images: np.ndarray | None = None) -> dict[str, float | int]:
    """Recall both ways, their mean, and the numbers of queries.

    Args:
        found: ranks of all queries.
        owner: (M,) image of each caption.
        images: (N,) bool mask of the images that are queries (a stratum); candidates always are the whole split's.
    """
    chosen = np.ones(len(found.i2t), bool) if images is None else images
    parts = {"i2t": found.i2t[chosen], "t2i": found.t2i[chosen[owner]]}
    values = {f"{way}_{name}": value for way, part in parts.items() for name, value in recall(part).items()}
    return {
        **values,
        "mean_recall": float(np.mean(list(values.values()))),
        "images": len(parts["i2t"]),
        "captions": len(parts["t2i"]),
    }


def target_ranks(scores: Tensor, target: Tensor) -> Tensor:
    """0-based int32 rank of column ``target`` (rows,) in each row of ``scores`` (rows, columns), by the tie rule above.

    Overwrites the targets' scores.
    """
    value = scores.gather(1, target[:, None])  # (rows, 1)
    scores.scatter_(1, target[:, None], -torch.inf)
    return _rank(scores, value[:, 0], target)


def score_blocks(queries: Tensor, candidates: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first query, scores (rows, candidates)) for consecutive blocks of queries.

    All blocks lie in one buffer, so each must be used up before the next.
    """
    buffer = queries.new_empty(max(2, min(chunk, len(queries))), len(candidates))
    for first in range(0, len(queries), chunk):
        block = queries[first : first + chunk]
        # One row alone goes through a matrix-vector kernel, which sums in another order at the edges: equal candidates would
        # get unequal scores and ties would be broken by rounding.
        twin = block if len(block) > 1 else block.expand(2, -1)
        yield first, torch.mm(twin, candidates.T, out=buffer[: len(twin)])[: len(block)]


def finite(embeddings: Tensor, what: str) -> Tensor:
    """``embeddings`` in fp32, checked to be finite.

    Raises:
        UserError: NaN or infinity among them: the model diverged.
    """
    embeddings = embeddings.detach().float()
    bad = int((~embeddings.isfinite()).any(dim=-1).sum())
    if bad:
        raise UserError(
            key=f"{what} embeddings",
            reason=f"{bad} of {len(embeddings)} are not finite, so no metric of this model would mean anything",
            fix="the training diverged: look at its loss curve, lower the learning rate or use a wider precision",
        )
    return embeddings


@contextmanager
def full_precision() -> Iterator[None]:
    """Scores in true fp32: no autocast, and no TF32 even where training switched it on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rank(scores: Tensor, value: Tensor, target: Tensor) -> Tensor:
    """#(score > value) + #(score == value and column < target) in each row, int32 (rows,); the target itself is masked out."""
    rank = (scores > value[:, None]).sum(1, dtype=torch.int32)
    equal = scores == value[:, None]  # (rows, columns)
    tied = equal.sum(1, dtype=torch.int32).nonzero()[:, 0]
    if len(tied):
        lower = torch.arange(scores.shape[1], device=scores.device)[None] < target[tied, None]
        rank[tied] += (equal[tied] & lower).sum(1, dtype=torch.int32)
    return rank
