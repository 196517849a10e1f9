"""Figure 2: (a) the visual pyramid, (b) the language hierarchy, (c) the bridge and the pairs of levels, as configured."""

from __future__ import annotations

from cmapkd.paper.constants import Constants
from cmapkd.paper.context import PaperContext
from cmapkd.paper.design import LANGUAGE, VISUAL, PaperDesign, required
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.framework import LEVEL_WORDS, cells_text
from cmapkd.paper.figures.tikz import WIDTH, fill

NAME = "figure2"
HEIGHT = 66  # [mm]
ROWS = {"5": 49.0, "4": 36.4, "3": 23.4, "2": 8.8}  # [mm] height of P5 to P2; L4 to L1 have the same
MAPS = {"5": (2.4, 2), "4": (3.8, 4), "3": (5.8, 8), "2": (8.4, 16)}  # side [mm] and cells along it, as drawn
RESIZE = {"5": r"pool\\2\,$\times$\,2", "4": "", "3": r"up\\$\times$\,2", "2": r"up\\$\times$\,4"}
HEADINGS = r"""\begin{tikzpicture}[x=1mm,y=1mm]
\useasboundingbox (0,0) rectangle (<<width>>,<<height>>);
\tikzset{operation/.style={box, small, minimum width=7mm, minimum height=5.6mm, inner sep=0.2mm},
  block/.style={box, fill=black!8, minimum width=9mm, minimum height=6.6mm, inner sep=0.2mm},
  line/.style={line width=0.55pt}}
\node[anchor=north west] at (0,66) {\textbf{(a)} visual pyramid};
\node[anchor=north west, small, align=left] at (0,62.4) {<<channels>> channels; 3\,$\times$\,3 smoothing is <<smoothing>>};
\node[anchor=north west] at (63,66) {\textbf{(b)} language hierarchy};
\node[anchor=north west, small] at (63,62.4) {width <<text_channels>>; <<heads>> attention heads};
\node[anchor=north west] at (99,66) {\textbf{(c)} bridge and pairs};
\node[anchor=north west, small] at (99,62.4) {<<pairs>> pairs of levels};
\draw[black!40, line width=0.4pt] (60.9,0.5) -- (60.9,65.5) (97.4,0.5) -- (97.4,65.5);
<<visual>>
<<language>>
<<bridge>>
\end{tikzpicture}
"""
BRIDGE = r"""\node[box, fill=vision!25, minimum width=7.4mm, minimum height=9mm, inner sep=0.2mm] (G) at (103.2,51) {$\bar
  P_i$\\{\smallsize <<channels>>}};
\node[box, fill=language!30, minimum width=7.4mm, minimum height=9mm, inner sep=0.2mm] (L) at (118.2,51)
  {$L_j$\\{\smallsize <<text_channels>>}};
\draw[flow] ([yshift=0.9mm]G.east) -- node[above, small, inner sep=0.7mm] {$f_{v\to l}$} ([yshift=0.9mm]L.west);
\draw[flow] ([yshift=-0.9mm]L.west) -- node[below, small, inner sep=0.7mm] {$f_{l\to v}$} ([yshift=-0.9mm]G.east);
<<matrix>>
\node[anchor=north, small] at (110.9,14.2) {<<legend>>};
"""


def build(context: PaperContext) -> Figure:
    """The drawing and the constants in it."""
    design = required(context.design, NAME, context.full_run)
    given = Constants(context)
    channels = given.number("pyramid", "channels", design.pyramid["channels"], "pyramid", "channels")
    text_channels = given.number("pyramid", "text_channels", design.pyramid["text_channels"], "pyramid", "text_channels")
    pairs = len(design.method["visual_levels"]) * len(design.method["language_levels"])
    levels = "runs", design.run, "visual_levels, language_levels"
    values = {
        "width": str(WIDTH),
        "height": str(HEIGHT),
        "channels": channels,
        "text_channels": text_channels,
        "smoothing": given.text("pyramid", "smoothing", design.pyramid["smoothing"], "pyramid", "smoothing"),
        "heads": given.number("pyramid", "heads", design.pyramid["heads"], "pyramid", "heads"),
        "pairs": given.number("pairs", "count", pairs, *levels, recipe="product of the numbers of levels"),
        "visual": "\n".join(line for level in reversed(VISUAL) for line in _visual(given, design, level)),
        "language": "\n".join(line for level in reversed(LANGUAGE) for line in _language(given, design, level)),
        "bridge": fill(
            BRIDGE,
            {
                "channels": channels,
                "text_channels": text_channels,
                "matrix": "\n".join(_matrix(given, design)),
                "legend": _legend(given, design),
            },
        ),
    }
    return Figure(
        name=NAME,
        title="Pyramids and bridge",
        caption=_caption(context, design),
        parents=given.parents(),
        cells=given.cells,
        texts=given.texts,
        columns=tuple(given.columns()),
        tikz=fill(HEADINGS, values),
    )


