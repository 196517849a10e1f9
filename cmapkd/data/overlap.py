"""Pictures that a distillation split and an evaluation split share, found by id and by perceptual hash.

**By id.** COCO, VQAv2 and half of Visual Genome are the same photographs, and their ids say so (``coco:391895``); Flickr30K,
COCO and Visual Genome name photographs on Flickr. This is exact. **By hash.** Two 64-bit hashes of each picture
(``ImageHash``): the perceptual hash (Zauner 2010, the signs of low frequencies) finds candidates within ``overlap_distance``
bits, and the difference hash (Krawetz 2013) has to agree within twice as many. A picture without contrast has no hash: any two
of them would match.

**Search.** Two numbers of 64 bits that differ in at most d bits agree wholly in one of d + 1 parts of theirs (pigeonhole;
Norouzi et al., "Fast search in Hamming space with multi-index hashing", CVPR 2012). So each part is joined by sorting, in
blocks, and only pairs that agree in one are compared: some millions in place of 118 K x 30 K.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from cmapkd.config.overlap import checked_splits, needs_overlap, overlap_settings
from cmapkd.config.schema import ExperimentConfig
from cmapkd.config.sources import PublicConfig
from cmapkd.config.uses import split_uses
from cmapkd.data.pixels import flatten
from cmapkd.data.sample import Sample
from cmapkd.data.sources import build_source
from cmapkd.data.sources.public.base import PublicSource
from cmapkd.errors import UserError
from cmapkd.files import digest, read_json, write_json

BITS = 64
CONTRAST = 4.0  # standard deviation of grey levels (0 .. 255) below which a picture has no hash
BLOCK = 1 << 20  # candidate pairs compared at a time
REPORT = "overlap.json"


@dataclass
class Fingerprints:
    """What the pictures of one split are known by.

    Attributes:
        split: ``<data set>/<split>``.
        keys: key of each picture.
        identities: ids of each picture in this and other data sets.
        hashes: (n, 2) uint64, perceptual and difference hash.
        hashed: (n,) bool, whether the picture has enough contrast for a hash.
    """

    split: str
    keys: list[str] = field(default_factory=list)
    identities: list[tuple[str, ...]] = field(default_factory=list)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    hashed: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


def read_fingerprints(split: str, samples: Iterable[Sample]) -> Fingerprints:
    """Fingerprints of all samples, one picture in memory at a time."""
    found, hashes, hashed = Fingerprints(split), [], []
    for sample in tqdm(samples, desc=f"hashing {split}", unit=" pictures", disable=None):
        value = hash_picture(sample.image)
        found.keys.append(sample.key)
        found.identities.append(tuple(sample.meta.get("identity", ())))
        hashes.append(value or (0, 0))
        hashed.append(value is not None)
    found.hashes, found.hashed = np.asarray(hashes, np.uint64).reshape(-1, 2), np.asarray(hashed, bool)
    return found


def hash_picture(data: bytes) -> tuple[int, int] | None:
    """Perceptual and difference hash of an encoded picture; None if it has no contrast or cannot be decoded."""
    import imagehash

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large pictures: their size was checked before
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            image.draft("L", (256, 256))  # a JPEG is decoded at an eighth of its size where that is enough
            grey = image.convert("L") if image.mode in ("RGB", "L") else flatten(image).convert("L")
        except Exception:  # what cannot be decoded is counted where the shards are written
            return None
    small = grey.resize((64, 64), Image.Resampling.BOX)
    if float(np.asarray(small, np.float32).std()) < CONTRAST:
        return None
    # From one small picture, so that two sizes of the same photograph are first made alike.
    return int(str(imagehash.phash(small)), 16), int(str(imagehash.dhash(small)), 16)


def near_pairs(first: np.ndarray, second: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of two lists of 64-bit numbers that differ in at most ``distance`` bits.

    Args:
        first: (n,) uint64.
        second: (m,) uint64.
        distance: 0 .. 63 [bits].

    Returns:
        Indices into ``first`` and ``second`` and the distance of each pair, each (p,), sorted by the indices.
    """
    edges = np.linspace(0, BITS, distance + 2).round().astype(int)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        mask = np.uint64((1 << (high - low)) - 1)
        part, other = (first >> np.uint64(low)) & mask, (second >> np.uint64(low)) & mask
        order = np.argsort(other, kind="stable")
        starts = np.searchsorted(other[order], part, side="left")
        counts = np.searchsorted(other[order], part, side="right") - starts
        for i, j in _joined(starts, counts, order):
            near = np.bitwise_count(first[i] ^ second[j]) <= distance
            rows.append(i[near])
            columns.append(j[near])
    pairs = np.unique(np.stack([np.concatenate(rows), np.concatenate(columns)], axis=1), axis=0)  # (p, 2)
    i, j = pairs[:, 0], pairs[:, 1]
    return i, j, np.bitwise_count(first[i] ^ second[j]).astype(np.int64)


