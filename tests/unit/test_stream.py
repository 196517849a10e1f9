"""The stream: order, independence of workers and ranks, and resuming."""

from __future__ import annotations

import os
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_source import fake_tokenizer, write_fake
from hypothesis import given, settings
from hypothesis import strategies as st

from cmapkd.data.philox import first_numbers, generator
from cmapkd.data.split import Split
from cmapkd.data.stream import Stream, batches, order
from cmapkd.data.transforms import TrainTransform
from cmapkd.errors import UserError

PREPROCESS = {"size": 16, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake(tmp_path_factory.mktemp("data"))


def stream(*splits: Split, seed: int = 0, **options: Any) -> Stream:
    transform = TrainTransform(PREPROCESS, scale=(0.5, 1.0), flip=True)
    return Stream(list(splits), seed, fake_tokenizer, transform, **options)


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    tensors = all(torch.equal(one[name], two[name]) for name in ("image", "text", "index"))
    return tensors and one["keys"] == two["keys"] and one["stratum"] == two["stratum"]


# Random numbers


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    samples=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**63 - 1)), min_size=1, max_size=20),
)
def test_numbers_drawn_for_many_samples_are_those_of_their_generators(seed: int, samples: list[tuple[int, int]]) -> None:
    epochs, indices = np.array(samples).T
    expected = [generator(seed, epoch, index).random(4) for epoch, index in samples]
    assert np.array_equal(first_numbers(seed, epochs, indices), expected)


@pytest.mark.parametrize("views", [None, 3])
@pytest.mark.parametrize("options", [{"scale": (1, 1)}, {"scale": (1, 1), "flip": True}, {"scale": (0.5, 1.0)}])
def test_a_batch_is_its_samples(data: Path, views: int | None, options: dict[str, Any]) -> None:
    split = Split(data, "train")
    read = Stream([split], 3, fake_tokenizer, TrainTransform(PREPROCESS, **options), views=views, cache_bytes=10_000)
    (batch,) = batches(read, global_batch=8, start_step=len(split) // 8, steps=1)  # straddles two epochs
    alone = [read[len(split) // 8 * 8 + row] for row in range(8)]
    for name in ("image", "text"):
        assert torch.equal(batch[name], torch.stack([item[name] for item in alone]))
    assert batch["keys"] == [item["key"] for item in alone]


# Order


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 2**20),
    window=st.integers(1, 300),
)
def test_an_order_is_a_permutation_and_a_pure_function(shards: list[int], seed: int, epoch: int, window: int) -> None:
    n = sum(shards)
    once = order(n, seed, epoch, shards=shards, window=window)
    assert once.dtype == np.int64
    assert (np.sort(once) == np.arange(n)).all()
    assert (order(n, seed, epoch, shards=shards, window=window) == once).all()


def test_the_order_is_the_same_on_every_machine() -> None:
    # Written down once: a change breaks the resuming of every run in progress, and the comparison with earlier results.
    assert order(10, 0, 0).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert order(10, 0, 1, shards=[4, 4, 2], window=4).tolist() == [8, 9, 5, 4, 6, 0, 7, 1, 2, 3]
    assert [round(generator(0, 1, index).random(), 6) for index in (0, 1, 2)] == [0.813354, 0.136078, 0.770352]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_place_is_equally_likely() -> None:
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), order(6, 1, epoch)] += 1
    # Chi-square with 25 degrees of freedom: 60 is beyond the 99.99th percentile.
    assert ((counts - 500) ** 2 / 500).sum() < 60


def test_a_window_keeps_reads_within_few_shards() -> None:
    sizes = [100] * 50
    permutation = order(5000, 0, 0, shards=sizes, window=500)
    touched = [len(set(permutation[first : first + 500] // 100)) for first in range(0, 5000, 500)]
    assert max(touched) <= 6
    assert (np.diff(permutation[:500]) == 1).sum() < 10  # shuffled within
    assert set(order(5000, 0, 1, shards=sizes, window=500)[:500] // 100) != set(permutation[:500] // 100)


def test_random_numbers_of_samples_are_independent() -> None:
    drawn = np.array([generator(3, epoch, index).random(4) for epoch in range(20) for index in range(100)])
    assert len(np.unique(drawn)) == drawn.size
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.1
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)


# Stream


def test_every_sample_once_an_epoch_and_batches_always_full(data: Path) -> None:
    joined = stream(Split(data, "train"), Split(data, "test"))
    assert len(joined) == 49
    seen = list(batches(joined, global_batch=10, steps=15))  # 150 positions: three epochs and a bit
    assert all(batch["image"].shape == (10, 3, 16, 16) for batch in seen)
    index = torch.cat([batch["index"] for batch in seen]).numpy()
    for epoch in range(3):
        assert sorted(index[epoch * 49 : (epoch + 1) * 49]) == list(range(49))
    assert len({tuple(index[epoch * 49 : (epoch + 1) * 49]) for epoch in range(3)}) == 3


def test_a_batch_has_the_fields_that_are_promised(data: Path) -> None:
    batch = next(iter(batches(stream(Split(data, "train")), global_batch=4, steps=1)))
    assert set(batch) == {"image", "text", "index", "keys", "stratum"}
    assert batch["image"].dtype == torch.float32
    assert (batch["text"].dtype, batch["text"].shape) == (torch.int64, (4, 24))
    assert batch["index"].dtype == torch.int64
    assert batch["keys"] == [f"train_{i:06d}" for i in batch["index"].tolist()]
    assert batch["stratum"] == ["simple" if i % 2 else "complex" for i in batch["index"].tolist()]
    text = ["".join(map(chr, row)).strip() for row in batch["text"].tolist()]
    assert all(t.startswith(f"picture {i} caption") for t, i in zip(text, batch["index"].tolist(), strict=True))


def test_single_positions_agree_with_batches(data: Path) -> None:
    one = stream(Split(data, "train"))
    batch = next(iter(batches(one, global_batch=6, start_step=2, steps=1)))
    items = [one[12 + i] for i in range(6)]
    assert torch.equal(torch.stack([item["image"] for item in items]), batch["image"])
    assert [item["key"] for item in items] == batch["keys"]


def test_indices_are_stable_and_found_again(data: Path) -> None:
    train, test = Split(data, "train"), Split(data, "test")
    joined = stream(train, test)
    for position in range(49):
        item = joined[position]
        split, i = joined.locate(item["index"])
        assert split.read(i).key == item["key"]
    assert joined.locate(39) == (train, 39)
    assert joined.locate(40) == (test, 0)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 0), (2, 2), (4, 0)])
