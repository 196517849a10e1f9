"""The training stream: an endless sequence of positions, each of which names one sample of one epoch.

Position p belongs to epoch p // n and is sample ``order(n, seed, p // n)[p % n]``. Everything else follows from that:
each sample occurs exactly once an epoch; batch k of G samples takes the positions kG .. kG + G - 1 (it may straddle two
epochs), so batches are always full and all ranks make equally many steps; a run resumes at any step by arithmetic; and
the data do not depend on how many workers or ranks read them. The caption that is chosen and the parameters of the
augmentation are pure functions of (seed, epoch, sample).

Random numbers are those of `cmapkd.data.philox`. Only raw bits and ``random()`` are used, which numpy keeps stable, where it
reserves the right to change ``permutation`` and ``integers``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from cmapkd.data.loading import load
from cmapkd.data.philox import first_numbers, generator
from cmapkd.data.split import DAMAGED, UNUSABLE, BadSamples, CorruptSample, Split
from cmapkd.data.taught import Taught
from cmapkd.data.transforms import MAX_PIXELS, Transform, decode_image
from cmapkd.errors import UserError

__all__ = ["BadSamples", "Batches", "CorruptSample", "Split", "Stream", "batches", "collate", "order"]

# Samples among which the order is uniformly random. A larger set is shuffled by shards first and then within windows of
# this many samples, so that reads stay within few shards at a time and the page cache works.
SHUFFLE_WINDOW = 50_000
# Stands for the seed where views must not depend on it.
_VIEWS = 0x76696577
Loaded = tuple[dict[str, Any], list[tuple[int, CorruptSample]]]  # an item, and the bad samples met on the way
# Token ids kept in memory, one entry for each caption.
TOKEN_CACHE = 65_536


def order(n: int, seed: int, epoch: int, *, shards: Sequence[int] | None = None, window: int = SHUFFLE_WINDOW) -> np.ndarray:
    """The order of an epoch's samples: a permutation of 0 .. n - 1 that depends on the arguments alone.

    Args:
        n: samples.
        seed: seed of the run, >= 0.
        epoch: number of the epoch, >= 0.
        shards: sizes of the shards, in the order of the samples; sum n. None: one shard.
        window: with n <= window the permutation is uniform. Otherwise the shards are permuted and laid end to end, and
            the samples of each window of this many are permuted: a window touches about ``window / shard size`` shards.

    Returns:
        (n,) int64.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    if n <= window:
        return np.argsort(bits.random_raw(n), kind="stable")  # (n,)
    sizes = np.asarray([n] if shards is None else shards, dtype=np.int64)
    if sizes.sum() != n:
        raise ValueError(f"shards hold {sizes.sum()} samples, not {n}")
    starts = np.cumsum(sizes) - sizes
    ranking = np.argsort(bits.random_raw(len(sizes)), kind="stable")
    laid = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in ranking])  # (n,)
    for first in range(0, n, window):
        part = laid[first : first + window]
        laid[first : first + window] = part[np.argsort(bits.random_raw(len(part)), kind="stable")]
    return laid


