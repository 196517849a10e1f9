"""Tables as LaTeX (booktabs), cells as macros. Output is a pure function of the table: no dates, no paths.

A table file stands alone in any document with booktabs and graphicx; it shrinks itself when it is wider than the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from cmapkd.errors import UserError
from cmapkd.files import slug
from cmapkd.paper.cells import Cell, Column, Panel, Row, Table, Text, decimals_of, number_of
from cmapkd.paper.characters import latex_of

Significance = Callable[[Table, str, str], bool]  # (table, row, column) -> is this row significantly the best

ARROWS = {"up": r"$\,\uparrow$", "down": r"$\,\downarrow$", "": ""}
_APART = "\0"
DASH = "---"
PLANNED = "planned, not measured"
MARKS = "*†‡§¶"
MARK_LATEX = {"*": r"\ast", "†": r"\dagger", "‡": r"\ddagger", "§": r"\S", "¶": r"\P"}


def escape(text: str) -> str:
    """Plain text as LaTeX: no character is a command, and pairs such as `--` are not joined into another one."""
    apart = re.sub(r"(?<=[-'`,!?])(?=[-'`,])", _APART, text)
    return "".join("{}" if character == _APART else latex_of(character) for character in apart)


def render_table(table: Table, significance: Significance | None = None) -> str:
    """A complete ``table`` environment, caption above (as LNCS wants it).

    Args:
        table: the numbers.
        significance: only a best student for which it is true is set in bold; by default what the table's tests say, if it
            has tests.
    """
    marks = best_and_second(table, significance)
    blocks: list[str] = []
    for panels in _same_headings(table.panels):
        blocks.append(_tabular(table, panels, marks))
    body = "\n\\par\\smallskip\n".join(blocks)
    notes = _notes(table)
    size = "scriptsize" if len(blocks) > 3 else "footnotesize"  # or the table is taller than a page
    widest = max(len(panel.columns) for panel in table.panels)
    gap = "5pt" if widest <= 7 else "3.5pt" if widest <= 10 else "2.5pt"
    return (
        f"% {table.name}: made by cmapkd; every number has its parents in {table.name}.json\n"
        "\\begin{table}[tb]\n\\centering\n"
        f"\\caption{{{_bold(table.title)} {escape(table.caption)}}}\n\\label{{tab:{table.name}}}\n"
        f"\\{size}\\setlength{{\\tabcolsep}}{{{gap}}}\n{body}\n{notes}\\end{{table}}\n"
    )


def best_and_second(table: Table, significance: Significance | None = None) -> dict[tuple[str, str], str]:
    """(row, column) -> "best" | "second" among the students, by the value as printed: equal prints are marked alike.

    With fewer than two students nothing is marked, with fewer than three no second.
    """
    if significance is None and table.tests:
        significance = Table.significantly_best
    marks: dict[tuple[str, str], str] = {}
    for column in table.columns():
        if not column.ranked or column.planned or column.text or not column.direction:
            continue
        decimals = _decimals(table, column)
        found = {row.key: table.cell(row.key, column.key) for row in table.rows if not row.teacher}
        printed = {row: float(number_of(cell.value, decimals)) for row, cell in found.items() if cell is not None}
        order = sorted(set(printed.values()), reverse=column.direction == "up")
        if len(printed) < 2 or len(order) < 2:
            continue
        for row, value in printed.items():
            if value == order[0] and (significance is None or significance(table, row, column.key)):
                marks[row, column.key] = "best"
            elif value == order[1] and len(printed) >= 3:
                marks[row, column.key] = "second"
    return marks


def _same_headings(panels: tuple[Panel, ...]) -> list[list[Panel]]:
    """Neighbouring panels with the same headings share one tabular, so that their columns align."""
    groups: list[list[Panel]] = []
    shape: list[tuple[str, str, bool]] = []
    for panel in panels:
        headings = [(column.group, column.header, column.planned) for column in panel.columns]
        if groups and headings == shape:
            groups[-1].append(panel)
        else:
            groups.append([panel])
        shape = headings
    return groups


def _tabular(table: Table, panels: list[Panel], marks: Mapping[tuple[str, str], str]) -> str:
    columns = panels[0].columns
    several = len(table.panels) > 1
    places = "".join("l" if column.text else "r" for column in columns)
    for place in range(len(columns) - 1, 0, -1):
        if columns[place].planned != columns[place - 1].planned:  # a wider gap between what was measured and what was planned
            places = f"{places[:place]}@{{\\hskip 12pt}}{places[place:]}"
    lines = [f"\\begin{{tabular}}{{@{{}}l{places}@{{}}}}", "\\toprule"]
    lines += _header(columns)
    for index, panel in enumerate(panels):
        lines.append("\\midrule" if index == 0 else "\\addlinespace\\midrule")
        if several and panel.title:
            lines.append(f"\\multicolumn{{{len(columns) + 1}}}{{@{{}}l@{{}}}}{{\\emph{{{escape(panel.title)}}}}}\\\\")
            lines.append("\\addlinespace[2pt]")
        section = ""
        for place, row in enumerate(table.shown(panel)):
            if row.section != section:
                gap = "\\addlinespace\n" if place else ""
                lines.append(f"{gap}\\multicolumn{{{len(columns) + 1}}}{{@{{}}l@{{}}}}{{\\emph{{{escape(row.section)}}}}}\\\\")
                section = row.section
            if row.ruled and place:
                lines.append("\\midrule")
            cells = [_cell(table, row, column, marks.get((row.key, column.key))) for column in panel.columns]
            lines.append(" & ".join([_row_label(table, row), *cells]) + r" \\")
            if row.teacher and len(table.rows) > 1:
                lines.append("\\midrule")
    lines += ["\\bottomrule", "\\end{tabular}"]
    return _fit("%\n".join([lines[0], *lines[1:]]))


def _fit(tabular: str) -> str:
    """Shrink to the line's width if wider; never enlarge."""
    return (
        f"\\sbox0{{%\n{tabular}%\n}}%\n\\ifdim\\wd0>\\linewidth\\resizebox{{\\linewidth}}{{!}}{{\\usebox0}}\\else\\usebox0\\fi"
    )


