"""What the figures share: which run and split they show, its levels, checked arrays, numbers over seeds, types of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from cmapkd.errors import UserError, nearest
from cmapkd.paper.cells import CAPTION, Cell, Parent, number_of
from cmapkd.paper.context import TEACHER, PaperContext, PaperRun
from cmapkd.paper.metrics import Metrics

LEVELS = {"visual": ("P2", "P3", "P4", "P5"), "language": ("L1", "L2", "L3", "L4")}
TITLES = {"visual": "Visual pyramid, P2 fine to P5 coarse", "language": "Language hierarchy, L1 token to L4 global"}
STRATA = ("simple", "complex", "fine", "abstract")  # the order in which sample types are shown; others follow by name
QUARTERS = ("easiest quarter", "second quarter", "third quarter", "hardest quarter")
Z95 = 1.959964  # standard normal quantile of a 95 % interval
AGAIN = "evaluate the run again"


@dataclass(frozen=True)
class Series:
    """One array of a run at every configured seed, with the parent of each."""

    values: tuple[np.ndarray, ...]
    parents: tuple[Parent, ...]

    @property
    def mean(self) -> np.ndarray:
        return np.mean(self.values, axis=0)


@dataclass(frozen=True)
class Types:
    """Sample types: names in order, the place of each sample's type among them (-1: none), and how they are defined."""

    names: tuple[str, ...]
    of: np.ndarray  # (N,) int
    parents: tuple[Parent, ...]
    definition: str

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each type with the mask of its samples, (N,)."""
        for place, name in enumerate(self.names):
            yield name, self.of == place


def first_split(context: PaperContext, name: str) -> str:
    """The split whose arrays the figures show.

    Raises:
        UserError: no retrieval split is evaluated.
    """
    if not context.retrieval:
        raise UserError(
            key="evaluation.retrieval", value=[], reason=f"{name} needs a test split", fix="name one, or leave the figure out"
        )
    return context.retrieval[0]


def run_with(
    context: PaperContext, metrics: Metrics, name: str, array: str, what: str, configured: tuple[str, str], preferred: str = ""
) -> PaperRun:
    """The run that a figure shows: the configured one, else the preferred one or the first that recorded ``array``.

    Args:
        configured: key of the configuration and its value; "" leaves the choice to this function.

    Raises:
        UserError: the configured run does not exist, or recorded no such array, or no run did.
    """
    runs = {run.name: run for run in context.runs}
    key, value = configured
    if value:
        if value not in runs:
            raise UserError(key=key, value=value, reason="is not a run", fix=nearest(value, list(runs)))
        if array not in metrics.arrays(value, context.seeds[0], f"{name} / {value}"):
            reason, fix = f"recorded no {what}, which {name} shows", f"name another run, or leave {name} out"
            raise UserError(key=key, value=value, reason=reason, fix=fix)
        return runs[value]
    for candidate in sorted(runs, key=lambda run: run != preferred):  # stable: the others keep their order
        if array in metrics.arrays(candidate, context.seeds[0], f"{name} / {candidate}"):
            return runs[candidate]
    raise UserError(key="paper.figures", value=name, reason=f"no run recorded {what}", fix=f"leave {name} out")


def levels_of(metrics: Metrics, run: str, seed: int, split: str, name: str) -> dict[str, tuple[str, ...]]:
    """The levels a run has: those it recorded; all of them where none are recorded by name."""
    arrays = metrics.arrays(run, seed, f"{name} / {run} / levels")
    found = {tower: tuple(n for n in names if f"levels/{split}/student/{n}" in arrays) for tower, names in LEVELS.items()}
    return found if all(found.values()) else dict(LEVELS)


def series(metrics: Metrics, run: str, seeds: Sequence[int], array: str, shape: tuple[int | None, ...], name: str) -> Series:
    """An array at every seed, as float64; None in ``shape`` is any positive size, the same at every seed.

    Raises:
        UserError: an array is missing, of another shape, or holds a number that is not finite.
    """
    values, parents = [], []
    for seed in seeds:
        value, parent = metrics.array(run, seed, array, f"{name} / {run} / {array}")
        value = checked(value, shape, parent, name)
        shape = value.shape
        values.append(value)
        parents.append(parent)
    return Series(tuple(values), tuple(parents))


def checked(values: np.ndarray, shape: tuple[int | None, ...], parent: Parent, name: str) -> np.ndarray:
    """The array as float64, if it has that shape (None: any positive size) and is finite.

    Raises:
        UserError: otherwise.
    """
    where = f"{' / '.join(parent.keys)} (needed for {name})"
    fits = len(values.shape) == len(shape) and all(b in (None, a) for a, b in zip(values.shape, shape, strict=True))
    if not fits or not values.size:
        text = f"({', '.join('any' if size is None else str(size) for size in shape)})"
        raise UserError(key=parent.file, value=values.shape, reason=f"{where}: the shape should be {text}", fix=AGAIN)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(key=parent.file, reason=f"{where}: holds a number that is not finite", fix=AGAIN)
    return values


def weights_of(
    context: PaperContext, metrics: Metrics, run: str, split: str, tower: str, size: tuple[int | None, int], name: str
) -> Series:
    """ALSN's weights of one tower, (N, levels) at each seed; each sample's add up to one.

    Raises:
        UserError: missing, of another shape, not finite, or not adding up.
    """
    found = series(metrics, run, context.seeds, f"alsn/{split}/{tower}", size, name)
    for value, parent in zip(found.values, found.parents, strict=True):
        if np.abs(value.sum(axis=1) - 1).max(initial=0) > 1e-3:
            reason = f"{' / '.join(parent.keys)}: the weights of a sample do not add up to one"
            raise UserError(key=parent.file, reason=reason, fix=AGAIN)
    return found


def margin_of(context: PaperContext, metrics: Metrics, split: str, name: str) -> tuple[np.ndarray, Parent]:
    """The teacher's retrieval margin of each picture, (N,): the lower, the harder."""
    margin, parent = metrics.array(TEACHER, context.teacher_seed, f"retrieval/{split}/margin", f"{name} / difficulty")
    return checked(margin, (None,), parent, name), parent


