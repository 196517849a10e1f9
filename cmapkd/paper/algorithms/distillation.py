"""Algorithm 2: progressive distillation through both pyramids, with the stages and constants of the full run."""

from __future__ import annotations

from cmapkd.paper.algorithms import Algorithm
from cmapkd.paper.algorithms.common import ENVIRONMENT, count_epochs, level_set, schedule_lines
from cmapkd.paper.constants import Constants
from cmapkd.paper.context import PaperContext
from cmapkd.paper.design import PaperDesign, required
from cmapkd.paper.figures.tikz import fill
from cmapkd.paper.latex import escape
from cmapkd.paper.tables.schedule import rate_text

NAME = "algorithm2"
TITLE = "Progressive pyramid distillation"
LINES = r"""\KwIn{image-text pairs; teacher <<teacher>>; student <<student>>, initialised <<init>>; levels $<<visual>>$
  and $<<language>>$}
\KwOut{the student's two towers}
<<fit>>
\ForEach{stage of the schedule}{
  set active levels $\mathcal{V}$, $\mathcal{T}$, weights and trained groups:\\
<<stages>>
  \ForEach{batch of <<batch>> pairs}{
    $w_v, w_l \gets$ equal, by hand or by ALSN, over $\mathcal{V}$ and $\mathcal{T}$\;
    $\mathcal{L}_{\mathrm{intra}} \gets \tfrac14\operatorname{mean}_k\bigl(\sum_{i\in\mathcal{V}} w_v^i d_v^i +
      \sum_{j\in\mathcal{T}} w_l^j d_l^j\bigr)$\;
    $\mathcal{L}_{\mathrm{single}} \gets$ InfoNCE of $f_{v\to l}(\bar P_5)$ and $L_4$, temperature <<temperature>>\;
    $\mathcal{L}_{\mathrm{pyramid}} \gets \operatorname{mean}_{i\in\mathcal{V},j\in\mathcal{T}}
      \alpha_{ij}\operatorname{KL}(p_{ij}^T\,\|\,p_{ij}^S)$, temperature <<temperature_kd>>, $\alpha$ <<alpha>>\;
    $\mathcal{L}_{\mathrm{align}} \gets \mathcal{L}_{\mathrm{single}} + <<beta>>\,\mathcal{L}_{\mathrm{pyramid}}$\;
    $\mathcal{L}_{\mathrm{relation}} \gets \|G^T-G^S\|_F^2/B^2 + <<gamma>>\,\|R^T-R^S\|_F^2$\;
    $\mathcal{L}_{\mathrm{task}} \gets$ contrastive loss of the student's embeddings\;
    $\mathcal{L} \gets <<intra>>\,\mathcal{L}_{\mathrm{intra}} + <<align>>\,\mathcal{L}_{\mathrm{align}} +
      <<relation>>\,\mathcal{L}_{\mathrm{relation}} + <<task>>\,\mathcal{L}_{\mathrm{task}}$ <<entropy>>\;
<<embedding>>
    AdamW step on the trained groups; weight decay <<decay>>, momenta <<momenta>>\;
  }
}
\Return the student without pyramid, bridge and ALSN\;
"""
FIT = r"""fit the teacher's pyramid and bridge, its towers frozen: <<epochs>>, learning rate <<lr>>, contrastive over the
  pairs $P_2L_1$, $P_3L_2$, $P_4L_3$, $P_5L_4$, temperature <<temperature>>; then freeze them\;"""
RANDOM = r"""freeze the teacher with a random pyramid\;"""
EMBEDDING_TERMS = {
    "intra": r"(2-2\cos) \text{ of the projected embeddings}",
    "align": r"\operatorname{KL} \text{ of the image-text distributions}",
    "cross": r"\text{InfoNCE of student rows and teacher columns}",
    "relation": r"\text{distance of Gram matrices}",
}


def build(context: PaperContext) -> Algorithm:
    """The algorithm with the stages and constants of the full run."""
    design = required(context.design, NAME, context.full_run)
    given = Constants(context)
    where = "runs", design.run
    method = design.method
    decay, first, second, _ = design.decay
    values = {
        "teacher": escape(given.text("teacher", "model", design.teacher.name, "teacher.model")),
        "student": escape(given.text("student", "model", design.student.name, "student.model")),
        "init": escape(given.text("student", "initialisation", _start(design.student.weights), "student.init")),
        "visual": level_set(given, design, "visual"),
        "language": level_set(given, design, "language"),
        "fit": _fit(given, design),
        "stages": "\n".join(f"  \\hspace*{{1em}}{line}" for line in schedule_lines(given, design.stages)),
        "batch": given.number("batch", "size", context.global_batch, "training", "global_batch"),
        "alpha": {"fixed": "1 on the diagonal and 0.5 off it", "learned": "learned"}[
            given.text("pairs", "alpha", method["alpha"], *where, "alpha")
        ],
        **{
            name: given.number("constants", name, method[name], *where, name)
            for name in ("temperature", "temperature_kd", "beta", "gamma")
        },
        **{name: given.number("weights", name, weight, *where, "weights", name) for name, weight in method["weights"].items()},
        "entropy": _entropy(given, design),
        "embedding": _embedding(given, design),
        "decay": given.number("optimiser", "weight_decay", decay, "training", "weight_decay"),
        "momenta": " and ".join(
            given.number("optimiser", f"beta{place}", value, "training", "betas") for place, value in ((1, first), (2, second))
        ),
    }
    text = "\n".join(line for line in fill(LINES, values).splitlines() if line.strip())
    return Algorithm(
        name=NAME,
        title=TITLE,
        latex=fill(ENVIRONMENT, {"name": NAME, "title": TITLE, "lines": text}),
        parents=given.parents(),
        cells=given.cells,
        texts=given.texts,
        columns=tuple(given.columns()),
    )


def _start(weights: str) -> str:
    return "at random" if weights == "random" else f"from {weights}"


def _fit(given: Constants, design: PaperDesign) -> str:
    options = design.teacher_pyramid
    given.text("teacher_pyramid", "mode", options["mode"], "runs", design.run, "teacher_pyramid")
    if options["mode"] == "random":
        return RANDOM
    where = "teacher", "pyramid"
    return fill(
        FIT,
        {
            "epochs": count_epochs(given.number("teacher_pyramid", "epochs", options["epochs"], *where, "epochs")),
            "lr": f"\\mbox{{{escape(given.text('teacher_pyramid', 'lr', rate_text(options['lr']), *where, 'lr'))}}}",
            "temperature": given.number("teacher_pyramid", "temperature", options["temperature"], *where, "temperature"),
        },
    )


def _entropy(given: Constants, design: PaperDesign) -> str:
    if not design.uses_alsn:
        return ""
    weight = design.method["alsn"]["entropy_weight"]
    shown = given.number("alsn", "entropy_weight", weight, "runs", design.run, "alsn", "entropy_weight")
    return f"$-\\,{shown}\\,(H(w_v)+H(w_l))$ with ALSN"


def _embedding(given: Constants, design: PaperDesign) -> str:
    """A line for the terms of the embedding as a further level, where they have a weight."""
    weights = {name: weight for name, weight in design.method["embedding"].items() if weight}
    if not weights:
        return ""
    terms = [
        f"${given.number('embedding', name, weight, 'runs', design.run, 'embedding', name)}\\,\\cdot\\,{EMBEDDING_TERMS[name]}$"
        for name, weight in weights.items()
    ]
    return f"    $\\mathcal{{L}} \\gets \\mathcal{{L}} \\,+\\,$ {' $+$ '.join(terms)}\\;"