def _header(columns: tuple[Column, ...]) -> list[str]:
    lines = _headings_of_planned(columns)
    spans = _spans([f"{column.planned}{column.group}" for column in columns])
    # An arrow that a whole group shares stands in its heading: that keeps the columns narrow.
    shared = {
        first: columns[first].direction if len({c.direction for c in columns[first : last + 1]}) == 1 else ""
        for first, last in spans
        if columns[first].group
    }
    if shared:
        heads = []
        for first, last in spans:
            group = columns[first].group
            text = escape(group) + ARROWS[shared[first]] if group else ""
            heads.append(f"\\multicolumn{{{last - first + 1}}}{{c}}{{{_planned(text, columns[first])}}}")
        lines.append(" & " + " & ".join(heads) + r" \\")
        # Columns are counted from 1, and the first is the row's label.
        lines.append("".join(f"\\cmidrule(lr){{{first + 2}-{last + 2}}}" for first, last in spans if first in shared))
    arrows = [not shared.get(first, "") for first, last in spans for _ in range(first, last + 1)]
    heads = [_heading(column, arrow=arrow) for column, arrow in zip(columns, arrows, strict=True)]
    places = ["l" if column.text else "r" for column in columns]
    places[-1] += "@{}"  # the last head ends where the rules end, like the numbers below it
    lines.append(
        " & "
        + " & ".join(f"\\multicolumn{{1}}{{{place}}}{{{head}}}" for place, head in zip(places, heads, strict=True))
        + r" \\"
    )
    return lines


def _headings_of_planned(columns: tuple[Column, ...]) -> list[str]:
    """A line above all headings that says which columns are measured and which planned, if there are planned ones."""
    if not any(column.planned for column in columns):
        return []
    spans = _spans([str(column.planned) for column in columns])
    words = [f"\\emph{{{PLANNED}}}" if columns[first].planned else "measured" for first, _ in spans]
    heads = [f"\\multicolumn{{{last - first + 1}}}{{c}}{{{word}}}" for (first, last), word in zip(spans, words, strict=True)]
    rules = "".join(f"\\cmidrule(lr){{{first + 2}-{last + 2}}}" for first, last in spans)
    return [" & " + " & ".join(heads) + r" \\", rules]


def _spans(names: list[str]) -> list[tuple[int, int]]:
    """First and last place of each stretch of equal names."""
    starts = [place for place, name in enumerate(names) if place == 0 or names[place - 1] != name]
    return [(first, last - 1) for first, last in zip(starts, [*starts[1:], len(names)], strict=True)]


def _heading(column: Column, *, arrow: bool) -> str:
    return _planned(escape(column.header) + (ARROWS[column.direction] if arrow else ""), column)


def _planned(text: str, column: Column) -> str:
    return f"\\emph{{{text}}}" if column.planned and text else text


