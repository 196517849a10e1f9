"""Divides the images of one folder or table into splits: by a hash of each key, near duplicates on one side.

An image's split depends on its own key alone (and on those of its near duplicates), so it stays where it is when others are
added. Near duplicates (``cmapkd.data.overlap.alike``) and images with equal bytes form groups, directly or through others. A
group belongs to the split of its smallest key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from cmapkd.data.overlap import Fingerprints, alike, hash_picture

ORDER = ("test", "val")  # intervals of the hash, from 0: another share of `val` leaves `test` as it is


@dataclass(frozen=True, slots=True)
class Division:
    """What is in which split.

    Attributes:
        splits: split of each key.
        grouped: keys that have a near duplicate.
    """

    splits: Mapping[str, str]
    grouped: frozenset[str]

    def count_together(self, split: str) -> int:
        """How many images of a split have a near duplicate."""
        return sum(self.splits[key] == split for key in self.grouped)


def split_of(key: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of a key: SHA-256 of the seed and the key as a number in [0, 1), compared with the shares."""
    number = int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64
    edge = 0.0
    for name in ORDER:
        edge += shares.get(name, 0.0)
        if number < edge:
            return name
    return "train"


def divide(images: Iterable[tuple[str, bytes | None]], shares: Mapping[str, float], seed: int, distance: int) -> Division:
    """Divide images into splits, one image in memory at a time.

    Args:
        images: unique key and encoded image (PNG or JPEG), or None where there is no usable one.
        shares: of `val` and `test`; the rest is `train`.
        seed: of the hash.
        distance: perceptual hashes that differ by no more are near duplicates [bits of 64].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    found, hashes, hashed = Fingerprints("own"), [], []
    first: dict[bytes, int] = {}
    equal: list[tuple[int, int]] = []
    for number, (key, data) in enumerate(tqdm(images, desc="dividing into splits", unit=" images", disable=None)):
        value = hash_picture(data) if data is not None else None
        found.keys.append(key)
        hashes.append(value or (0, 0))
        hashed.append(value is not None)
        if data is not None:  # images without contrast have no perceptual hash
            equal.append((first.setdefault(hashlib.sha256(data).digest(), number), number))
    found.hashes, found.hashed = np.asarray(hashes, np.uint64).reshape(-1, 2), np.asarray(hashed, bool)
    rows, columns, _, _ = alike(found, found, distance)
    same = np.asarray(equal, np.int64).reshape(-1, 2)
    rows, columns = np.concatenate([rows, same[:, 0]]), np.concatenate([columns, same[:, 1]])
    count = len(found.keys)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[str]] = {}
    for key, label in zip(found.keys, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(key)
    splits = {key: split for keys in groups.values() for split in (split_of(min(keys), shares, seed),) for key in keys}
    return Division(splits, frozenset(key for keys in groups.values() if len(keys) > 1 for key in keys))
