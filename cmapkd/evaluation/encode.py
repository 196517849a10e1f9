"""Embeddings of a split's pictures and of every distinct text, each computed once for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from cmapkd.data.loading import load
from cmapkd.data.sample import Sample
from cmapkd.data.transforms import decode_image
from cmapkd.errors import UserError
from cmapkd.evaluation.retrieval import finite
from cmapkd.evaluation.zeroshot import ClassPrompts, build_classifier


class SplitLike(Protocol):
    """What is needed of ``cmapkd.data.split.Split``."""

    directory: Path

    def __len__(self) -> int: ...

    def read(self, i: int) -> Sample: ...


@dataclass(slots=True)
class Encoded:
    """Embeddings (N, D) of the pictures of a split, and their records without the pictures' bytes."""

    images: Tensor
    samples: list[Sample]

    def strata(self) -> np.ndarray:
        """(N,) names; "" where a sample has none."""
        return np.asarray([sample.stratum or "" for sample in self.samples], dtype=np.str_)


@dataclass(slots=True)
class Encoder:
    """The two towers of ``model``, on ``device`` and in evaluation mode, with the texts they have seen.

    Attributes:
        rows: row of ``texts`` of each distinct text that was added.
        texts: (T, D) fp32 embeddings, after ``encode_texts``.
    """

    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    preprocess: Callable[[Image.Image], Tensor]
    device: torch.device
    batch_size: int
    workers: int
    rows: dict[str, int] = field(default_factory=dict)
    texts: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def pictures(
        self,
        ref: str,
        split: SplitLike,
        order: Sequence[int] | None = None,
        enough: Callable[[list[Sample]], bool] | None = None,
    ) -> Encoded:
        """Encode the pictures of ``split`` in ``order`` (default: its own), until ``enough`` says so of the samples so far."""
        chosen = range(len(split)) if order is None else order
        pictures = _Pictures(ref, split, self.preprocess, chosen)
        loader = load(pictures, self.workers, "workers", batch_size=self.batch_size, collate_fn=_collate)
        parts: list[Tensor] = []
        samples: list[Sample] = []
        total = -(-len(chosen) // self.batch_size)
        for batch in tqdm(loader, desc=f"evaluate {ref}", total=total, unit="batch", leave=False, disable=None):
            if isinstance(batch, UserError):
                raise batch
            pixels, records = batch
            parts.append(self.model.encode_image(pixels.to(self.device), normalize=True).float())  # type: ignore[operator]
            samples += records
            if enough and enough(samples):
                break
        return Encoded(finite(torch.cat(parts), "image"), samples)

    def classifier(self, prompts: ClassPrompts) -> Tensor:
        """Class embeddings (C, D), see ``zeroshot.build_classifier``."""
        return build_classifier(self.model, self.tokenizer, prompts, device=self.device, batch_size=self.batch_size)

    def add(self, texts: Iterable[str]) -> None:
        """Note texts that will be needed."""
        for text in texts:
            self.rows.setdefault(text, len(self.rows))

    def encode_texts(self) -> None:
        """Encode all noted texts, each distinct one once, in the order in which they were first noted."""
        distinct = list(self.rows)
        parts = []
        for first in range(0, len(distinct), self.batch_size):
            tokens = self.tokenizer(distinct[first : first + self.batch_size]).to(self.device)  # (B, context)
            parts.append(self.model.encode_text(tokens, normalize=True).float())  # type: ignore[operator]
        self.texts = finite(torch.cat(parts), "text") if parts else self.texts

    def row(self, texts: Iterable[str]) -> Tensor:
        """Rows of ``self.texts`` that hold these texts."""
        return torch.tensor([self.rows[text] for text in texts], dtype=torch.long, device=self.device)


class _Pictures(Dataset[Any]):
    """Pixels and record of each chosen sample. An error is a value here: torch would hide its type in a worker."""

    def __init__(self, ref: str, split: SplitLike, preprocess: Callable[[Image.Image], Tensor], order: Sequence[int]) -> None:
        self.ref, self.split, self.preprocess, self.order = ref, split, preprocess, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Tensor, Sample] | UserError:
        try:
            sample = self.split.read(int(self.order[place]))
            pixels = self.preprocess(decode_image(sample.image))
        except UserError as error:
            return error
        except ValueError as error:
            return UserError(key=self.ref, value=sample.key, reason=str(error), fix="build the data set again")
        return pixels, replace(sample, image=b"")


def _collate(items: list[tuple[Tensor, Sample] | UserError]) -> tuple[Tensor, list[Sample]] | UserError:
    good = []
    for item in items:
        if isinstance(item, UserError):
            return item
        good.append(item)
    return torch.stack([pixels for pixels, _ in good]), [sample for _, sample in good]  # (B, 3, H, W)
