"""Figure 1: the framework as it is configured: models, pyramids, bridge, ALSN, losses, what is frozen, what inference keeps."""

from __future__ import annotations

from cmapkd.paper.constants import Constants
from cmapkd.paper.context import PaperContext
from cmapkd.paper.design import LANGUAGE, VISUAL, PaperDesign, PaperModel, required
from cmapkd.paper.figures import Figure
from cmapkd.paper.figures.tikz import WIDTH, fill
from cmapkd.paper.latex import escape

NAME = "figure1"
HEIGHT = 84  # [mm]
LEVEL_WORDS = {"L1": "token", "L2": "phrase", "L3": "sentence", "L4": "global"}
POLICIES = {"uniform": "equal weights", "manual": "weights by hand"}

# The teacher above, the student below, each with vision on the left and language on the right; the losses between them.
FRAME = r"""\begin{tikzpicture}[x=1mm,y=1mm]
\useasboundingbox (0,0) rectangle (<<width>>,<<height>>);
% what inference keeps: both towers of the student and the space of their embeddings
\begin{scope}
  \fill[black!7, rounded corners=1mm] (0,61.5) rectangle (122,84);
  \draw[line width=1.1pt, rounded corners=1mm, fill=selection!9] (0.2,0.2) -- (0.2,38.4) -- (22.3,38.4) -- (22.3,12.3)
    -- (99.7,12.3) -- (99.7,38.4) -- (121.8,38.4) -- (121.8,0.2) -- cycle;
  \draw[dashed, line width=0.5pt, rounded corners=1mm] (24.3,14.3) rectangle (97.7,38.4);
\end{scope}
% towers and inputs
\node[box, fill=vision!12, minimum width=18mm, minimum height=15.4mm] (Tv) at (11.2,70.7) {image tower\\{\smallsize
  <<t_image>>}};
\node[box, fill=language!16, minimum width=18mm, minimum height=15.4mm] (Tl) at (110.8,70.7) {text tower\\{\smallsize
  <<t_text>>}};
\node[box, fill=vision!12, minimum width=18mm, minimum height=14.6mm] (Sv) at (11.2,23.8) {image tower\\{\smallsize
  <<s_image>>}};
\node[box, fill=language!16, minimum width=18mm, minimum height=14.6mm] (Sl) at (110.8,23.8) {text tower\\{\smallsize
  <<s_text>>}};
\node (image) at (11.2,49.3) {\tikz[x=1mm,y=1mm]{\draw[line width=0.5pt, fill=white] (0,0) rectangle (8,6);
  \fill[black!25] (0.25,0.25) -- (2.8,3.6) -- (4.2,2) -- (5.6,3.1) -- (7.75,0.25) -- cycle; \fill[black!45] (6.1,4.6)
    circle (0.7);}\\image\\
  {\smallsize <<s_pixels>>}};
\node (caption) at (110.8,49.3) {\tikz[x=1mm,y=1mm]{\draw[line width=0.5pt, fill=white] (0,0) rectangle (8,6);
  \foreach \y/\w in {4.6/6.4,3/5.2,1.4/5.9} \draw[line width=0.7pt, black!55] (0.8,\y) --
    (\w+0.8,\y);}\\caption\\{\smallsize <<tokens>>}};
\draw[flow] (image) -- (Tv); \draw[flow] (image) -- (11.2,38.7); \draw[flow] (caption) -- (Tl); \draw[flow] (caption) --
  (110.8,38.7);
% headings
\node[anchor=west] at (0.6,81.6) {\textbf{Teacher} <<t_name>>};
\node[anchor=east] at (121.4,81.6) {\snowflake\;frozen, <<t_pyramid>>};
\node (Hv) at (11.2,34.7) {\textbf{Student}\\<<s_name>>}; \node (Hl) at (110.8,34.7) {\textbf{Student}\\<<s_name>>};
% pyramids
<<levels>>
\draw[flow] (Tv.east) -- (25.6,70.7); \draw[flow] (Tl.west) -- (96.4,70.7);
\draw[flow] (Sv.east |- 0,25) -- (26.2,25); \draw[flow] (Sl.west |- 0,25) -- (95.8,25);
% bridges
\node[box, minimum width=19mm, minimum height=8mm] (Tb) at (61,70.7) {bridge\\{\smallsize $f_{v\to l}$,\; $f_{l\to v}$}};
\node[box, minimum width=19mm, minimum height=8mm] (Sb) at (61,32.1) {bridge\\{\smallsize $f_{v\to l}$,\; $f_{l\to v}$}};
\draw[both] (Tb.west) -- (46.2,70.7); \draw[both] (Tb.east) -- (75.8,70.7);
\draw[both] (Sb.west) -- (46.9,32.1); \draw[both] (Sb.east) -- (75.1,32.1);
% losses
\tikzset{loss/.style={box, draw=loss, line width=0.9pt}}
\node[loss, minimum width=23mm, minimum height=15.6mm] (Iv) at (35.5,50) {\textbf{intra-modal}\\{\smallsize
  $\mathcal{L}_{\mathrm{intra}}^{v}=\tfrac14\sum_i w_v^i\, d_v^i$}\\{\smallsize weight <<intra>>}};
\node[loss, minimum width=23mm, minimum height=15.6mm] (Il) at (86.5,50) {\textbf{intra-modal}\\{\smallsize
  $\mathcal{L}_{\mathrm{intra}}^{l}=\tfrac14\sum_j w_l^j\, d_l^j$}\\{\smallsize weight <<intra>>}};
\node[loss, minimum width=22mm, minimum height=7.3mm] (A) at (61,54.15) {\textbf{alignment}\\{\smallsize <<pairs>>, weight
  <<align>>}};
\node[loss, minimum width=22mm, minimum height=7.3mm] (R) at (61,45.85) {\textbf{relation}\\{\smallsize weight <<relation>>}};
\draw[both] (35.5,62) -- (Iv); \draw[both] (Iv) -- (35.5,36.4); \draw[both] (86.5,62) -- (Il); \draw[both] (Il) --
  (86.5,36.4);
\draw[both] (Tb) -- (A); \draw[both] (R) -- (Sb);
% the weights belong to all levels
\tikzset{weights/.style={flow, selection!75!black, line width=0.9pt}}
\draw[selection!75!black, line width=0.9pt] (45.9,18.6) -| (46.6,36) -- (45.9,36) (76.1,18.6) -| (75.4,36) -- (76.1,36);
<<selection>>
\node[small, fill=white, inner sep=0.4mm] at (61,14.2) {trained beside it, dropped at inference};
% inference
\node[box, fill=vision!12, minimum height=6.4mm, minimum width=24mm] (Ev) at (35.5,5.6) {image embedding};
\node[box, fill=language!16, minimum height=6.4mm, minimum width=24mm] (El) at (86.5,5.6) {text embedding};
\node[box, draw=loss, line width=0.9pt, minimum height=8.6mm, minimum width=19mm] (Task) at (61,5.6) {\textbf{task}\;
  {\smallsize $\mathcal{L}_{\mathrm{task}}$}\\{\smallsize weight <<task>>}};
\draw[flow] (Sv.south) |- (Ev.west); \draw[flow] (Sl.south) |- (El.east); \draw[both] (Ev) -- (Task); \draw[both] (Task)
  -- (El);
\node[small, anchor=west] at (23.4,10.5) {kept at inference};
\node[small, anchor=east] at (98.6,10.5) {a plain CLIP};
\end{tikzpicture}
"""
SELECTION = r"""% ALSN: the top levels in (detached), the weights of all levels out
\node[box, fill=selection!22, minimum width=19mm, minimum height=8.2mm] (N) at (61,20.7) {\textbf{ALSN}\\{\smallsize per
  sample}};
\draw[stopped] (41,18.3) |- (N.west |- 0,17.3); \draw[stopped] (81,18.3) |- (N.east |- 0,17.3);
\node[small] at (49.2,19) {$P_5$}; \node[small] at (72.8,19) {$L_4$};
\draw[weights] (N.west |- 0,23) -- node[above, small, text=black] {$w_v$} (46.7,23);
\draw[weights] (N.east |- 0,23) -- node[above, small, text=black] {$w_l$} (75.3,23);
"""
FIXED = r"""\node[box, fill=selection!22, minimum width=19mm, minimum height=8.2mm] (N) at (61,20.7)
  {<<policy>>\\{\smallsize $w_v$,\; $w_l$}};
\draw[weights] (N.west) -- (46.7,20.7); \draw[weights] (N.east) -- (75.3,20.7);
"""


