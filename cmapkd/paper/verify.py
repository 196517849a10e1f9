"""Verify a results directory: that its paper says what its experiment measured, all the way down to the data.

Everything is computed again that can be without training: digests of data, models, runs and metric files
(``verify_chain``), of code (``verify_code``), every cell of every table and figure from its parents, and every LaTeX file
(``verify_parts``). Nothing is written. Torch-free.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from cmapkd import commands
from cmapkd.config import load_experiment
from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError, nearest_path
from cmapkd.paper.context import EXPERIMENT_FILE, PaperContext
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.findings import Findings
from cmapkd.paper.verify_chain import check_chain
from cmapkd.paper.verify_code import check_code
from cmapkd.paper.verify_kept import check_list
from cmapkd.paper.verify_numbers import check_numbers
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


def verify(path: Path, *, experiment: Path | None = None, deep: bool | None = None, kept: bool | None = None) -> Findings:
    """Check everything that a paper rests on.

    Args:
        path: of the results of an experiment, or of its ``paper/``.
        experiment: its file; default the ``experiment.yaml`` that lies with the results.
        deep: whether every shard is hashed; None: if all have less than ``verify_chain.DEEP_BELOW`` bytes.
        kept: whether arrays, models and data may be missing; None: if `cmapkd paper keep` wrote the directory.

    Raises:
        UserError: there is no such directory, or its experiment cannot be read; nothing was checked then.
    """
    started = time.monotonic()
    loaded, context = open_results(path, experiment)
    findings = Findings(kept=context.kept if kept is None else kept)
    try:
        plan = make_plan(loaded)
    except UserError as error:
        plan = None
        findings.refused(error)
    if findings.kept:
        check_list(context, findings)
    chain = check_chain(context, loaded, plan, findings, deep)
    check_code(context, findings, chain)
    check_numbers(context, findings, chain)
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
        raise UserError(key="path", value=str(path), reason="is not a directory", fix=like_results(home))
    file = experiment or home / EXPERIMENT_FILE
    if not file.is_file():
        fix = f"{like_results(home)}; or name the experiment's file with --experiment"
        raise UserError(key=str(file), reason="is missing: these are not the results of an experiment", fix=fix)
    loaded = load_experiment(file)
    return loaded, replace(paper_context(loaded, home.parent, file), results=home)


def like_results(path: Path) -> str:
    """A hint of results that are there, the nearest in spelling; without any, the command that makes some."""
    root = commands.checkout()
    folders = [path.parent, *([root / "results", root / "docs" / "results"] if root is not None else [])]
    found = [commands.shown(file.parent) for folder in folders for file in sorted(folder.glob(f"*/{EXPERIMENT_FILE}"))]
    hint = nearest_path(path, lambda place: (place / EXPERIMENT_FILE).is_file(), found)
    named = root / "config" / f"{path.name}.yaml" if root is not None else None
    file = commands.shown(named) if named is not None and named.is_file() else None
    results = path.parent if file is not None and path.parent.is_dir() else commands.default_results()
    make = f"make results first: {commands.snakemake([], file, results)}"
    if not hint:
        return make
    beside = any(place.parent == path.parent for place in found)
    return hint if beside else f"{hint}; or {make}"


def summary(findings: Findings, path: Path) -> str:
    """What was found, in lines: every problem, remarks, and how much was checked."""
    lines = [str(problem) for problem in findings.problems]
    lines += [f"remark: {note}" for note in findings.notes]
    counts = findings.counts
    checked = (
        f"{counts['cells']} cells with {counts['parents']} parents, {counts['digests']} digests, "
        f"{counts['files']} files, {counts['bytes'] / 1e6:.1f} MB in {counts['milliseconds'] / 1000:.1f} s"
    )
    if findings.absent:
        lines.append("kept results; not here, so not computed again: " + counted(findings))
    count = len(findings.problems)
    whole = "what is here fits" if findings.absent else "every number is what its parents give"
    verdict = f"{count} problem{'s' if count > 1 else ''}" if count else f"verified: {whole}"
    return "\n".join([*lines, f"{path}: {verdict} ({checked})"])


def counted(findings: Findings) -> str:
    """How many files or parts of each kind kept results lack."""
    return ", ".join(f"{len(paths)} {kind}" for kind, paths in sorted(findings.absent.items()))
