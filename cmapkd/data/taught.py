"""What the teacher says of the training samples, read from disk: the files that ``cmapkd/training/teacher_cache.py`` writes.

One safetensors file holds what is said of the samples of one shard, in the shard's order (a map is quantised by itself, so any
row can be read alone). Names of tensors, for n samples with k views and m captions in all:

- ``valid`` (n,): 0 for a sample that could not be read, ``captions`` (n + 1,): where those of a sample start;
- ``image`` (n, k, E), ``text`` (m, E): normalised embeddings;
- ``P2`` .. ``P5`` (n, k, C, g, g): laterals of the teacher's pyramid, from which its levels are rebuilt; in int8 with
  ``P2.scale`` .. (n, k, C): a scale for each channel of each sample; ``language`` (m, 4, D): the language levels.

The files are mapped into memory and rows are copied out of them, in the processes that also decode pictures.
"""

from __future__ import annotations

import json
import mmap
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmapkd.data.split import Split
from cmapkd.errors import UserError
from cmapkd.files import read_json

SCALE = ".scale"
OF_CAPTIONS = frozenset({"text", "language"})  # the others are of pictures
MAPS = ("P2", "P3", "P4", "P5")
RESULT = "stage.json"
OPEN_FILES = 256
_TYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8, "I64": np.int64}


def file_of(split: Split, shard: int) -> str:
    """Path, within the cache, of what is said of a shard of a split."""
    return f"{split.name}/{Path(split.shards[shard]).stem}.safetensors"


def quantise(maps: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """``maps`` (n, C, h, w) as int8 and the scale of each channel, (n, C) fp32: the largest value of a channel becomes 127."""
    scale = maps.float().abs().amax(dim=(-2, -1)).clamp(min=torch.finfo(torch.float32).tiny) / 127  # (n, C)
    values = (maps.float() / scale[..., None, None]).round_().clamp_(-127, 127).to(torch.int8)
    return values.cpu().numpy(), scale.cpu().numpy()


class Taught:
    """Random access to the cached outputs of the teacher.

    Args:
        caches: directory of the stage that wrote each part.
        names: tensors that are wanted.
        splits: training data, in the order of the stream.

    Raises:
        UserError: a cache is missing, incomplete, or was made from other data or another teacher than those that are there now.
    """

    def __init__(self, caches: Mapping[str, Path], names: Sequence[str], splits: Sequence[Split]) -> None:
        self.names = tuple(names)
        self._files: list[list[Path]] = []  # of each shard, those of all parts
        files = [file_of(split, number) for split in splits for number in range(len(split.shard_sizes))]
        for directory in caches.values():
            _check(directory, files, splits)
        self._files = [[directory / file for directory in caches.values()] for file in files]
        self._ends = np.cumsum([size for split in splits for size in split.shard_sizes])
        self._open: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()

    def read(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What is said of samples by their ``index``, ``view`` and ``caption``: copies, a row for each of them.

        Raises:
            UserError: there is nothing about a sample, although it can be read now.
        """
        indices, views, captions = (np.array([item[name] for item in items]) for name in ("index", "view", "caption"))
        numbers = np.searchsorted(self._ends, indices, side="right")
        found: dict[str, np.ndarray] = {}
        for number in np.unique(numbers).tolist():
            arrays = self._shard(number)
            places = np.flatnonzero(numbers == number)
            rows = indices[places] - int(self._ends[number]) + len(arrays["valid"])
            self._check_rows(number, rows[arrays["valid"][rows] == 0])
            texts = arrays["captions"][rows] + captions[places]
            for name in (*self.names, *(name + SCALE for name in self.names if name + SCALE in arrays)):
                part = arrays[name][texts] if name in OF_CAPTIONS else arrays[name][rows, views[places]]
                if name not in found:
                    found[name] = np.empty((len(items), *part.shape[1:]), part.dtype)
                found[name][places] = part
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _check_rows(self, number: int, missing: np.ndarray) -> None:
        if len(missing):
            file = self._files[number][0]
            raise UserError(
                key="teacher.cache",
                value=str(file),
                reason=f"holds nothing about sample {missing[0]} of its shard, which could not be read when the cache was made",
                fix=f"remove {file.parents[2]} and run again",
            )

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        arrays: dict[str, np.ndarray] = {}
        for file in self._files[number]:
            arrays |= read_arrays(file)
        self._open[number] = arrays
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a spawned worker maps the files itself


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as arrays that are mapped, not read.

    The library's own slices take ten times as long for a row, and a step reads several for each of its samples.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8 : 8 + length])
    header.pop("__metadata__", None)
    arrays = {}
    for name, about in header.items():
        first, last = about["data_offsets"]
        kind = np.dtype(_TYPES[about["dtype"]])
        flat = np.frombuffer(mapped, kind, (last - first) // kind.itemsize, offset=8 + length + first)
        arrays[name] = flat.reshape(about["shape"])
    return arrays


def restored(batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The values themselves: quantised maps times their scales."""
    values = {name: value.to(dtype) for name, value in batch.items() if not name.endswith(SCALE)}
    for name in values:
        if (scale := batch.get(name + SCALE)) is not None:
            values[name] = values[name] * scale.to(dtype)[..., None, None]
    return values


def _check(directory: Path, files: Sequence[str], splits: Sequence[Split]) -> None:
    result = directory / RESULT
    if not result.is_file():
        raise UserError(key="teacher.cache", value=str(directory), reason="is not there, or not finished", fix="make it first")
    content = read_json(result, data=dict, rests_on=dict, bytes=dict)
    reason = None
    data = {split.name.partition("/")[0]: split.digest for split in splits}
    if content["data"] != data:
        reason = "was made from other shards than those that are there now"
    for parent, known in content["rests_on"].items():
        before = directory.parent / parent / RESULT
        if not before.is_file() or read_json(before, files=dict)["files"] != known:
            reason = f"was made by another teacher than the one that is there now ({parent})"
    for file in files:
        size = content["bytes"].get(file)
        if size is None or not (directory / file).is_file() or (directory / file).stat().st_size != size:
            reason = f"has no whole file {file}"
    if reason is not None:
        fix = f"remove {directory} and run again: it is made anew"
        raise UserError(key="teacher.cache", value=str(directory), reason=reason, fix=fix)