def build(context: PaperContext) -> Figure:
    """The drawing and the constants in it."""
    design = required(context.design, NAME, context.full_run)
    given = Constants(context)
    values = {
        "width": str(WIDTH),
        "height": str(HEIGHT),
        "levels": "\n".join(
            [*_levels(given, design.teacher, "teacher", design), *_levels(given, design.student, "student", design)]
        ),
        **_models(given, design),
        **_weights(given, design),
        "selection": _selection(design),
    }
    caption = _caption(context, design, given)
    return Figure(
        name=NAME,
        title="Framework",
        caption=caption,
        parents=given.parents(),
        cells=given.cells,
        texts=given.texts,
        columns=tuple(given.columns()),
        tikz=fill(FRAME, values),
    )


def _levels(given: Constants, model: PaperModel, who: str, design: PaperDesign) -> list[str]:
    """Two stacks of bars, the coarse level narrow; the fine levels of teacher and student face each other."""
    used = {*design.method["visual_levels"], *design.method["language_levels"]}
    lines = []
    for index, level in enumerate(VISUAL):
        grid = cells_text(given, model, who, level)
        lines.append(_bar(level, grid, index, 35.5, who, "vision", active=level in used))
    for index, level in enumerate(LANGUAGE):
        lines.append(_bar(level, LEVEL_WORDS[level], index, 86.5, who, "language", active=level in used))
    return lines


def _bar(level: str, text: str, index: int, x: float, who: str, colour: str, *, active: bool) -> str:
    top = 64.2 + 4.6 * index if who == "teacher" else 34.2 - 4.6 * index
    width = 19.8 - 1.2 * index
    style = f"fill={colour}!{18 + 12 * index}" if active else "fill=white, densely dashed"
    label = f"${level[0]}_{level[1]}$\\;{{\\smallsize {text}}}"
    size = f"minimum width={width:.1f}mm, minimum height=3.9mm, inner sep=0mm"
    return f"\\node[box, {style}, {size}] at ({x},{top:.1f}) {{{label}}};"


def cells_text(given: Constants, model: PaperModel, who: str, level: str) -> str:
    """``7 x 7``: the cells of a level, kept as two numbers."""
    where = f"{who}.model", "pyramid"
    recipe = "from the model's image and patch size"
    height, width = model.level_grids[level]
    rows = given.number(f"{who}/{level}", "rows", height, *where, recipe=recipe)
    columns = given.number(f"{who}/{level}", "columns", width, *where, recipe=recipe)
    return f"{rows}\\,$\\times$\\,{columns}"


def _models(given: Constants, design: PaperDesign) -> dict[str, str]:
    values = {}
    for letter, who, model in (("t", "teacher", design.teacher), ("s", "student", design.student)):
        key = f"{who}.model"
        values[f"{letter}_name"] = escape(given.text(who, "model", model.name, key))
        for tower, layers, width in (
            ("image", model.image_layers, model.image_width),
            ("text", model.text_layers, model.text_width),
        ):
            if layers is None or width is None:
                values[f"{letter}_{tower}"] = "as published"
                continue
            blocks = given.number(who, f"{tower}_layers", layers, key)
            values[f"{letter}_{tower}"] = (
                f"{blocks} blocks,}}\\\\{{\\smallsize width {given.number(who, f'{tower}_width', width, key)}"
            )
    rows, columns = (
        given.number("student", f"image_{side}", size, "student.model")
        for side, size in zip(("height", "width_px"), design.student.image_size, strict=True)
    )
    values["s_pixels"] = f"{rows}\\,$\\times$\\,{columns} px"
    values["tokens"] = f"{given.number('student', 'context_length', design.student.context_length, 'student.model')} tokens"
    fitted = given.text("teacher", "pyramid", design.teacher_pyramid["mode"], "runs", design.run, "teacher_pyramid")
    values["t_pyramid"] = "after its pyramid was fitted" if fitted == "fit" else "its pyramid random"
    return values


def _weights(given: Constants, design: PaperDesign) -> dict[str, str]:
    where = "runs", design.run, "weights"
    values = {name: given.number("weights", name, weight, *where, name) for name, weight in design.method["weights"].items()}
    pairs = len(design.method["visual_levels"]) * len(design.method["language_levels"])
    shown = given.number(
        "weights", "pairs", pairs, "runs", design.run, "visual_levels, language_levels", recipe="their product"
    )
    return {**values, "pairs": f"{shown} pairs"}


def _selection(design: PaperDesign) -> str:
    if design.uses_alsn:
        return SELECTION
    policy = next((stage.policy for stage in design.stages if stage.policy != "uniform"), "uniform")
    return fill(FIXED, {"policy": POLICIES[policy]})


def _caption(context: PaperContext, design: PaperDesign, given: Constants) -> str:
    run = next(run for run in context.runs if run.name == design.run)
    selection = "ALSN weights the levels of each sample" if design.uses_alsn else "the levels have fixed weights"
    sentences = [
        f"As configured for {run.shown}; nothing here is measured.",
        f"Teacher {design.teacher.name} (grey, frozen) and student {design.student.name} each have a visual pyramid P2 to P5 "
        f"and a language hierarchy L1 to L4, joined by a bridge; {selection}.",
        "Losses (orange frames) compare the two; numbers are their weights.",
        "Inside the thick line: what remains at inference, the student's two towers. "
        "What the dashed line encloses is trained beside it and then dropped.",
    ]
    further = {name: weight for name, weight in design.method["embedding"].items() if weight}
    if further:
        where = "runs", design.run, "embedding"
        terms = ", ".join(f"{name} {given.number('embedding', name, weight, *where, name)}" for name, weight in further.items())
        sentences.append(f"The embeddings are a further level, compared with the teacher's (weights: {terms}; not drawn).")
    return " ".join(sentences)
