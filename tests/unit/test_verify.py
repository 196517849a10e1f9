"""Verify: a whole results directory passes, and each way of breaking its chain is found and named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from breakages import BREAKAGES, metric_value, missing_stage, shard, table_value
from synthetic_results import Tree, edit_json, experiment_of, write_paper, write_tree
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of
from cmapkd.paper import verify_code, verify_parts
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.findings import Findings
from cmapkd.paper.verify import summary, verify
from cmapkd.paper.verify_parts import first_difference

PAPER = {"tables": ["table1", "table2", "table5"], "figures": []}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return write_tree(tmp_path_factory.mktemp("results"), experiment_of(paper=PAPER))


@pytest.fixture
def tree(original: Tree, tmp_path: Path) -> Tree:
    home = tmp_path / original.home.name
    shutil.copytree(original.home, home)
    file = home / "experiment.yaml"
    return replace(original, home=home, context=paper_context(original.experiment, tmp_path, file))


# ---- what is whole passes -------------------------------------------------------------------------------------------------


def test_a_whole_paper_passes_and_its_figure_cannot_be_edited(tmp_path: Path) -> None:
    """Two seeds, and a method whose result is deployed with its teacher's text tower."""
    runs = {**experiment_of().model_dump(mode="json")["runs"], "PromptKD": {"method": "promptkd"}}
    made = write_tree(tmp_path, experiment_of(seeds=[0, 1], runs=runs, paper={**PAPER, "figures": ["figure3"]}))
    found = verify(made.home)
    assert found.problems == []
    text = summary(found, made.home)
    assert "verified: every number is what its parents give" in text
    cells = [
        entry
        for name in (*made.context.all_tables, *made.context.figures)
        for kind in ("cells", "texts")
        for columns in read_json(made.context.paper / f"{name}.json").get(kind, {}).values()
        for entry in columns.values()
    ]
    assert found.counts["cells"] == len(cells) > 100
    assert found.counts["parents"] >= sum(len(entry["parents"]) for entry in cells)
    assert f"{len(cells)} cells" in text
    # An edited figure is found, in its values and in its drawing.
    edit_json(made.context.paper / "figure3.json", lambda content: content["values"]["margin"].reverse())
    picture = made.context.paper / "figure3.pdf"
    picture.write_bytes(picture.read_bytes().replace(b"matplotlib", b"something "))
    found = {problem.file: problem.reason for problem in verify(made.home).problems}
    assert "values / margin / 0 is" in found[str(made.context.paper / "figure3.json")]
    assert found[str(picture)] == "is not what is drawn now from the same parents"


def test_it_needs_no_torch_and_says_what_it_did(tree: Tree) -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "open_clip", "deepspeed", "transformers", "snakemake"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
from cmapkd.cli import main
sys.argv = ["cmapkd", "verify", sys.argv[1]]
main()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(tree.home)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digests" in done.stdout


def test_results_can_be_moved_and_named_by_their_paper(tree: Tree, tmp_path: Path) -> None:
    assert verify(tree.home / "paper").problems == []
    assert verify(tree.home.rename(tmp_path / "elsewhere")).problems == []


def test_an_edit_that_reruns_one_method_passes(tree: Tree) -> None:
    """Another commit for one run alone is what a legitimate partial rerun leaves behind."""
    for path in (tree.stage("KD"),):
        edit_json(path, lambda content: content["provenance"].update(commit="f" * 40, dirty=True))
    collected = tree.home / "runs" / "KD" / "0" / "run.json"
    edit_json(collected, lambda content: content["stages"][0]["provenance"].update(commit="f" * 40, dirty=True))

    def recommit(content: Any) -> None:
        content["provenance"].update(commit="f" * 40)
        content["provenance"]["stages"][0].update(commit="f" * 40, dirty=True)

    edit_json(tree.metric_file("KD"), recommit)
    write_paper(tree)
    found = verify(tree.home)
    assert found.problems == []
    assert "1 stages were made with uncommitted changes" in " ".join(found.notes)


