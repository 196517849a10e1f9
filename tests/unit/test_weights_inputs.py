"""Weights by path are inputs by their content, and what the experiment states of preprocessing reaches the model."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import weights_forms as forms
from safetensors.torch import load_file

from cmapkd import imported
from cmapkd import plan as planning
from cmapkd.config import parse_experiment
from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.models import places, towers
from cmapkd.models.weights import CONFIG, WEIGHTS
from cmapkd.plan import Plan, make_plan
from cmapkd.provenance import Start
from cmapkd.training.results import import_pretrained
from cmapkd.training.stages import prepare


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two architectures by name, and caches of this test alone."""
    (tmp_path / "config" / "models").mkdir(parents=True)
    for name, content in (("tiny-gelu", forms.GELU), ("tiny-quick", forms.CONFIG)):
        (tmp_path / "config" / "models" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "config" / "deepspeed").symlink_to(planning.CONFIG / "deepspeed")
    monkeypatch.setattr(planning, "CONFIG", tmp_path / "config")
    monkeypatch.setenv("CMAPKD_CACHE", str(tmp_path / "cache"))


def plan(teacher: dict[str, Any] | None = None, student: dict[str, Any] | None = None) -> Plan:
    content = {
        "name": "test",
        "datasets": {"scenes": {"source": "emoji_scenes", "train": 64}},
        "distillation": ["scenes/train"],
        "teacher": {"model": "tiny-gelu", **(teacher or {"train": {"epochs": 1}})},
        "student": {"model": "tiny-quick", **(student or {})},
        "training": {"global_batch": 32},
        "runs": {"Scratch": {"method": "scratch"}, "KD": {"method": "kd"}},
        "evaluation": {},
    }
    return make_plan(parse_experiment(content))


def imported_student(of: Plan) -> str:
    return next(address for address, stage in of.stages.items() if stage.label == "student (pretrained)")


def save(path: Path, seed: int = 0) -> Path:
    torch.save(forms.model(seed).state_dict(), path)
    return path


def test_a_replaced_file_is_another_input_with_the_same_address(tmp_path: Path) -> None:
    file = save(tmp_path / "student.pt")
    made = plan(student={"init": str(file)})
    address, home = imported_student(made), tmp_path / "results"
    before = imported.weights_params(made, home, address)
    assert not imported.is_current(made, home, address)
    import_pretrained(made.stages[address], home / "stages" / address, Start())
    assert imported.is_current(made, home, address)
    record = read_json(home / "stages" / address / "stage.json")
    assert record["provenance"]["weights"]["digest"] == before["weights"]
    assert record["source"]["files"] == {"student.pt": places.sha256_of(file)}
    facts = file.stat()
    save(file, seed=1)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as `cp -p` may leave it
    assert plan(student={"init": str(file)}).stages.keys() == made.stages.keys()
    assert imported.weights_params(made, home, address) != before
    assert not imported.is_current(made, home, address)
    ((path, reason),) = imported.replaced(made, home)
    assert path == home / "stages" / address / "stage.json"
    assert "it was replaced since" in reason
    file.unlink()  # the stage has a copy
    assert imported.weights_params(made, home, address) == before
    assert imported.is_current(made, home, address)
    assert list(imported.replaced(made, home)) == []


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_all_files_that_describe_a_directory_are_its_content(name: str, tmp_path: Path) -> None:
    towers.save(forms.model(), "tiny-forms-True", tmp_path / "directory")
    (tmp_path / "directory" / "README.md").write_text("a card")
    before = places.cached_digest(tmp_path / "directory", "student.init")
    (tmp_path / "directory" / "README.md").write_text("another card")
    assert places.cached_digest(tmp_path / "directory", "student.init") == before
    content = bytearray((tmp_path / "directory" / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / "directory" / name).write_bytes(content)
    assert places.cached_digest(tmp_path / "directory", "student.init") != before


def test_the_digest_is_read_again_only_if_a_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path / "student.pt")
    first = places.cached_digest(file, "student.init")
    monkeypatch.setattr(places, "sha256_of", lambda path: pytest.fail("hashed again"))
    assert places.cached_digest(file, "student.init") == first
    for record in (tmp_path / "cache" / "digests").iterdir():
        record.write_text("{")
    monkeypatch.undo()
    monkeypatch.setenv("CMAPKD_CACHE", str(file / "no folder"))
    assert places.cached_digest(file, "student.init") == first


