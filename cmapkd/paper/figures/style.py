"""How figures look: LNCS width, embedded TrueType fonts, colours that survive colour blindness and grey printing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

TEXT_WIDTH = 122 / 25.4  # [in] LNCS text width, 122 mm
# Okabe-Ito colours in order of lightness, each with its own dash and marker: four series stay apart in grey, too.
SERIES = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": (0, (5, 1.2)), "marker": "s"},
    {"color": "#D55E00", "linestyle": (0, (5, 1.2, 1, 1.2)), "marker": "^"},
    {"color": "#E69F00", "linestyle": (0, (1, 0.9)), "marker": "D"},
)
# Further series, where no more than the first four have to stay apart in grey: their markers still do.
FURTHER = (
    {"color": "#009E73", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#CC79A7", "linestyle": (0, (7, 2)), "marker": "P"},
    {"color": "#56B4E9", "linestyle": (0, (2, 1.5)), "marker": "X"},
    {"color": "#7F7F7F", "linestyle": "-", "marker": "<"},
    {"color": "#8C510A", "linestyle": (0, (4, 1, 1, 1)), "marker": "p"},
    {"color": "#404080", "linestyle": (0, (1, 2)), "marker": ">"},
)
RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so the file is the same everywhere
    "font.size": 7.0,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
    "pdf.compression": 9,
    "figure.dpi": 150,
}


def cycle(index: int) -> dict[str, Any]:
    """Colour, dash and marker of a series; the same again after ten."""
    return dict((*SERIES, *FURTHER)[index % (len(SERIES) + len(FURTHER))])


@contextmanager
def paper_style() -> Iterator[None]:
    """matplotlib settings of the paper, independent of the user's own."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def plain(text: str) -> str:
    """Text of a user for matplotlib, which would take two `$` for a formula and leave a leading `_` out of legends."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save_pdf(figure: Figure, path: Path, title: str) -> None:
    """Write a PDF that is the same bytes for the same figure: no dates in it."""
    metadata = {"Title": title, "Creator": "cmapkd", "Producer": "matplotlib", "CreationDate": None, "ModDate": None}
    figure.savefig(path, format="pdf", metadata=metadata)


def heat(
    axis: Any, values: Any, rows: Any, columns: Any, *, low: float, high: float, decimals: int = 2, outlined: Any = ()
) -> Any:
    """A heat map with its values printed in the cells; cells that are NaN stay empty. ``outlined`` holds (row, column)."""
    image = axis.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="equal")
    for row in range(len(rows)):
        for column in range(len(columns)):
            value = float(values[row][column])
            if value == value:
                dark = (value - low) / (high - low) > 0.6
                text = f"{value:.{decimals}f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    for row, column in outlined:
        axis.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=1.2))
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0, pad=2)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image
