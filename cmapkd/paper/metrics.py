"""Strict reading of metric files: what is missing, truncated, doubled, edited by hand or not a number stops the paper.

Every message names the file and the cell that needs it; nothing is printed from such a file.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from cmapkd.errors import DamagedFileError, UserError, nearest
from cmapkd.files import parse_json, read_json
from cmapkd.paper.cells import Cell, Parent
from cmapkd.paper.context import TEACHER, PaperContext

if TYPE_CHECKING:
    import numpy as np

PERCENT = (0.0, 100.0)
POSITIVE = (0.0, math.inf)
REQUIRED = {"run": str, "seed": int, "metrics": dict, "per_query": dict, "provenance": dict}
Bounds = tuple[float, float]


@dataclass(frozen=True)
class MetricFile:
    """A metric file that was read once, as a whole: the digest is that of exactly the bytes that were parsed."""

    path: Path
    file: str  # relative to the results directory
    sha256: str
    run: str
    seed: int
    content: Mapping[str, Any]
    again: str = "evaluate the run again"  # what makes the file again

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.content["provenance"]

    @property
    def arrays_path(self) -> Path:
        return self.path.parent / self.content["per_query"]["file"]

    def parent(self, keys: Sequence[str]) -> Parent:
        return Parent(file=self.file, sha256=self.sha256, run=self.run, seed=self.seed, keys=tuple(keys))


class Metrics:
    """Metric files of an experiment, read when a cell first needs them.

    ``cell`` arguments name the number that is being made (``table2 / CMAPKD / i2t_r1``); they only appear in messages.
    """

    def __init__(self, context: PaperContext) -> None:
        self.context = context
        self._files: dict[tuple[str, int], MetricFile] = {}
        self._arrays: dict[tuple[str, int], Mapping[str, np.ndarray]] = {}
        self._data: dict[str, tuple[str, str]] = {}  # data set -> (digest, file that first named it)
        self._claims = self._scan()

    def _scan(self) -> dict[tuple[str, int], list[Path]]:
        """Every file below ``metrics/`` by the run and seed it claims: two files for one cell are found wherever they lie."""
        claims: dict[tuple[str, int], list[Path]] = {}
        for path in sorted((self.context.results / "metrics").glob("*/*.json")):
            if path.name.startswith("."):
                continue  # a file that is just being written
            try:
                content = read_json(path, dict)
                key = (content["run"], content["seed"])
                claims.setdefault(key, []).append(path)
            except (ValueError, KeyError, TypeError):
                continue  # reported with its cell when a cell needs it
        return claims

    def file(self, run: str, seed: int, cell: str) -> MetricFile:
        """The metric file of a run and seed, completely checked.

        Raises:
            UserError: missing, unreadable, of another run or seed, doubled, without its per-query file, or of other data than
                the rest.
        """
        if (run, seed) in self._files:
            return self._files[run, seed]
        path = self.context.metric_file(run, seed)
        claims = self._claims.get((run, seed), [])
        others = [str(claim) for claim in claims if claim != path]
        if not path.is_file():
            present = [s for s in self.context.seeds_of(run) if self.context.metric_file(run, s).is_file()]
            seeds = f"{len(present)} of {len(self.context.seeds_of(run))} configured seeds are there"
            elsewhere = f"; {', '.join(others)} says it is this one" if others else ""
            raise _error(path, f"is missing ({seeds}{elsewhere})", cell, f"make it: {self.context.recompute(path)}")
        again = f"evaluate the run again: {self.context.recompute(path)}"
        if others:
            raise _error(
                path, f"two files for one cell: {', '.join(others)} is of {run}, seed {seed}, too", cell, "keep one of them"
            )
        raw = path.read_bytes()
        content = _parse(raw, path, cell, again)
        if (content["run"], content["seed"]) != (run, seed):
            found = f"{content['run']}, seed {content['seed']}"
            raise _error(
                path, f"is of {found}, not of {run}, seed {seed}", cell, f"make it again: {self.context.recompute(path)}"
            )
        relative = self.context.relative(path)
        file = MetricFile(path, relative, hashlib.sha256(raw).hexdigest(), run, seed, content, again)
        self._check_arrays(file, cell)
        self._check_data(file, cell)
        self._files[run, seed] = file
        return file

    def files(self) -> list[MetricFile]:
        """Every file that was read, in the order of the tables."""
        order = {name: index for index, name in enumerate(self.context.directories)}
        return sorted(self._files.values(), key=lambda file: (order[file.run], file.seed))

    def number(self, run: str, seed: int, keys: Sequence[str], cell: str, bounds: Bounds | None = None) -> tuple[float, Parent]:
        """One number below ``metrics`` of a file, with its parent.

        Raises:
            UserError: missing key, not a number, NaN, infinite, or outside ``bounds``.
        """
        file = self.file(run, seed, cell)
        value = _descend(file, keys, cell)
        where = " / ".join(keys)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _error(file.path, f"{where} is {value!r}, not a number", cell, file.again)
        if not math.isfinite(value):
            raise _error(file.path, f"{where} is {value}, not a finite number", cell, file.again)
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            raise _error(file.path, f"{where} is {value}, outside {bounds[0]:g} to {bounds[1]:g}", cell, file.again)
        return float(value), file.parent(("metrics", *keys))

    def has(self, run: str, seed: int, keys: Sequence[str], cell: str) -> bool:
        """Whether a file has anything at ``keys`` below ``metrics``."""
        value: Any = self.file(run, seed, cell).content["metrics"]
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return False
            value = value[key]
        return True

    def text(self, run: str, seed: int, keys: Sequence[str], cell: str) -> str:
        """One non-empty text below ``metrics``."""
        file = self.file(run, seed, cell)
        value = _descend(file, keys, cell)
        if not isinstance(value, str) or not value:
            raise _error(file.path, f"{' / '.join(keys)} is {value!r}, not a text", cell, file.again)
        return value

    def mean(self, run: str, keys: Sequence[str], cell: str, *, scale: float = 1.0, bounds: Bounds | None = None) -> Cell:
        """Mean and sample standard deviation over the configured seeds of ``scale`` times a number."""
        found = [self.number(run, seed, keys, cell, bounds) for seed in self.context.seeds_of(run)]
        recipe = "mean over seeds" if scale == 1.0 else f"mean over seeds x {scale:g}"
        return _cell([scale * value for value, _ in found], [parent for _, parent in found], recipe)

    def against_teacher(
        self,
        run: str,
        keys: Sequence[str],
        cell: str,
        formula: Callable[[float, float], float],
        recipe: str,
        bounds: Bounds | None = None,
    ) -> Cell:
        """Mean over seeds of ``formula(teacher, student)``; the teacher's file is a parent too."""
        teacher, origin = self.number(TEACHER, self.context.teacher_seed, keys, cell, bounds)
        found = [self.number(run, seed, keys, cell, bounds) for seed in self.context.seeds_of(run)]
        try:
            values = [formula(teacher, value) for value, _ in found]
        except ZeroDivisionError:
            file = self.file(run, self.context.seeds_of(run)[0], cell)
            raise _error(file.path, f"{' / '.join(keys)} is zero here or in the teacher's file", cell, file.again) from None
        return _cell(values, [origin, *(parent for _, parent in found)], recipe)

    def combined(
        self,
        run: str,
        keys: Sequence[Sequence[str]],
        cell: str,
        formula: Callable[[list[float]], float],
        recipe: str,
        bounds: Bounds | None = None,
    ) -> Cell:
        """Mean over seeds of ``formula`` of several numbers of one file; each number is a parent."""
        values, parents = [], []
        for seed in self.context.seeds_of(run):
            found = [self.number(run, seed, path, cell, bounds) for path in keys]
            values.append(formula([value for value, _ in found]))
            parents += [parent for _, parent in found]
        return _cell(values, parents, f"{recipe}, mean over seeds")

    def names(self, run: str, seed: int, keys: Sequence[str], cell: str) -> list[str]:
        """Names of what is at ``keys`` below ``metrics``, in the file's order.

        Raises:
            UserError: nothing is there, or a single value.
        """
        file = self.file(run, seed, cell)
        value = _descend(file, keys, cell)
        if not isinstance(value, dict):
            raise _error(file.path, f"{' / '.join(keys)} is {value!r}, not a group of values", cell, file.again)
        return list(value)

    def difference(self, run: str, other: str, keys: Sequence[str], cell: str, bounds: Bounds | None = None) -> Cell:
        """Mean over seeds of a run's number minus that of another run at the same seed; both files are parents."""
        values, parents = [], []
        for seed in self.context.seeds_of(run):
            value, parent = self.number(run, seed, keys, cell, bounds)
            reference, origin = self.number(other, seed, keys, cell, bounds)
            values.append(value - reference)
            parents += [parent, origin]
        return _cell(values, parents, f"run - {other} at the same seed, mean over seeds")

    def common(self, runs: Sequence[str], keys: Sequence[str], cell: str) -> Cell:
        """A number on which all files agree (the size of a test set): a comparison over different test sets is refused."""
        first: tuple[float, Parent] | None = None
        parents = []
        for run in runs:
            for seed in self.context.seeds_of(run):
                value, parent = self.number(run, seed, keys, cell, POSITIVE)
                first = first or (value, parent)
                parents.append(parent)
                if value != first[0]:
                    path = self.context.metric_file(run, seed)
                    where = " / ".join(keys)
                    reason = (
                        f"{where} is {value:g}, but {first[0]:g} in {first[1].file}: "
                        "the runs were not evaluated on the same data"
                    )
                    raise _error(path, reason, cell, "evaluate them again")
        if first is None:
            raise UserError(key=cell, reason="no run to read it from")
        return Cell(value=first[0], n=1, parents=tuple(parents), recipe="the same in every file")

    def arrays(self, run: str, seed: int, cell: str) -> Mapping[str, np.ndarray]:
        """Per-query arrays of a run and seed; their digest was checked against the metric file."""
        import numpy as np

        if (run, seed) not in self._arrays:
            file = self.file(run, seed, cell)
            raw = file.arrays_path.read_bytes()
            try:
                with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
                    self._arrays[run, seed] = {name: archive[name] for name in archive.files}
            except (ValueError, OSError) as error:
                raise _error(file.arrays_path, f"cannot be read: {error}", cell, file.again) from error
        return self._arrays[run, seed]

    def array(self, run: str, seed: int, name: str, cell: str) -> tuple[np.ndarray, Parent]:
        """One per-query array and its parent (the array file).

        Raises:
            UserError: if the array is missing.
        """
        arrays = self.arrays(run, seed, cell)
        file = self.file(run, seed, cell)
        if name not in arrays:
            raise _error(file.arrays_path, f"has no array {name!r}; {nearest(name, sorted(arrays))}", cell, file.again)
        relative = self.context.relative(file.arrays_path)
        return arrays[name], Parent(relative, file.content["per_query"]["sha256"], run, seed, (name,))

    def testable(self, runs: Sequence[str]) -> bool:
        """Whether differences of these runs can be tested: their arrays are required, but where kept results are verified."""
        return True

    def _check_arrays(self, file: MetricFile, cell: str) -> None:
        entry = file.content["per_query"]
        for key in ("file", "sha256"):
            if not isinstance(entry.get(key), str):
                raise _error(file.path, f"per_query / {key} is missing", cell, file.again)
        if Path(entry["file"]).name != entry["file"]:
            raise _error(file.path, f"per_query / file is {entry['file']!r}, not a file beside it", cell, file.again)
        path = file.arrays_path
        if not path.is_file():
            if self.context.kept:
                raise _error(path, "is not kept: these are kept results, without per-query arrays", cell, _made_by(file))
            raise _error(path, f"is missing; {file.path.name} names it as its per-query results", cell, file.again)
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != entry["sha256"]:
            reason = f"has SHA-256 {actual[:12]}, but {file.path.name} says {entry['sha256'][:12]}: one of the two was changed"
            raise _error(path, reason, cell, file.again)

    def _check_data(self, file: MetricFile, cell: str) -> None:
        """Runs in one table must rest on the same data."""
        digests = file.provenance.get("data_digests")
        if not isinstance(digests, dict):
            raise _error(file.path, "provenance / data_digests is missing", cell, file.again)
        for dataset, value in digests.items():
            known, first = self._data.setdefault(dataset, (value, file.file))
            if known != value:
                reason = (
                    f"rests on {dataset} with digest {str(value)[:12]}, {first} on {str(known)[:12]}: "
                    "runs of different data in one table"
                )
                raise _error(file.path, reason, cell, "compute both from the same data")


