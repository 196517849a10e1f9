"""Verify results that `cmapkd paper keep` copied: all that is there, without what is not kept.

A kept tree has the metric files, the JSON of tables and figures, macros and a page; it has no per-query arrays, models, data or
LaTeX. So its files are compared with the digests that were written with them (``kept.json``), every number with its metric
file, every cell with what the metric files give, and the page with the tables. What only arrays or models would give (tests,
figures) is not computed, but counted by kind (``Findings.gone``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.paper.build import numbers_text, read_part
from cmapkd.paper.context import KEPT_FILE, PaperContext
from cmapkd.paper.findings import Findings
from cmapkd.paper.markdown import render_page
from cmapkd.paper.metrics import MetricFile, Metrics

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
DIFFERS = 1e-6  # [percentage points] between a test's difference and that of the cells


class NotKept(UserError):  # noqa: N818 - what cannot be computed here, and is no mistake
    """Something that needs arrays which are not kept."""


class KeptMetrics(Metrics):
    """Metric files whose arrays may be missing."""

    def _check_arrays(self, file: MetricFile, cell: str) -> None:
        if file.arrays_path.is_file():
            super()._check_arrays(file, cell)

    def arrays(self, run: str, seed: int, cell: str) -> Any:
        path = self.file(run, seed, cell).arrays_path
        if not path.is_file():
            raise NotKept(key=str(path), reason="is not kept")
        return super().arrays(run, seed, cell)

    def testable(self, runs: Sequence[str]) -> bool:
        files = [self.file(run, seed, "tests") for run in runs for seed in self.context.seeds_of(run)]
        return all(file.arrays_path.is_file() for file in files)


def check_list(context: PaperContext, findings: Findings) -> None:
    """Every file is the one that was kept, where `cmapkd paper keep` wrote their digests."""
    path = context.results / KEPT_FILE
    if not path.is_file():
        return
    fix = f"keep the results again: {keeping(context)}"
    with findings.reading(path, fix):
        for name, sha256 in (findings.json(path, fix) or {"files": {}})["files"].items():
            findings.same(context.results / name, sha256, KEPT_FILE, fix)


def keeping(context: PaperContext) -> str:
    """The command that keeps an experiment's results again in the same place."""
    return context.command("paper", "keep", str(context.results))


def check_array(context: PaperContext, findings: Findings, part: Path, cell: str, parent: Mapping[str, Any], fix: str) -> None:
    """Of an array file that is not kept, a parent has the digest that the metric file beside it names."""
    file = context.metric_file(parent["run"], parent["seed"])
    content = findings.json(file, fix)
    if content is None:
        return
    findings.counts["digests"] += 1
    if content["per_query"]["sha256"] != parent["sha256"]:
        findings.problem(part, f"a parent is another {parent['file']} than {file.name} names", fix, cell)


def check_tests(context: PaperContext, findings: Findings, path: Path, content: Mapping[str, Any], fix: str) -> None:
    """Tests cannot be computed without arrays; the differences that they are of are those of the cells."""
    for parent in content.get("tests", {}).get("parents", ()):
        if parent["file"].endswith(".npz"):
            check_array(context, findings, path, f"{path.stem} / tests", parent, fix)
    for test in content.get("tests", {}).get("tests", ()):
        first, second = (content["cells"][test[key]][test["column"]]["value"] for key in ("row", "against"))
        if not math.isclose(test["difference"], first - second, abs_tol=DIFFERS):
            reason = f"a test is of the difference {test['difference']!r}, its cells give {first - second!r}"
            findings.problem(path, reason, fix, f"{path.stem} / {test['row']} / {test['column']}")
        if not (test["low"] <= test["difference"] <= test["high"] and 0 <= test["p"] <= test["corrected"] <= 1):
            findings.problem(path, "a test's interval or p values do not fit each other", fix, f"{path.stem} / {test['row']}")


def check_pages(context: PaperContext, findings: Findings, metrics: Metrics) -> None:
    """Macros and the page say what the tables say."""
    there = [name for name in context.all_parts if (context.paper / f"{name}.json").is_file()]
    path, fix = context.paper / "numbers.tex", f"make it again: {context.recompute(context.paper / 'numbers.tex')}"
    if not findings.gone(path, "LaTeX files"):
        with findings.reading(path, fix):
            findings.counts["files"] += 1
            given, right = (_macros(text, there) for text in (path.read_text(encoding="utf-8"), numbers_text(context, there)))
            for line in dict.fromkeys((*given, *right)):
                if (line in given) != (line in right):
                    findings.problem(path, f"{'has' if line in given else 'lacks'} the line {line!r}", fix)
    page, fix = context.results / "README.md", f"keep the results again: {keeping(context)}"
    if findings.gone(page, "pages"):
        return
    try:
        with findings.reading(page, fix):
            findings.counts["files"] += 1
            made = render_page(context, metrics, [read_part(context, name) for name in context.all_tables])
            found = _rows(page.read_text(encoding="utf-8"))
            for row in (row for row in _rows(made) if row not in found):
                findings.problem(page, f"lacks the row {' '.join(row)!r} of its tables", fix)
    except UserError as error:
        findings.refused(error)


def _macros(text: str, names: Sequence[str]) -> dict[str, None]:
    """Lines that define the numbers of tables and figures."""
    lines = (line for line in text.splitlines() if line.startswith(("\\cmapkd@set{value}", "\\cmapkd@set{std}")))
    return dict.fromkeys(line for line in lines if line.split("{")[2].rstrip("}") in names)


def _rows(text: str) -> list[tuple[str, ...]]:
    """First cell and numbers of each row of the tables of a page, however they are marked."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [(cells[0], *NUMBER.findall(" ".join(cells[1:]))) for cells in rows]
