"""A table or figure of the paper as a page for a browser: the same numbers and marks as in print, each with its parents.

A cell's tooltip says how its number was computed and from which files; a folded list below gives every number at full
precision.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace

from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Parent, Row, Table, Text, decimals_of, number_of
from cmapkd.paper.figures import Figure
from cmapkd.paper.html import details, escape, page, paragraph, plain_table, source

ARROWS = {"up": " ↑", "down": " ↓", "": ""}
DASH = "–"
PLANNED = "planned before any experiment, not measured"
NO_PICTURE = "It could not be drawn: there was no LaTeX."
MARKS = "*†‡§¶"
FILES_SHOWN = 4  # parents that a tooltip names
Marks = Mapping[tuple[str, str], str]


def render_table_page(title: str, table: Table, marks: Marks, latex: str) -> str:
    """One table.

    Args:
        title: what the paper calls it, e.g. ``Table 2``.
        table: the numbers.
        marks: (row, column) -> ``best`` or ``second``, as in print.
        latex: the same table's LaTeX, to copy.
    """
    blocks = "\n".join(_block(table, panel, marks) for panel in _panels(table))
    notes = "<br>".join(f"{mark} {escape(note)}" for note, mark in _notes(table).items())
    return page(
        f"{title}: {table.title}",
        paragraph(table.caption),
        blocks,
        f'<p class="notes">{notes}</p>' if notes else "",
        paragraph("Point at a number to see what it was computed from.", "small"),
        optional=[details("LaTeX", source(latex)), _origins(table.cells, table.texts)],
    )


def render_figure_page(title: str, figure: Figure, picture: bytes | None, latex: str = "") -> str:
    """One figure with its caption and numbers.

    Args:
        picture: a PNG; None where the figure could not be typeset.
        latex: the source of a figure that is drawn by LaTeX.
    """
    data = base64.b64encode(picture).decode() if picture is not None else ""
    shown = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">' if data else paragraph(NO_PICTURE, "small")
    parents = [(parent.file, parent.run, parent.seed, parent.sha256) for parent in dict.fromkeys(figure.parents)]
    return page(
        f"{title}: {figure.title}",
        shown,
        paragraph(figure.caption),
        optional=[
            details("LaTeX", source(latex)) if latex else "",
            _numbers(figure),
            details("Files it is drawn from", plain_table(("file", "run", "seed", "SHA-256"), parents, words=(1, 3))),
            _origins(figure.cells, {}),
        ],
    )


def _panels(table: Table) -> list[Panel]:
    """Panels with measured columns, then those with planned ones: nobody can take one for the other."""
    split = [replace(p, columns=tuple(c for c in p.columns if not c.planned)) for p in table.panels]
    split += [replace(p, columns=tuple(c for c in p.columns if c.planned)) for p in table.panels]
    return [panel for panel in split if panel.columns]


def _block(table: Table, panel: Panel, marks: Marks) -> str:
    planned = panel.columns[0].planned
    lines, above = [], ""
    rows = table.shown(panel)
    for place, row in enumerate(rows):
        if row.section and row.section != above:
            lines.append(f'<tr class="heading"><th colspan="{len(panel.columns) + 1}">{escape(row.section)}</th></tr>')
        above = row.section
        line = "ruled" if place and (row.ruled or rows[place - 1].teacher) else ""
        cells = "".join(_cell(table, row, column, marks.get((row.key, column.key), "")) for column in panel.columns)
        lines.append(f"<tr{_class(line)}><th>{_label(table, row)}</th>{cells}</tr>")
    title = (f"{panel.title}: {PLANNED}" if panel.title else PLANNED.capitalize()) if planned else panel.title
    heading = f"<h3>{escape(title)}</h3>\n" if title and (planned or len(table.panels) > 1) else ""
    body = "\n".join(lines)
    return f'{heading}<div class="wide"><table><thead>\n{_head(panel)}\n</thead><tbody>\n{body}\n</tbody></table></div>'


def _head(panel: Panel) -> str:
    groups: list[tuple[str, int]] = []
    for column in panel.columns:
        same = bool(groups) and groups[-1][0] == column.group
        groups = [*groups[:-1], (column.group, groups[-1][1] + 1)] if same else [*groups, (column.group, 1)]
    lines = []
    if any(group for group, _ in groups):
        spans = [f'<th{_class("group" if group else "")} colspan="{n}">{escape(group)}</th>' for group, n in groups]
        lines.append(f"<tr><th></th>{''.join(spans)}</tr>")
    heads = [f"<th{_class(_kind(column))}>{escape(column.header)}{ARROWS[column.direction]}</th>" for column in panel.columns]
    return "\n".join([*lines, f"<tr><th></th>{''.join(heads)}</tr>"])


def _cell(table: Table, row: Row, column: Column, mark: str) -> str:
    attributes = f'data-row="{escape(row.key)}" data-column="{escape(column.key)}"'
    if column.text:
        text = table.text(row.key, column.key)
        shown = escape(text.text) if text is not None and text.text else DASH
        return f'<td class="words" {attributes}{_tooltip(text)}>{shown}</td>'
    cell = table.cell(row.key, column.key)
    if cell is None:
        return f"<td {attributes}>{DASH}</td>"
    decimals = decimals_of([found.value for r in table.rows if (found := table.cell(r.key, column.key))], column.decimals)
    shown = _number(cell.value, decimals)
    if column.signed and float(number_of(cell.value, decimals)) > 0:
        shown = f"+{shown}"
    deviation = ""
    if cell.std is not None and column.deviation:
        deviation = f'<span class="deviation"> ± {number_of(cell.std, decimals)}</span>'
    style = "planned" if column.planned else mark
    return f"<td{_class(style)} {attributes}{_tooltip(cell)}>{shown}{deviation}</td>"


def _number(value: float, decimals: int) -> str:
    return number_of(value, decimals).replace("-", "−")


def _tooltip(cell: Cell | Text | None) -> str:
    if cell is None:
        return ""
    count = f" (n = {cell.n})" if isinstance(cell, Cell) else ""
    lines = [f"{cell.recipe}{count}", *(_where(parent) for parent in cell.parents[:FILES_SHOWN])]
    if len(cell.parents) > FILES_SHOWN:
        lines.append(f"and {len(cell.parents) - FILES_SHOWN} more")
    return f' title="{escape(chr(10).join(lines))}"'


def _where(parent: Parent) -> str:
    return f"{parent.file}: {' / '.join(parent.keys)}"


def _label(table: Table, row: Row) -> str:
    mark = _notes(table).get(row.note, "")
    return escape(row.label) + (f"<sup>{mark}</sup>" if mark else "")


def _notes(table: Table) -> dict[str, str]:
    """Note -> its mark; rows with the same note share a mark."""
    notes = list(dict.fromkeys(row.note for row in table.rows if row.note))
    return {note: MARKS[i % len(MARKS)] * (1 + i // len(MARKS)) for i, note in enumerate(notes)}


def _numbers(figure: Figure) -> str:
    """The numbers that a figure shows or states; there may be none."""
    columns = list(dict.fromkeys(name for cells in figure.cells.values() for name in cells))
    rows = []
    for row, cells in figure.cells.items():
        found = [
            f"<td{_tooltip(cells[name])}>{_number(cells[name].value, figure.decimals)}</td>"
            if name in cells
            else f"<td>{DASH}</td>"
            for name in columns
        ]
        rows.append(f"<tr><th>{escape(row)}</th>{''.join(found)}</tr>")
    if not columns:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "\n".join(rows)
    table = f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    return table if len(rows) <= 12 else details(f"Its {sum(map(len, figure.cells.values()))} numbers", table)


def _origins(cells: Mapping[str, Mapping[str, Cell]], texts: Mapping[str, Mapping[str, Text]]) -> str:
    """Every number at full precision with its parents; digests once for each file."""
    rows: list[tuple[object, ...]] = []
    files: dict[str, tuple[str, str]] = {}
    for kind in (cells, texts):
        for row, columns in kind.items():
            for column, cell in columns.items():
                value = _exact(cell) if isinstance(cell, Cell) else cell.text.replace("\n", "; ")
                name = "the caption" if row == CAPTION else row
                keys = list(dict.fromkeys(" / ".join(parent.keys) for parent in cell.parents))
                names = list(dict.fromkeys(parent.file for parent in cell.parents))
                rows.append((name, column, value, cell.recipe, ", ".join(names), "; ".join(keys)))
                files |= {parent.file: (parent.sha256, _run(parent)) for parent in cell.parents}
    if not rows:
        return ""
    listed = plain_table(("row", "column", "value", "how", "files", "keys"), rows, words=(1, 2, 3, 4, 5))
    digests = plain_table(("file", "run", "SHA-256"), [(name, run, sha) for name, (sha, run) in files.items()], words=(1, 2))
    return details("Where each number comes from", f"{listed}\n{digests}")


def _exact(cell: Cell) -> str:
    deviation = f" ± {cell.std!r}" if cell.std is not None else ""
    return f"{cell.value!r}{deviation}{' (planned)' if cell.planned else ''}"


def _run(parent: Parent) -> str:
    return f"{parent.run}, seed {parent.seed}" if parent.run is not None else ""


def _kind(column: Column) -> str:
    return "words" if column.text else "planned" if column.planned else ""


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
