"""Results kept in a repository: the same bytes as were measured, and a page whose numbers are those of the tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import synthetic_metrics as synthetic

from cmapkd.errors import UserError
from cmapkd.files import sha256_of
from cmapkd.paper.build import build_table
from cmapkd.paper.markdown import keep_results, markdown_table


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


def test_pipes_and_line_breaks_do_not_break_the_table() -> None:
    column = {"column": "a", "header": "x|y", "group": "", "panel": "", "direction": "down", "decimals": 0}
    table = {
        "table": "tuned", "title": "Tuned", "caption": "", "columns": [column], "rows": [{"row": "r", "label": "r"}],
        "cells": {}, "texts": {"r": {"a": {"text": "one\ntwo|three"}}},
    }  # fmt: skip
    assert markdown_table(table)[-3:] == ["|  | x\\|y ↓ |", "|---|---|", "| r | one; two\\|three |"]
