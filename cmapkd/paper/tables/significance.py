"""Appendix: the full method and its relatives against the best baseline in the main number of each task, and what can be seen.

The detectable differences say what this test set and this number of seeds can show at all: smaller ones are missed more
often than once in five times.
"""

from __future__ import annotations

from cmapkd.errors import UserError, nearest
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Parent, Row, Table
from cmapkd.paper.context import PaperContext, PaperRun, Task
from cmapkd.paper.metrics import PERCENT, Metrics
from cmapkd.paper.queries import Keys, Queries
from cmapkd.paper.significance import baselines, best, compared_runs, enough_resamples, procedure
from cmapkd.paper.statistics import Comparison, detectable, holm
from cmapkd.paper.tables.common import column_key, conditions, short, vqa_measure

NAME = "significance"
MAIN: dict[Task, dict[str, str]] = {  # task -> metric -> what it is called
    "retrieval": {"mean_recall": "Mean recall"},
    "vqa": {"overall": "VQA accuracy"},
    "zeroshot": {"top1": "Zero-shot top-1", "top5": "Zero-shot top-5"},
}
POWER = 0.8


def build(context: PaperContext, metrics: Metrics) -> Table:
    """One row for each run of the full method's kind and each main number. Percentage points.

    Raises:
        UserError: the full run is missing, there is no baseline or no test split, or an array does not fit.
    """
    family, rivals = _runs(context)
    wanted = _wanted(context)
    students, splits = context.students(), {str(task): found for task, found in context.splits.items()}
    queries = Queries(context, metrics, [run.name for run in students])
    samples = queries.samples(list(wanted), NAME)
    rows: list[Row] = []
    cells: dict[str, dict[str, Cell]] = {}
    compared: list[tuple[str, Comparison, tuple[Parent, ...]]] = []
    for keys, heading in wanted.items():
        if keys[0] == "vqa":
            heading = heading.replace(MAIN["vqa"]["overall"], vqa_measure(metrics, keys[1], students[0].name, NAME))
        values = {
            run.name: metrics.mean(run.name, keys, f"{NAME} / {run.name} / {keys[3]}", bounds=PERCENT).value for run in students
        }
        rival = next(run for run in students if run.name == best(values, rivals))
        for run in family:
            key = f"{run.name} {column_key(keys[3], keys[1], splits[keys[0]])}"
            rows.append(Row(key, f"{run.shown} − {rival.shown}", method=run.method, note=rival.note, section=heading))
            parents = queries.parents(keys, f"{NAME} / {key}")
            pair = tuple(parent for parent in parents if parent.run in (run.name, rival.name))
            found = compared_runs(queries, samples[keys], run.name, rival.name)
            compared.append((key, found, parents))
            cells[key] = {"difference": _difference(found, pair, run, rival)}
    enough_resamples(context, len(compared), NAME)
    corrected = holm([found.p for _, found, _ in compared])
    alpha = 1 - context.bootstrap.level
    level, share = f"{alpha:.2g}", f"{100 * context.bootstrap.level:g} %"
    for (key, found, parents), p in zip(compared, corrected, strict=True):
        single, together = (detectable(found.error, found.freedom, a, POWER) for a in (alpha, alpha / len(compared)))
        numbers = {
            "low": (found.low, f"lower end of the {share} interval of the difference"),
            "high": (found.high, f"upper end of the {share} interval of the difference"),
            "p": (found.p, "two-sided p of no difference"),
            "corrected": (p, f"p corrected for {len(compared)} tests (Holm)"),
            "error": (found.error, "standard error of the difference"),
            "detectable": (single, f"found with power {POWER:g} at level {level}"),
            "detectable_corrected": (together, f"found with power {POWER:g} at level {level} / {len(compared)}"),
        }
        cells[key] |= {column: Cell(value, 1, parents, recipe=recipe) for column, (value, recipe) in numbers.items()}

    def column(key: str, header: str, group: str = "", decimals: int = 2, signed: bool = False) -> Column:
        return Column(key, header, group, direction="", decimals=decimals, ranked=False, signed=signed)

    columns = (
        column("difference", "Δ", signed=True),
        column("low", "from", f"{share} interval", signed=True),
        column("high", "to", f"{share} interval", signed=True),
        column("p", "single", "p", decimals=4),
        column("corrected", "Holm", "p", decimals=4),
        column("error", "error", "standard"),
        column("detectable", "single", "detectable Δ"),
        column("detectable_corrected", "corrected", "detectable Δ"),
    )
    cells[CAPTION] = {}
    caption = _caption(context, rows, cells, len(compared))
    title = "Differences to the best baseline"
    return Table(NAME, title, caption, tuple(rows), (Panel("", columns),), cells)


def _runs(context: PaperContext) -> tuple[list[PaperRun], list[str]]:
    """Runs of the full run's method among the methods, and the names of their baselines."""
    students = context.students()
    full = next((run for run in students if run.name == context.full_run), None)
    if full is None:
        raise UserError(
            key="paper.full_run",
            value=context.full_run,
            reason=f"is not a run of the group `method`; {NAME} compares it with the baselines",
            fix=nearest(context.full_run, [run.name for run in students]),
        )
    family = [run for run in students if run.method == full.method]
    if len(family) == len(students):
        raise UserError(key="runs", reason=f"{NAME} needs a run of another method", fix="add one, or leave the table out")
    return family, baselines(context, students)


def _wanted(context: PaperContext) -> dict[Keys, str]:
    """Where the main numbers lie, and their headings."""
    wanted: dict[Keys, str] = {
        (task, split, "all", metric): f"{what}: {short(context.label(split, task))}"
        for task, metrics in MAIN.items()
        for split in context.splits[task]
        for metric, what in metrics.items()
    }
    if not wanted:
        raise UserError(key="evaluation", reason=f"{NAME} needs a test split", fix="name one, or leave the table out")
    return wanted


def _difference(found: Comparison, parents: tuple[Parent, ...], run: PaperRun, rival: PaperRun) -> Cell:
    seeds = len(found.of_seeds)
    return Cell(
        value=found.difference,
        n=seeds,
        parents=parents,
        std=float(found.of_seeds.std(ddof=1)) if seeds >= 2 else None,
        recipe=f"{run.name} - {rival.name} over the same queries at the same seed, mean over seeds",
    )


def _caption(context: PaperContext, rows: list[Row], cells: dict[str, dict[str, Cell]], tests: int) -> str:
    first = rows[0]
    single, corrected = (cells[first.key][column] for column in ("detectable", "detectable_corrected"))
    cells[CAPTION] |= {"detectable": single, "detectable_corrected": corrected}
    seeds = len(context.seeds)
    trained = f"{seeds} seeds" if seeds > 1 else "one seed"
    return (
        f"Percentage points, each run minus the baseline that is best by mean in that number. {procedure(context)[0].upper()}"
        f"{procedure(context)[1:]}; corrected over {tests} tests (Holm). Detectable: the true difference that a test at level "
        f"{1 - context.bootstrap.level:.2g}, alone or corrected, finds in {100 * POWER:g} % of cases. With this test set and "
        f"{trained} that is {single.value:.2f} and {corrected.value:.2f} points of {first.section[0].lower()}"
        f"{first.section.partition(':')[0][1:]} ({first.label}). {conditions(context)}"
    )
