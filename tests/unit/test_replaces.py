"""`replaces`: keys of a variant that are not merged with those of the file it extends; and what `extends` inherits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from config_examples import CONFIG, experiment
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.config import load_experiment, parse_experiment
from cmapkd.config.load import inherited_keys
from cmapkd.errors import UserError


def variant(folder: Path, **keys: Any) -> Path:
    base = experiment(seeds=[0, 1])
    (folder / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    path = folder / "variant.yaml"
    path.write_text(yaml.safe_dump({"extends": "base.yaml", "name": "variant", **keys}, sort_keys=False))
    return path


def test_a_mapping_of_the_base_is_replaced(tmp_path: Path) -> None:
    runs = {"Only": {"method": "scratch"}}
    merged = load_experiment(variant(tmp_path, runs=runs))
    replaced = load_experiment(variant(tmp_path, runs=runs, replaces=["runs"]))
    assert list(merged.runs) == ["KD", "CMAPKD", "Only"]
    assert list(replaced.runs) == ["Only"]
    assert replaced.seeds == (0, 1)
    assert "replaces" not in replaced.model_dump(mode="json")
    content = yaml.safe_load((tmp_path / "variant.yaml").read_text())
    assert parse_experiment(content, directory=tmp_path) == replaced, "Snakemake hands over what it parsed itself"


def test_a_variant_of_a_variant_merges_again(tmp_path: Path) -> None:
    variant(tmp_path, runs={"Only": {"method": "scratch"}}, replaces=["runs"])
    last = {"extends": "variant.yaml", "name": "last", "runs": {"Second": {"method": "kd"}}}
    (tmp_path / "last.yaml").write_text(yaml.safe_dump(last))
    assert list(load_experiment(tmp_path / "last.yaml").runs) == ["Only", "Second"]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"replaces": ["runs"]}, "this file has no key 'runs'"),
        ({"replaces": ["run"], "runs": {"A": {"method": "kd"}}}, "did you mean 'runs'"),
        ({"replaces": "runs", "runs": {"A": {"method": "kd"}}}, "must be a list of keys"),
        ({"replaces": [3], "runs": {"A": {"method": "kd"}}}, "must be a list of keys"),
        ({"replaces": ["runs"], "extends": None}, "there is no `extends`"),
    ],
)
def test_what_cannot_be_replaced_is_refused(keys: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        load_experiment(variant(tmp_path, **keys))


def test_the_check_says_what_was_inherited(tmp_path: Path) -> None:
    runs = {"Only": {"method": "scratch"}}
    line = inherited_keys(variant(tmp_path, runs=runs, seeds=[3]))
    assert line is not None
    assert line.startswith("from base.yaml: ")
    assert "2 runs (KD, CMAPKD)" in line
    assert "seeds" not in line
    checked = CliRunner().invoke(app, ["config", "check", str(tmp_path / "variant.yaml")], catch_exceptions=False)
    assert line in checked.output
    replaced = inherited_keys(variant(tmp_path, runs=runs, replaces=["runs"]))
    assert replaced is not None
    assert " run" not in replaced
    assert inherited_keys(CONFIG / "mini.yaml") is None
