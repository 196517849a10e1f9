"""`cmapkd paper` from metric files alone: no torch, no Snakemake, nothing of the results but what was measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_results import Tree, experiment_of, write_tree

from cmapkd.files import sha256_of

# Python imports this at its start: every process, however it is started, is without these packages.
BLOCKER = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not there: the paper must not need it")

BLOCKED = ("torch", "torchvision", "open_clip", "transformers", "deepspeed", "webdataset", "snakemake", "optuna")
sys.meta_path.insert(0, Block())
"""
REPOSITORY = Path(__file__).parents[2]
PAPER = {"tables": ["table1", "table2", "table3", "table5"], "figures": ["figure3"]}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Metric files and the experiment, as somebody else might have been given them: no data, stages or runs."""
    made = write_tree(tmp_path_factory.mktemp("results"), experiment_of(paper=PAPER), paper=False)
    for name in ("data", "stages", "runs"):
        shutil.rmtree(made.home / name)
    return made


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Environment of a process without torch and the like, and without LaTeX."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path / "bare"), str(REPOSITORY)])
    return {**os.environ, "PYTHONPATH": path, "PATH": "/nonexistent"}


def _run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cmapkd", *words], capture_output=True, text=True, env=environment)


def test_the_whole_paper_is_made_without_torch(tree: Tree, bare: dict[str, str]) -> None:
    blocked = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True, env=bare)
    assert "the paper must not need it" in blocked.stderr  # the block works in a process that Python starts
    options = ("--experiment", str(tree.file), "--results", str(tree.home.parent))
    done = _run(bare, "paper", *options)
    assert done.returncode == 0, done.stderr
    assert "everything but paper.pdf is made" in done.stderr
    names = {"numbers.tex", "paper.tex", "figure3.pdf", "figure3.json"}
    names |= {f"{table}.{kind}" for table in PAPER["tables"] for kind in ("tex", "json")}
    made = {path.name: sha256_of(path) for path in tree.context.paper.iterdir()}
    assert names <= set(made)
    assert "paper.pdf" not in made
    assert r"\input{table2}" in (tree.context.paper / "paper.tex").read_text()
    assert r"{table2}{CMAPKD}{i2t_r1}" in (tree.context.paper / "numbers.tex").read_text()
    # Options before a sub-command are meant for it; the same bytes again.
    (tree.context.paper / "table2.tex").unlink()
    done = _run(bare, "paper", *options, "table", "table2")
    assert done.returncode == 0, done.stderr
    assert {path.name: sha256_of(path) for path in tree.context.paper.iterdir()} == made
    # A number of it leads back, as JSON, by its macro.
    done = _run(bare, "trace", r"\cmapkd{table2}{CMAPKD}{i2t_r1}", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    stored = json.loads((tree.context.paper / "table2.json").read_text())["cells"]["CMAPKD"]["i2t_r1"]
    assert found["value"] == stored["value"] == found["parents"][0]["value"]


def test_a_missing_metric_file_is_a_message(tree: Tree, bare: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(tree.home / "metrics", tmp_path / "smoke" / "metrics")
    (tmp_path / "smoke" / "metrics" / "KD" / "0.json").unlink()
    done = _run(bare, "paper", "--experiment", str(tree.file), "--results", str(tmp_path))
    assert done.returncode == 2
    assert "metrics/KD/0.json" in done.stderr
    assert "Traceback" not in done.stderr
