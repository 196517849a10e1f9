"""Per-query results as what the statistics resample: hits and queries of each picture, for several runs and seeds at once.

Every array is checked against its siblings (the same queries in every file) and every metric against the number in the metric
file, so that neither can have been edited by hand without the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cmapkd.errors import UserError
from cmapkd.paper.cells import Parent
from cmapkd.paper.metrics import PERCENT, Metrics
from cmapkd.paper.statistics import Ratio, Sample, mean_sample, resample

if TYPE_CHECKING:
    from cmapkd.paper.context import PaperContext

Keys = tuple[str, ...]  # where a number is below ``metrics``: (task, split, "all", metric)
RECALLS = tuple(f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))
KINDS = {"yes_no": "yes/no", "number": "number", "other": "other"}  # of questions, in metrics and in arrays
NAMES = {  # arrays of a task; those after the bar are the same in every file
    "retrieval": (("i2t_ranks", "t2i_ranks"), ("owner",)),
    "zeroshot": (("ranks",), ("label",)),
    "vqa": (("accuracy",), ("image", "type")),
}
TOLERANCE = 1e-6  # [percentage points] between a metric and what its queries give


class Queries:
    """Arrays of ``runs`` at all their seeds, and the metrics that they give on resampled queries."""

    def __init__(self, context: PaperContext, metrics: Metrics, runs: Sequence[str]) -> None:
        self.metrics = metrics
        self.settings = context.bootstrap
        self.trainings = [(run, seed) for run in runs for seed in context.seeds_of(run)]
        self.places = {run: [i for i, (name, _) in enumerate(self.trainings) if name == run] for run in runs}

    def samples(self, wanted: Sequence[Keys], cell: str) -> dict[Keys, Sample]:
        """Each metric of ``wanted`` of all trainings (T), measured and resampled.

        Raises:
            UserError: an array is missing, has a wrong shape or value, is of other queries than those of the other runs, or
                does not give the number in the metric file.
        """
        found: dict[Keys, Sample] = {}
        for task, split in dict.fromkeys((keys[0], keys[1]) for keys in wanted):
            here = [keys for keys in wanted if keys[:2] == (task, split)]
            parts = {keys: RECALLS if keys[3] == "mean_recall" else (keys[3],) for keys in here}
            names = list(dict.fromkeys(name for part in parts.values() for name in part))
            ratios = self._ratios(task, split, names, f"{cell} / {here[0][3]}")
            drawn = resample(ratios, self.settings.samples, self.settings.seed)
            by_name = dict(zip(names, drawn, strict=True))
            for keys, part in parts.items():
                found[keys] = mean_sample([by_name[name] for name in part]) if len(part) > 1 else by_name[part[0]]
                self._compare_with_files(keys, found[keys].value, cell)
        return found

    def of(self, sample: Sample, run: str) -> Sample:
        """The part of a sample that belongs to a run: its seeds, in order."""
        places = self.places[run]
        return Sample(sample.value[places], sample.draws[:, places])

    def parents(self, keys: Keys, cell: str) -> tuple[Parent, ...]:
        """The array files behind a metric of all trainings."""
        task, split = keys[:2]
        names = tuple(f"{task}/{split}/{name}" for group in NAMES[task] for name in group)
        found = []
        for run, seed in self.trainings:
            parent = self.metrics.array(run, seed, names[0], cell)[1]
            found.append(Parent(parent.file, parent.sha256, run, seed, names))
        return tuple(found)

    def _ratios(self, task: str, split: str, names: Sequence[str], cell: str) -> list[Ratio]:
        measured, shared = NAMES[task]
        common = {name: self._common(f"{task}/{split}/{name}", cell) for name in shared}
        arrays = {name: self._stack(f"{task}/{split}/{name}", cell) for name in measured}  # (T, queries)
        if task == "retrieval":
            owner = common["owner"]
            if arrays["t2i_ranks"].shape[1:] != owner.shape:
                raise self._error(f"{task}/{split}/owner", f"has {owner.shape}, t2i_ranks another shape", cell)
            if len(owner) == 0 or not np.array_equal(np.unique(owner), np.arange(arrays["i2t_ranks"].shape[1])):
                raise self._error(f"{task}/{split}/owner", "does not give every image a caption", cell)
        return [_ratio(task, name, arrays, common) for name in names]

    def _stack(self, name: str, cell: str) -> np.ndarray:
        """One array of all trainings, (T, queries), checked."""
        rows: list[np.ndarray] = []
        accuracy = name.endswith("/accuracy")
        for run, seed in self.trainings:
            array = self.metrics.array(run, seed, name, cell)[0]
            if array.ndim != 1 or not len(array) or array.dtype.kind not in ("f" if accuracy else "iu"):
                raise self._error(name, f"is of type {array.dtype}, shape {array.shape}", cell, run, seed)
            if rows and array.shape != rows[0].shape:
                reason = f"has {len(array)} queries, {len(rows[0])} in the file of {self.trainings[0][0]}"
                raise self._error(name, reason, cell, run, seed)
            if not ((array >= 0) & ((array <= 1) if accuracy else True)).all():  # NaN compares as false
                raise self._error(name, "holds a value that no query can have", cell, run, seed)
            rows.append(array)
        return np.stack(rows)

    def _common(self, name: str, cell: str) -> np.ndarray:
        """One array that is the same in every training."""
        first: np.ndarray | None = None
        for run, seed in self.trainings:
            array = self.metrics.array(run, seed, name, cell)[0]
            if first is not None and not np.array_equal(array, first):
                reason = f"is another than in the file of {self.trainings[0][0]}: they were not evaluated on the same queries"
                raise self._error(name, reason, cell, run, seed)
            first = array if first is None else first
        assert first is not None
        return first

    def _compare_with_files(self, keys: Keys, values: np.ndarray, cell: str) -> None:
        for (run, seed), value in zip(self.trainings, values, strict=True):
            name = f"{cell} / {run} / {keys[3]}"
            written, _ = self.metrics.number(run, seed, keys, name, PERCENT)
            if abs(written - value) > TOLERANCE:
                file = self.metrics.file(run, seed, name)
                raise UserError(
                    key=str(file.path),
                    reason=f"{' / '.join(keys)} is {written:g}, but the queries in {file.arrays_path.name} give {value:g}: "
                    f"one of the two was changed (needed for {name})",
                    fix=file.again,
                )

    def _error(self, name: str, reason: str, cell: str, run: str = "", seed: int = 0) -> UserError:
        run, seed = (run, seed) if run else self.trainings[0]
        file = self.metrics.file(run, seed, cell)
        return UserError(key=str(file.arrays_path), reason=f"{name} {reason} (needed for {cell})", fix=file.again)


def _ratio(task: str, name: str, arrays: dict[str, np.ndarray], common: dict[str, np.ndarray]) -> Ratio:
    """Hits and queries of each cluster: of each image with its captions, or with its questions."""
    cut = re.fullmatch(r"(?:(i2t|t2i)_r|top)(\d+)", name)
    if task == "vqa":
        chosen = np.ones(len(common["image"]), bool) if name == "overall" else common["type"] == KINDS[name]
        images, index = np.unique(common["image"], return_inverse=True)
        return _summed(arrays["accuracy"] * chosen, chosen, index, len(images))
    assert cut is not None, name
    best = int(cut[2])
    if cut[1] == "t2i":
        hits = arrays["t2i_ranks"] < best
        return _summed(hits, np.ones(hits.shape[1]), common["owner"], arrays["i2t_ranks"].shape[1])
    hits = arrays["i2t_ranks" if cut[1] else "ranks"] < best
    return Ratio(hits.astype(np.float64), np.ones(hits.shape[1]))


def _summed(hits: np.ndarray, sizes: np.ndarray, cluster: np.ndarray, count: int) -> Ratio:
    """Sums of (T, queries) and (queries,) over the queries of each cluster."""
    add = [np.bincount(cluster, weights=row, minlength=count) for row in (*hits, sizes)]
    return Ratio(np.stack(add[:-1]), add[-1])
