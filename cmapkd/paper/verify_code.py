"""Whether everything in a paper was made by one state of the code: each method's training and evaluation, and what they share.

What counts is digests of code (``cmapkd.fingerprint``), not commits: an edit of one method makes another commit for whatever is
made after it, and changes nothing of the other methods. So these are problems:

- stages, or metric files, of one method with different digests: something they import was edited between them;
- stages, or metric files, of different methods whose *shared* part (``cmapkd.training.loop`` or ``cmapkd.evaluation.run`` and
  all they import) differs. A digest is that of shared and own part together; it is taken apart by finding the tree (the present
  one, or a recorded commit's) that has it.

A metric file names the digest as ``provenance.evaluation_code``; if it does not, that of its commit counts if it was clean.
That a digest is another one than the present code's is a remark: the paper is of one code, only not of this one.
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cmapkd import fingerprint
from cmapkd.paper.context import PaperContext
from cmapkd.paper.findings import Findings
from cmapkd.paper.verify_chain import RESULT, Chain, named_stages

TRAINING, EVALUATION = "cmapkd.training.loop", "cmapkd.evaluation.run"
TREES = 12  # commits looked at; results of more than these are from a history that no reader could follow
Fingerprint = Callable[..., str]


@dataclass(frozen=True)
class Made:
    """A file that some code made: which code, as the file says it."""

    path: Path
    method: str
    code: str
    commit: str


class Trees:
    """The package as it is here and as it was at commits of its repository, each with a ``fingerprint`` of its own."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._known: dict[str, Fingerprint | None] = {"": fingerprint.fingerprint}

    def __enter__(self) -> Trees:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    def at(self, commit: str) -> Fingerprint | None:
        """The fingerprint of a commit's package (of the present one for ``""``); None if git has no such commit here."""
        if commit not in self._known:
            self._known[commit] = self._checkout(commit) if len(self._known) <= TREES else None
        return self._known[commit]

    def _checkout(self, commit: str) -> Fingerprint | None:
        if not commit or set(commit) - set("0123456789abcdef"):
            return None
        package = fingerprint.PACKAGE
        command = ["git", "-c", "safe.directory=*", "-C", str(package.parent), "archive", "--format=tar", commit, package.name]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cmapkd-code-")))
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            tar.extractall(directory, filter="data")
        return _of(directory / package.name)


def _of(package: Path) -> Fingerprint:
    """Today's way of taking digests (none of the commit's own code is run), of another tree: a second copy of the module."""
    spec = importlib.util.spec_from_file_location(f"fingerprint_of_{package.parent.name}", fingerprint.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["PACKAGE"] = package
    made: Fingerprint = module.fingerprint
    return made


def modules_of(entry: str, method: str) -> list[str]:
    """Modules whose digest a stage or metric file of a method records: the shared entry and the method's own."""
    if method == "teacher_cache":
        return list(fingerprint.training_modules(method))
    return [entry] if method == "pretrained" else [entry, f"cmapkd.objectives.{method}"]


def check_code(context: PaperContext, findings: Findings, chain: Chain) -> None:
    """All of it."""
    with Trees() as trees:
        stages = _stages(context, findings, chain)
        _compare(context, findings, trees, stages, TRAINING, "stages", "was trained")
        files = _metric_files(context, findings, chain, trees)
        _compare(context, findings, trees, files, EVALUATION, "metric files", "was evaluated")


def _stages(context: PaperContext, findings: Findings, chain: Chain) -> list[Made]:
    found = []
    for address, record in chain.stages.items():
        if not record:
            continue
        path = context.results / "stages" / address / RESULT
        method, code = _method(record), record.get("code")
        if not method or not code:
            findings.problem(path, "does not say by which code it was made", f"make it again: {context.recompute(path)}")
            continue
        provenance = record.get("provenance")
        provenance = provenance if isinstance(provenance, Mapping) else {}
        if not _clean(provenance):
            findings.counts["stages not from a clean commit"] += 1
        found.append(Made(path, method, str(code), str(provenance.get("commit", ""))))
    return found


def _metric_files(context: PaperContext, findings: Findings, chain: Chain, trees: Trees) -> list[Made]:
    found = []
    for (run, seed), content in chain.metrics.items():
        provenance = content["provenance"]
        if not _clean(provenance):
            findings.counts["metric files not from a clean commit"] += 1
        names = named_stages(content)
        # The last stage of the run itself: those after it are the deployed teacher's.
        own = [name for name in names if not name.startswith("teacher")] or names
        # Kept results have no stages; the plan, which gives the same addresses, knows their methods.
        method = (_method(chain.stages.get(own[-1], {})) or chain.methods.get(own[-1], "")) if own else ""
        commit = str(provenance.get("commit", ""))
        code = provenance.get("evaluation_code") or (_digest(trees, commit, EVALUATION, method) if _clean(provenance) else None)
        if code is None or not method:
            findings.counts["metric files of unknown evaluation code"] += 1
        else:
            found.append(Made(context.metric_file(run, seed), method, str(code), commit))
    return found


def _method(record: Mapping[str, Any]) -> str:
    """A stage's method; empty if its file does not say it."""
    found: Any = record
    for key in ("settings", "method", "method"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return str(found or "")


def _clean(provenance: Mapping[str, Any]) -> bool:
    return str(provenance.get("dirty")) == "False"


def _digest(trees: Trees, commit: str, entry: str, method: str) -> str | None:
    """What a tree's code of a method has as its digest; None if there is no such tree, or no such method in it."""
    tree = trees.at(commit)
    try:
        return tree(*modules_of(entry, method)) if tree is not None and method else None
    except (ValueError, SyntaxError):
        return None


def _compare(
    context: PaperContext, findings: Findings, trees: Trees, made: list[Made], entry: str, what: str, verb: str
) -> None:
    """One digest for each method, and one for what the methods share."""
    commits = ["", *dict.fromkeys(file.commit for file in made if file.commit)]
    shared: dict[str, list[Made]] = {}
    for method in dict.fromkeys(file.method for file in made):
        own: dict[str, list[Made]] = {}
        for file in made:
            if file.method == method:
                own.setdefault(file.code, []).append(file)
        _one(context, findings, own, f"{verb} by other code of {method} than")
        for code, files in own.items():
            commit = next((commit for commit in commits if _digest(trees, commit, entry, method) == code), None)
            if commit is None:
                findings.counts[f"{what} whose code was not found"] += len(files)
            elif (tree := trees.at(commit)) is not None:
                shared.setdefault(tree(entry), []).extend(files)
            if commit != "":
                findings.counts[f"{what} of other code than is here"] += len(files)
    _one(context, findings, shared, f"{verb} by other code that all methods share than")


def _one(context: PaperContext, findings: Findings, found: Mapping[str, list[Made]], what: str) -> None:
    """More than one digest is a problem of the files of every digest but the most frequent one."""
    findings.counts["digests"] += sum(len(files) for files in found.values())
    most = max(found, key=lambda code: len(found[code]), default="")
    for code, files in found.items():
        for file in files if code != most else ():
            reason = f"{what} {found[most][0].path}: different code in one table ({code} here, {most} there)"
            findings.problem(file.path, reason, f"make it again: {context.recompute(file.path)}")
