"""What a table of results tests, and what bold means.

In each tested column every student is compared with the best baseline: the student of another method than the full run's whose
mean is highest. The best baseline itself, and whichever student is best of all, are compared with the best of all the other
students. In the ablation table the reference is the full method. Holm corrects over all tests of a table.

Bold is the student with the highest mean, if it is significantly better than the best of all the others. That the same data
choose the two does not make the test too lenient: as observed, the best of the others is at least as good as the truly best
one, and the gap between the two best of several equal runs is smaller than the difference of two given ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cmapkd.errors import UserError
from cmapkd.paper.cells import Difference, Table
from cmapkd.paper.queries import Keys, Queries
from cmapkd.paper.statistics import Comparison, Sample, compare, holm, seed_variance, smallest_p

if TYPE_CHECKING:
    from cmapkd.paper.context import PaperContext, PaperRun
    from cmapkd.paper.metrics import Metrics


def baselines(context: PaperContext, students: Sequence[PaperRun]) -> list[str]:
    """Names of the students of another method than the full run's; without such, or without a full run, of all of them."""
    family = next((run.method for run in context.runs if run.name == context.full_run), None)
    others = [run.name for run in students if run.method != family]
    return others or [run.name for run in students]


def best(values: Mapping[str, float], among: Sequence[str]) -> str:
    """The run with the highest mean, the first of equals."""
    return max(among, key=lambda run: values[run])


def with_tests(
    context: PaperContext, metrics: Metrics, table: Table, columns: Mapping[str, Keys], reference: str | None = None
) -> Table:
    """The table with its tests, and the sentence about them in its caption.

    Args:
        columns: key of each tested column -> where its number is in a metric file. Higher is better in all of them.
        reference: the run that all others are compared with; by default the best baseline of each column.

    Raises:
        UserError: an array does not fit its metrics or its siblings, or there are too few resamples for so many tests.
    """
    keys = [row.key for row in table.rows if not row.teacher]
    if len(keys) < 2 or not metrics.testable(keys):
        return table
    students = [run for run in context.runs if run.name in keys]
    queries = Queries(context, metrics, keys)
    samples = queries.samples(list(dict.fromkeys(columns.values())), table.name)
    pairs: list[tuple[str, str, str]] = []
    for column in columns:
        values = {row: table.cells[row][column].value for row in keys}
        pairs += [(run, other, column) for run, other in _pairs(values, reference, baselines(context, students))]
    compared = [compared_runs(queries, samples[columns[column]], run, other) for run, other, column in pairs]
    enough_resamples(context, len(pairs), table.name)
    alpha = 1 - context.bootstrap.level
    tests = []
    for pair, found, corrected in zip(pairs, compared, holm([one.p for one in compared]), strict=True):
        tests.append(
            Difference(*pair, found.difference, found.low, found.high, found.p, corrected, significant=corrected < alpha)
        )
    parents = dict.fromkeys(parent for name in columns.values() for parent in queries.parents(name, table.name))
    sentence = _sentence(context, len(tests), reference)
    return replace(table, caption=f"{table.caption} {sentence}", tests=tuple(tests), test_parents=tuple(parents))


def compared_runs(queries: Queries, sample: Sample, run: str, other: str) -> Comparison:
    """Two of the runs that were read, with the variance between seeds of all of them."""
    seeds = [queries.of(sample, name).value for name in queries.places]
    settings = queries.settings
    return compare(
        queries.of(sample, run),
        queries.of(sample, other),
        seed_variance(np.stack(seeds)),
        level=settings.level,
        seed=settings.seed,
    )


def enough_resamples(context: PaperContext, tests: int, table: str) -> None:
    """With few resamples the smallest p that they can give is still too large after correction: then no test means anything."""
    alpha = 1 - context.bootstrap.level
    if tests * smallest_p(context.bootstrap.samples) >= alpha:
        raise UserError(
            key="paper.bootstrap.samples",
            value=context.bootstrap.samples,
            reason=f"{table} has {tests} tests: with so few resamples none of them could reach the level",
            fix=f"at least {int(4 * tests / alpha)}",
        )


def _pairs(values: Mapping[str, float], reference: str | None, among: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs to compare in one column, each once."""
    runs = list(values)
    target = reference or best(values, among)
    pairs = [(run, target) for run in runs if run != target]
    for run in (best(values, runs), *([] if reference else [target])):
        other = best(values, [name for name in runs if name != run])
        if (run, other) not in pairs and (other, run) not in pairs:
            pairs.append((run, other))
    return pairs


def _sentence(context: PaperContext, tests: int, reference: str | None) -> str:
    rival = "the full method" if reference else "the best baseline"
    return (
        "Bold: best student by mean, if significantly better than the next; underlined: second by mean. "
        f"Each student is tested against {rival}: {procedure(context)}, Holm over {tests} tests, "
        f"level {1 - context.bootstrap.level:.2g}."
    )


def procedure(context: PaperContext) -> str:
    """What is resampled, in words."""
    resampled = f"paired bootstrap over images with their captions and questions ({context.bootstrap.samples:,} resamples"
    if len(context.seeds) == 1:
        return f"{resampled}; with one seed not over trainings, so nothing is said of another seed)"
    return f"{resampled}) and a t distribution for the spread between seeds, pooled over the students"
