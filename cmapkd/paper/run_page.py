"""One run and seed as a page: what it is, how it was trained, everything measured, and where that comes from. Torch-free.

The page is a function of the experiment, of the run's ``run.json`` and of its metric file, which is read as strictly as for
the paper's tables. A number's tooltip names the keys under which the metric file holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.paper.context import PaperContext
from cmapkd.paper.curves import render_curves, stages_of
from cmapkd.paper.html import details, entries, nested, page, paragraph, plain_table, section, source
from cmapkd.paper.metrics import MetricFile, Metrics
from cmapkd.paths import portable_text
from cmapkd.plan import TEACHER, Plan, Run
from cmapkd.runs import RUN, STUDENT, find_run

CELL = "page of the run"


def render_run_page(plan: Plan, context: PaperContext, directory: str) -> str:
    """The page of ``<run>/<seed>``; ``Teacher/<seed>`` is the teacher's.

    Raises:
        UserError: the metric file or ``run.json`` is missing, or not what the other says.
    """
    run = find_run(plan, directory)
    metrics = Metrics(context)
    file = metrics.file(run.name, run.seed, CELL)
    history = _history(context, run)
    arrays = metrics.arrays(run.name, run.seed, CELL)
    curves = render_curves(stages_of(arrays))
    remark = paragraph("Means over blocks of steps, one stage after the other.", "small") if curves else ""
    shapes = [(name, " × ".join(map(str, values.shape)), str(values.dtype)) for name, values in arrays.items()]
    return page(
        f"{run.name}, seed {run.seed}",
        entries(_about(plan, context, run, file)),
        section("Training", _stages(history["stages"])),
        section("Measured", paragraph("Recalls and accuracies in percent.", "small"), nested(file.content["metrics"])),
        section("Curves", remark, curves),
        section(
            "Provenance",
            nested(_provenance(file)),
            section("Needed at inference, beside the student", _stages(history.get("deployed_teacher", [])), level=3),
        ),
        optional=[
            details("Configuration of the run", source(_configuration(plan, run))),
            *(details(f"Settings of {plan.stages[a].label}", source(_yaml(plan.stages[a].settings))) for a in run.stages),
            details("Per-query results in the array file", plain_table(("array", "shape", "type"), shapes, words=(1, 2))),
        ],
    )


def _history(context: PaperContext, run: Run) -> Mapping[str, Any]:
    """``run.json``, which must tell of the stages that the plan has."""
    path = context.results / "runs" / context.directories[run.name] / str(run.seed) / RUN
    try:
        content: Mapping[str, Any] = read_json(path, stages=list)
    except (OSError, ValueError) as error:
        raise UserError(key=str(path), reason=f"cannot be read: {error}", fix=f"make it: {context.recompute(path)}") from error
    found = [stage["address"] for stage in content["stages"]]
    if found != list(run.stages):
        raise UserError(
            key=str(path),
            value=", ".join(found),
            reason=f"is of other stages than the experiment has now ({', '.join(run.stages)})",
            fix=f"make it again: {context.recompute(path)}",
        )
    return content


def _about(plan: Plan, context: PaperContext, run: Run, file: MetricFile) -> dict[str, Any]:
    experiment = plan.experiment
    if run.name == TEACHER:
        about: dict[str, Any] = {"what": "the teacher", "model": experiment.teacher.model}
    else:
        shown = next(entry for entry in context.runs if entry.name == run.name)
        about = {
            "method": shown.method,
            "in the tables of": "ablations" if shown.group == "ablation" else "methods",
            "schedule": shown.schedule,
            "model": experiment.student.model,
            "initialisation": portable_text(experiment.student.init),
        }
        about |= {"differs from the full method in": ", ".join(shown.changes)} if shown.changes else {}
        about |= {"note": shown.note} if shown.note else {}
    folder = f"{context.results.as_posix()}/runs/{context.directories[run.name]}/{run.seed}/{STUDENT}"
    return {
        **about,
        "seed": run.seed,
        "model in open_clip": f'create_model_and_transforms("local-dir:{folder}")',
        "metric file": f"{file.file}, SHA-256 {file.sha256}",
        "made by": context.recompute(file.path),
    }


def _stages(stages: list[Mapping[str, Any]]) -> str:
    headers = ("stage", "address", "steps", "last loss", "minutes", "samples/s", "started (UTC)", "host", "commit", "remarks")
    rows = [_stage(stage) for stage in stages]
    shown = len(headers) if any(row[-1] for row in rows) else -1
    return plain_table(headers[:shown], [row[:shown] for row in rows], words=(1, 6, 7, 8, 9))


def _stage(stage: Mapping[str, Any]) -> tuple[Any, ...]:
    summary, origin = stage.get("summary") or {}, stage.get("provenance") or {}
    seconds = origin.get("wall_seconds")
    remarks = [f"again from step {r['restarted_at']} with rates x {r['lr_factor']:g}" for r in summary.get("nan_retries", [])]
    if (bad := (stage.get("bad_samples") or {}).get("bad")) is not None and bad:
        remarks.append(f"{bad} unreadable samples skipped")
    if summary.get("resumed_at"):
        remarks.append(f"resumed at step {summary['resumed_at']}")
    return (
        str(stage.get("label", "")).rpartition(": ")[2],
        stage.get("address"),
        summary.get("steps"),
        (summary.get("last") or {}).get("loss"),
        round(seconds / 60, 2) if isinstance(seconds, int | float) else None,
        summary.get("samples_per_second"),
        str(origin.get("started", "")).removesuffix("+00:00").replace("T", " "),
        origin.get("host"),
        str(origin.get("commit", "unknown"))[:12] + _changed(origin),
        "; ".join(remarks),
    )


def _provenance(file: MetricFile) -> dict[str, Any]:
    """What the metric file says of its evaluation; the stages stand in their own table."""
    kept = {key: value for key, value in file.provenance.items() if key != "stages"}
    kept["commit"] = f"{kept.get('commit', 'unknown')}{_changed(kept)}"
    return {key: value for key, value in kept.items() if key != "dirty"}


def _changed(origin: Mapping[str, Any]) -> str:
    return {"True": " with uncommitted changes", "False": ""}.get(str(origin.get("dirty")), " (unknown whether changed)")


def _configuration(plan: Plan, run: Run) -> str:
    experiment = plan.experiment
    part = experiment.teacher if run.name == TEACHER else experiment.runs[run.name]
    return _yaml(part.model_dump(mode="json"))


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