def test_workers_and_ranks_do_not_change_the_data(data: Path, world_size: int, workers: int) -> None:
    reference = list(batches(stream(Split(data, "train")), global_batch=12, steps=5))
    ranks = [
        list(batches(stream(Split(data, "train")), global_batch=12, rank=rank, world_size=world_size, steps=5, workers=workers))
        for rank in range(world_size)
    ]
    for step, whole in enumerate(reference):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part["image"] for part in parts]), whole["image"])
        assert torch.equal(torch.cat([part["text"] for part in parts]), whole["text"])
        assert [key for part in parts for key in part["keys"]] == whole["keys"]


@pytest.mark.parametrize("start", [1, 3, 7])
def test_resuming_gives_the_tail_of_the_uninterrupted_stream(data: Path, start: int) -> None:
    whole = list(batches(stream(Split(data, "train")), global_batch=9, steps=10))
    resumed = list(batches(stream(Split(data, "train")), global_batch=9, start_step=start, steps=10 - start))
    assert len(resumed) == 10 - start
    assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_resuming_reads_nothing_but_what_it_returns(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda d, size, offset: reads.append(size) or pread(d, size, offset))
    late = batches(stream(Split(data, "train")), global_batch=5, start_step=1_000_000, steps=1)
    assert len(next(iter(late))["keys"]) == 5
    assert len(reads) == 10  # a picture and a record for each of the five samples


def test_another_seed_gives_another_stream(data: Path) -> None:
    one, two = (next(iter(batches(stream(Split(data, "train"), seed=s), global_batch=20, steps=1))) for s in (0, 1))
    assert one["keys"] != two["keys"]


def test_captions_and_augmentation_change_with_the_epoch_alone(data: Path) -> None:
    one = stream(Split(data, "train"))
    by_epoch = []
    for epoch in range(6):
        items = sorted((one[epoch * 40 + i] for i in range(40)), key=lambda item: item["index"])
        by_epoch.append(items)
    for earlier, later in pairwise(by_epoch):
        assert sum(not torch.equal(a["text"], b["text"]) for a, b in zip(earlier, later, strict=True)) > 10
        assert sum(not torch.equal(a["image"], b["image"]) for a, b in zip(earlier, later, strict=True)) > 30
    texts = {"".join(map(chr, item["text"].tolist())).strip() for items in by_epoch for item in items}
    assert len(texts) > 90  # most of the 120 captions; expected 120 (1 - (2/3)^6) = 109
    # The shuffle window changes where a sample stands, not what it looks like.
    other = sorted((stream(Split(data, "train"), shuffle_window=10)[i] for i in range(40)), key=lambda item: item["index"])
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(by_epoch[0], other, strict=True))


@pytest.mark.parametrize("cache_bytes", [0, 5000, 10**8])
def test_the_cache_changes_nothing_but_the_reads(data: Path, monkeypatch: pytest.MonkeyPatch, cache_bytes: int) -> None:
    reference = list(batches(stream(Split(data, "train")), global_batch=10, steps=12))
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda d, size, offset: reads.append(size) or pread(d, size, offset))
    cached = list(batches(stream(Split(data, "train"), cache_bytes=cache_bytes), global_batch=10, steps=12))
    assert all(same(a, b) for a, b in zip(reference, cached, strict=True))
    assert len(reads) == {0: 240, 10**8: 80}.get(cache_bytes, len(reads))
    assert 80 <= len(reads) <= 240


def test_a_stream_can_be_sent_to_another_process(data: Path) -> None:
    one = stream(Split(data, "train"))
    expected = one[3]
    assert torch.equal(pickle.loads(pickle.dumps(one))[3]["image"], expected["image"])  # noqa: S301


def test_a_batch_that_ranks_cannot_share_is_refused(data: Path) -> None:
    with pytest.raises(UserError, match="cannot be divided among 3 ranks"):
        batches(stream(Split(data, "train")), global_batch=10, world_size=3, steps=1)
    with pytest.raises(UserError, match="no split"):
        stream()
