"""Verify kept results: what is there fits, or is named; what is not kept is counted. Real results must be complete."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_results import Tree, edit_json, experiment_of, write_tree
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.files import read_json
from cmapkd.paper.context import is_kept
from cmapkd.paper.markdown import keep_results
from cmapkd.paper.verify import summary, verify

REPOSITORY = Path(__file__).parents[2]
PAPER = {"tables": ["table1", "table2", "table5"], "appendix": ["significance"], "figures": ["figure3"]}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Two seeds: cells have deviations, and tests the spread between seeds."""
    return write_tree(tmp_path_factory.mktemp("results"), experiment_of(seeds=[0, 1], paper=PAPER))


@pytest.fixture(scope="module")
def original(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("kept") / "other name"
    keep_results(tree.context, home)
    return home


@pytest.fixture
def kept(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "ein Ördner" / original.name))


@pytest.fixture
def listless(kept: Path) -> Path:
    """As it was kept before digests were written: recognized by its page and by what it lacks."""
    (kept / "kept.json").unlink()
    return kept


def test_what_is_there_fits_and_the_rest_is_counted_by_kind(kept: Path, tree: Tree) -> None:
    done = CliRunner().invoke(app, ["verify", str(kept)])
    assert done.exit_code == 0, done.output
    arrays = len(list((tree.home / "metrics").glob("*/*.npz")))
    named = {stage["address"] for path in kept.glob("metrics/*/*.json") for stage in read_json(path)["provenance"]["stages"]}
    for part in (
        f"{arrays} per-query arrays", f"{len(named)} stages", f"{arrays} models of runs", "1 data sets",
        "1 figures of arrays", "1 tables of tests", "verified: what is here fits",
    ):  # fmt: skip
        assert part in done.output, part
    cells = re.search(r"(\d+) cells with (\d+) parents", done.output)
    assert cells
    assert int(cells[1]) > 100
    assert int(cells[2]) > int(cells[1])


def test_results_that_the_repository_keeps_fit() -> None:
    home = REPOSITORY / "docs" / "results" / "mini"
    found = verify(home)
    assert found.problems == [], summary(found, home)
    assert {kind: len(paths) for kind, paths in found.absent.items()}["per-query arrays"] == 49


def test_without_digests_it_is_recognized_by_its_structure(listless: Path, tree: Tree) -> None:
    assert is_kept(listless)
    assert verify(listless).problems == []
    (listless / "stages").mkdir()
    assert not is_kept(listless)
    assert not is_kept(tree.home)


def test_real_results_must_be_complete(kept: Path, tree: Tree, tmp_path: Path) -> None:
    home = Path(shutil.copytree(tree.home, tmp_path / "whole" / tree.home.name))
    (home / "metrics" / "KD" / "0.npz").unlink()
    assert verify(home).problems[0].file == str(home / "metrics" / "KD" / "0.npz")
    assert verify(home, kept=True).problems == []
    assert CliRunner().invoke(app, ["verify", str(kept), "--full"]).exit_code == 1


Edit = Callable[[Path], Path]


def _metric(home: Path) -> Path:
    path = home / "metrics" / "KD" / "0.json"
    split = next(iter(read_json(path)["metrics"]["retrieval"]))
    edit_json(path, lambda content: content["metrics"]["retrieval"][split]["all"].update(i2t_r1=99.25))
    return path


def _uncited(home: Path) -> Path:
    path = home / "metrics" / "KD" / "0.json"
    edit_json(path, lambda content: content["metrics"].update(extra={"number": 1.5}))
    return path


def _edited(home: Path, name: str, change: Callable[[Any], object]) -> Path:
    path = home / "paper" / f"{name}.json"
    edit_json(path, change)
    return path


def _digit(path: Path, pattern: str) -> Path:
    """The last digit of the first number that `pattern` finds, changed."""
    text = path.read_text(encoding="utf-8")
    found = re.search(pattern, text)
    assert found
    at = found.end(1) - 1
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :], encoding="utf-8")
    return path


FOUND_BY_CONTENT: dict[str, Edit] = {
    "metric": _metric,
    "a number that no table shows": _uncited,
    "value": lambda home: _edited(home, "table2", lambda c: c["cells"]["KD"]["i2t_r1"].update(value=71.5)),
    "deviation": lambda home: _edited(home, "table2", lambda c: c["cells"]["KD"]["i2t_r1"].update(std=0.125)),
    "cost": lambda home: _edited(home, "table5", lambda c: c["cells"]["KD"]["image_parameters"].update(value=7.0)),
    "text": lambda home: _edited(home, "table1", lambda c: c["texts"]["progressive/fine"]["trains"].update(text="all")),
    "parent": lambda home: _edited(home, "table2", lambda c: c["cells"]["KD"]["i2t_r1"]["parents"][0].update(sha256="0" * 64)),
    "arrays of a parent": lambda home: _edited(home, "table2", lambda c: c["tests"]["parents"][0].update(sha256="0" * 64)),
    "difference": lambda home: _edited(home, "table2", lambda c: c["tests"]["tests"][0].update(difference=0.25)),
    "macro": lambda home: _digit(home / "paper" / "numbers.tex", r"set\{value\}\{table2\}\{KD\}\{i2t_r1\}\{([\d.]+)\}"),
    "page": lambda home: _digit(home / "README.md", r"\| KD \| \D*([\d.]+)"),
}  # fmt: skip


@pytest.mark.parametrize("edit", FOUND_BY_CONTENT.values(), ids=FOUND_BY_CONTENT.keys())
def test_an_edited_number_is_found_without_digests(edit: Edit, listless: Path) -> None:
    path = edit(listless)
    found = verify(listless)
    assert any(problem.file == str(path) for problem in found.problems), summary(found, listless)
    assert all(problem.fix for problem in found.problems)


def test_any_edited_file_is_found_by_its_digest(kept: Path) -> None:
    """Also what only arrays would give again: p values, and what a figure shows."""
    for path in sorted([*kept.glob("metrics/*/*.json"), *kept.glob("paper/*")]):
        before = path.read_bytes()
        path.write_bytes(before.replace(b"0", b"8", 1))
        assert path.read_bytes() != before
        assert str(path) in {problem.file for problem in verify(kept).problems}, path
        path.write_bytes(before)
    assert verify(kept).problems == []


def test_a_kept_file_that_is_gone_is_a_problem(kept: Path) -> None:
    for name in ("metrics/KD/0.json", "paper/table2.json", "paper/figure3.json"):
        (kept / name).unlink()
    done = CliRunner().invoke(app, ["verify", str(kept)])
    assert done.exit_code == 1
    for name in ("metrics/KD/0.json", "paper/table2.json", "paper/figure3.json"):
        assert f"{kept / name}: is" in done.output
