"""A small experiment for the tests of the configuration, and every class and key of the schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cmapkd.config import parse_experiment
from cmapkd.config.base import Config
from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.plan import make_plan

CONFIG = Path(__file__).parents[2] / "config"
EXPERIMENTS = sorted(path for path in CONFIG.glob("*.yaml") if path.name != "planned.yaml")  # planned numbers: no experiment


def experiment(**changes: Any) -> dict[str, Any]:
    """A small valid experiment; ``a__b=value`` sets key ``a.b``."""
    content: dict[str, Any] = {
        "name": "test",
        "datasets": {"pictures": {"source": "emoji_scenes"}},
        "distillation": ["pictures/train"],
        "teacher": {"model": "mini-teacher", "train": {"epochs": 1}},
        "student": {"model": "mini-student"},
        "runs": {"KD": {"method": "kd"}, "CMAPKD": {"method": "cmapkd"}},
        "evaluation": {"retrieval": ["pictures/test_render"]},
    }
    for path, value in changes.items():
        *above, last = path.split("__")
        section = content
        for key in above:
            section = section.setdefault(key, {})
        section[last] = value
    return content


def refusal(content: dict[str, Any]) -> str:
    """The message with which an experiment is refused, by the schema or by the plan."""
    with pytest.raises(UserError) as caught:
        make_plan(parse_experiment(content, "file.yaml"))
    return str(caught.value)


def classes(annotation: Any = ExperimentConfig) -> Iterator[type[BaseModel]]:
    """Every class of the configuration that can be reached from ``annotation``."""
    for argument in get_args(annotation):
        yield from classes(argument)
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
        for field in annotation.model_fields.values():
            yield from classes(field.annotation)


FIELDS = {f"{model.__name__}.{key}": (model, key) for model in classes() for key in model.model_fields}
