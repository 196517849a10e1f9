"""`extends:` and `data_root:`: what is merged, what is refused, and that nothing remains of either."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from config_examples import CONFIG, FIELDS, experiment
from hypothesis import given
from hypothesis import strategies as st

from cmapkd.config import load_experiment, parse_experiment
from cmapkd.config.extend import merged
from cmapkd.config.load import load_edited
from cmapkd.errors import UserError
from cmapkd.plan import make_plan

TREES = st.recursive(
    st.integers(0, 3), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8
)
MAPPINGS = st.dictionaries(st.sampled_from("abcd"), TREES)


def write(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / f"{next(iter(files))}.yaml"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    return str(caught.value)


def test_a_variant_is_the_base_with_other_keys(tmp_path: Path) -> None:
    base = experiment(training__global_batch=64, training__warmup=0.1, seeds=[0, 1])
    variant = {"extends": "base.yaml", "name": "variant", "training": {"global_batch": 32}, "seeds": [5]}
    variant |= {"runs": {"KD": {"temperature": 2}, "Scratch": {"method": "scratch"}}}
    read = load_experiment(write(tmp_path, variant=variant, base=base))
    whole = experiment(name="variant", training__global_batch=32, training__warmup=0.1, seeds=[5])
    whole["runs"] = {
        "KD": {"method": "kd", "temperature": 2}, "CMAPKD": {"method": "cmapkd"}, "Scratch": {"method": "scratch"},
    }  # fmt: skip
    assert read == parse_experiment(whole)
    assert list(read.runs) == ["KD", "CMAPKD", "Scratch"], "rows of the tables keep their order"
    assert make_plan(read).stages == make_plan(parse_experiment(whole)).stages
    assert "extends" not in read.model_dump(mode="json")
    assert list(load_edited(tmp_path / "variant.yaml", ["training.warmup=0.3"]).runs) == list(read.runs)


def test_null_takes_a_key_out(tmp_path: Path) -> None:
    base = experiment(seeds=[3], evaluation__vqa={"train": "pictures/train", "test": ["pictures/test_render"]})
    variant = {"extends": "base.yaml", "name": "v", "seeds": None, "runs": {"KD": None}, "evaluation": {"vqa": None}}
    read = load_experiment(write(tmp_path, variant=variant, base=base))
    assert (read.seeds, list(read.runs), read.evaluation.vqa) == ((0,), ["CMAPKD"], None)


def test_no_key_means_something_by_null_that_its_default_does_not() -> None:
    """Otherwise a variant could not say `null`, which takes the key out."""
    fields = [model.model_fields[key] for model, key in FIELDS.values()]
    nullable = [field for field in fields if type(None) in get_args(field.annotation)]
    assert len(nullable) > 5
    assert all(field.default is None for field in nullable)


@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_merging_goes_on_as_it_began(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    assert merged(merged(first, second), third) == merged(first, merged(second, third))
    assert merged(first, {}) == first == merged({}, first) == merged(first, first)
    assert merged(first, dict.fromkeys(first)) == {}


def test_a_base_may_extend_another_and_lie_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, top=experiment(seeds=[7]))
    write(tmp_path / "inner", middle={"extends": "../top.yaml", "name": "middle", "training": {"workers": 5}})
    read = load_experiment(write(tmp_path, low={"extends": "inner/middle.yaml", "name": "low"}))
    assert (read.name, read.seeds, read.training.workers) == ("low", (7,), 5)
    found = load_experiment(write(tmp_path, low={"extends": "smoke.yaml", "name": "low"}))
    assert found.datasets == load_experiment(CONFIG / "smoke.yaml").datasets


def test_what_a_base_was_tuned_to_is_found_beside_it(tmp_path: Path) -> None:
    entry = {"method": "kd", "complete": True, "values": {"temperature": 4.0}, "trials": [{"values": {"temperature": 1.0}}]}
    write(tmp_path / "inner", found={"runs": {"KD": entry}})
    write(tmp_path / "inner", base={**experiment(), "tuned": "found.yaml"})
    read: Any = load_experiment(write(tmp_path, low={"extends": "inner/base.yaml", "name": "low"}))
    assert read.runs["KD"].temperature == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"extends": "none.yaml", "name": "a"}, "extends = 'none.yaml': there is no file"),
        ({"extends": "a.yaml", "name": "a"}, "is a circle: a.yaml -> a.yaml"),
        ({"extends": "circle.yaml", "name": "a"}, "is a circle: circle.yaml -> a.yaml -> circle.yaml"),
        ({"extends": "b.yaml"}, "needs a `name` of its own"),
        ({"extends": 3, "name": "a"}, "extends = 3: is no name of a file"),
        ({"extends": "b.yaml", "name": "a", "trainig": {}}, "did you mean 'training'"),
    ],
)
def test_mistakes_are_told(content: dict[str, Any], words: str, tmp_path: Path) -> None:
    circle = {"extends": "a.yaml", "name": "c"}
    assert words in refused(write(tmp_path, a=content, b=experiment(), circle=circle))


def test_folders_of_data_sets_are_below_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAPKD_HOME", "/home/me")
    roots = {"a": "coco", "b": "/x/coco", "c": "~/coco", "d": "$HOME/coco", "e": None}
    content = experiment(data_root="/data/", evaluation={})
    content["datasets"] |= {name: {"source": "coco_captions", "root": root} for name, root in roots.items()}
    content["datasets"]["q"] = {"source": "vqav2", "root": "vqa", "images": "coco"}
    read: Any = parse_experiment(content)
    found = {name: read.datasets[name].root for name in roots}
    assert found == {"a": "/data/coco", "b": "/x/coco", "c": "/home/me/coco", "d": "/home/me/coco", "e": None}
    written = {name: read.model_dump()["datasets"][name]["root"] for name in roots}
    assert written == {"a": "/data/coco", "b": "/x/coco", "c": "~/coco", "d": "$HOME/coco", "e": None}
    assert (read.datasets["q"].root, read.datasets["q"].images) == ("/data/vqa", "/data/coco")
    assert parse_experiment(read.model_dump(mode="json")) == read
    content["data_root"] = "elsewhere"
    relative = parse_experiment(content)
    assert relative.datasets["a"].model_dump()["root"] == "elsewhere/coco"
    assert parse_experiment(relative.model_dump(mode="json")) == relative
