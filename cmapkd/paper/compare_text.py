"""A comparison of two runs as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmapkd.paper import paired
from cmapkd.paper.compare import Comparison, Number

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # characters of a sparkline
LARGE = 1e4  # from here on numbers are shown with separators and without decimals


def text(found: Comparison) -> str:
    """All of it."""
    lines = [f"{found.first}  against  {found.second}", "", "Settings that differ"]
    rows = [("", "first", "second"), *found.settings]
    lines += _columns(rows, right=False) if found.settings else ["  none"]
    lines += ["", f"Measured (difference: {found.first} - {found.second})"]
    heads = ("", "first", "second", "difference", f"95 % interval ({interval_of(found)})", "p")
    lines += _columns([heads, *(number_row(number) for number in found.numbers)], right=True)
    lines += [f"  {line}" for line in (meaning(found), *found.notes)]
    lines += ["", "Training loss, from the first to the last step of each stage (each line has its own scale)"]
    lines += curves(found)
    return "\n".join(lines)


def interval_of(found: Comparison) -> str:
    """What the intervals cover, for the head of their column."""
    return f"images and {found.seeds} seeds" if found.seeds else "images"


def meaning(found: Comparison) -> str:
    """How the intervals and p values were made."""
    over = f"Intervals and p values: paired bootstrap over test images, {paired.REPEATS:,} resamples, "
    if found.seeds:
        over += f"with the spread between {found.seeds} seeds (t distribution), as in the tables; "
    else:
        over += "for these trained models alone: the spread between seeds is not in them; "
    return f"{over}± is the deviation over seeds. Not corrected for the number of comparisons."


def number_row(number: Number) -> tuple[str, ...]:
    """Name, both values, difference, interval and p value as shown."""
    interval = number.interval
    shown = f"[{interval.low:+.2f}, {interval.high:+.2f}]" if interval else ""
    difference = number.difference
    signed = "" if difference is None else _shown(difference, sign="+", like=number)
    return (shorter(number.name), _value(number.first, number), _value(number.second, number), signed, shown, _p(interval))


def shorter(name: str) -> str:
    """A metric's name without the word for the whole test set."""
    return name.replace(" all ", " ")


def _p(interval: paired.Interval | None) -> str:
    if interval is None:
        return ""
    smallest = 2 / (1 + paired.REPEATS)
    return f"< {smallest:.1g}" if interval.p <= smallest else f"{interval.p:.2g}" if interval.p < 0.1 else f"{interval.p:.2f}"


def _value(value: tuple[float, float | None] | None, number: Number) -> str:
    if value is None:
        return "not measured"
    return _shown(value[0], like=number) + (f" ± {_shown(value[1], like=number)}" if value[1] else "")


def _shown(value: float, *, like: Number, sign: str = "") -> str:
    largest = max(abs(side[0]) for side in (like.first, like.second) if side)
    return f"{value:{sign},.0f}" if largest >= LARGE else f"{value:{sign}.{2 if largest >= 1 or largest == 0 else 4}f}"


def sparkline(values: np.ndarray, width: int = WIDTH) -> str:
    """At most ``width`` bars, each the mean of a stretch of ``values`` (k,); a blank for what is not finite."""
    if not len(values):
        return ""
    means = np.array([block.mean() for block in np.array_split(values.astype(np.float64), min(width, len(values)))])
    finite = np.isfinite(means)
    if not finite.any():
        return " " * len(means)
    low, span = means[finite].min(), np.ptp(means[finite])
    places = np.round((means - low) / span * (len(BARS) - 1)) if span else np.zeros(len(means))
    return "".join(BARS[int(place)] if known else " " for place, known in zip(places, finite, strict=True))


def curves(found: Comparison) -> list[str]:
    """A sparkline for each stage of each side."""
    rows = []
    for side, stages in zip((found.first, found.second), found.curves, strict=True):
        for curve in stages:
            ends = f"{curve.loss[0]:.3g} to {curve.loss[-1]:.3g}" if len(curve.loss) else ""
            rows.append((f"{side}, {curve.stage}", sparkline(curve.loss), ends))
        if not stages:
            rows.append((side, "no curves in its metric files", ""))
    return _columns(rows, right=False)


def _columns(rows: Sequence[tuple[str, ...]], *, right: bool) -> list[str]:
    """Aligned columns, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines
