"""Table 1: the training schedule, from the configuration alone. Nothing in it is measured."""

from __future__ import annotations

import math

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Row, Table, Text
from cmapkd.paper.context import PaperContext, PaperStage
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables.common import configured, configured_text

NAME = "table1"
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
WORDS = {"alsn": "ALSN"}  # what the paper calls a group or a policy, if not by its name
POLICY_WORDS = {**WORDS, "manual": "by hand"}


def build(context: PaperContext, metrics: Metrics) -> Table:
    """One row for each stage of each schedule that a run uses, that of the full method first."""
    if not context.stages:
        raise UserError(key="schedules", reason=f"{NAME} needs a schedule that a run uses", fix="leave the table out")
    rows = tuple(
        Row(key=f"{stage.schedule}/{stage.name}", label=stage.name, section=stage.schedule) for stage in context.stages
    )
    cells: dict[str, dict[str, Cell]] = {}
    texts: dict[str, dict[str, Text]] = {}
    for row, stage in zip(rows, context.stages, strict=True):
        where = ("schedules", stage.schedule, stage.name)
        parents = (configured(context, *where, "epochs"),)
        cells[row.key] = {"epochs": Cell(value=stage.epochs, n=1, parents=parents, recipe="as configured")}
        texts[row.key] = {
            "levels": configured_text(context, _levels(stage), *where, "visual_levels, language_levels"),
            "lr": configured_text(context, _rates(stage), *where, "lr, group_lr, lr_end"),
            "trains": configured_text(context, ", ".join(WORDS.get(name, name) for name in stage.trains), *where, "trains"),
            "policy": configured_text(context, POLICY_WORDS.get(stage.policy, stage.policy), *where, "policy"),
        }
    batch = Cell(
        value=context.global_batch,
        n=1,
        parents=(configured(context, "training", "global_batch"),),
        recipe="as configured",
    )
    cells[CAPTION] = {"global_batch": batch}
    texts[CAPTION] = {"warmup": configured_text(context, f"{100 * context.warmup:g} %", "training", "warmup")}
    scaled = [f"{run.shown} {run.lr_scale:g}" for run in context.runs if run.lr_scale != 1]
    if scaled:
        texts[CAPTION]["lr_scale"] = configured_text(context, ", ".join(scaled), "runs", "lr_scale")
    columns = (
        Column("epochs", "epochs", direction="", decimals=_decimals([s.epochs for s in context.stages]), ranked=False),
        Column("levels", "levels", direction="", ranked=False, text=True),
        Column("lr", "learning rate", direction="", ranked=False, text=True),
        Column("trains", "trained", direction="", ranked=False, text=True),
        Column("policy", "weights", direction="", ranked=False, text=True),
    )
    return Table(NAME, "Training schedule", _caption(context, scaled), rows, (Panel("", columns),), cells, texts)


def _caption(context: PaperContext, scaled: list[str]) -> str:
    users = {
        schedule: [run.shown for run in context.runs if run.schedule == schedule]
        for schedule in dict.fromkeys(stage.schedule for stage in context.stages)
    }
    used = "; ".join(f"{schedule}: {', '.join(names)}" for schedule, names in users.items())
    warmup = f" after a linear warm-up over {100 * context.warmup:g} % of the stage" if context.warmup else ""
    arrow = "zero or to the rate after the arrow" if any(stage.lr_end for stage in context.stages) else "zero"
    sentences = [
        f"As configured; nothing here is measured. Runs of each schedule: {used}.",
        f"Batch {context.global_batch}. Learning rates are peak rates of AdamW{warmup}, with cosine decay to {arrow}.",
    ]
    if scaled:
        sentences.append(f"A run may scale all its rates by a factor: {', '.join(scaled)}.")
    if any(not stage.policy for stage in context.stages):
        sentences.append("Levels and weights: of the pyramid; a dash where no run has one.")
    if any(run.group == "ablation" for run in context.runs):
        sentences.append("An ablation that lacks levels or ALSN lacks them in every stage.")
    return " ".join(sentences)


def _levels(stage: PaperStage) -> str:
    return "; ".join(_range(levels) for levels in (stage.visual_levels, stage.language_levels) if levels)


def _range(levels: tuple[str, ...]) -> str:
    numbers = [int(level[1:]) for level in levels]
    if len(levels) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{levels[0]}–{levels[-1]}"
    return ", ".join(levels)


def _rates(stage: PaperStage) -> str:
    """The rate of every group that has its own, and where the rates end if not at zero."""
    own = {group: rate for group, rate in stage.group_lr if group in stage.trains}
    rest = [group for group in stage.trains if group not in own]
    rates = ([("", stage.lr)] if rest else []) + [(f"{WORDS.get(group, group)} ", rate) for group, rate in own.items()]
    end = stage.lr_end
    return "\n".join(f"{name}{rate_text(rate)}{f' → {rate_text(end * rate)}' if end else ''}" for name, rate in rates)


def rate_text(value: float) -> str:
    """``1.5·10⁻³``: a rate, with as many digits as it needs (at most four)."""
    exponent = math.floor(math.log10(value))
    mantissa = f"{value / 10**exponent:.4g}"
    if float(mantissa) >= 10:  # 9.99996 is printed as 10
        mantissa, exponent = "1", exponent + 1
    return f"{mantissa}·10{str(exponent).translate(SUPERSCRIPT)}"


def _decimals(values: list[float]) -> int:
    """As many as it takes to print every number exactly, at most four."""
    return next((d for d in range(4) if all(abs(value - round(value, d)) < 1e-9 for value in values)), 4)