# ---- what is broken is found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", BREAKAGES)
def test_what_is_broken_is_named(tree: Tree, breaks: Callable[[Tree], tuple[Path, str]]) -> None:
    path, reason = breaks(tree)
    found = verify(tree.home)
    named = [problem for problem in found.problems if problem.file == str(path) and reason in str(problem)]
    assert named, summary(found, tree.home)
    assert all(problem.fix for problem in found.problems)


@pytest.mark.parametrize("value", [None, 3, "x", [], [None]])
def test_files_of_another_form_are_problems_not_tracebacks(tree: Tree, value: Any) -> None:
    files = [
        tree.home / "data" / "emoji_scenes" / "manifest.json",
        tree.stage("KD"),
        tree.home / "runs" / "KD" / "0" / "run.json",
        tree.metric_file("KD"),
        tree.context.paper / "table1.json",
        tree.context.paper / "table2.json",
    ]
    for path in files:
        edit_json(path, lambda content: content.update(dict.fromkeys(content, value)))
    named = {problem.file for problem in verify(tree.home).problems}
    assert {str(path) for path in files} <= named


def test_the_cells_of_a_changed_parent_are_named(tree: Tree) -> None:
    path, _ = metric_value(tree)
    problems = [problem for problem in verify(tree.home).problems if problem.file == str(path)]
    cells = [cell for problem in problems for cell in problem.cells]
    assert "table2 / KD / i2t_r1" in cells
    assert "table5 / KD / image_parameters" in cells
    assert not any("Scratch / i2t_r1" in cell for cell in cells)
    assert "more" in str(problems[0])  # not hundreds of lines


def test_several_problems_are_all_listed_and_the_command_fails(tree: Tree) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["verify", str(tree.home)]).exit_code == 0
    paths = [breaks(tree)[0] for breaks in (table_value, shard, missing_stage)]
    done = runner.invoke(app, ["verify", str(tree.home / "paper")])
    assert done.exit_code == 1
    for path in paths:
        assert str(path) in done.output


def test_shards_are_hashed_unless_told_otherwise(tree: Tree) -> None:
    shard(tree)
    found = verify(tree.home, deep=False)
    assert found.problems == []
    assert "were not hashed" in " ".join(found.notes)
    assert len(verify(tree.home, deep=True).problems) == 1


def _plan_cell(content: Any) -> None:
    parent = {"file": "config/planned.yaml", "sha256": "0" * 64, "run": None, "seed": None, "keys": ["table2"]}
    content["cells"]["CMAPKD"]["i2t_r1"].update(planned=True, parents=[parent])


def test_planned_numbers_belong_into_the_appendix(tree: Tree, tmp_path: Path) -> None:
    edit_json(tree.context.paper / "table2.json", _plan_cell)
    (problem,) = [problem for problem in verify(tree.home).problems if "planned numbers" in problem.reason]
    assert problem.reason == "shows planned numbers outside the appendix"
    assert problem.file.endswith("table2.json")
    assert problem.cells == ("table2 / CMAPKD / i2t_r1",)
    edit_json(tree.context.paper / "table2.json", lambda content: content["cells"]["CMAPKD"]["i2t_r1"].pop("planned"))
    reasons = [problem.reason for problem in verify(tree.home).problems]
    assert "comes from planned numbers but is not marked so" in reasons
    there = experiment_of(paper={"tables": ["table1"], "appendix": ["table2"], "figures": [], "planned": True})
    made = write_tree(tmp_path / "there", there)
    assert verify(made.home).problems == []
    shown = [read_json(made.context.paper / f"{name}.json")["cells"] for name in made.context.appendix]
    assert any(cell.get("planned") for rows in shown for columns in rows.values() for cell in columns.values())


