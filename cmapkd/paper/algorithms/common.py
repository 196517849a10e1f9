"""What the algorithms share: the environment, sets of levels and the stages of the schedule."""

from __future__ import annotations

from collections.abc import Sequence

from cmapkd.paper.constants import Constants
from cmapkd.paper.context import PaperStage
from cmapkd.paper.design import PaperDesign
from cmapkd.paper.latex import escape
from cmapkd.paper.tables.schedule import rate_text

ENVIRONMENT = r"""% <<name>>: made by cmapkd; its constants have their parents in <<name>>.json
\begin{algorithm}[tb]
\caption{<<title>>}\label{alg:<<name>>}
\footnotesize
<<lines>>
\end{algorithm}
"""
SCALED = "the schedule's rate times lr_scale of the run"
POLICIES = {"uniform": "equal weights", "manual": "weights by hand", "alsn": "weights by ALSN"}
GROUPS = {"alsn": "ALSN", "student": "student", "pyramid": "its pyramid", "heads": "heads", "projections": "projections"}


def level_set(given: Constants, design: PaperDesign, kind: str) -> str:
    """The levels that the run uses, as a set in mathematics."""
    levels = tuple(design.method[f"{kind}_levels"])
    given.text("levels", kind, ", ".join(levels), "runs", design.run, f"{kind}_levels")
    return levels_math(levels)


def levels_math(levels: Sequence[str]) -> str:
    """``{P_4, P_5}``."""
    return "\\{" + ",".join(f"{level[0]}_{level[1]}" for level in levels) + "\\}"


def schedule_lines(given: Constants, stages: Sequence[PaperStage], only: str = "") -> list[str]:
    """One line for each stage: epochs, levels, policy, what is trained at which rates.

    Args:
        only: the one group whose rate is told; empty: all of a stage.
    """
    lines = []
    for stage in stages:
        where = "schedules", stage.schedule, stage.name
        epochs = given.number(f"stage/{stage.name}", "epochs", stage.epochs, *where, "epochs")
        rates = dict(stage.group_lr)
        told: dict[str, list[str]] = {}  # rates -> groups that have them
        for group in [only] if only else stage.trains:
            rate = rates.get(group, stage.lr)
            end = rate_text(stage.lr_end * rate) if stage.lr_end else "0"
            keys = (*where, "lr, group_lr, lr_end; lr_scale of the run")
            text = given.text(f"stage/{stage.name}", f"lr_{group}", f"{rate_text(rate)} → {end}", *keys, recipe=SCALED)
            told.setdefault(f"\\mbox{{{escape(text)}}}", []).append(GROUPS[group])
        name = f"\\textbf{{{escape(stage.name)}}}"
        if only:
            lines.append(f"{name}: {count_epochs(epochs)}, learning rate {next(iter(told))}\\;")
        else:
            levels = (
                f"$\\mathcal{{V}}={levels_math(stage.visual_levels)}$, $\\mathcal{{T}}={levels_math(stage.language_levels)}$"
            )
            trained = "; ".join(f"{', '.join(groups)} at {text}" for text, groups in told.items())
            lines.append(f"{name}: {count_epochs(epochs)}; {levels}; {POLICIES[stage.policy]}; trains {trained}\\;")
    return lines


def count_epochs(number: str) -> str:
    """``1 epoch``, ``0.8 epochs``."""
    return f"{number} epoch" if number == "1" else f"{number} epochs"
