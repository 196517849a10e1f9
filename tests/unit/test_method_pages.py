"""The pages of the methods agree with the code, and what was written by hand on them is kept."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cmapkd.config import document, method_pages
from cmapkd.errors import UserError
from cmapkd.objectives import known

DOCS = method_pages.DOCS


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(DOCS / "methods", tmp_path / "methods")
    shutil.copytree(DOCS / "results", tmp_path / "results")
    return tmp_path


def test_pages_agree_with_the_code() -> None:
    """To mend it: `cmapkd config document --fix`."""
    assert method_pages.update(fix=False) == []


def test_every_method_of_an_experiment_has_a_page_written_by_hand() -> None:
    for tag in document.every_method():
        text = (DOCS / "methods" / f"{tag}.md").read_text()
        assert "Not described by hand yet" not in text
        assert "$$" in text.partition("<!-- generated")[0], f"{tag}: no formula"
    assert set(document.every_method()) <= set(known())


def test_options_of_a_page_are_the_fields_of_its_class() -> None:
    for tag, method in document.every_method().items():
        text = (DOCS / "methods" / f"{tag}.md").read_text()
        options = text.partition("<!-- generated: options -->")[2].partition("<!-- end generated: options -->")[0]
        rows = re.findall(r"^\| `(\w+)` \|", options.partition("\n### ")[0], flags=re.MULTILINE)
        inherited = {"lr_scale", "group", "search"}
        expected = [key for key in method.model_fields if key not in inherited]
        assert set(expected) - {"schedule"} <= set(rows) <= set(expected)


def test_a_page_is_mended_and_text_by_hand_kept(copy: Path) -> None:
    page = copy / "methods" / "kd.md"
    assert method_pages.update(fix=False, directory=copy) == []
    text = page.read_text()
    page.write_text(text.replace("`temperature` | number", "`temprature` | number").replace("# KD", "# KD, by hand"))
    assert method_pages.update(fix=False, directory=copy) == [str(page)]
    assert method_pages.update(fix=True, directory=copy) == [str(page)]
    assert page.read_text() == text.replace("# KD", "# KD, by hand")


def test_a_method_without_a_page_gets_one(copy: Path) -> None:
    page = copy / "methods" / "kd.md"
    page.unlink()
    assert method_pages.update(fix=True, directory=copy) == [str(page)]
    assert method_pages.update(fix=False, directory=copy) == []
    assert "| `temperature` | number, > 0 |" in page.read_text()


def test_damaged_marks_are_refused_before_anything_is_lost(copy: Path) -> None:
    page = copy / "methods" / "kd.md"
    damaged = page.read_text().replace("<!-- end generated: stages -->", "")
    page.write_text(damaged)
    with pytest.raises(UserError, match="has no single region between '<!-- generated: stages -->'"):
        method_pages.update(fix=True, directory=copy)
    assert page.read_text() == damaged


def test_costs_are_those_of_the_metric_files(copy: Path) -> None:
    kept = copy / "results" / "mini" / "metrics" / "KD" / "0.json"
    text = kept.read_text()
    known_value = re.search(r'"total_flops": (\d+)', text)
    assert known_value is not None
    kept.write_text(text.replace(known_value[0], '"total_flops": 123000000000'))
    assert method_pages.update(fix=True, directory=copy) == [str(copy / "methods" / "kd.md")]
    assert "| 123.0000 |" in (copy / "methods" / "kd.md").read_text()
    shutil.rmtree(copy / "results")
    method_pages.update(fix=True, directory=copy)
    assert "Not measured in" in (copy / "methods" / "kd.md").read_text()