def _cell(values: list[float], parents: list[Parent], recipe: str) -> Cell:
    return Cell(
        value=fmean(values),
        std=stdev(values) if len(values) >= 2 else None,
        n=len(values),
        parents=tuple(parents),
        recipe=recipe,
    )


def _parse(raw: bytes, path: Path, cell: str, again: str) -> dict[str, Any]:
    try:
        content = parse_json(raw, str(path))
    except DamagedFileError as error:
        what = "is empty" if not raw.strip() else f"is truncated or not valid JSON: {error.reason}"
        raise _error(path, what, cell, again) from error
    if not isinstance(content, dict):
        raise _error(path, "is not a JSON object", cell, again)
    for key, kind in REQUIRED.items():
        if key not in content:
            raise _error(path, f"{key} is missing", cell, again)
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise _error(path, f"{key} is {content[key]!r}, not of type {kind.__name__}", cell, again)
    return content


def _made_by(file: MetricFile) -> str:
    return f"make the results with them: {file.again.partition(': ')[2]}"


def _descend(file: MetricFile, keys: Sequence[str], cell: str) -> Any:
    value: Any = file.content["metrics"]
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            known = nearest(key, [str(name) for name in value]) if isinstance(value, dict) and value else "nothing is there"
            where = " / ".join(("metrics", *keys[: depth + 1]))
            raise _error(file.path, f"{where} is missing; {known}", cell, file.again)
        value = value[key]
    return value


def _error(path: Path, reason: str, cell: str, fix: str = "") -> UserError:
    return UserError(key=str(path), reason=f"{reason} (needed for {cell})", fix=fix)
