"""What is refused before anything is trained: weights that do not exist, patches that do not fit, two tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from config_examples import CONFIG
from open_clip.factory import PreprocessCfg
from safetensors.torch import save_file
from typer.testing import CliRunner

from cmapkd import plan as planning
from cmapkd.cli import app
from cmapkd.config import load_experiment
from cmapkd.config.training import TrainingConfig
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of, write_json
from cmapkd.models import configs, towers, weights
from cmapkd.plan import make_plan
from cmapkd.training.loop import train_stage
from cmapkd.training.stages import Teacher

MINI = CONFIG / "mini.yaml"


def mini(tmp_path: Path, **changes: dict[str, Any]) -> Path:
    """The mini experiment with other keys in some of its sections."""
    content = yaml.safe_load(MINI.read_text())
    content.pop("tuned", None)
    content.pop("paper")
    for section, keys in changes.items():
        content[section] = keys
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("changes", "key", "fix"),
    [
        ({"teacher": {"model": "ViT-L-14-quickgelu", "pretrained": "opnai"}}, "teacher.pretrained", "did you mean 'openai'"),
        ({"student": {"model": "ViT-B-16-quickgelu", "init": "opnai"}}, "student.init", "did you mean 'openai'"),
        ({"student": {"model": "ViT-B-16", "init": "weights/none.pt"}}, "student.init", "correct the path"),
    ],
)
def test_weights_that_do_not_exist_are_refused_by_the_check(
    tmp_path: Path, changes: dict[str, Any], key: str, fix: str
) -> None:
    changes = {"teacher": {"model": "ViT-L-14-quickgelu", "pretrained": "openai"}, "student": {"model": "ViT-B-16"}, **changes}
    with pytest.raises(UserError, match=key) as caught:
        CliRunner().invoke(app, ["config", "check", str(mini(tmp_path, **changes))], catch_exceptions=False)
    assert fix in caught.value.fix


def test_weights_that_exist_are_accepted_by_the_check(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "teacher": {"model": "ViT-L-14-quickgelu", "pretrained": "openai"},
        "student": {"model": "ViT-B-16"},
    }
    told = CliRunner().invoke(app, ["config", "check", str(mini(tmp_path, **changes))], catch_exceptions=False)
    assert told.exit_code == 0 and "fine" in told.output


def test_a_stage_of_weights_finds_the_file_by_what_its_address_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings hold the path as configured; only where the stage runs it is one of this machine."""
    user, results = tmp_path / "user", tmp_path / "results"
    user.mkdir()
    monkeypatch.setenv("CMAPKD_HOME", str(user))
    config = read_json(CONFIG / "models/mini-student.json")
    save_file(towers.create("mini-student", config, "random").state_dict(), user / "w.safetensors")
    file = mini(tmp_path, student={"model": "mini-student", "init": "~/w.safetensors"})
    stage = next(stage for stage in make_plan(load_experiment(file)).stages.values() if stage.method == "pretrained")
    assert stage.settings["init"] == "~/w.safetensors"
    train_stage(stage, results, TrainingConfig())
    record = (results / "stages" / stage.address / "stage.json").read_text()
    assert str(user) not in record
    source, sha256 = json.loads(record)["source"], sha256_of(user / "w.safetensors")
    assert (source["file"], source["sha256"], source["files"]) == ("w.safetensors", sha256, {"w.safetensors": sha256})


def test_a_directory_without_weights_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"directory without open_clip_config\.json and open_clip_model\.safetensors"):
        weights.check_init("ViT-B-16", str(tmp_path), "student.init")


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_patch_that_does_not_divide_the_image_is_refused_by_the_plan(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CONFIG, tmp_path / "config")
    monkeypatch.setattr(planning, "CONFIG", tmp_path / "config")
    file = tmp_path / "config/models" / f"mini-{side}.json"
    content = read_json(file)
    content["vision_cfg"]["image_size"] = 36
    write_json(file, content)
    with pytest.raises(UserError, match=rf"{side}\.model: mini-{side}\.vision_cfg\.image_size = 36.*patch_size = 8") as caught:
        make_plan(load_experiment(MINI))
    assert caught.value.fix == "use 32 or 40"


@pytest.mark.parametrize(
    ("teacher", "student", "key"),
    [
        ("ViT-L-14", "ViT-B-16-SigLIP", "tokenizer"),
        ("ViT-L-14", "roberta-ViT-B-32", "tokenizer"),
        ("ViT-L-14", "mini-student", "context_length"),
    ],
)
def test_two_tokenizers_are_refused_by_the_plan(tmp_path: Path, teacher: str, student: str, key: str) -> None:
    changes: dict[str, Any] = {"teacher": {"model": teacher, "pretrained": "openai"}, "student": {"model": student}}
    with pytest.raises(UserError, match=rf"student\.model: {key}"):
        make_plan(load_experiment(mini(tmp_path, **changes)))
    changes["runs"] = {"Scratch": {"method": "scratch"}}  # without a teacher in use, there is nothing to agree with
    make_plan(load_experiment(mini(tmp_path, **changes)))


@pytest.mark.parametrize(("teacher", "student"), [("ViT-L-14", "ViT-B-16"), ("ViT-L-14-336", "ViT-B-16"), ("RN50", "ViT-B-32")])
def test_models_of_one_tokenizer_are_accepted(teacher: str, student: str) -> None:
    contents = [(name, configs.content_of(name, None)) for name in (teacher, student)]
    assert all(content is not None for _, content in contents)
    configs.check_tokenizers(*contents)  # type: ignore[arg-type]


# --- pictures of one model for the other -----------------------------------------------------------------------------


def test_pictures_are_adapted_to_the_teachers_normalisation() -> None:
    ours = PreprocessCfg(size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    theirs = PreprocessCfg(size=24, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    raw = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))

    def normalised(cfg: PreprocessCfg) -> torch.Tensor:
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (cfg.mean, cfg.std))
        return (raw - mean) / std

    torch.testing.assert_close(towers.Adapter(ours, theirs)(normalised(ours)), normalised(theirs))
    pictures = normalised(ours)
    assert towers.Adapter(ours, ours)(pictures) is pictures


def test_a_teacher_of_another_image_size_sees_the_whole_picture() -> None:
    """A teacher at 48 px beside a student at 24 px: the size it was made for, and the same content."""
    above = tiny.model(1, "tiny-large", image=48)
    cfgs = [PreprocessCfg(size=size) for size in (24, 48)]
    teacher = Teacher(above, None, tiny.stage(), taps=False, adapter=towers.Adapter(*cfgs))
    pictures = torch.ones(2, 3, 24, 24) * torch.tensor([0.5, -0.5]).view(2, 1, 1, 1)
    found = teacher(pictures, tiny.tokens(2)).towers.image
    expected = above(pictures[..., :1, :1].expand(2, 3, 48, 48), tiny.tokens(2), taps=False).image
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        Teacher(above, None, tiny.stage(), taps=False)(pictures, tiny.tokens(2))  # unadapted it does not even fit