def _visual(given: Constants, design: PaperDesign, level: str) -> list[str]:
    """One row of (a): block, lateral, resize, sum, smoothing, map; and the way down from the level above."""
    digit, y = level[1], ROWS[level[1]]
    lines = [*_block("B", 4.6, digit, _tap(given, design, "image", level))]
    lines.append(f"\\node[operation] (A{digit}) at (14.2,{y}) {{1\\,$\\times$\\,1}}; \\draw[flow] (B{digit}) -- (A{digit});")
    last = f"A{digit}"
    if RESIZE[digit]:
        lines.append(f"\\node[operation] (U{digit}) at (23.2,{y}) {{{RESIZE[digit]}}}; \\draw[flow] ({last}) -- (U{digit});")
        last = f"U{digit}"
    if digit != "5":
        above = str(int(digit) + 1)
        lines += [
            f"\\node[draw, circle, line width=0.5pt, inner sep=0mm, minimum size=3mm] (S{digit}) at (29.8,{y}) {{$+$}};",
            f"\\node[operation, minimum width=6.4mm] (M{digit}) at (36,{y}) {{3\\,$\\times$\\,3}};",
            f"\\draw[flow] ({last}) -- (S{digit}); \\draw[flow] (S{digit}) -- (M{digit});",
            f"\\fill (40.5,{ROWS[above]}) circle (0.45);",
            f"\\draw[flow] (40.5,{ROWS[above]}) -- (40.5,{y + 4.9:.1f}) -- node[above, small] {{up to $P_{digit}$}} "
            f"(29.8,{y + 4.9:.1f}) -- (S{digit});",
        ]
        last = f"M{digit}"
    side, cells = MAPS[digit]
    left, low = 45.6 - side / 2, y - side / 2
    shade = "white" if level not in design.method["visual_levels"] else f"vision!{6 + 12 * VISUAL.index(level) + 12}"
    lines += [
        f"\\draw[flow] ({last}) -- ({left:.2f},{y});",
        f"\\fill[{shade}] ({left:.2f},{low:.2f}) rectangle +({side},{side});",
        f"\\draw[line width=0.2pt, xstep={side / cells:.4f}, ystep={side / cells:.4f}, shift={{({left:.2f},{low:.2f})}}] "
        f"(0,0) grid ({side},{side});",
        f"\\draw[line width=0.6pt] ({left:.2f},{low:.2f}) rectangle +({side},{side});",
        f"\\node[anchor=west, align=left] at (50.1,{y}) {{$P_{digit}$\\\\{_grids(given, design, level)}}};",
    ]
    return lines


