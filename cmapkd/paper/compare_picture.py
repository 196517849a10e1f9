"""A comparison of two runs as a picture, and as a page that stands alone (no script, nothing fetched)."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmapkd.files import write_atomic
from cmapkd.paper.compare import Comparison
from cmapkd.paper.compare_text import interval_of, meaning, number_row, shorter
from cmapkd.paper.figures.style import paper_style, plain

COLORS = ("#0072b2", "#d55e00")  # of the first and the second run: told apart by the colour-blind, too
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1c1c1c;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;font-size:.88rem}th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:left}
table.numbers td+td,table.numbers th+th{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td{overflow-wrap:anywhere}img{max-width:100%}p{color:#444}.frame{overflow-x:auto}
"""


def write_png(found: Comparison, path: Path) -> None:
    """Losses of both runs, and differences with their intervals."""
    write_atomic(path, picture(found))


def write_html(found: list[Comparison], path: Path) -> None:
    """One page with settings, numbers and the picture of each comparison."""
    title = f"{found[0].first} against {found[0].second}" if len(found) == 1 else "Runs of two experiments"
    body = "\n".join(_section(comparison) for comparison in found)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    write_atomic(path, page)


def _section(found: Comparison) -> str:
    image = base64.b64encode(picture(found)).decode()
    settings = _table(("setting", found.first, found.second), found.settings) if found.settings else "<p>none</p>"
    heads = ("metric", found.first, found.second, "difference", f"95 % interval ({interval_of(found)})", "p")
    notes = "".join(f"<p>{escape(note)}</p>" for note in (meaning(found), *found.notes))
    alt = f"Training losses and differences of {found.first} and {found.second}"
    return (
        f"<h1>{escape(found.first)} against {escape(found.second)}</h1>\n"
        f'<img alt="{escape(alt)}" src="data:image/png;base64,{image}">\n'
        f"<h2>Measured</h2>\n{_table(heads, [number_row(number) for number in found.numbers], 'numbers')}\n{notes}\n"
        f"<h2>Settings that differ</h2>\n{settings}"
    )


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]] | list[tuple[str, str, str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="frame"><table class="{kind}"><tr>{head}</tr>\n{body}\n</table></div>'


def picture(found: Comparison) -> bytes:
    """PNG: the same bytes for the same comparison and matplotlib."""
    shown = [number for number in found.numbers if number.interval is not None]
    with paper_style():
        height = max(2.6, 1.0 + 0.17 * len(shown))
        canvas = Figure(figsize=(8.6, height), layout="constrained")
        left, right = canvas.subplots(1, 2, width_ratios=(1, 1))
        _losses(left, found)
        _forest(right, found)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=160, metadata={"Software": "cmapkd"})
    return buffer.getvalue()


def _losses(axes: Axes, found: Comparison) -> None:
    positive = True
    for color, name, stages in zip(COLORS, (found.first, found.second), found.curves, strict=False):
        start, label = 0.0, plain(name)
        for curve in stages:
            axes.plot(start + curve.steps, curve.loss, color=color, label=label)
            label = "_"  # one entry in the legend for each run
            positive &= bool(np.all(curve.loss > 0))
            start += float(curve.steps[-1]) if len(curve.steps) else 0.0
            if curve is not stages[-1]:
                axes.axvline(start, color=color, linewidth=0.5, linestyle=":")
    if positive and any(found.curves):
        axes.set_yscale("log")
    axes.set_title("Training loss (dotted: next stage; terms differ by method)", fontsize=7)
    axes.set_xlabel("step")
    if any(found.curves):
        axes.legend(frameon=False)


def _forest(axes: Axes, found: Comparison) -> None:
    shown = [(number.name, number.interval) for number in found.numbers if number.interval is not None]
    axes.set_title(f"{plain(found.first)} - {plain(found.second)}, 95 % interval ({interval_of(found)})", fontsize=7)
    axes.axvline(0, color="0.6", linewidth=0.6)
    for place, (_, interval) in enumerate(shown):
        axes.plot((interval.low, interval.high), (place, place), color=COLORS[0])
        axes.plot(interval.difference, place, "o", markersize=3, color=COLORS[0])
    axes.set_yticks(range(len(shown)), [plain(shorter(name)) for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel("percentage points")