def test_what_is_no_results_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        verify(tmp_path / "nothing")
    with pytest.raises(UserError, match="these are not the results of an experiment"):
        verify(tmp_path)


# ---- code -----------------------------------------------------------------------------------------------------------------


def test_trees_of_commits_have_their_own_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "cmapkd"
    package.mkdir()

    def commit(text: str) -> str:
        (package / "loss.py").write_text(text)
        options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), "add", "-A"], check=True)
        subprocess.run(["git", "-C", str(tmp_path), *options, "commit", "-qm", "x"], check=True)
        done = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commits = [commit("A = 1\n"), commit("A = 1  # the same\n"), commit("A = 2\n")]
    monkeypatch.setattr(verify_code.fingerprint, "PACKAGE", package)
    with verify_code.Trees() as trees:
        found = []
        for name in commits:
            tree = trees.at(name)
            assert tree is not None
            found.append(tree("cmapkd.loss"))
        assert found[0] == found[1] != found[2]
        assert trees.at("0" * 40) is None
        assert trees.at("unknown") is None
        assert trees.at("--output=x") is None


class _Trees:
    """Two states of the code that differ in what all methods share."""

    def at(self, commit: str) -> Any:
        if commit not in ("", "old"):
            return None
        return lambda entry, *own: f"{commit or 'new'} {entry} {' '.join(own)}"


def test_code_that_all_methods_share_is_compared_across_methods(tree: Tree) -> None:
    def made(method: str, commit: str, code: str = "") -> verify_code.Made:
        own = code or f"{commit or 'new'} loop cmapkd.objectives.{method}"
        return verify_code.Made(Path(f"{method}{commit}.json"), method, own, commit)

    def problems(*files: verify_code.Made) -> list[str]:
        findings = Findings()
        verify_code._compare(tree.context, findings, _Trees(), list(files), "loop", "stages", "was trained")  # type: ignore[arg-type]
        return [f"{problem.file}: {problem.reason}" for problem in findings.problems]

    assert problems(made("kd", ""), made("cmapkd", "")) == []
    assert problems(made("kd", "old"), made("cmapkd", "old")) == []  # older than the present code, but all of one
    (mixed,) = problems(made("kd", ""), made("scratch", ""), made("cmapkd", "old"))
    assert mixed.startswith("cmapkdold.json: was trained by other code that all methods share")
    assert problems(made("kd", ""), made("cmapkd", "lost", "somewhere else")) == []  # nobody can tell


# ---- comparing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "made", "where"),
    [
        ({"a": [1, 2.0]}, {"a": [1, 2.0 + 1e-12]}, None),
        ({"a": [1, 2.0]}, {"a": [1, 2.001]}, "a / 1"),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}, "a / b"),
        ({"a": True}, {"a": 1}, "a"),
        ({"a": None}, {}, "a"),
        ([1, 2], [1], " (number of entries)"),
        ("1", 1, ""),
    ],
)
def test_the_first_difference(found: Any, made: Any, where: str | None) -> None:
    place = first_difference(found, made)
    assert (place[0] if place else None) == where


def test_hard_links_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    findings = Findings()
    assert findings.sha256(tmp_path / "a") == findings.sha256(tmp_path / "b") == sha256_of(tmp_path / "b")
    assert findings.counts["files"] == 1


def test_arrays_that_a_number_was_computed_from_are_looked_up_by_name(tmp_path: Path) -> None:
    path = tmp_path / "0.npz"
    np.savez(path, **{"retrieval/a/i2t_ranks": np.zeros(2), "curves/0/train/loss": np.zeros(2)})
    for keys, there in (
        (["retrieval/a/i2t_ranks"], True),
        (["curves"], True),
        (["curves", "retrieval/a/i2t_ranks"], True),
        (["retrieval/a/i2t_ranks", "retrieval/a/t2i_ranks"], False),
        (["curve"], False),
    ):
        assert verify_parts._holds(path, keys, {}) is there, keys
