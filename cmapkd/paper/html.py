"""Pages for a browser: what all have in common, and nested numbers as tables. Pure functions of their content: no dates.

A page is one self-contained file without scripts, and stays under ``LIMIT``, because the report holds each page as a data
address inside one file and browsers refuse to open longer ones.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LIMIT = 1_400_000  # [bytes] of a page: Chromium refuses addresses over 2 MiB, and base64 takes four thirds
UNBROKEN = 32  # [characters] up to which a text in a table stays in one line
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1e293b; background: #fff; margin: 2rem auto;
  max-width: 78rem; padding: 0 1.5rem; }
h1 { font-size: 1.45rem; margin: 0 0 .6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { max-width: 60rem; } code, pre { font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: #f1f5f9; border-radius: 6px; padding: .8rem 1rem; overflow: auto; max-height: 34rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border: solid #334155; border-width: 2px 0; }
th, td { padding: .22rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; } thead th { vertical-align: bottom; }
thead tr:last-child > * { border-bottom: 1px solid #334155; } tbody th { font-weight: 400; }
th.words, td.words, tbody th { text-align: left; } td.words { white-space: pre; }
td.free { text-align: left; white-space: normal; overflow-wrap: break-word; }
th.group { text-align: center; border-bottom: 1px solid #94a3b8; }
tbody tr.ruled > * { border-top: 1px solid #334155; }
tr.heading th { text-align: left; font-style: italic; padding-top: .6rem; }
tbody tr:not(.heading):hover { background: #eef6ff; }
td[title] { cursor: help; } td.best { font-weight: 700; } td.second { text-decoration: underline; text-underline-offset: 3px; }
.planned { font-style: italic; color: #64748b; } .deviation { font-size: .75em; color: #64748b; }
.notes, .small { font-size: .85rem; color: #475569; } details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
img { max-width: min(100%, 62rem); height: auto; }
.beside { display: inline-block; vertical-align: top; margin-right: 2.5rem; max-width: 100%; }
.curves { display: flex; flex-wrap: wrap; gap: .8rem 1.4rem; }
""".strip()


def escape(text: object) -> str:
    """Plain text as HTML, also within a quoted attribute."""
    return html.escape(str(text), quote=True)


def page(title: str, *parts: str, optional: Sequence[str] = ()) -> str:
    """A whole page with a heading.

    Args:
        optional: parts at its end that are left out, the last first, where the page would be larger than ``LIMIT``.

    Raises:
        ValueError: it is too large without them.
    """
    for kept in range(len(optional), -1, -1):
        left = len(optional) - kept
        remark = paragraph(f"The page would be too large with {left} more parts; the files named here hold them.", "small")
        text = _whole(title, [*parts, *optional[:kept], remark if left else ""])
        if len(text.encode()) <= LIMIT:
            return text
    raise ValueError(f"{title}: a page of {len(text.encode())} bytes cannot be opened from a report (at most {LIMIT})")


def _whole(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def paragraph(text: str, style: str = "") -> str:
    return f"<p{_class(style)}>{escape(text)}</p>" if text else ""


def section(title: str, *parts: str, level: int = 2) -> str:
    """A heading and what is under it; nothing if nothing is."""
    body = "\n".join(part for part in parts if part)
    return f"<h{level}>{escape(title)}</h{level}>\n{body}" if body else ""


def details(summary: str, body: str) -> str:
    """Something to unfold."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def source(text: str) -> str:
    """A file's or a program's text as it is."""
    return f"<pre>{escape(text)}</pre>"


def plain_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, words: Iterable[int] = ()) -> str:
    """A table of texts and numbers; the first column names the rows, those of ``words`` hold text that may be long."""
    words = set(words)
    head = "".join(f"<th{_class('words' if i == 0 or i in words else '')}>{escape(h)}</th>" for i, h in enumerate(headers))
    lines = []
    for row in rows:
        cells = [f"<th>{escape(row[0])}</th>"]
        cells += [f"<td{_class(_form(value) if i in words else '')}>{shown(value)}</td>" for i, value in enumerate(row[1:], 1)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if not lines:
        return ""
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _form(value: object) -> str:
    """Style of a text: a long one may be broken, a short one is not."""
    return "words" if len(str(value)) <= UNBROKEN else "free"


def entries(content: Mapping[str, object]) -> str:
    """Names and what belongs to them, one in a row."""
    lines = [f'<tr><th>{escape(key)}</th><td class="free">{shown(value)}</td></tr>' for key, value in content.items()]
    body = "\n".join(lines)
    return f'<div class="wide"><table><tbody>\n{body}\n</tbody></table></div>' if lines else ""


def nested(content: Mapping[str, Any], level: int = 3, above: tuple[str, ...] = ()) -> str:
    """Nested dictionaries as headings and tables, whatever their names: entries of the same form share one table.

    The keys that lead to a number are its tooltip.
    """
    plain = {key: value for key, value in content.items() if not isinstance(value, Mapping)}
    parts = [_grid({"": plain}, above)] if plain else []
    alike: dict[str, Mapping[str, Any]] = {}  # neighbours that share columns, so far
    for key, value in [*((k, v) for k, v in content.items() if isinstance(v, Mapping)), ("", {})]:
        flat = bool(value) and not any(isinstance(entry, Mapping) for entry in value.values())
        if alike and not (flat and set(value) & set(next(iter(alike.values())))):
            parts.append(_rows(alike, level, above))
            alike = {}
        if flat:
            alike[key] = value
        elif value:
            parts.append(section(key, nested(value, min(level + 1, 6), (*above, key)), level=level))
    return "\n".join(part for part in parts if part)


def _rows(alike: Mapping[str, Mapping[str, Any]], level: int, above: tuple[str, ...]) -> str:
    """Entries of the same form in one table; one that stands alone under its name."""
    if len(alike) > 1:
        return _grid(alike, above)
    ((key, value),) = alike.items()
    return f'<div class="beside">{section(key, _grid({"": value}, (*above, key)), level=level)}</div>'


def _grid(rows: Mapping[str, Mapping[str, Any]], above: tuple[str, ...]) -> str:
    """One row for each entry, one column for each name that an entry has."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not columns:
        return ""
    if len(rows) == 1 and "" in rows:
        words = any(isinstance(value, str | list) for value in rows[""].values())
        lines = [f"<tr><th>{escape(key)}</th>{_value(value, (*above, key), words)}</tr>" for key, value in rows[""].items()]
        head = ""
    else:
        lines = []
        for key, row in rows.items():
            cells = "".join(_value(row[name], (*above, key, name)) if name in row else "<td></td>" for name in columns)
            lines.append(f"<tr><th>{escape(key)}</th>{cells}</tr>")
        names = "".join(f"<th>{escape(name)}</th>" for name in columns)
        head = f"<thead><tr><th></th>{names}</tr></thead>\n"
    body = "\n".join(lines)
    return f'<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _value(value: Any, keys: tuple[str, ...], words: bool = False) -> str:
    style = _class("free" if words or isinstance(value, str | list) else "")
    exact = f" = {value!r}" if isinstance(value, float) else ""
    return f'<td{style} title="{escape(" / ".join(keys) + exact)}">{shown(value)}</td>'


def shown(value: object) -> str:
    """A value for people: numbers with four digits, a dash for what is absent, lists in a line."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(entry) for entry in value)
    return escape(value)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
