"""How figures look: LNCS width, embedded TrueType fonts, colours that survive colour blindness and grey printing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

TEXT_WIDTH = 122 / 25.4  # [in] LNCS text width, 122 mm
# Okabe-Ito colours in order of lightness, each with its own dash and marker: four series stay apart in grey, too.
SERIES = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": (0, (5, 1.2)), "marker": "s"},
    {"color": "#D55E00", "linestyle": (0, (5, 1.2, 1, 1.2)), "marker": "^"},
    {"color": "#E69F00", "linestyle": (0, (1, 0.9)), "marker": "D"},
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


@contextmanager
def paper_style() -> Iterator[None]:
    """matplotlib settings of the paper, independent of the user's own."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def save_pdf(figure: Figure, path: Path, title: str) -> None:
    """Write a PDF that is the same bytes for the same figure: no dates in it."""
    metadata = {"Title": title, "Creator": "cmapkd", "Producer": "matplotlib", "CreationDate": None, "ModDate": None}
    figure.savefig(path, format="pdf", metadata=metadata)
