"""The configuration: whatever a file holds, a user gets an explanation and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from config_examples import FIELDS, experiment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmapkd.config import load_experiment, parse_experiment
from cmapkd.errors import UserError
from cmapkd.plan import make_plan

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["kd", "cmapkd", "train", "pictures/train", "P5", "L4", "KD", "alsn", "progressive", "fp32", 10**400, -1, 0, 1]
    )
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
WORDS = sorted({key for _, key in FIELDS.values()} | {"base", "KD", "pictures"})
KEYED = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def only_user_errors(content: dict[str, Any]) -> None:
    try:
        make_plan(parse_experiment(content))
    except UserError as error:
        assert str(error)


@FUZZ
@given(st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), JSON | KEYED, max_size=6))
def test_any_content_raises_user_errors_only(content: dict[str, Any]) -> None:
    only_user_errors(content)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


FULL = parse_experiment(experiment(evaluation__vqa={"train": "pictures/train", "test": ["pictures/train"]})).model_dump(
    mode="json"
)
PLACES = [path for path in places(FULL) if path]


@FUZZ
@given(st.sampled_from(PLACES), JSON | KEYED, st.sampled_from(["replace", "add", "remove"]))
def test_a_valid_experiment_with_one_change_raises_user_errors_only(path: tuple[Any, ...], value: Any, how: str) -> None:
    content = json.loads(json.dumps(FULL))
    *above, last = path
    section = content
    for key in above:
        section = section[key]
    if how == "remove":
        del section[last]
    elif how == "add" and isinstance(section, dict):
        section[f"{last}s"] = value
    else:
        section[last] = value
    only_user_errors(content)


@FUZZ
@given(st.text(alphabet=st.sampled_from("ab: -[]{}&*!#|>'\"\n\t1.e%@"), max_size=60))
def test_any_text_as_a_file_raises_user_errors_only(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_experiment(path)