class Stream(Dataset):
    """Training samples by position.

    Args:
        splits: splits to train on, joined end to end into one index space.
        seed: seed of order, caption choice and augmentation.
        tokenizer: open_clip tokenizer: ``tokenizer([caption])`` -> (1, context) int64.
        transform: see ``cmapkd.data.transforms``.
        shuffle_window: see ``order`` [samples].
        bad_limit: share of unreadable samples at which the run stops.
        cache_bytes: memory for decoded pictures and captions, of each process that reads; 0 keeps none. It is for small sets
            and changes no result [bytes].
        max_pixels: larger pictures count as bad [pixels].
        views: number of different views of each picture, the same whatever the seed; None: a new one in each epoch.
        taught: what the teacher says of each view and caption, to be returned with them.

    Raises:
        UserError: no splits.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        seed: int,
        tokenizer: Callable[[list[str]], torch.Tensor],
        transform: Transform,
        *,
        shuffle_window: int = SHUFFLE_WINDOW,
        bad_limit: float = 0.001,
        cache_bytes: int = 0,
        max_pixels: int = MAX_PIXELS,
        views: int | None = None,
        taught: Taught | None = None,
    ) -> None:
        if not splits:
            raise UserError(key="data.train", reason="names no split to train on", fix='for example ["emoji_scenes/train"]')
        self.splits, self.seed, self.tokenizer, self.transform = list(splits), seed, tokenizer, transform
        self.shuffle_window, self.max_pixels = shuffle_window, max_pixels
        self.views, self.taught = views, taught
        self._ends = np.cumsum([len(split) for split in self.splits])
        self.n = int(self._ends[-1])
        self.bad = BadSamples(self.n, bad_limit)
        self._shards = [size for split in self.splits for size in split.shard_sizes]
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()
        self._room = cache_bytes  # left
        # A picture that is always cut in the same way is kept as the transform leaves it.
        self._fixed = bool(getattr(transform, "fixed", False))
        self._cache: dict[int, tuple[str, str | None, list[str], Image.Image | torch.Tensor]] = {}
        self._make_token_cache()

    def __len__(self) -> int:
        """Samples in one epoch (positions go on beyond it)."""
        return self.n

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The sample at a position: ``image`` (3, H, W) float32, ``text`` (context,) int64, ``index``, ``key``, ``stratum``.

        Raises:
            UserError: too many samples are bad.
        """
        item, bad = self.load(position)
        self.bad.add(1, bad)
        return {**item, "image": self.transform.batch(item["image"][None])[0]}

    def load(self, position: int) -> Loaded:
        """The sample at a position, its picture as the transform left it, and the bad samples that were met on the way.

        A bad sample is replaced by one at a fixed distance (1, 3, 7, ... further, so that a whole bad shard is soon left),
        which appears exactly as it does at its own place in this epoch.

        Raises:
            UserError: no readable sample was found.
        """
        item, bad = self._readable(position)
        if self.taught is not None:
            item["taught"] = {name: rows[0] for name, rows in self.taught.read([item]).items()}
        return item, bad

    def _readable(self, position: int) -> Loaded:
        epoch, place = divmod(position, self.n)
        first = int(self.epoch_order(epoch)[place])
        bad: list[tuple[int, CorruptSample]] = []
        for step in range(self.n.bit_length() + 1):
            index = (first + 2**step - 1) % self.n
            try:
                return self._item(index, epoch), bad
            except CorruptSample as error:
                bad.append((index, error))
        last = bad[-1][1]
        reason = f"{len(bad)} samples in a row are bad; the last, {last.path}:{last.sample}: {last.why}"
        raise UserError(key="data", reason=reason, fix=UNUSABLE if all(error.intact for _, error in bad) else DAMAGED)

    def load_batch(self, positions: Sequence[int]) -> tuple[list[Loaded], dict[str, torch.Tensor] | None]:
        """`load` of many positions, and what the teacher says of their samples, row by row (None: nothing is kept).

        Raises:
            UserError: as `load`.
        """
        epochs, places = np.divmod(np.asarray(positions), self.n)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = self.epoch_order(int(epoch))[places[epochs == epoch]]
        numbers = first_numbers(self.seed, epochs, indices)
        loaded: list[Loaded] = []
        for position, index, epoch, row in zip(positions, indices.tolist(), epochs.tolist(), numbers.tolist(), strict=True):
            try:
                loaded.append((self._item(index, epoch, row), []))
            except CorruptSample:
                loaded.append(self._readable(position))
        return loaded, None if self.taught is None else self.taught.read([item for item, _ in loaded])

    def epoch_order(self, epoch: int) -> np.ndarray:
        """``order`` of an epoch, kept for the two that a batch may straddle."""
        if epoch not in self._orders:
            self._orders[epoch] = order(self.n, self.seed, epoch, shards=self._shards, window=self.shuffle_window)
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def locate(self, index: int) -> tuple[Split, int]:
        """The split that holds sample ``index``, and its number there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.splits[number], index - int(self._ends[number]) + len(self.splits[number])

    def _item(self, index: int, epoch: int, numbers: Sequence[float] | None = None) -> dict[str, Any]:
        """A sample as it appears in an epoch, without what the teacher says; ``numbers``: its `first_numbers`, if known."""
        key, stratum, captions, picture = self._record(index)
        rng = None
        if numbers is None or (self.views is None and not self._fixed):  # the transform goes on with this generator
            rng = generator(self.seed, epoch, index)
            numbers = [rng.random() for _ in range(1 if self.views is None else 2)]
        choice, view = int(numbers[0] * len(captions)), 0
        if self.views is not None:
            view = int(numbers[1] * self.views)
            rng = None if self._fixed else generator(_VIEWS, view, index)
        image = picture if self._fixed else self.transform(picture, rng)  # type: ignore[arg-type]  # (3, H, W)
        return {
            "image": image,
            "text": self._tokens(captions[choice]),
            "index": index,
            "key": key,
            "stratum": stratum,
            "view": view,
            "caption": choice,
        }

    def all_views(self, index: int) -> tuple[list[str], torch.Tensor]:
        """Captions of a sample, and its picture as the transform leaves it in each of its views, (views, 3, H, W).

        Raises:
            CorruptSample: it cannot be read.
        """
        _, _, captions, picture = self._record(index)
        views = range(self.views or 1)
        seen = [picture if self._fixed else self.transform(picture, generator(_VIEWS, view, index)) for view in views]
        return captions, torch.stack(seen)

    def _record(self, index: int) -> tuple[str, str | None, list[str], Any]:
        """Key, stratum, captions and decoded picture of a sample; the picture transformed, if that is always the same."""
        if (cached := self._cache.get(index)) is not None:
            return cached
        split, i = self.locate(index)
        record, encoded = split.read_raw(i)
        captions = record.get("captions")
        if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
            raise split.corrupt(i, "it has no caption to train on")
        try:
            picture = decode_image(encoded, self.max_pixels)
        except ValueError as error:
            raise split.corrupt(i, str(error)) from None
        # Pillow keeps RGB in four bytes a pixel; the Python objects take about two kilobytes.
        size = 4 * picture.width * picture.height + sum(map(len, captions)) + 2000
        if self._fixed:
            transformed = self.transform(picture, generator(_VIEWS, 0, index))  # (3, H, W)
            size += transformed.nbytes - 4 * picture.width * picture.height
        result = (record["key"], record.get("stratum"), captions, transformed if self._fixed else picture)
        if size <= self._room:
            self._room -= size
            self._cache[index] = result
        return result

    def _make_token_cache(self) -> None:
        @lru_cache(maxsize=TOKEN_CACHE)
        def tokens(caption: str) -> torch.Tensor:
            return self.tokenizer([caption])[0]  # (context,)

        self._tokens = tokens

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tokens"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_token_cache()


def batches(
    stream: Stream, *, global_batch: int, rank: int = 0, world_size: int = 1, start_step: int = 0, steps: int, workers: int = 0
) -> Batches:
    """This rank's part of the global batches ``start_step`` .. ``start_step + steps - 1``.

    Rank r of batch k takes the positions [kG + r G / W, kG + (r + 1) G / W).

    Args:
        global_batch: samples in a step over all ranks, G.
        rank: number of this process, r.
        world_size: number of processes, W.
        start_step: first batch, for resuming.
        steps: number of batches.
        workers: data-loader processes; 0 reads in a thread of this one.

    Raises:
        UserError: the batch cannot be divided among the ranks.
    """
    if global_batch < 1 or global_batch % world_size:
        raise UserError(
            key="training.global_batch",
            value=global_batch,
            reason=f"cannot be divided among {world_size} ranks",
            fix=f"use a multiple of {world_size}",
        )
    return Batches(stream, global_batch, rank, world_size, start_step, steps, workers)


class Batches:
    """Iterable over a rank's batches: ``image`` (b, 3, H, W) float32, ``text`` (b, context) int64, ``index`` (b,) int64,
    ``keys`` and ``stratum`` (lists of b); ``taught``, tensors of b rows, where the teacher's outputs are read from disk.
    Counts bad samples in ``stream.bad``, wherever they were met."""

    def __init__(
        self, stream: Stream, global_batch: int, rank: int, world_size: int, start_step: int, steps: int, workers: int
    ) -> None:
        self.stream, self.steps, self.workers = stream, steps, workers
        local = global_batch // world_size
        first = [step * global_batch + rank * local for step in range(start_step, start_step + steps)]
        self.positions = [range(start, start + local) for start in first]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._ahead() if self.workers == 0 else self._loader():
            self.stream.bad.add(batch.pop("read"), batch.pop("bad"))
            if (error := batch.pop("error")) is not None:
                raise error
            yield batch

    def _ahead(self) -> Iterator[dict[str, Any]]:
        """Each batch is read by a thread while the one before is trained on: torch computes without the interpreter's lock."""
        read = _Loaded(self.stream).__getitems__
        with ThreadPoolExecutor(1, "data") as thread:
            following = None
            for positions in self.positions:
                current, following = following, thread.submit(read, positions)
                if current is not None:
                    yield current.result()
            if following is not None:
                yield following.result()

    def _loader(self) -> Iterator[dict[str, Any]]:
        return load(
            _Loaded(self.stream),
            self.workers,
            "training.workers",
            batch_sampler=self.positions,  # ranges serve as lists
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            # Its own, or the start of an iteration would draw from the global one, and a resumed run from other random numbers.
            generator=torch.Generator(),
        )


