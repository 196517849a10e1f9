"""Digests of code, per concern, so that an edit reruns what it affects and nothing else.

Snakemake sees neither imported modules nor what in them matters. A fingerprint covers the entry modules of a rule and
everything of this package that they import, directly or not; it is taken from the syntax tree without docstrings, so
comments, documentation and formatting change nothing. Rules carry it in ``params``.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# Modules that cannot change a result: configuration and plan reach a rule as values (in its ``params``,
# its wildcards and a stage's address), the others only report.
NEUTRAL = (
    "cmapkd.config",
    "cmapkd.plain_yaml",
    "cmapkd.plan",
    "cmapkd.errors",
    "cmapkd.paths",
    "cmapkd.commands",
    "cmapkd.provenance",
    "cmapkd.cli",
    "cmapkd.fingerprint",
    "cmapkd.training.logs",
    "cmapkd.training.locks",
    "cmapkd.training.failures",
    "cmapkd.training.stopping",
    "cmapkd.training.storage",
    "cmapkd.training.launch",
)


def fingerprint(*modules: str, length: int = 16) -> str:
    """Hex digest of the code of ``modules`` (dotted names within this package) and of all they import from it.

    The modules that are named count even if they are neutral to others.

    Raises:
        ValueError: a name that is no module of this package, or a relative import in one of them.
    """
    hasher = hashlib.sha256()
    for module in sorted(_closure(modules)):
        hasher.update(f"{module}\0{_syntax(module)}\0".encode())
    return hasher.hexdigest()[:length]


def evaluation_code(method: str) -> str:
    """Digest of the code that measures a run of ``method``: evaluation, and the objective whose modules it may need."""
    modules = ("cmapkd.evaluation.run",)
    return fingerprint(*modules, *(() if method == "pretrained" else (f"cmapkd.objectives.{method}",)))


def training_code(method: str) -> str:
    """Digest of the code that a stage of ``method`` runs."""
    return fingerprint(*training_modules(method))


def training_modules(method: str) -> tuple[str, ...]:
    """Modules in which a stage of ``method`` begins."""
    if method == "teacher_cache":
        return ("cmapkd.training.teacher_cache",)
    return ("cmapkd.training.loop", *(() if method == "pretrained" else (f"cmapkd.objectives.{method}",)))


def _closure(modules: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found or (module not in modules and _is_neutral(module)):
            continue
        found.add(module)
        waiting.extend(_imports(module))
    return found


def _is_neutral(module: str) -> bool:
    """Whether a module is one of `NEUTRAL`, or lies in it. A name that only begins like one of them (``planning``) is not."""
    return any(module == name or module.startswith(f"{name}.") for name in NEUTRAL)


def _file(module: str) -> Path | None:
    base = PACKAGE.parent.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _source(module: str) -> str:
    path = _file(module)
    if path is None:
        raise ValueError(f"{module} is no module of this package")
    return path.read_text(encoding="utf-8")


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Modules of this package that ``module`` imports, anywhere in it; packages above them count, as Python runs them too."""
    own = {name for name in _imported(_source(module)) if name.split(".")[0] == "cmapkd" and _file(name) is not None}
    parents = {".".join(name.split(".")[:depth]) for name in own for depth in range(2, name.count(".") + 1)}
    return tuple(sorted((own | parents) - {"cmapkd"}))


@cache
def _syntax(module: str) -> str:
    return _dumped(_source(module))


@cache
def _imported(source: str) -> frozenset[str]:
    """All names that a source imports, or that may be modules in what it imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"line {node.lineno}: a relative import, which no digest of code follows; write it in full")
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


@cache
def _dumped(source: str) -> str:
    """The syntax tree of a source without its docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)
