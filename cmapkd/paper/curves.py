"""Training curves of a run as inline SVG: one small plot for each quantity, stages one after the other. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cmapkd.paper.html import escape

if TYPE_CHECKING:
    import numpy as np

PREFIX = "curves/"
HIDDEN = ("step", "data_seconds")
LAST = ("lr", "grad_norm", "samples_per_second")  # after the loss and its terms
NAMES = {"lr": "learning rate", "grad_norm": "gradient norm", "samples_per_second": "samples per second"}
WIDTH, HEIGHT = 360, 190  # [px] of one plot
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 24, 24  # [px] around the axes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito: of neighbouring stages
Stage = tuple[str, Mapping[str, "np.ndarray"]]  # name, and by quantity (k,) values; ``step`` says where


def stages_of(arrays: Mapping[str, np.ndarray]) -> list[Stage]:
    """The curves among a metric file's arrays, ``curves/<place>/<stage>/<name>``, in the order of the stages."""
    found: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for key, values in arrays.items():
        if key.startswith(PREFIX):
            place, stage, name = key.removeprefix(PREFIX).split("/", 2)
            found.setdefault((int(place), stage), {})[name] = values
    return [(stage, curves) for (_, stage), curves in sorted(found.items(), key=lambda entry: entry[0][0]) if "step" in curves]


def render_curves(stages: Sequence[Stage]) -> str:
    """All plots; nothing without curves."""
    names = list(dict.fromkeys(name for _, curves in stages for name in curves if name not in HIDDEN))
    names.sort(key=lambda name: (name != "loss", name in LAST))  # stable: the terms stay in their order
    plots = "\n".join(_plot(name, stages) for name in names)
    return f'<div class="curves">\n{plots}\n</div>' if plots else ""


def _plot(name: str, stages: Sequence[Stage]) -> str:
    """One quantity over the steps of all stages, each stage in its own colour. Values that are not finite are left out."""
    start, lines, borders = 0.0, [], []
    for place, (stage, curves) in enumerate(stages):
        steps = [float(step) for step in curves["step"]]
        points = [(start + x, float(y)) for x, y in zip(steps, curves.get(name, ()), strict=False) if math.isfinite(y)]
        lines.append((COLOURS[place % len(COLOURS)], points))
        borders.append((start, stage))
        start += steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1) if steps else 0
    values = [y for _, points in lines for _, y in points]
    if not values:
        return ""
    ticks = nice_ticks(min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(x: float) -> str:
        return f"{LEFT + width * x / (start or 1):.1f}"

    def up(y: float) -> str:
        return f"{TOP + height * (high - y) / ((high - low) or 1):.1f}"

    parts = [f'<text x="{LEFT}" y="14" font-weight="600">{escape(NAMES.get(name, name.replace("_", " ")))}</text>']
    for tick in ticks:
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick)}" y2="{up(tick)}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{up(tick)}" dy="4" text-anchor="end">{tick:.6g}</text>')
    for place, (x, stage) in enumerate(borders):
        if place:
            border = f'<line x1="{across(x)}" x2="{across(x)}" y1="{TOP}" y2="{TOP + height}"'
            parts.append(f'{border} stroke="#94a3b8" stroke-dasharray="3 3"/>')
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<text x="{across(x)}" y="{HEIGHT - 8}" dx="2" fill="{colour}">{escape(stage)}</text>')
    for colour, points in lines:
        path = " ".join(f"{across(x)},{up(y)}" for x, y in points)
        if len(points) == 1:
            x, y = points[0]
            parts.append(f'<circle cx="{across(x)}" cy="{up(y)}" r="2.5" fill="{colour}"/>')
        elif points:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    body = "\n".join(parts)
    return (
        f'<svg role="img" aria-label="{escape(name)}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="#1e293b">\n{body}\n</svg>'
    )


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten) that span ``low`` to ``high``."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]
