"""Results kept in a repository: the same bytes as were measured, and a page whose numbers are those of the tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import synthetic_metrics as synthetic
import yaml
from config_examples import experiment

from cmapkd.config import load_experiment, parse_experiment
from cmapkd.errors import UserError
from cmapkd.files import sha256_of
from cmapkd.paper.build import build_table
from cmapkd.paper.markdown import keep_results, markdown_table
from cmapkd.plan import make_plan
from cmapkd.workflow import write_effective

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "docs/results").glob("*/experiment.yaml"))


def test_what_is_kept_is_what_was_measured(tmp_path: Path) -> None:
    context = synthetic.context(tmp_path, tables=("table2", "table3"), figures=(), seeds=(0, 1))
    synthetic.write_all(context)
    tables = {name: build_table(name, context) for name in context.tables}
    kept = keep_results(context, tmp_path / "kept")
    assert [path.name for path in kept[-2:]] == ["kept.json", "README.md"]
    for path in kept[:-2]:
        assert (tmp_path / "kept" / path).read_bytes() == (context.results / path).read_bytes()
    parents = json.loads((tmp_path / "kept/paper/table2.json").read_text())["cells"]["CMAPKD"]["i2t_r1"]["parents"]
    assert len(parents) == 2
    for parent in parents:
        assert sha256_of(tmp_path / "kept" / parent["file"]) == parent["sha256"]
    page = (tmp_path / "kept/README.md").read_text()
    cell = tables["table2"].cells["CMAPKD"]["i2t_r1"]
    row = next(line for line in page.splitlines() if line.startswith("| CMAPKD |"))
    assert row.split("|")[2].strip("* ") == f"{cell.value:.1f} ± {cell.std:.1f}"
    assert "commit" not in page or "uncommitted" in page
    assert keep_results(context, tmp_path / "kept") == kept
    assert (tmp_path / "kept/README.md").read_text() == page


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    context = synthetic.context(tmp_path, tables=("table2",), figures=())
    synthetic.write_all(context)
    with pytest.raises(UserError, match=r"table2\.json.*not built"):
        keep_results(context, tmp_path / "kept")
    build_table("table2", context)
    missing = context.metric_file("KD", 0)
    missing.unlink()
    with pytest.raises(UserError, match=r"KD/0\.json.*missing"):
        keep_results(context, tmp_path / "kept")
    assert not (tmp_path / "kept/README.md").exists()


def test_a_kept_experiment_names_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be read on any other: folders of data by their names, and the tuned values as a file in the same folder."""
    monkeypatch.setenv("CMAPKD_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    context = synthetic.context(tmp_path, tables=("table2",), figures=())
    synthetic.write_all(context)
    build_table("table2", context)
    (tmp_path / "found.yaml").write_text("{runs: {KD: {complete: true, method: kd, values: {lr_scale: 2.0}}}}")
    content = experiment(
        datasets__a={"source": "own", "root": "/big/a"},
        datasets__b={"source": "own", "root": "$SCRATCH/b"},
        datasets__c={"source": "own", "root": "~/c"},
        tuned=str(tmp_path / "found.yaml"),
    )
    made = parse_experiment(content)
    write_effective(made, context.results / "experiment.yaml")
    kept = keep_results(context, tmp_path / "kept")
    assert Path("found.yaml") in kept
    text = (tmp_path / "kept/experiment.yaml").read_text()
    assert [made.datasets[name].root for name in "abc"] == ["/big/a", "/scratch/me/b", f"{tmp_path}/user/c"]  # type: ignore[union-attr]
    assert {name: yaml.safe_load(text)["datasets"][name]["root"] for name in "abc"} == {"a": "a", "b": "b", "c": "~/c"}
    assert yaml.safe_load(text)["tuned"] == "found.yaml"
    for file in (tmp_path / "kept").rglob("*.*"):
        assert str(tmp_path) not in file.read_text(), file
    monkeypatch.delenv("SCRATCH")
    (tmp_path / "found.yaml").unlink()
    read = load_experiment(tmp_path / "kept/experiment.yaml")
    assert read.tuned == str(tmp_path / "kept/found.yaml")
    assert read.runs == made.runs
    assert list(make_plan(read).stages) == list(make_plan(made).stages)


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.parent.name)
def test_kept_experiments_can_be_read_from_any_clone(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert not [line for line in file.read_text().splitlines() if re.search(r"[ :\"'](/|~/|\$)\w", line)]
    read = load_experiment(file)
    assert read.tuned is None or Path(read.tuned).is_relative_to(ROOT)


def test_pipes_and_line_breaks_do_not_break_the_table() -> None:
    column = {"column": "a", "header": "x|y", "group": "", "panel": "", "direction": "down", "decimals": 0}
    table = {
        "table": "tuned", "title": "Tuned", "caption": "", "columns": [column], "rows": [{"row": "r", "label": "r"}],
        "cells": {}, "texts": {"r": {"a": {"text": "one\ntwo|three"}}},
    }  # fmt: skip
    assert markdown_table(table)[-3:] == ["|  | x\\|y ↓ |", "|---|---|", "| r | one; two\\|three |"]