def _cell(table: Table, row: Row, column: Column, mark: str | None) -> str:
    if column.text:
        return _text(table.text(row.key, column.key))
    cell = table.cell(row.key, column.key)
    if cell is None:
        return DASH
    decimals = _decimals(table, column)
    text = number_of(cell.value, decimals)
    if column.planned:
        return f"\\emph{{{text}}}"
    if column.signed:
        text = f"$-${text[1:]}" if text.startswith("-") else f"+{text}" if float(text) else text
    text = {"best": f"\\textbf{{{text}}}", "second": f"\\underline{{{text}}}"}.get(mark or "", text)
    deviations = [found.std for other in table.rows if (found := table.cell(other.key, column.key)) and found.std is not None]
    if cell.std is None and column.deviation and deviations:
        # Of one seed beside several: the number keeps its place above theirs.
        text += f"\\phantom{{{{\\tiny$\\pm${number_of(max(deviations), decimals)}}}}}"
    if cell.std is not None and column.deviation:
        text += f"{{\\tiny$\\pm${number_of(cell.std, decimals)}}}"
    return text


def _text(text: Text | None) -> str:
    if text is None or not text.text:
        return DASH
    lines = [escape(line) for line in text.text.split("\n")]
    return lines[0] if len(lines) == 1 else r"\begin{tabular}[t]{@{}l@{}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _decimals(table: Table, column: Column) -> int:
    values = [cell.value for row in table.rows if (cell := table.cell(row.key, column.key)) is not None]
    return decimals_of(values, column.decimals)


def _noted(table: Table) -> dict[str, str]:
    """Note -> its mark; rows with the same note share a mark."""
    notes = list(dict.fromkeys(row.note for row in table.rows if row.note))
    return {note: f"$^{{{MARK_LATEX[MARKS[i % len(MARKS)]] * (1 + i // len(MARKS))}}}$" for i, note in enumerate(notes)}


def _row_label(table: Table, row: Row) -> str:
    return escape(row.label) + (_noted(table)[row.note] if row.note else "")


def _notes(table: Table) -> str:
    notes = " ".join(f"{mark}\\,{escape(note)}" for note, mark in _noted(table).items())
    return f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\scriptsize {notes}}}\n" if notes else ""


def _bold(text: str) -> str:
    return f"\\textbf{{{escape(text)}.}}"


# ---- macros ---------------------------------------------------------------------------------------------------------------

MACROS = r"""% numbers.tex: every number of the tables and figures as a macro; made by cmapkd.
%   \cmapkd{table2}{CMAPKD}{i2t_r1}      the value as the table prints it
%   \cmapkdstd{table2}{CMAPKD}{i2t_r1}   its standard deviation over seeds (with two seeds or more)
% A name that does not exist is an error that says which.
\makeatletter
\newcommand{\cmapkd}[3]{\cmapkd@get{value}{#1}{#2}{#3}}
\newcommand{\cmapkdstd}[3]{\cmapkd@get{std}{#1}{#2}{#3}}
\newcommand{\cmapkd@get}[4]{\ifcsname cmapkd@#1@#2@#3@#4\endcsname\csname cmapkd@#1@#2@#3@#4\endcsname\else\cmapkd@undefined{#1}{#2}{#3}{#4}\fi}
\DeclareRobustCommand{\cmapkd@undefined}[4]{\PackageError{cmapkd}{There is no #1 {#2}{#3}{#4} in numbers.tex}{Its names are table, row and column in the .json files beside it.}\textbf{??}}
\def\cmapkd@set#1#2#3#4#5{\expandafter\def\csname cmapkd@#1@#2@#3@#4\endcsname{#5}}
"""  # noqa: E501 - a line break inside a definition would be a space in the text


def render_macros(numbers: Mapping[str, Mapping[str, Mapping[str, tuple[Cell, int]]]]) -> str:
    """``numbers.tex`` from table or figure -> row -> column -> (cell, decimals).

    Raises:
        UserError: two rows or columns of a table that have the same name as a macro.
    """
    lines = [MACROS]
    for name, rows in numbers.items():
        taken: dict[str, str] = {}
        for row, columns in rows.items():
            macro_row = macro_key(row)
            if taken.setdefault(macro_row, row) != row:
                raise UserError(
                    key=name, value=row, reason=f"has the same macro name as {taken[macro_row]!r}", fix="rename one of the runs"
                )
            for column, (cell, decimals) in columns.items():
                # A planned number stays recognisable in prose, too.
                value = number_of(cell.value, decimals) + (" (planned)" if cell.planned else "")
                lines.append(f"\\cmapkd@set{{value}}{{{name}}}{{{macro_row}}}{{{macro_key(column)}}}{{{value}}}\n")
                if cell.std is not None:
                    std = number_of(cell.std, decimals)
                    lines.append(f"\\cmapkd@set{{std}}{{{name}}}{{{macro_row}}}{{{macro_key(column)}}}{{{std}}}\n")
    return "".join([*lines, "\\makeatother\n"])


def macro_key(name: str) -> str:
    """A row or column as part of a macro's name: itself where TeX can read it, else its slug."""
    plain = all(character.isascii() and (character.isalnum() or character in " ._:/+@()-") for character in name)
    return name if plain and "  " not in name and name == name.strip() else slug(name)