STATED = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}


def test_what_is_not_given_enters_no_address(tmp_path: Path) -> None:
    plain, given = plan(), plan(student={"preprocessing": STATED})
    assert not any("preprocessing" in stage.settings for stage in plain.stages.values())
    assert plain.teacher == given.teacher
    ours, theirs = ({run.name: run.stages for run in of.runs} for of in (plain, given))
    assert all(ours[name] != theirs[name] for name in ours)
    other = plan(teacher={"train": {"epochs": 1}, "preprocessing": STATED})
    assert other.teacher != plain.teacher
    assert other.stages[other.teacher].settings["preprocessing"] == STATED


def test_preprocessing_reaches_the_model_that_is_trained_and_what_it_leaves(tmp_path: Path) -> None:
    trained = plan(student={"preprocessing": STATED})
    stage = trained.stages[trained.runs[0].stages[0]]
    prepared = prepare(stage.settings, tmp_path / "stages")
    assert (list(prepared.preprocess.mean), list(prepared.preprocess.std)) == (STATED["mean"], STATED["std"])
    towers.save(prepared.module.model.model, "tiny-quick", tmp_path / "model")  # what evaluation and export read
    assert read_json(tmp_path / "model" / CONFIG)["preprocess_cfg"]["mean"] == STATED["mean"]
    assert towers.preprocess_of(towers.load(tmp_path / "model")).interpolation == "bilinear"


def test_preprocessing_reaches_imported_weights_and_their_children(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    towers.save(forms.model(), "tiny-forms-True", tmp_path / "own")
    made = plan(student={"init": str(tmp_path / "own"), "preprocessing": STATED})
    address = imported_student(made)
    with caplog.at_level(logging.WARNING):
        import_pretrained(made.stages[address], tmp_path / "stages" / address, Start())
    assert any("student.preprocessing.mean = [0.5, 0.5, 0.5] is used" in record.getMessage() for record in caplog.records)
    kept = read_json(tmp_path / "stages" / address / "model" / CONFIG)["preprocess_cfg"]
    assert {name: kept[name] for name in STATED} == STATED
    prepared = prepare(made.stages[made.runs[0].stages[0]].settings, tmp_path / "stages")
    assert list(prepared.preprocess.mean) == STATED["mean"]
    assert torch.equal(
        load_file(tmp_path / "stages" / address / "model" / WEIGHTS)["visual.proj"], forms.model().state_dict()["visual.proj"]
    )


@pytest.mark.parametrize(
    "wrong", [{"mean": [122.8, 116.7, 104.1]}, {"std": [0, 0, 0]}, {"mean": [0.5, 0.5]}, {}, {"median": [0, 0, 0]}]
)
def test_preprocessing_of_other_units_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"preprocessing"):
        plan(student={"preprocessing": wrong})


def test_config_check_compares_files_with_the_named_model(tmp_path: Path) -> None:
    from cmapkd.cli.options import check_weights

    towers.save(forms.model(), "tiny-forms-True", tmp_path / "own")
    check_weights(plan(student={"init": str(tmp_path / "own")}).experiment)
    with pytest.raises(UserError, match="were trained with quick_gelu, tiny-gelu has gelu") as caught:
        check_weights(plan(teacher={"pretrained": str(tmp_path / "own")}).experiment)
    assert caught.value.key == "teacher.pretrained"
