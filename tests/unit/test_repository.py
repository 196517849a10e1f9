"""Files beside the code: licences, credits, citation and the pages that name files agree with what they speak of."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from cmapkd import __version__
from cmapkd.data.sources.emoji.packages import PACKAGES

ROOT = Path(__file__).parents[2]


def test_every_package_is_credited_with_version_and_licence() -> None:
    rows = [line for line in (ROOT / "docs" / "data-licences.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(PACKAGES)
    for package, row in zip(PACKAGES, rows, strict=True):
        assert row.startswith(f"| `{package.name}` | {package.version} | {package.kind} | [{package.licence}](")
        assert f"[{package.attribution}](" in row


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "config/README.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:cmapkd|config|docs|tests|workflow)/[\w./-]*)`", (ROOT / page).read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_version_and_licence_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert __version__ == project["version"] == citation["version"]
    assert project["license"] == citation["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert "APPENDIX: How to apply the Apache License to your work." in licence


def test_the_lock_is_for_the_python_of_debian_12() -> None:
    """The images and many clusters have 3.11.2: a package that wants a later one cannot be installed there."""
    names = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), flags=re.M)
    wanted = {name: metadata(name).get("Requires-Python") or "" for name in names}
    assert len(wanted) > 100
    assert {name: wants for name, wants in wanted.items() if "3.11.2" not in SpecifierSet(wants)} == {}


def test_hooks_fetch_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert {hook["language"] for repository in hooks["repos"] for hook in repository["hooks"]} == {"system"}
