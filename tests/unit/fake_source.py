"""A small data source for tests: random pictures whose captions name the sample, a pure function of its arguments."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cmapkd.data.sample import Question, Sample
from cmapkd.data.shards import write_dataset


@dataclass
class FakeConfig:
    shard_size: int = 7
    seed: int = 0
    train: int = 40
    test: int = 9
    image_size: int = 16


@dataclass
class FakeSource:
    config: FakeConfig = field(default_factory=FakeConfig)
    name: str = "fake"
    with_classes: bool = True
    yielded: int = 0

    def fetch(self) -> list[Any]:
        return []

    def splits(self) -> list[str]:
        return ["train", "test"]

    def samples(self, split: str) -> Iterator[Sample]:
        for i in range(getattr(self.config, split)):
            self.yielded += 1
            yield self.sample(split, i)

    def sample(self, split: str, i: int) -> Sample:
        return Sample(
            key=f"{split}_{i:06d}",
            image=png(self.config.image_size, self.config.image_size, seed=hash((self.config.seed, split == "train", i))),
            extension="png",
            captions=[f"picture {i} caption {c}" for c in range(3)],
            stratum="simple" if i % 2 else "complex",
            label=i % 2,
            questions=[Question(f"what is {i}?", [str(i)] * 10, "number", i)],
            meta={"number": i, "text": "naïve ✓"},
        )

    def classes(self) -> tuple[list[str], list[str]] | None:
        return (["even", "odd"], ["a picture of {}."]) if self.with_classes else None

    def provenance(self) -> list[dict[str, Any]]:
        return [{"name": "fake", "version": "1", "sha256": "0" * 64, "licence": "CC0-1.0", "attribution": "nobody"}]

    def leakage(self) -> dict[str, Any]:
        return {"shared": 0}


def png(width: int, height: int, seed: int = 0, mode: str = "RGB") -> bytes:
    """An encoded picture of random colours in blocks of four pixels."""
    rng = np.random.default_rng(abs(seed))
    small = rng.integers(0, 256, (-(-height // 4), -(-width // 4), len(mode)), dtype=np.uint8)
    pixels = small.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(pixels if len(mode) > 1 else pixels[:, :, 0], mode).save(buffer, "PNG")
    return buffer.getvalue()


def write_fake(directory: Path, **config: Any) -> Path:
    """A data set of ``FakeSource`` in ``directory``."""
    write_dataset(FakeSource(FakeConfig(**config)), directory, dataset="fake")
    return directory


def fake_tokenizer(texts: list[str]) -> torch.Tensor:
    """Every character is a token; eight of context, taken from the end, where the captions of ``FakeSource`` differ."""
    rows = [[ord(c) for c in text[-24:].ljust(24)] for text in texts]
    return torch.tensor(rows, dtype=torch.int64)  # (n, 24)
