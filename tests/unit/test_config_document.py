"""The documentation of the configuration agrees with the code, and so does the JSON schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from config_examples import CONFIG, EXPERIMENTS, FIELDS, classes, experiment

from cmapkd.config import document, parse_experiment
from cmapkd.config.methods import AnyMethod
from cmapkd.config.schedules import DEFAULT_SCHEDULES
from cmapkd.config.sources import AnySource
from cmapkd.errors import UserError
from cmapkd.plan import make_plan

# Numbers that have no unit: rates, weights, temperatures, seeds. A new number has a unit or is added here.
WITHOUT_UNIT = {
    "lr", "lr_scale", "group_lr", "betas", "eps", "weight_decay", "weight", "beta", "gamma", "intra", "align", "relation",
    "task", "manual_weights", "entropy_weight", "temperature", "temperature_kd", "teacher_scale", "dropout", "heads",
    "hidden", "ratio", "seed", "seeds", "crd_weight", "icl_weight", "fd_weight", "gd_weight", "afd_weight",
    "hint_weight", "proxy_weight", "selection_weight", "answer_weight", "visual_weight", "relation_weight",
    "image_weight", "text_weight", "logits_weight", "cross",
}  # fmt: skip

# ---- documentation


def test_documentation_agrees_with_the_code() -> None:
    """To mend it: `cmapkd config document --fix`."""
    assert document.update(fix=False) == []


def test_fix_repairs_the_documentation_and_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    assert len(document.update(fix=True, directory=tmp_path)) == 2
    text = readme.read_text()
    mine = text.replace("Not written yet.", "Forty-two trials.\n\n| a | b |\n|---|---|").replace("| `seeds` |", "| `sead` |")
    assert mine.count("Forty-two") == 1
    readme.write_text(mine)
    assert document.update(fix=False, directory=tmp_path) == [str(readme)]
    assert readme.read_text() == mine
    assert document.update(fix=True, directory=tmp_path) == [str(readme)]
    assert document.update(fix=False, directory=tmp_path) == []
    assert readme.read_text() == text.replace("Not written yet.", "Forty-two trials.\n\n| a | b |\n|---|---|")


def test_a_damaged_mark_is_refused_before_anything_is_lost(tmp_path: Path) -> None:
    document.update(fix=True, directory=tmp_path)
    readme = tmp_path / "README.md"
    damaged = readme.read_text().replace("<!-- end by hand: tuning -->", "")
    readme.write_text(damaged)
    with pytest.raises(UserError, match="has no single region between '<!-- by hand: tuning -->'"):
        document.update(fix=True, directory=tmp_path)
    assert readme.read_text() == damaged


@pytest.mark.parametrize("name", FIELDS)
def test_every_key_is_described_numbers_have_units_and_stand_in_the_readme(name: str) -> None:
    model, key = FIELDS[name]
    field = model.model_fields[key]
    text = document.description(key, field)
    assert len(text) > 5, f"{name} has no description"
    assert text in (CONFIG / "README.md").read_text()
    if {int, float} & {field.annotation, *get_args(field.annotation)}:
        assert document.unit(field) != "–" or key in WITHOUT_UNIT, f"{name} is a number without a unit"


def test_every_class_has_a_description() -> None:
    assert all(model.__doc__ for model in classes())
    assert {model.__name__ for model in classes()} >= {
        "StageConfig",
        "KDConfig",
        "EmojiScenesConfig",
        "VqaConfig",
        "PaperConfig",
    }


def members(union: Any) -> list[Any]:
    return members(get_args(union)[0]) if hasattr(union, "__metadata__") else list(get_args(union)) or [union]


@pytest.mark.parametrize("model", members(AnySource))
def test_every_source_names_its_splits(model: Any) -> None:
    assert model.split_names


@pytest.mark.parametrize("model", members(AnyMethod))
def test_every_method_has_a_file_and_a_default_schedule(model: Any) -> None:
    name = model.model_fields["method"].default
    assert (CONFIG.parent / "cmapkd" / "objectives" / f"{name}.py").is_file()
    assert model.model_fields["schedule"].default in DEFAULT_SCHEDULES


def test_the_runs_of_the_readme_can_be_used() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (CONFIG / "README.md").read_text(), flags=re.DOTALL)
    make_plan(parse_experiment(experiment(**yaml.safe_load(example))))


# ---- JSON schema

SCHEMA = json.loads(document.json_schema())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_agree_with_the_json_schema(path: Path) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(path.read_text()))


def test_the_json_schema_is_one_and_knows_what_the_code_knows() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid
    assert valid(experiment())
    assert valid(experiment(runs__B={"base": "KD", "weight": 2}))
    assert not valid(experiment(runs__B={"weight": 2}))
    assert not valid(experiment(runs__KD__wieght=2))
    assert not valid(experiment(training__global_batch=0))
    assert not valid(experiment(trainig={}))
    assert valid({"extends": "paper.yaml", "name": "other", "datasets": {"cc3m": None}})
    assert not valid({"extends": "paper.yaml"})
    assert not valid({"extends": "paper.yaml", "name": "other", "trainig": {}})
    assert document.json_schema() == document.json_schema()
