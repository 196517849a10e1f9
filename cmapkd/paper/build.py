"""Files of the paper: each table, figure and algorithm by itself, then macros, document and PDFs. Each is one workflow rule.

Everything but the PDF is a pure function of the metric files. The PDF is, too, for one TeX distribution: it holds no dates
and no random identifiers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import atomic_path, read_json, write_atomic, write_json
from cmapkd.paper.algorithms import Algorithm, compute_algorithm
from cmapkd.paper.cells import Cell, Table, Text, decimals_of
from cmapkd.paper.context import PaperContext
from cmapkd.paper.document import render_document
from cmapkd.paper.figures import DRAWINGS, Figure, draw_figure, draw_tikz
from cmapkd.paper.figures.tikz import STYLE, standalone
from cmapkd.paper.latex import best_and_second, escape, render_macros, render_table
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.names import render_names
from cmapkd.paper.picture import picture_of
from cmapkd.paper.table_page import render_figure_page, render_table_page
from cmapkd.paper.tables import compute_table

EPOCH = "946684800"  # 2000-01-01: any constant will do, it keeps the time of the build out of the PDF
PACKAGES = ("booktabs.sty", "tikz.sty", "algorithm2e.sty", "ifoddpage.sty")  # those that a small installation may lack
TIMEOUT = 120  # [s] of one pdflatex run
CONFIGURED = ("table1", "planned", "tuned")  # tables that show nothing measured
FEW = 4  # metric files that a command names; of more, it makes the paper


def build_table(name: str, context: PaperContext, metrics: Metrics | None = None) -> Table:
    """Write ``paper/<name>.tex``, ``paper/<name>.json`` and, for a browser, ``paper/<name>.html``."""
    table, tex, content = table_files(name, context, metrics or Metrics(context))
    write_atomic(context.paper / f"{name}.tex", tex)
    write_json(context.paper / f"{name}.json", content)
    title = context.part_title(name)
    write_atomic(context.paper / f"{name}.html", render_table_page(title, table, best_and_second(table), tex))
    return table


def table_files(name: str, context: PaperContext, metrics: Metrics) -> tuple[Table, str, dict[str, Any]]:
    """A table, and what its two files hold; nothing is written."""
    table = compute_table(name, context, metrics)
    content = table.to_json()
    for entry, column in zip(content["columns"], table.columns(), strict=True):
        values = [cell.value for row in table.rows if (cell := table.cell(row.key, column.key)) is not None]
        entry["decimals"] = decimals_of(values, column.decimals)
    marks = best_and_second(table)
    content["marks"] = [{"row": row, "column": column, "mark": mark} for (row, column), mark in marks.items()]
    return table, render_table(table), content


def build_figure(name: str, context: PaperContext, metrics: Metrics | None = None) -> Figure:
    """Write ``paper/<name>.pdf``, ``paper/<name>.json`` and, for a browser, ``paper/<name>.png`` and ``paper/<name>.html``.

    Of a drawing also ``<name>.tex``; its PDF where LaTeX is.
    """
    if name in DRAWINGS:
        return _build_drawing(name, context)
    with atomic_path(context.paper / f"{name}.pdf") as path:
        figure = draw_figure(name, context, metrics or Metrics(context), path)
    write_json(context.paper / f"{name}.json", figure.to_json())
    write_figure_page(figure, context)
    return figure


def write_figure_page(figure: Figure, context: PaperContext, latex: str = "") -> None:
    """Write ``paper/<name>.html`` and, from ``paper/<name>.pdf``, ``paper/<name>.png``; without a PDF only the page."""
    pdf, png = (context.paper / f"{figure.name}.{kind}" for kind in ("pdf", "png"))
    picture = picture_of(pdf) if pdf.is_file() else None
    if picture is None:
        png.unlink(missing_ok=True)
    else:
        write_atomic(png, picture)
    page = render_figure_page(context.part_title(figure.name), figure, picture, latex)
    write_atomic(context.paper / f"{figure.name}.html", page)


def _build_drawing(name: str, context: PaperContext) -> Figure:
    figure = draw_tikz(name, context)
    source, pdf = context.paper / f"{name}.tex", context.paper / f"{name}.pdf"
    write_atomic(source, drawing_text(figure))
    write_json(context.paper / f"{name}.json", figure.to_json())
    if has_latex():
        with tempfile.TemporaryDirectory(prefix="cmapkd-drawing-") as directory:
            main = Path(directory) / f"{name}.tex"
            main.write_text(standalone(figure.tikz))
            compile_pdf([main], pdf)
    else:
        pdf.unlink(missing_ok=True)
    write_figure_page(figure, context, figure.tikz)
    return figure


def drawing_text(figure: Figure) -> str:
    """What the ``.tex`` of a drawing holds."""
    return f"% {figure.name}: made by cmapkd; its constants have their parents in {figure.name}.json\n{STYLE}{figure.tikz}"


def build_algorithm(name: str, context: PaperContext) -> Algorithm:
    """Write ``paper/<name>.tex`` and ``paper/<name>.json``."""
    algorithm = compute_algorithm(name, context)
    write_atomic(context.paper / f"{name}.tex", algorithm.latex)
    write_json(context.paper / f"{name}.json", algorithm.to_json())
    return algorithm


def build_numbers(context: PaperContext) -> None:
    """Write ``paper/numbers.tex`` from the JSON of the tables, figures and algorithms."""
    write_atomic(context.paper / "numbers.tex", numbers_text(context))


def numbers_text(context: PaperContext, names: Sequence[str] | None = None) -> str:
    """What ``paper/numbers.tex`` holds; of some parts, what it holds of them."""
    numbers: dict[str, dict[str, dict[str, tuple[Cell, int]]]] = {}
    texts: dict[str, dict[str, dict[str, Text]]] = {}
    captions: dict[str, str] = {}
    for name in context.all_parts if names is None else names:
        content = read_part(context, name)
        decimals = {column["column"]: column["decimals"] for column in content.get("columns", [])}
        rest = content.get("decimals", 0)  # what a table's caption states are counts
        numbers[name] = {
            row: {column: (Cell.from_json(cell), decimals.get(column, rest)) for column, cell in cells.items()}
            for row, cells in content["cells"].items()
        }
        texts[name] = {
            row: {column: Text.from_json(text) for column, text in columns.items()}
            for row, columns in content.get("texts", {}).items()
        }
        if name in context.all_figures:
            captions[name] = f"\\textbf{{{escape(content['title'])}.}} {escape(content['caption'])}"
    return render_macros(numbers) + render_names(context, texts, captions)


def build_document(context: PaperContext, metrics: Metrics | None = None) -> None:
    """Write ``paper/numbers.tex`` and ``paper/paper.tex``.

    Raises:
        UserError: a table or figure is not built yet.
    """
    build_numbers(context)
    write_atomic(context.paper / "paper.tex", document_text(context, metrics or Metrics(context)))


def document_text(context: PaperContext, metrics: Metrics) -> str:
    """What ``paper/paper.tex`` holds, from the JSON of the tables and figures."""
    parts = {name: read_part(context, name) for name in context.all_parts}
    return render_document(context, metrics, parts)


def build_pdf(context: PaperContext) -> bool:
    """Typeset ``paper/paper.pdf``, if there is a pdflatex.

    Returns:
        Whether the PDF was made. If not, an older ``paper.pdf`` is removed: it may show other numbers than the files beside it.

    Raises:
        UserError: a part is missing, or LaTeX reports an error (its message is in the reason).
    """
    pdf = context.paper / "paper.pdf"
    if not has_latex():
        pdf.unlink(missing_ok=True)
        return False
    names = [
        "paper.tex",
        "numbers.tex",
        *part_files(context),
    ]
    compile_pdf(existing(context, names), pdf)
    return True


def part_files(context: PaperContext) -> list[str]:
    """What LaTeX reads of every table, figure and algorithm."""
    figures = [f"{name}.pdf" for name in context.all_figures]
    return [*(f"{name}.tex" for name in (*context.all_tables, *context.algorithms)), *figures]


def existing(context: PaperContext, names: list[str]) -> list[Path]:
    """Paths of files in ``paper/``.

    Raises:
        UserError: one is not built yet.
    """
    paths = [context.paper / name for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(key=str(path), reason="is not built yet", fix=f"make it: {context.recompute(path)}")
    return paths


def build_paper(context: PaperContext) -> bool:
    """All of it but the manuscript, reading each metric file once. Returns whether the PDF was made.

    Raises:
        UserError: something is missing; nothing is made then that takes long.
    """
    metrics = Metrics(context)
    check_measured(context, metrics)
    for name in context.all_figures:  # before the tables, whose tests take long: a figure may lack what it shows
        build_figure(name, context, metrics)
    for name in context.algorithms:
        build_algorithm(name, context)
    for name in context.all_tables:
        build_table(name, context, metrics)
    build_document(context, metrics)
    return build_pdf(context)


def check_measured(context: PaperContext, metrics: Metrics) -> None:
    """Every metric file and its arrays are there, before anything is made.

    Raises:
        UserError: some are missing (how many, and the command that makes them all), or one is damaged.
    """
    if not {*context.all_tables, *context.all_figures} - {*CONFIGURED, *DRAWINGS}:
        return
    files = [context.metric_file(run, seed) for run in context.directories for seed in context.seeds_of(run)]
    if missing := [path for path in files if not path.is_file()]:
        reason = f"is missing, as are {len(missing) - 1} more of {len(files)}" if len(missing) > 1 else "is missing"
        targets = missing if len(missing) <= FEW else [context.paper / "paper.tex"]
        raise UserError(
            key=str(missing[0]), reason=f"{reason}: not all runs are measured", fix=f"make it: {context.recompute(*targets)}"
        )
    for run in context.directories:
        for seed in context.seeds_of(run):
            metrics.file(run, seed, "the paper")


def has_latex() -> bool:
    """Whether PDFs can be typeset here."""
    return not missing_latex(*PACKAGES)


def missing_latex(*files: str) -> list[str]:
    """Programs, and files of a TeX distribution, that are not here."""
    if missing := [program for program in ("pdflatex", "kpsewhich") if shutil.which(program) is None]:
        return missing
    return [file for file in files if not _in_tex(file)]


@cache
def _in_tex(file: str) -> bool:
    return subprocess.run(["kpsewhich", file], capture_output=True, check=False).returncode == 0


def read_part(context: PaperContext, name: str) -> dict[str, Any]:
    """The JSON of a built table or figure.

    Raises:
        UserError: it is missing or unreadable.
    """
    path = context.paper / f"{name}.json"
    try:
        content: dict[str, Any] = read_json(path, dict)
    except FileNotFoundError as error:
        raise UserError(key=str(path), reason="is not built yet", fix=f"make it: {context.recompute(path)}") from error
    except ValueError as error:
        raise UserError(
            key=str(path), reason=f"cannot be read: {error}", fix=f"make it again: {context.recompute(path)}"
        ) from error
    return content


def compile_pdf(inputs: list[Path], target: Path) -> str:
    """Compile the first of ``inputs`` in a temporary directory and move the PDF to ``target``; with a ``.bib``, by BibTeX, too.

    Returns:
        The log of the last run.

    Raises:
        UserError: LaTeX reported an error; the reason holds the lines of its log that say where and why.
    """
    with tempfile.TemporaryDirectory(prefix="cmapkd-paper-") as name:
        directory = Path(name)
        for path in inputs:
            shutil.copyfile(path, directory / path.name)
        main = inputs[0].name
        environment = {
            **os.environ,
            "SOURCE_DATE_EPOCH": EPOCH,
            "FORCE_SOURCE_DATE": "1",
            "max_print_line": "10000",  # or the log breaks messages in the middle of a word
            "openin_any": "p",  # the document reads its own directory only
        }
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", "-no-shell-escape", main]
        log = ""
        cited = any(path.suffix == ".bib" for path in inputs)
        for turn in range(5):  # references and hyperref settle within three runs, citations need one more
            done = _run(command, directory, environment)
            log = _log(directory / main, done.stdout)
            if done.returncode:
                raise UserError(
                    key=main, reason=f"LaTeX failed:\n{latex_errors(log)}", fix="see the lines above; paper.tex is kept"
                )
            if turn == 0 and cited:
                done = _run(["bibtex", "-terse", Path(main).stem], directory, environment)
                if done.returncode:
                    reason = f"BibTeX failed:\n{done.stdout.decode('utf-8', errors='replace').strip()}"
                    raise UserError(key=main, reason=reason, fix="see the lines above")
            elif not re.search(r"Rerun to get|Label\(s\) may have changed|There were undefined", log):
                break
        with atomic_path(target) as temporary:
            shutil.copyfile((directory / main).with_suffix(".pdf"), temporary)
    return log


def _run(command: list[str], directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, cwd=directory, env=environment, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(key=command[0], value=command[-1], reason=f"did not end within {TIMEOUT} s") from error


def latex_errors(log: str, context: int = 4) -> str:
    """The lines of a LaTeX log that say what went wrong: each error and the lines after it."""
    lines = log.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("!") or re.match(r"^(\./)?[\w.-]+\.\w+:\d+: ", line)]
    kept = sorted({j for i in starts[:5] for j in range(i, min(len(lines), i + 1 + context))})
    return "\n".join(f"    {lines[j]}" for j in kept) if kept else "\n".join(f"    {line}" for line in lines[-15:])


def _log(main: Path, stdout: bytes) -> str:
    log = main.with_suffix(".log")
    return (log.read_bytes() if log.is_file() else stdout).decode("utf-8", errors="replace")
