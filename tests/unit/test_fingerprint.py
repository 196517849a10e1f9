"""Fingerprints of code: what an edit concerns, and what it does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmapkd import fingerprint as subject
from cmapkd.objectives import known

METHODS = tuple(known())
Edit = Callable[[str, Callable[[str], str]], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package to edit."""
    copy = tmp_path / "cmapkd"
    shutil.copytree(subject.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(subject, "PACKAGE", copy)
    forget()
    yield copy
    forget()


def forget() -> None:
    subject._imports.cache_clear()
    subject._syntax.cache_clear()


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    forget()


def code() -> dict[str, str]:
    """Fingerprint of what each method's training runs, as ``training.loop.code_of`` takes it."""
    return {method: subject.fingerprint("cmapkd.training.loop", f"cmapkd.objectives.{method}") for method in METHODS}


def changed(before: dict[str, str]) -> set[str]:
    return {method for method, value in code().items() if value != before[method]}


def append(statement: str) -> Callable[[str], str]:
    return lambda text: f"{text}\n{statement}\n"


def test_the_loop_takes_this_fingerprint() -> None:
    from cmapkd.training.loop import code_of

    assert {method: code_of(method) for method in METHODS} == code()
    assert code_of("pretrained") == subject.fingerprint("cmapkd.training.loop")


@pytest.mark.parametrize(
    ("file", "concerned"),
    [
        ("objectives/kd.py", {"kd"}),
        ("objectives/scratch.py", {"scratch"}),
        ("objectives/terms/relation.py", {"cmapkd"}),
        ("objectives/terms/alignment.py", {"cmapkd", "teacher_pyramid"}),
        ("objectives/terms/intra.py", {"cmapkd"}),
        ("objectives/terms/features.py", {"fitnet"}),
        ("objectives/terms/ranking.py", {"c2kd"}),
        ("objectives/terms/patches.py", {"llava_kd"}),
        ("objectives/terms/gradients.py", {"clip_kd"}),
        ("models/alsn.py", {"cmapkd"}),
        ("objectives/terms/contrastive.py", set(METHODS)),
        ("training/engine.py", set(METHODS)),
        ("training/distributed.py", set(METHODS)),
        ("objectives/base.py", set(METHODS)),
        ("objectives/terms/__init__.py", set(METHODS)),  # a package is run when a module in it is imported
        ("data/stream.py", set(METHODS)),
        ("models/towers.py", set(METHODS)),
    ],
)
def test_an_edit_concerns_the_methods_that_use_the_file(package: Path, file: str, concerned: set[str]) -> None:
    before = code()
    edit(package / file, append("EDITED = 1"))
    assert changed(before) == concerned


@pytest.mark.parametrize(
    "file",
    [
        "evaluation/retrieval.py",
        "paper/build.py",
        "config/methods.py",
        "cli/__init__.py",
        "errors.py",
        "training/logs.py",
        "provenance.py",
    ],
)
def test_an_edit_elsewhere_concerns_no_training(package: Path, file: str) -> None:
    before = code()
    edit(package / file, append("EDITED = 1"))
    assert changed(before) == set()


@pytest.mark.parametrize(
    "change",
    [
        append("# a comment"),
        lambda text: text.replace('"""', '"""Newly documented. ', 1),
        lambda text: text.replace("(self, ", "(\n        self,\n        ", 1),
        lambda text: "\n\n" + text,
    ],
    ids=["comment", "docstring", "layout", "blank lines"],
)
def test_comments_docstrings_and_layout_change_nothing(package: Path, change: Callable[[str], str]) -> None:
    before = code()
    edit(package / "objectives" / "cmapkd.py", change)
    assert changed(before) == set()


def test_a_changed_number_changes_it(package: Path) -> None:
    before = code()
    edit(package / "objectives" / "terms" / "intra.py", lambda text: text.replace("LEVELS = 4", "LEVELS = 5"))
    assert changed(before) == {"cmapkd"}


def test_a_docstring_alone_equals_none(package: Path) -> None:
    (package / "with_doc.py").write_text('def f():\n    """Nothing."""\n\n\nclass A:\n    """Nothing."""\n')
    (package / "without.py").write_text("def f():\n    pass\n\n\nclass A:\n    pass\n")
    assert subject._syntax("cmapkd.with_doc") == subject._syntax("cmapkd.without")


def test_imports_in_any_form_and_place_are_followed(package: Path) -> None:
    (package / "leaf.py").write_text("X = 1\n")
    forms = {
        "import": "import cmapkd.leaf",
        "from_module": "from cmapkd.leaf import X",
        "from_package": "from cmapkd import leaf",
        "late": "def f():\n    from cmapkd.leaf import X\n    return X",
        "indirect": "from cmapkd.late import f",
    }
    for name, text in forms.items():
        (package / f"{name}.py").write_text(text + "\n")
    before = {name: subject.fingerprint(f"cmapkd.{name}") for name in forms}
    edit(package / "leaf.py", lambda text: "X = 2\n")
    assert all(subject.fingerprint(f"cmapkd.{name}") != value for name, value in before.items())


def test_a_circle_of_imports_ends(package: Path) -> None:
    for name, other in (("ring_a", "ring_b"), ("ring_b", "ring_a")):
        (package / f"{name}.py").write_text(textwrap.dedent(f"import cmapkd.{other}\n"))
    assert len(subject.fingerprint("cmapkd.ring_a")) == 16


@pytest.mark.parametrize("name", ["planning", "clip", "configs", "errors_of_methods", "training/logs_of_steps", "plan_b/deep"])
def test_a_name_that_begins_like_a_neutral_one_is_not_neutral(package: Path, name: str) -> None:
    path = package / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text("WEIGHT = 1.0\n")
    module = f"cmapkd.{name.replace('/', '.')}"
    edit(package / "objectives" / "kd.py", append(f"from {module} import WEIGHT"))
    before = code()
    edit(path, lambda text: "WEIGHT = 2.0\n")
    assert changed(before) == {"kd"}


def test_a_neutral_module_counts_where_it_is_the_one_that_is_asked_for(package: Path) -> None:
    before = subject.fingerprint("cmapkd.errors")
    edit(package / "errors.py", append("EDITED = 1"))
    assert subject.fingerprint("cmapkd.errors") != before


@pytest.mark.parametrize(
    "statement", ["from .leaf import X", "from . import leaf", "def f():\n    from ..cmapkd.leaf import X"]
)
def test_a_relative_import_is_refused(package: Path, statement: str) -> None:
    (package / "leaf.py").write_text("X = 1\n")
    edit(package / "objectives" / "kd.py", append(statement))
    with pytest.raises(ValueError, match="a relative import, which no digest of code follows"):
        subject.training_code("kd")


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cmapkd\.nothing is no module"):
        subject.fingerprint("cmapkd.nothing")


def test_the_locale_does_not_change_it(package: Path) -> None:
    """Python reads files in the encoding of the locale unless it is named; sources are UTF-8."""
    (package / "made.py").write_bytes('NAME = "Größe"\n'.encode())
    program = (
        "import pathlib, sys; from cmapkd import fingerprint as f; f.PACKAGE = pathlib.Path(sys.argv[1]); "
        "sys.stdout.write(f.fingerprint('cmapkd.made'))"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(package.parent)}
    done = subprocess.run([sys.executable, "-c", program, str(package)], env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == subject.fingerprint("cmapkd.made")
