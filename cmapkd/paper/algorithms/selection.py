"""Algorithm 1: one training step of the layer selection (ALSN), as `cmapkd/objectives/cmapkd.py` computes it."""

from __future__ import annotations

from cmapkd.paper.algorithms import Algorithm
from cmapkd.paper.algorithms.common import ENVIRONMENT, level_set, schedule_lines
from cmapkd.paper.constants import Constants
from cmapkd.paper.context import PaperContext
from cmapkd.paper.design import PaperDesign, required
from cmapkd.paper.figures.tikz import fill

NAME = "algorithm1"
TITLE = "One step of ALSN training"
LINES = r"""\KwIn{<<batch>> image-text pairs; student, frozen teacher, both with pyramids; active levels <<visual>> and
  <<language>>}
\KwData{hidden widths <<first>> and <<second>>; dropout <<dropout>>; temperature $\tau=<<temperature>>$; entropy weight
  $\eta=<<entropy>>$}
$(P^S, L^S) \gets$ pyramids of the student;\quad $(P^T, L^T) \gets$ pyramids of the teacher\;
\ForEach{sample $k$ of the batch}{
  $x \gets \operatorname{detach}([\operatorname{GAP}(P_5^S);\, L_4^S])$ \tcp*{no gradient into the features}
  $h \gets \operatorname{dropout}(\operatorname{ReLU}(A_1 x + b_1))$;\quad $h \gets \operatorname{ReLU}(A_2 h + b_2)$\;
  $w_v \gets \operatorname{softmax}_{i\in\mathcal{V}}(\sigma(A_v h + b_v)_i/\tau)$;\quad $w_l \gets
    \operatorname{softmax}_{j\in\mathcal{T}}(\sigma(A_l h + b_l)_j/\tau)$\;
  $d_v^i \gets$ mean over positions of $2-2\cos(P_i^S, P_i^T)$ for $i\in\mathcal{V}$\;
  $d_l^j \gets$ <<language_distance>> for $j\in\mathcal{T}$\;
  $m_k \gets \tfrac14\bigl(\sum_{i\in\mathcal{V}} w_v^i d_v^i + \sum_{j\in\mathcal{T}} w_l^j d_l^j\bigr)$;\quad $e_k \gets
    H(w_v)+H(w_l)$\;
}
<<objective>>
\ForEach{stage that trains ALSN}{AdamW step on its parameters $A, b$\;
<<stages>>
}
"""
MATCH = r"""$\mathcal{L}_{\mathrm{ALSN}} \gets <<intra>>\,\operatorname{mean}_k m_k - \eta\,\operatorname{mean}_k e_k$
  \tcp*{of $\mathcal{L}$, what depends on ALSN}"""
AHEAD = r"""$g \gets$ gradient of $\mathcal{L}_{\mathrm{task}}$ of every second pair in the student's parameters\;
$q_{ki} \gets \langle g, \nabla d_{ki}\rangle$ for the other pairs $k$ and all levels, scaled to unit root mean square\;
$\mathcal{L}_{\mathrm{ALSN}} \gets -\operatorname{mean}_k \bigl(\sum_i w_{ki}\, q_{ki}\bigr) - \eta\,\operatorname{mean}_k
  e_k$ \tcp*{in $m_k$ the weights are detached}"""
NONE = r"""\tcp{no stage of this experiment trains ALSN}"""


def build(context: PaperContext) -> Algorithm:
    """The algorithm with the constants of the full run."""
    design = required(context.design, NAME, context.full_run)
    given = Constants(context)
    where = "runs", design.run, "alsn"
    network = design.method["alsn"]
    stages = [stage for stage in design.stages if "alsn" in stage.trains and stage.policy == "alsn"]
    values = {
        "batch": given.number("batch", "size", context.global_batch, "training", "global_batch"),
        "visual": f"$\\mathcal{{V}}\\subseteq{level_set(given, design, 'visual')}$",
        "language": f"$\\mathcal{{T}}\\subseteq{level_set(given, design, 'language')}$",
        "first": given.number("alsn", "hidden_1", network["hidden"][0], *where, "hidden"),
        "second": given.number("alsn", "hidden_2", network["hidden"][1], *where, "hidden"),
        "dropout": given.number("alsn", "dropout", network["dropout"], *where, "dropout"),
        "temperature": given.number("alsn", "temperature", network["temperature"], *where, "temperature"),
        "entropy": given.number("alsn", "entropy_weight", network["entropy_weight"], *where, "entropy_weight"),
        "language_distance": _language_distance(design),
        "objective": _objective(given, design),
        "stages": "\n".join(schedule_lines(given, stages, "alsn")) if stages else NONE,
    }
    return Algorithm(
        name=NAME,
        title=TITLE,
        latex=fill(ENVIRONMENT, {"name": NAME, "title": TITLE, "lines": fill(LINES, values).rstrip()}),
        parents=given.parents(),
        cells=given.cells,
        texts=given.texts,
        columns=tuple(given.columns()),
    )


def _language_distance(design: PaperDesign) -> str:
    late = design.method["similarity"] == "late"
    return ("mean over tokens of " if late else "") + "$2-2\\cos(L_j^S, L_j^T)$"


def _objective(given: Constants, design: PaperDesign) -> str:
    where = "runs", design.run
    objective = given.text("alsn", "objective", design.method["alsn"]["objective"], *where, "alsn", "objective")
    if objective == "task":
        return AHEAD
    return fill(
        MATCH, {"intra": given.number("weights", "intra", design.method["weights"]["intra"], *where, "weights", "intra")}
    )
