"""Random access to the samples of a split, and what to do about those that cannot be read.

A read is one ``os.pread`` for the picture and one for its record, at the places that the shard's index names, so it
costs the same anywhere in the data set and descriptors may be shared by forked data-loader workers. The CRC-32 in the
index finds any damage, also in JPEG, whose decoder would show a flipped bit as a slightly different picture.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from cmapkd.data.index import read_index
from cmapkd.data.sample import Question, Sample
from cmapkd.data.shards import read_manifest
from cmapkd.errors import UserError, nearest

log = logging.getLogger(__name__)

# Open shards (descriptor and index) kept for each split; well below the usual limit of 1024 open files. A shuffle window
# should span fewer shards than this, or indices are parsed again and again.
OPEN_SHARDS = 256
NAME = 100  # bytes at the start of a tar header: the member's name


DAMAGED = "run `cmapkd data build` again: it rewrites damaged shards and keeps the others"
UNUSABLE = (
    "the shard is as it was built, so building it again does not help: complete or take out these samples in the data set's "
    "source (its manifest counts them, e.g. as `without_caption`), then build"
)


class CorruptSample(UserError):  # noqa: N818 - it names the sample, and a stream carries on after it
    """A sample that cannot be read: which shard, which key (or number, when the index is lost), and why."""

    def __init__(self, path: str, sample: str, reason: str, *, intact: bool = False) -> None:
        self.path, self.sample, self.why, self.intact = path, sample, reason, intact
        super().__init__(key="sample", value=f"{path}:{sample}", reason=reason, fix=UNUSABLE if intact else DAMAGED)

    def __reduce__(self) -> tuple[object, ...]:
        return (_corrupt_sample, (self.path, self.sample, self.why, self.intact))


def _corrupt_sample(path: str, sample: str, reason: str, intact: bool) -> CorruptSample:
    return CorruptSample(path, sample, reason, intact=intact)


@dataclass
class BadSamples:
    """Counts unreadable samples against all that were read, and stops the run when they are too many.

    The share is ``distinct bad / min(size, max(read, 10 / limit))``. Below ``10 / limit`` reads a share says little (one
    bad sample among the first hundred is 1 %), so until then the run stops at the eleventh; but a set with fewer samples
    is judged by its size, and later epochs count a bad sample once.

    Attributes:
        size: samples in the data set.
        limit: the share of bad samples that is tolerated.
        read: samples read so far.
        found: the bad ones, by their index in the data set.
    """

    size: int
    limit: float = 0.001
    read: int = 0
    found: dict[int, CorruptSample] = field(default_factory=dict)

    @property
    def samples(self) -> list[CorruptSample]:
        """The bad samples in the order in which they were met."""
        return list(self.found.values())

    @property
    def share(self) -> float:
        """Bad samples as a share of those read (see the class)."""
        floor = 10 / self.limit if self.limit > 0 else self.size
        return len(self.found) / max(1, min(self.size, max(self.read, floor)))

    def add(self, read: int, bad: Sequence[tuple[int, CorruptSample]]) -> None:
        """Count ``read`` samples, ``bad`` of which (index, what is wrong) could not be read.

        Raises:
            UserError: the share of bad samples exceeds the limit; the message names them.
        """
        self.read += read
        for index, error in bad:
            if index not in self.found:
                self.found[index] = error
                log.warning("bad sample %s:%s: %s (replaced by a neighbour)", error.path, error.sample, error.why)
        if self.share > self.limit:
            shown = "; ".join(f"{e.path}:{e.sample} ({e.why})" for e in self.samples[:5])
            more = f" and {len(self.found) - 5} more" if len(self.found) > 5 else ""
            raise UserError(
                key="data",
                reason=f"{len(self.found)} of {min(self.read, self.size)} samples read are bad, more than the limit of "
                f"{self.limit:.2%}: {shown}{more}",
                fix=f"{UNUSABLE if all(e.intact for e in self.samples) else DAMAGED}; or raise the limit of bad samples",
            )

    def report(self) -> dict[str, Any]:
        """JSON-able summary for logs and provenance."""
        listed = [{"shard": e.path, "sample": e.sample, "reason": e.why} for e in self.samples]
        return {"read": self.read, "bad": len(self.found), "limit": self.limit, "samples": listed}


class _Shard:
    """An open shard: descriptor, size and the arrays of its index."""

    def __init__(self, path: Path, expected: dict[str, Any]) -> None:
        index = read_index(path)
        if index["sha256"] != expected["sha256"] or index["samples"] != expected["samples"]:
            raise ValueError("its index describes another shard than the manifest")
        self.keys: np.ndarray = np.asarray(index["keys"], dtype="S")  # compact: millions of them may be open
        self.extensions: list[str] = index["extensions"]
        if len(set(self.extensions)) == 1:
            self.extensions = self.extensions[:1]
        self.images: np.ndarray = np.asarray(index["images"], dtype=np.int64).reshape(-1, 3)
        self.records: np.ndarray = np.asarray(index["records"], dtype=np.int64).reshape(-1, 3)
        self.bytes = int(index["bytes"])
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def key(self, i: int) -> str:
        return str(self.keys[i].decode())

    def extension(self, i: int) -> str:
        return self.extensions[i] if len(self.extensions) > 1 else self.extensions[0]

    def member(self, place: np.ndarray, what: str, name: str) -> bytes:
        """Content of a member whose header, the block before it, has this name: else the index is of another sample."""
        offset, size, crc = place.tolist()
        if offset < BLOCKSIZE or size < 0 or offset + size > self.size:
            raise ValueError(f"{what} lies beyond the end of the shard, which has {self.size} of {self.bytes} bytes")
        read = os.pread(self.descriptor, BLOCKSIZE + size, offset - BLOCKSIZE)
        if len(read) != BLOCKSIZE + size:
            raise ValueError(f"{what}: {max(0, len(read) - BLOCKSIZE)} of {size} bytes could be read")
        found = read[:NAME].partition(b"\0")[0].decode(errors="replace")
        if found != name:
            raise ValueError(f"{what}: the index leads to {found!r}")
        data = memoryview(read)[BLOCKSIZE:].tobytes()
        if zlib.crc32(data) != crc:
            raise ValueError(f"{what} is damaged (CRC-32 differs from the index)")
        return data

    def close(self) -> None:
        os.close(self.descriptor)


class Split:
    """The samples of one split by number, in the order in which they were written.

    Args:
        directory: the data set's directory (with ``manifest.json``).
        split: name of the split.

    Raises:
        UserError: no manifest, or no such split.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self.directory, self.split = Path(directory), split
        self.manifest = read_manifest(directory)
        if split not in self.manifest["splits"]:
            raise UserError(
                key="split",
                value=split,
                reason=f"data set {self.manifest['dataset']!r} has no such split",
                fix=nearest(split, list(self.manifest["splits"])),
            )
        record = self.manifest["splits"][split]
        self.name = f"{self.manifest['dataset']}/{split}"
        self.digest: str = self.manifest["digest"]
        self.strata: dict[str, int] = record["strata"]
        self._entries: list[dict[str, Any]] = record["shards"]
        self.shards: list[str] = [entry["path"] for entry in self._entries]
        self.shard_sizes: list[int] = [entry["samples"] for entry in self._entries]
        self._ends = np.cumsum(self.shard_sizes)
        self._shards: OrderedDict[int, _Shard | str] = OrderedDict()  # a str: why the shard cannot be opened

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, i: int) -> Sample:
        """Sample number ``i``, 0 <= i < len.

        Raises:
            CorruptSample: names shard, key and reason.
        """
        record, image = self.read_raw(i)
        try:
            questions = [Question(**question) for question in record.pop("questions")]
            return Sample(image=image, questions=questions, **record)
        except (TypeError, KeyError) as error:
            raise CorruptSample(self._path(i), str(record.get("key")), f"the record lacks a field: {error}") from None

    def read_raw(self, i: int) -> tuple[dict[str, Any], bytes]:
        """Parsed record and encoded picture of sample ``i``, without building a ``Sample`` (for the training stream)."""
        number, row = self._locate(i)
        shard = self._shard(number)
        if isinstance(shard, str):
            raise CorruptSample(self._path(i), f"number {row}", shard)
        try:
            key = shard.key(row)
            image = shard.member(shard.images[row], "the picture", f"{key}.{shard.extension(row)}")
            record = json.loads(shard.member(shard.records[row], "the record", f"{key}.json"))
        except OSError as error:
            raise CorruptSample(self._path(i), shard.key(row), f"cannot be read: {error.strerror}") from None
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            reason = str(error) if type(error) is ValueError else f"the record is not JSON: {error}"
            raise CorruptSample(self._path(i), shard.key(row), reason) from None
        if not isinstance(record, dict) or record.get("key") != shard.key(row):
            raise CorruptSample(self._path(i), shard.key(row), "the record belongs to another sample")
        return record, image

    def corrupt(self, i: int, reason: str) -> CorruptSample:
        """The error for a sample whose bytes are intact but unusable (a picture that does not decode, no caption)."""
        number, row = self._locate(i)
        shard = self._shard(number)
        name = f"number {row}" if isinstance(shard, str) else shard.key(row)
        return CorruptSample(self._path(i), name, reason, intact=True)

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)} in {self.name}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        return number, i - int(self._ends[number]) + self.shard_sizes[number]

    def _path(self, i: int) -> str:
        return str(self.directory / self._entries[self._locate(i)[0]]["path"])

    def _shard(self, number: int) -> _Shard | str:
        if (shard := self._shards.get(number)) is not None:
            self._shards.move_to_end(number)
            return shard
        entry = self._entries[number]
        opened: _Shard | str
        try:
            opened = _Shard(self.directory / entry["path"], entry)
        except OSError as error:
            opened = f"the shard cannot be opened: {error.strerror}"
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            opened = str(error) if type(error) is ValueError else f"its index is damaged: {error}"
        self._shards[number] = opened
        if len(self._shards) > OPEN_SHARDS:
            _, oldest = self._shards.popitem(last=False)
            if isinstance(oldest, _Shard):
                oldest.close()
        return opened

    def close(self) -> None:
        """Close all descriptors; reading again reopens them."""
        while self._shards:
            _, shard = self._shards.popitem()
            if isinstance(shard, _Shard):
                shard.close()

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors mean nothing in a spawned worker: it opens its own.
        return {**self.__dict__, "_shards": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_shards"):
            self.close()