def types_of(context: PaperContext, metrics: Metrics, split: str, name: str) -> Types:
    """Sample types: the data set's strata; where it has fewer than two, quarters of the teacher's retrieval margin."""
    array = f"retrieval/{split}/stratum"
    if array in metrics.arrays(TEACHER, context.teacher_seed, f"{name} / types"):
        strata, parent = metrics.array(TEACHER, context.teacher_seed, array, f"{name} / types")
        present = sorted({str(stratum) for stratum in strata} - {""})
        if len(present) >= 2:
            names = tuple(sorted(present, key=lambda n: (STRATA.index(n) if n in STRATA else len(STRATA), n)))
            of = np.array([names.index(str(stratum)) if stratum else -1 for stratum in strata])
            return Types(names, of, (parent,), "the data set's strata")
    margin, parent = margin_of(context, metrics, split, name)
    rank = np.argsort(np.argsort(-margin, kind="stable"), kind="stable")  # 0: easiest
    definition = "quarters of the teacher's retrieval margin, as the data set names no strata"
    names = QUARTERS[: len(margin)]
    return Types(names, rank * len(names) // len(margin), (parent,), definition)


def mean_cell(values: Sequence[float], parents: Sequence[Parent], recipe: str) -> Cell:
    """Mean and sample standard deviation of one number at each seed."""
    values = [float(value) for value in values]
    deviation = stdev(values) if len(values) >= 2 else None
    return Cell(fmean(values), len(values), tuple(parents), deviation, f"{recipe}, mean over seeds")


def single_cell(value: float, parents: Sequence[Parent], recipe: str) -> Cell:
    """One number made of all its parents at once."""
    return Cell(float(value), 1, tuple(parents), None, recipe)


def caption_cells(metrics: Metrics, run: str, split: str, name: str) -> dict[str, dict[str, Cell]]:
    """What every caption states: the pictures of the split."""
    keys = ("retrieval", split, "all", "images")
    return {CAPTION: {"images": metrics.common([run], keys, f"{name} / {CAPTION} / images")}}


def seeds_text(context: PaperContext) -> str:
    return f"mean of {len(context.seeds)} seeds" if len(context.seeds) > 1 else f"seed {context.seeds[0]}"


def signed(cell: Cell, decimals: int = 2) -> str:
    """A number with its sign, as typeset; what rounds to zero has none."""
    text = number_of(cell.value, decimals)
    return minus(text) if text.startswith("-") or float(text) == 0 else f"+{text}"


def minus(text: str) -> str:
    return text.replace("-", "−")


def probability(cell: Cell) -> str:
    """``p = 0.042``, or a bound for what is smaller than its last digit."""
    return f"p = {cell.value:.3f}" if cell.value >= 0.001 else "p < 0.001"


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in np.ravel(values)]


def matrix(values: np.ndarray) -> list[list[float]]:
    return [rounded(row) for row in values]


def standard_error(values: np.ndarray) -> float:
    """Of the mean of ``values`` (n,); NaN for fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) >= 2 else math.nan


def bootstrap_interval(values: np.ndarray, repeats: int = 2000) -> tuple[float, float] | None:
    """95 % percentile interval of the mean of ``values`` (n,), samples drawn again; None for fewer than two."""
    if len(values) < 2:
        return None
    generator = np.random.default_rng(0)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(repeats)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
