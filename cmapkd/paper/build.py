"""Files of the paper: each table and figure by itself, then macros, document and PDF. Each function is one workflow rule.

Everything but the PDF is a pure function of the metric files. The PDF is, too, for one TeX distribution: it holds no dates
and no random identifiers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import atomic_path, read_json, write_atomic, write_json
from cmapkd.paper.cells import Cell, Table, decimals_of
from cmapkd.paper.context import PaperContext
from cmapkd.paper.document import render_document
from cmapkd.paper.figures import Figure, draw_figure
from cmapkd.paper.latex import render_macros, render_table
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import compute_table

EPOCH = "946684800"  # 2000-01-01: any constant will do, it keeps the time of the build out of the PDF
NO_LATEX = (
    "there is no pdflatex on PATH: the tables, the figures, numbers.tex and paper.tex are made, paper.pdf is not; "
    "on Debian or Ubuntu `apt-get install texlive-latex-recommended` brings it"
)
TIMEOUT = 120  # [s] of one pdflatex run


def build_table(name: str, context: PaperContext, metrics: Metrics | None = None) -> Table:
    """Write ``paper/<name>.tex`` and ``paper/<name>.json``."""
    table, tex, content = table_files(name, context, metrics or Metrics(context))
    write_atomic(context.paper / f"{name}.tex", tex)
    write_json(context.paper / f"{name}.json", content)
    return table


def table_files(name: str, context: PaperContext, metrics: Metrics) -> tuple[Table, str, dict[str, Any]]:
    """A table, and what its two files hold; nothing is written."""
    table = compute_table(name, context, metrics)
    content = table.to_json()
    for entry, column in zip(content["columns"], table.columns(), strict=True):
        values = [cell.value for row in table.rows if (cell := table.cell(row.key, column.key)) is not None]
        entry["decimals"] = decimals_of(values, column.decimals)
    return table, render_table(table), content


def build_figure(name: str, context: PaperContext, metrics: Metrics | None = None) -> Figure:
    """Write ``paper/<name>.pdf`` and ``paper/<name>.json``."""
    with atomic_path(context.paper / f"{name}.pdf") as path:
        figure = draw_figure(name, context, metrics or Metrics(context), path)
    write_json(context.paper / f"{name}.json", figure.to_json())
    return figure


def build_numbers(context: PaperContext) -> None:
    """Write ``paper/numbers.tex`` from the JSON of the tables and figures."""
    write_atomic(context.paper / "numbers.tex", numbers_text(context))


def numbers_text(context: PaperContext) -> str:
    """What ``paper/numbers.tex`` holds."""
    numbers: dict[str, dict[str, dict[str, tuple[Cell, int]]]] = {}
    for name in (*context.all_tables, *context.figures):
        content = read_part(context, name)
        decimals = {column["column"]: column["decimals"] for column in content.get("columns", [])}
        rest = content.get("decimals", 0)  # what a table's caption states are counts
        numbers[name] = {
            row: {column: (Cell.from_json(cell), decimals.get(column, rest)) for column, cell in cells.items()}
            for row, cells in content["cells"].items()
        }
    return render_macros(numbers)


def build_document(context: PaperContext, metrics: Metrics | None = None) -> None:
    """Write ``paper/numbers.tex`` and ``paper/paper.tex``.

    Raises:
        UserError: a table or figure is not built yet.
    """
    build_numbers(context)
    write_atomic(context.paper / "paper.tex", document_text(context, metrics or Metrics(context)))


def document_text(context: PaperContext, metrics: Metrics) -> str:
    """What ``paper/paper.tex`` holds, from the JSON of the tables and figures."""
    parts = {name: read_part(context, name) for name in (*context.all_tables, *context.figures)}
    return render_document(context, metrics, parts)


def build_pdf(context: PaperContext) -> bool:
    """Typeset ``paper/paper.pdf``, if there is a pdflatex.

    Returns:
        Whether the PDF was made. If not, an older ``paper.pdf`` is removed: it may show other numbers than the files beside it.

    Raises:
        UserError: a part is missing, or LaTeX reports an error (its message is in the reason).
    """
    pdf = context.paper / "paper.pdf"
    if shutil.which("pdflatex") is None:
        pdf.unlink(missing_ok=True)
        return False
    names = [
        "paper.tex",
        "numbers.tex",
        *(f"{name}.tex" for name in context.all_tables),
        *(f"{name}.pdf" for name in context.figures),
    ]
    inputs = [context.paper / name for name in names]
    for path in inputs:
        if not path.is_file():
            raise UserError(key=str(path), reason="is not built yet", fix=f"make it: {context.recompute(path)}")
    compile_pdf(inputs, pdf)
    return True


def build_paper(context: PaperContext) -> bool:
    """All of it, reading each metric file once. Returns whether the PDF was made."""
    metrics = Metrics(context)
    for name in context.all_tables:
        build_table(name, context, metrics)
    for name in context.figures:
        build_figure(name, context, metrics)
    build_document(context, metrics)
    return build_pdf(context)


def read_part(context: PaperContext, name: str) -> dict[str, Any]:
    """The JSON of a built table or figure.

    Raises:
        UserError: it is missing or unreadable.
    """
    path = context.paper / f"{name}.json"
    try:
        content: dict[str, Any] = read_json(path)
    except FileNotFoundError as error:
        raise UserError(key=str(path), reason="is not built yet", fix=f"make it: {context.recompute(path)}") from error
    except ValueError as error:
        raise UserError(
            key=str(path), reason=f"cannot be read: {error}", fix=f"make it again: {context.recompute(path)}"
        ) from error
    return content


def compile_pdf(inputs: list[Path], target: Path) -> None:
    """Compile the first of ``inputs`` in a temporary directory and move the PDF to ``target``.

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
        for _ in range(4):  # references and hyperref settle within three runs
            try:
                done = subprocess.run(
                    command, cwd=directory, env=environment, capture_output=True, timeout=TIMEOUT, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise UserError(key="pdflatex", value=main, reason=f"did not end within {TIMEOUT} s") from error
            log = _log(directory / main, done.stdout)
            if done.returncode:
                raise UserError(
                    key=main, reason=f"LaTeX failed:\n{latex_errors(log)}", fix="see the lines above; paper.tex is kept"
                )
            if not re.search(r"Rerun to get|Label\(s\) may have changed", log):
                break
        with atomic_path(target) as temporary:
            shutil.copyfile((directory / main).with_suffix(".pdf"), temporary)


def latex_errors(log: str, context: int = 4) -> str:
    """The lines of a LaTeX log that say what went wrong: each error and the lines after it."""
    lines = log.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("!") or re.match(r"^(\./)?[\w.-]+\.\w+:\d+: ", line)]
    kept = sorted({j for i in starts[:5] for j in range(i, min(len(lines), i + 1 + context))})
    return "\n".join(f"    {lines[j]}" for j in kept) if kept else "\n".join(f"    {line}" for line in lines[-15:])


def _log(main: Path, stdout: bytes) -> str:
    log = main.with_suffix(".log")
    return (log.read_bytes() if log.is_file() else stdout).decode("utf-8", errors="replace")
