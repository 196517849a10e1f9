"""Verify a results directory: that its paper says what its experiment measured, all the way down to the data.

Everything is computed again that can be without training: digests of data, models, runs and metric files
(``verify_chain``), of code (``verify_code``), every cell of every table and figure from its parents, and every LaTeX file
(``verify_parts``). Nothing is written. Torch-free.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from cmapkd.config import load_experiment
from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.paper.context import EXPERIMENT_FILE, PaperContext
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.findings import Findings
from cmapkd.paper.verify_chain import check_chain
from cmapkd.paper.verify_code import check_code
from cmapkd.paper.verify_parts import check_parts
from cmapkd.plan import make_plan

REMARKS = {  # what is counted and is no problem, as remarks
    f"{what} {key}": f"{what} {words}"
    for what in ("stages", "metric files")
    for key, words in (
        ("not from a clean commit", "were made with uncommitted changes, or outside a repository"),
        ("of other code than is here", "were made by other code than is here: Snakemake would make them again"),
        (
            "whose code was not found",
            "are of code that neither this directory nor their commit has; only those of one method were compared",
        ),
        ("of unknown evaluation code", "do not say by which code they were evaluated"),
    )
}


def verify(path: Path, *, experiment: Path | None = None, deep: bool | None = None) -> Findings:
    """Check everything that a paper rests on.

    Args:
        path: of the results of an experiment, or of its ``paper/``.
        experiment: its file; default the ``experiment.yaml`` that lies with the results.
        deep: whether every shard is hashed; None: if all have less than ``verify_chain.DEEP_BELOW`` bytes.

    Raises:
        UserError: there is no such directory, or its experiment cannot be read; nothing was checked then.
    """
    started = time.monotonic()
    loaded, context = open_results(path, experiment)
    findings = Findings()
    try:
        plan = make_plan(loaded)
    except UserError as error:
        plan = None
        findings.refused(error)
    chain = check_chain(context, loaded, plan, findings, deep)
    check_code(context, findings, chain)
    check_parts(context, findings)
    for key, words in REMARKS.items():
        if findings.counts[key]:
            findings.note(f"{findings.counts[key]} {words}")
    findings.counts["runs"] = len(context.runs)
    findings.counts["milliseconds"] = round(1000 * (time.monotonic() - started))
    return findings


def open_results(path: Path, experiment: Path | None = None) -> tuple[ExperimentConfig, PaperContext]:
    """Experiment and context of a results directory, wherever it lies.

    Raises:
        UserError: it is not one.
    """
    home = path.parent if path.name == "paper" and not (path / EXPERIMENT_FILE).is_file() else path
    if not home.is_dir():
        raise UserError(key="path", value=str(path), reason="is no directory", fix="name one like results/mini")
    file = experiment or home / EXPERIMENT_FILE
    if not file.is_file():
        fix = "name a directory like results/mini, or the experiment's file with --experiment"
        raise UserError(key=str(file), reason="is missing: these are not the results of an experiment", fix=fix)
    loaded = load_experiment(file)
    return loaded, replace(paper_context(loaded, home.parent, file), results=home)


def summary(findings: Findings, path: Path) -> str:
    """What was found, in lines: every problem, remarks, and how much was checked."""
    lines = [str(problem) for problem in findings.problems]
    lines += [f"remark: {note}" for note in findings.notes]
    counts = findings.counts
    checked = (
        f"{counts['cells']} cells with {counts['parents']} parents, {counts['digests']} digests, "
        f"{counts['files']} files, {counts['bytes'] / 1e6:.1f} MB in {counts['milliseconds'] / 1000:.1f} s"
    )
    count = len(findings.problems)
    verdict = f"{count} problem{'s' if count > 1 else ''}" if count else "verified: every number is what its parents give"
    return "\n".join([*lines, f"{path}: {verdict} ({checked})"])