def _joined(starts: np.ndarray, counts: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a join, at most about ``BLOCK`` at a time: row i goes with ``order[starts[i] : starts[i] + counts[i]]``."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    for low in range(0, total, BLOCK):
        place = np.arange(low, min(low + BLOCK, total))
        i = np.searchsorted(ends, place, side="right")
        yield i, order[starts[i] + place - (ends[i] - counts[i])]


def alike(first: Fingerprints, second: Fingerprints, distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of images that both hashes call near duplicates.

    Returns:
        Indices into ``first`` and ``second`` and the distances of the perceptual and the difference hash, each (p,).
    """
    left, right = np.flatnonzero(first.hashed), np.flatnonzero(second.hashed)
    rows, columns, bits = near_pairs(first.hashes[left, 0], second.hashes[right, 0], distance)
    rows, columns = left[rows], right[columns]
    confirm = np.bitwise_count(first.hashes[rows, 1] ^ second.hashes[columns, 1]).astype(np.int64)
    both = confirm <= 2 * distance
    return rows[both], columns[both], bits[both], confirm[both]


def shared(train: Fingerprints, test: Fingerprints, distance: int) -> list[dict[str, Any]]:
    """Pictures of ``train`` that are in ``test`` too, with what tells so: an id, or the distances of both hashes."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    place: dict[str, list[int]] = {}
    for j, identities in enumerate(test.identities):
        for identity in identities:
            place.setdefault(identity, []).append(j)
    for i, identities in enumerate(train.identities):
        for identity in identities:
            for j in place.get(identity, ()):
                found.setdefault((i, j), {"by": "id", "id": identity})
    for i, j, near, second in zip(*(values.tolist() for values in alike(train, test, distance)), strict=True):
        about = found.setdefault((i, j), {"by": "hash"})
        about |= {"distance": near, "difference_hash": second}
    return [
        {"train": f"{train.split}:{train.keys[i]}", "test": f"{test.split}:{test.keys[j]}", **found[i, j]}
        for i, j in sorted(found)
    ]


def find_overlap(experiment: ExperimentConfig, cache: Path) -> dict[str, Any]:
    """Compare every distillation split with every evaluation split; JSON-able.

    Raises:
        UserError: a data set cannot be read.
    """
    trains, tests = checked_splits(experiment)
    sources = {ref: build_source(experiment.datasets[ref.partition("/")[0]], cache) for ref in (*trains, *tests)}
    read = {ref: read_fingerprints(ref, source.samples(ref.partition("/")[2])) for ref, source in sources.items()}
    pairs: list[dict[str, Any]] = []
    for train in trains:
        config = experiment.datasets[train.partition("/")[0]]
        assert isinstance(config, PublicConfig)
        for test in tests:
            if train == test:
                # To leave out all of it cannot be meant.
                then = "refuse" if config.overlap == "remove" else config.overlap
                pairs += [_itself(train, key, then) for key in read[train].keys]
                continue
            pairs += [{**pair, "then": config.overlap} for pair in shared(read[train], read[test], config.overlap_distance)]
    removed: dict[str, list[str]] = {}
    for pair in pairs:
        if pair["then"] == "remove":
            split, _, key = pair["train"].partition(":")
            removed.setdefault(split, []).append(key)
    return {
        "settings": digest(overlap_settings(experiment)),
        "pictures": {ref: len(found.keys) for ref, found in read.items()},
        "without_hash": {ref: int((~found.hashed).sum()) for ref, found in read.items()},
        "compared": [[train, test] for train in trains for test in tests],
        "counts": _counts(pairs),
        "removed": {split: sorted(set(keys)) for split, keys in removed.items()},
        "pairs": pairs,
    }


def _itself(split: str, key: str, then: str) -> dict[str, Any]:
    return {"train": f"{split}:{key}", "test": f"{split}:{key}", "by": "id", "then": then}


def _counts(pairs: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Pairs by the two splits and by what found them."""
    counts: dict[str, dict[str, int]] = {}
    for pair in pairs:
        splits = f"{pair['train'].partition(':')[0]} in {pair['test'].partition(':')[0]}"
        of = counts.setdefault(splits, {"id": 0, "hash": 0})
        of[pair["by"]] += 1
    return counts


def write_overlap(experiment: ExperimentConfig, cache: Path, path: Path) -> dict[str, Any]:
    """Find the overlap and keep the report; afterwards, refuse it where the configuration says so.

    Raises:
        UserError: a data set with ``overlap: refuse`` shares pictures with an evaluation split.
    """
    report = find_overlap(experiment, cache)
    write_json(path, report)
    refused = [pair for pair in report["pairs"] if pair["then"] == "refuse"]
    if refused:
        shown = "; ".join(f"{pair['train']} is {pair['test']} (by {pair['by']})" for pair in refused[:3])
        raise UserError(
            key="overlap",
            value="refuse",
            reason=f"{len(refused)} pictures of distillation splits are in evaluation splits: {shown}",
            fix=f"all are in {path}; `overlap: remove` leaves them out, or choose other splits",
        )
    return report


def removed_keys(experiment: ExperimentConfig, dataset: str, path: Path) -> Mapping[str, frozenset[str]]:
    """Keys of ``dataset`` to leave out, by split, from the report at ``path``.

    Raises:
        UserError: the report is missing, or one of other settings.
    """
    fix = "run `cmapkd data overlap` first"
    if not path.is_file():
        raise UserError(
            key="overlap", value=str(path), reason="this data set is distilled on and was not compared yet", fix=fix
        )
    report = read_json(path, settings=str, removed=dict)
    if report.get("settings") != digest(overlap_settings(experiment)):
        raise UserError(key="overlap", value=str(path), reason="was made for other data sets or options", fix=fix)
    found = ((name.partition("/"), keys) for name, keys in report["removed"].items())
    return {split: frozenset(keys) for (name, _, split), keys in found if name == dataset}


def source_without_overlap(experiment: ExperimentConfig, dataset: str, cache: Path, home: Path) -> Any:
    """The source of ``dataset``, with what its splits are for and which pictures to leave out if it is distilled on."""
    source = build_source(experiment.datasets[dataset], cache)
    if isinstance(source, PublicSource):
        source.uses = split_uses(experiment, dataset)
    if needs_overlap(experiment, dataset):
        assert isinstance(source, PublicSource)
        source.removed = removed_keys(experiment, dataset, home / "data" / REPORT)
    return source
