"""The paper's own files against what they were made from: every cell's parents, and everything made again in memory.

A value is compared to nine digits, for a rank correlation may round differently on another processor; LaTeX is compared byte
for byte. ``paper.pdf`` is not looked at: it is typeset from these files, by whichever TeX is installed.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import parse_json
from cmapkd.paper.algorithms import compute_algorithm
from cmapkd.paper.build import document_text, drawing_text, numbers_text, read_part, table_files
from cmapkd.paper.context import EXPERIMENT_FILE, PLANNED_FILE, PaperContext
from cmapkd.paper.figures import DRAWINGS, draw_figure, draw_tikz
from cmapkd.paper.findings import Findings
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import compute_table
from cmapkd.paper.verify_kept import KeptMetrics, NotKept, check_array, check_pages, check_tests
from cmapkd.plain_yaml import parse_yaml

RELATIVE = 1e-9
NUMBERS = ("cells", "texts")  # of a table's JSON, what arrays are not needed for
CHANGED = "tables of files that are elsewhere and changed since"


def check_parts(context: PaperContext, findings: Findings) -> None:
    """Tables, figures, macros and document."""
    metrics = KeptMetrics(context) if findings.kept else Metrics(context)
    parsed: dict[Path, Any] = {}
    for name in context.all_parts:
        path = context.paper / f"{name}.json"
        if name in context.algorithms and findings.gone(path, "algorithms"):
            continue
        fix = f"make it again: {context.recompute(path)}"
        with findings.reading(path, fix):
            try:
                _check_part(context, findings, metrics, parsed, path, read_part(context, name), fix)
            except UserError as error:
                findings.refused(error, name)
    if findings.kept:
        check_pages(context, findings, metrics)
        return
    for file, text_of in (
        ("numbers.tex", lambda: numbers_text(context)),
        ("paper.tex", lambda: document_text(context, metrics)),
    ):
        path = context.paper / file
        fix = f"make it again: {context.recompute(path)}"
        try:
            with findings.reading(path, fix):
                _same_text(findings, path, text_of(), fix)
        except UserError as error:
            findings.refused(error)


def _check_part(
    context: PaperContext,
    findings: Findings,
    metrics: Metrics,
    parsed: dict[Path, Any],
    path: Path,
    content: dict[str, Any],
    fix: str,
) -> None:
    """One table or figure: its cells, their parents, and itself made again."""
    name = path.stem
    findings.counts["files"] += 1
    for cell, entry in _cells(name, content):
        findings.counts["cells"] += 1
        _check_parents(context, findings, parsed, path, cell, entry, fix)
        _check_planned(context, findings, path, name, cell, entry)
    if name in context.all_tables:
        _remake(context, findings, metrics, name, path, content, fix)
        return
    if not content.get("parents"):
        findings.problem(path, "a figure or an algorithm without a parent", fix)
    for parent in content.get("parents", []):
        _check_parent(context, findings, parsed, path, name, parent, fix)
    if name in DRAWINGS or name in context.algorithms:
        _rewrite(context, findings, name, path, content, fix)
    else:
        _redraw(context, findings, metrics, name, path, content, fix)


def _cells(name: str, content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("cells", "texts"):
        for row, columns in content.get(kind, {}).items():
            for column, entry in columns.items():
                yield f"{name} / {row} / {column}", dict(entry)


# ---- parents --------------------------------------------------------------------------------------------------------------


def _check_parents(
    context: PaperContext,
    findings: Findings,
    parsed: dict[Path, Any],
    path: Path,
    cell: str,
    entry: Mapping[str, Any],
    fix: str,
) -> None:
    if not entry.get("parents"):
        findings.problem(path, "a number without a parent", fix, cell)
        return
    for parent in entry["parents"]:
        _check_parent(context, findings, parsed, path, cell, parent, fix)


def _check_parent(
    context: PaperContext, findings: Findings, parsed: dict[Path, Any], part: Path, cell: str, parent: Any, fix: str
) -> None:
    """The file has the digest it had, what was read is still there, and it is of a run and seed of this experiment."""
    if not isinstance(parent, Mapping) or not {"file", "sha256", "run", "seed", "keys"} <= set(parent):
        findings.problem(part, f"a parent that names no file, digest, run, seed and keys: {parent!r}", fix, cell)
        return
    findings.counts["parents"] += 1
    if parent["file"] == EXPERIMENT_FILE:
        findings.counts["digests"] += 1
        if parent["sha256"] != context.experiment_digest:
            findings.problem(part, f"runs or schedules of {EXPERIMENT_FILE} changed since it was made", fix, cell)
        return
    path = context.resolve(parent["file"])
    if findings.kept and not path.is_relative_to(context.results) and _elsewhere(findings, path, parent, part):
        return
    if findings.kept and path.suffix == ".npz":
        check_array(context, findings, part, cell, parent, fix)
    if not findings.same(path, parent["sha256"], part.name, fix, cell):
        return
    if parent["run"] is not None:
        known = parent["run"] in context.directories and parent["seed"] in context.seeds_of(parent["run"])
        if not known:
            reason = f"comes from {parent['run']}, seed {parent['seed']}, which is no run and seed of this experiment"
            findings.problem(part, reason, fix, cell)
        elif parent["file"].endswith(".json") and path != context.metric_file(parent["run"], parent["seed"]):
            findings.problem(part, f"a parent of {parent['run']}, seed {parent['seed']} lies in {parent['file']}", fix, cell)
    if not _holds(path, parent["keys"], parsed):
        findings.problem(path, f"has nothing at {' / '.join(map(str, parent['keys']))}", fix, cell)


def _elsewhere(findings: Findings, path: Path, parent: Mapping[str, Any], part: Path) -> bool:
    """Whether a file outside of kept results (values that a search found) is another one than then, as it may become."""
    if not path.is_file() or findings.sha256(path) != parent["sha256"]:
        findings.absent.setdefault(CHANGED, set()).add(part)
        return True
    return False


def _holds(path: Path, keys: list[str], parsed: dict[Path, Any]) -> bool:
    """Whether a JSON or YAML file has something at ``keys``; of arrays these are names, or beginnings of them up to a slash."""
    if path not in parsed:
        try:
            if path.suffix == ".npz":
                import numpy as np

                with np.load(path, allow_pickle=False) as archive:
                    parsed[path] = dict.fromkeys(archive.files)
            else:
                raw = path.read_bytes()
                parsed[path] = parse_json(raw, str(path)) if path.suffix == ".json" else parse_yaml(raw.decode(), str(path))
        except (OSError, ValueError, UserError):
            parsed[path] = None
    value = parsed[path]
    if path.suffix == ".npz":
        names = value or ()
        return all(any(name == key or name.startswith(f"{key}/") for name in names) for key in keys)
    for key in keys:
        if isinstance(value, list):
            value = {str(index): entry for index, entry in enumerate(value)}
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def _check_planned(
    context: PaperContext, findings: Findings, path: Path, name: str, cell: str, entry: Mapping[str, Any]
) -> None:
    """Planned numbers are marked as such, and stand in the appendix only."""
    from_plan = any(parent.get("file") == PLANNED_FILE for parent in entry.get("parents", []) if isinstance(parent, Mapping))
    if from_plan != bool(entry.get("planned", False)):
        reason = "comes from planned numbers but is not marked so" if from_plan else "is marked as planned, its parents are not"
        findings.problem(path, reason, f"make it again: {context.recompute(path)}", cell)
    if (from_plan or entry.get("planned")) and name not in context.appendix:
        fix = "set paper.planned to false, or move the table to paper.appendix"
        findings.problem(path, "shows planned numbers outside the appendix", fix, cell)


# ---- made again -----------------------------------------------------------------------------------------------------------


def _remake(
    context: PaperContext, findings: Findings, metrics: Metrics, name: str, path: Path, content: dict[str, Any], fix: str
) -> None:
    if path in findings.absent.get(CHANGED, ()):
        return
    try:
        if findings.kept:
            made = json.loads(json.dumps(compute_table(name, context, metrics).to_json()))
            check_tests(context, findings, path, content, fix)
            found, computed = ({key: table.get(key) for key in NUMBERS} for table in (content, made))
            _same_content(findings, path, name, found, computed, fix)
            return
        _, text, made = table_files(name, context, metrics)
    except NotKept:
        findings.absent.setdefault("tables of tests", set()).add(path)
        return
    except UserError as error:
        findings.refused(error, name)
        return
    _same_content(findings, path, name, content, made, fix)
    _same_text(findings, path.with_suffix(".tex"), text, fix)


def _rewrite(context: PaperContext, findings: Findings, name: str, path: Path, content: dict[str, Any], fix: str) -> None:
    """A drawing of what was configured, or an algorithm: its source; what LaTeX makes of it is not compared."""
    try:
        if name in DRAWINGS:
            drawing = draw_tikz(name, context)
            text, made = drawing_text(drawing), drawing.to_json()
        else:
            algorithm = compute_algorithm(name, context)
            text, made = algorithm.latex, algorithm.to_json()
    except UserError as error:
        findings.refused(error, name)
        return
    _same_content(findings, path, name, content, json.loads(json.dumps(made)), fix)
    _same_text(findings, path.with_suffix(".tex"), text, fix)


def _redraw(
    context: PaperContext, findings: Findings, metrics: Metrics, name: str, path: Path, content: dict[str, Any], fix: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="cmapkd-verify-") as directory:
        drawing = Path(directory) / f"{name}.pdf"
        try:
            made = draw_figure(name, context, metrics, drawing).to_json()
        except NotKept:
            findings.absent.setdefault("figures of arrays", set()).add(path)
            return
        except UserError as error:
            findings.refused(error, name)
            return
        _same_content(findings, path, name, content, json.loads(json.dumps(made)), fix)
        picture = path.with_suffix(".pdf")
        if findings.gone(picture, "drawings"):
            return
        if not picture.is_file():
            findings.problem(picture, "is missing", fix)
            return
        findings.counts["files"] += 1
        if picture.read_bytes() != drawing.read_bytes():
            reason = "is not what is drawn now from the same parents"
            findings.problem(picture, reason, f"a matplotlib that is not requirements.lock's draws other bytes; {fix}")


def _same_content(findings: Findings, path: Path, name: str, content: Any, made: Any, fix: str) -> None:
    """First the cells one by one, then whatever else the file says."""
    found = dict(_cells(name, content))
    expected = dict(_cells(name, made))
    wrong = False
    for cell in dict.fromkeys((*expected, *found)):
        if cell not in found or cell not in expected:
            reason = "lacks a cell that its parents give" if cell in expected else "has a cell that its parents do not give"
            findings.problem(path, reason, fix, cell)
            wrong = True
        elif (place := first_difference(found[cell], expected[cell])) is not None:
            key, given, right = place
            findings.problem(path, f"{key or 'cell'} is {given!r}, its parents give {right!r}", fix, cell)
            wrong = True
    if not wrong and (place := first_difference(content, made)) is not None:
        key, given, right = place
        findings.problem(path, f"{key} is {_cut(given)}, made again it is {_cut(right)}", fix)


def _cut(value: Any) -> str:
    return text if len(text := repr(value)) <= 100 else f"{text[:100]}..."


def first_difference(found: Any, made: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The first place at which two JSON values differ (numbers by more than rounding), with both values; None: nowhere."""
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (found, made)]
    if all(numbers):
        return None if math.isclose(found, made, rel_tol=RELATIVE, abs_tol=RELATIVE) else (where, found, made)
    if isinstance(found, Mapping) and isinstance(made, Mapping):
        for key in dict.fromkeys((*made, *found)):
            inside = f"{where} / {key}" if where else str(key)
            if key not in found or key not in made:
                return inside, found.get(key), made.get(key)
            if (place := first_difference(found[key], made[key], inside)) is not None:
                return place
        return None
    if isinstance(found, list | tuple) and isinstance(made, list | tuple):
        if len(found) != len(made):
            return f"{where} (number of entries)", len(found), len(made)
        pairs = (first_difference(a, b, f"{where} / {i}") for i, (a, b) in enumerate(zip(found, made, strict=True)))
        return next((place for place in pairs if place is not None), None)
    return None if found == made and type(found) is type(made) else (where, found, made)


def _same_text(findings: Findings, path: Path, made: str, fix: str) -> None:
    if findings.gone(path, "LaTeX files"):
        return
    if not path.is_file():
        findings.problem(path, "is missing", fix)
        return
    findings.counts["files"] += 1
    raw, wanted = path.read_bytes(), made.encode()
    findings.counts["bytes"] += len(raw)
    if raw == wanted:
        return
    found, expected = (text.decode("utf-8", errors="replace").split("\n") for text in (raw, wanted))
    pairs = enumerate(zip(found, expected, strict=False), 1)
    line = next((n for n, (a, b) in pairs if a != b), min(len(found), len(expected)) + 1)
    given, right = (repr(lines[line - 1]) if line <= len(lines) else "missing" for lines in (found, expected))
    findings.problem(path, f"line {line} is {given}, made again it is {right}", fix)