def _language(given: Constants, design: PaperDesign, level: str) -> list[str]:
    """One row of (b): block, attention, mean or summary token, vector."""
    digit = str(int(level[1]) + 1)  # the row of P2 is that of L1
    y = ROWS[digit]
    lines = [*_block("T", 67.2, digit, _tap(given, design, "text", level))]
    last = f"T{digit}"
    if level in ("L2", "L3"):
        reach = min(5, design.pyramid["phrase_window"] // 2) if level == "L2" else 5
        lines += [f"\\draw[flow] ({last}) -- (73.9,{y});", *_mask(74.1, y - 2.5, reach)]
        if level == "L2":
            window = given.number("pyramid", "phrase_window", design.pyramid["phrase_window"], "pyramid", "phrase_window")
            words = f"attention within {window}"
        else:
            words = "attention"
        lines.append(f"\\node[small, anchor=north] at (79.4,{y - 3.1:.1f}) {{{words}}};")
        last = "79.2," + str(y)
    middle = "end of\\\\text" if level == "L4" else "mean"
    lines += [
        f"\\node[operation, minimum width=8.4mm] (M{level}) at (81.1,{y}) {{{middle}}};"
        if level in ("L1", "L4")
        else f"\\node[operation, minimum width=7.2mm] (M{level}) at (84.4,{y}) {{{middle}}};",
        f"\\draw[flow] ({last}) -- (M{level});",
    ]
    shade = "white" if level not in design.method["language_levels"] else f"language!{18 + 12 * LANGUAGE.index(level)}"
    lines += [
        f"\\node[box, fill={shade}, minimum width=6mm, minimum height=5mm, inner sep=0mm] (V{level}) "
        f"at (92.6,{y}) {{$L_{level[1]}$}};",
        f"\\draw[flow] (M{level}) -- (V{level});",
        f"\\node[small, anchor=north] at (92.4,{y - 2.6:.1f}) {{{LEVEL_WORDS[level]}}};",
    ]
    return lines


def _block(name: str, x: float, digit: str, text: str) -> list[str]:
    """A block of a tower, and the way up to it from the tapped block below."""
    lines = [f"\\node[block] ({name}{digit}) at ({x},{ROWS[digit]}) {{{text}}};"]
    if digit != "5":
        lines.append(f"\\draw[flow] ({name}{digit}) -- ({name}{int(digit) + 1});")
    else:
        word = "image" if name == "B" else "text"
        lines.append(f"\\node[small, anchor=south west] at ({x - 4.6:.1f},{ROWS[digit] + 3.6}) {{{word} tower}};")
    return lines


def _tap(given: Constants, design: PaperDesign, tower: str, level: str) -> str:
    """``block 9`` of the student and, in brackets, of the teacher; a share of the depth where that is not known."""
    index = (VISUAL if tower == "image" else LANGUAGE).index(level)
    shown = []
    for who, model in (("student", design.student), ("teacher", design.teacher)):
        taps = model.image_taps if tower == "image" else model.text_taps
        if taps is None:
            shown.append(("$d$/4", "$d$/2", "3$d$/4", "$d$")[index])
            continue
        recipe = "a quarter, half, three quarters or all of the blocks"
        shown.append(given.number(f"{who}/{level}", "block", taps[index], f"{who}.model", recipe=recipe))
    return f"block\\\\{shown[0]} ({shown[1]})"


def _grids(given: Constants, design: PaperDesign, level: str) -> str:
    """Cells of a level for the student and, in brackets and on a line of its own, for the teacher."""
    student, teacher = (
        cells_text(given, model, who, level) for who, model in (("student", design.student), ("teacher", design.teacher))
    )
    return f"{{\\smallsize {student}}}\\\\{{\\smallsize ({teacher})}}"


def _mask(x: float, y: float, reach: int, cells: int = 6, side: float = 5.0) -> list[str]:
    """A small attention mask: which tokens see which."""
    step = side / cells
    seen = [
        f"\\fill[language!70] ({x + column * step:.3f},{y + side - (row + 1) * step:.3f}) rectangle +({step:.3f},{step:.3f});"
        for row in range(cells)
        for column in range(cells)
        if abs(row - column) <= reach
    ]
    grid = (
        f"\\draw[line width=0.2pt, step={step:.4f}, shift={{({x:.2f},{y:.2f})}}] (0,0) grid ({side},{side}); "
        f"\\draw[line width=0.6pt] ({x:.2f},{y:.2f}) rectangle +({side},{side});"
    )
    return [*seen, grid]


def _matrix(given: Constants, design: PaperDesign) -> list[str]:
    """The pairs of levels; the shade is their weight where it is fixed."""
    fixed = design.method["alpha"] == "fixed"
    side, left, top = 4.6, 103.2, 36.6
    lines = []
    for row, visual in enumerate(VISUAL):
        y = top - (row + 0.5) * side
        lines.append(f"\\node[small, anchor=east] at ({left - 0.2},{y:.2f}) {{$P_{visual[1]}$}};")
        for column, language in enumerate(LANGUAGE):
            x = left + (column + 0.5) * side
            if row == 0:
                lines.append(f"\\node[small, anchor=south] at ({x:.2f},{top + 0.1}) {{$L_{language[1]}$}};")
            active = visual in design.method["visual_levels"] and language in design.method["language_levels"]
            weight = 1.0 if row == column else 0.5  # cmapkd/objectives/terms/alignment.py: fixed_alpha
            shade = ("selection!55" if weight == 1 else "selection!18") if fixed else "selection!30"
            text = ""
            if active and fixed:
                text = given.number(
                    f"{visual}-{language}", "alpha", weight, "runs", design.run, "alpha", recipe="fixed weights"
                )
            lines.append(
                f"\\node[draw, line width=0.4pt, small, fill={shade if active else 'white'}, inner sep=0mm, "
                f"minimum size={side}mm] at ({x:.2f},{y:.2f}) {{{text}}};"
            )
    return lines


def _legend(given: Constants, design: PaperDesign) -> str:
    tau = given.number("pairs", "temperature_kd", design.method["temperature_kd"], "runs", design.run, "temperature_kd")
    alpha = given.text("pairs", "alpha", design.method["alpha"], "runs", design.run, "alpha")
    weights = "in each cell: $\\alpha_{ij}$" if alpha == "fixed" else "$\\alpha_{ij}$ learned"
    return f"{weights}\\\\KL of batch\\\\distributions,\\\\temperature {tau}"


def _caption(context: PaperContext, design: PaperDesign) -> str:
    run = next(run for run in context.runs if run.name == design.run)
    compared = (
        "pairs are compared by late interaction of cells and tokens"
        if design.method["similarity"] == "late"
        else "pairs are compared as pooled vectors"
    )
    diagonal = (
        " The pairs on the diagonal also fit the teacher's pyramid, before it is frozen."
        if design.teacher_pyramid["mode"] == "fit"
        else ""
    )
    sentences = [
        f"As configured for {run.shown}; blocks and cells of the student, in brackets of the teacher.",
        "(a) 1 × 1 convolutions bring the tapped maps to the same channels; they are resized, added from coarse to fine "
        "and smoothed.",
        "(b) The levels L2 and L3 attend within a window and over the whole caption (the small matrices); "
        "all are averaged over tokens but L4, and projected.",
        f"(c) Two linear maps join averaged visual levels and language levels; {compared}.{diagonal}",
    ]
    return " ".join(sentences)