class _Loaded(Dataset):
    """``Stream.load_batch`` for a data loader. A user's error travels as a value: torch would turn it into a RuntimeError."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        try:
            loaded, taught = self.stream.load_batch(positions)
        except UserError as error:
            return {"read": len(positions), "bad": [], "error": error}
        batch = collate([item for item, _ in loaded], self.stream.transform, taught)
        return {**batch, "read": len(loaded), "bad": [entry for _, bad in loaded for entry in bad], "error": None}


def _as_it_is(batch: Any) -> Any:
    return batch


def collate(
    items: list[dict[str, Any]], transform: Transform, taught: Mapping[str, torch.Tensor] | None = None
) -> dict[str, Any]:
    """Join items of ``Stream.load`` into a batch and normalise its pictures; ``taught`` are rows of all of them."""
    batch = {
        "image": transform.batch(torch.stack([item["image"] for item in items])),  # (b, 3, H, W)
        "text": torch.stack([item["text"] for item in items]),  # (b, context)
        "index": torch.tensor([item["index"] for item in items], dtype=torch.int64),  # (b,)
        "keys": [item["key"] for item in items],
        "stratum": [item["stratum"] for item in items],
    }
    if taught is not None:
        batch["taught"] = dict(taught)
    elif "taught" in items[0]:
        names = items[0]["taught"]
        batch["taught"] = {name: torch.stack([item["taught"][name] for item in items]) for name in names}
    return batch
