"""The configuration: what is refused, and the words with which it is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_examples import CONFIG, EXPERIMENTS, experiment, refusal

from cmapkd.config import load_experiment, parse_experiment
from cmapkd.errors import UserError
from cmapkd.plan import make_plan

# ---- what is refused, and the words that help


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # unknown keys, with the nearest spelling
        ({"trainig": {}}, "trainig = {}: unknown key; did you mean 'training'?"),
        ({"training__global_bach": 8}, "training.global_bach = 8: unknown key; did you mean 'global_batch'?"),
        ({"runs__KD__wieght": 1}, "runs.KD.wieght = 1: unknown key; did you mean 'weight'?"),
        ({"runs__KD__bass": "CMAPKD"}, "runs.KD.bass = 'CMAPKD': unknown key; did you mean 'base'?"),
        ({"runs__CMAPKD__weights": {"relatoin": 0}}, "runs.CMAPKD.weights.relatoin = 0: unknown key; did you mean 'relation'?"),
        ({"teacher__train__epoch": 1}, "teacher.train.epoch = 1: unknown key; did you mean 'epochs'?"),
        ({"datasets__pictures__concept": 9}, "datasets.pictures.concept = 9: unknown key; did you mean 'concepts'?"),
        (
            {"schedules__mine": [{"name": "a", "epochs": 1, "lr": 1, "polcy": "alsn"}]},
            "schedules.mine.0.polcy = 'alsn': unknown key; did you mean 'policy'?",
        ),
        ({"evaluation__vqa": {"train": "pictures/train", "test": ["pictures/train"], "epoch": 1}}, "did you mean 'epochs'?"),
        # misspelt names
        ({"runs__KD__method": "relational"}, "runs.KD.method = 'relational': not one of scratch, kd, "),
        ({"runs__KD__method": "relational"}, "; known: "),
        ({"runs__KD__method": "cmapdk"}, "runs.KD.method = 'cmapdk': not one of scratch, kd, "),
        ({"runs__KD__method": "cmapdk"}, "; did you mean 'cmapkd'?"),
        ({"datasets__pictures__source": "emoji"}, "datasets.pictures.source = 'emoji': not one of"),
        ({"datasets__pictures__source": "emoji"}, "did you mean 'emoji_scenes'?"),
        (
            {"runs__CMAPKD__schedule": "progresive"},
            "runs.CMAPKD.schedule = 'progresive' is not a schedule; did you mean 'progressive'?",
        ),
        (
            {"runs__CMAPKD__policy": "unifrom"},
            "runs.CMAPKD.policy = 'unifrom': not one of uniform, manual, alsn; did you mean 'uniform'?",
        ),
        (
            {"runs__CMAPKD__visual_levels": ["P5", "p4"]},
            "runs.CMAPKD.visual_levels.1 = 'p4': not one of P2, P3, P4, P5; did you mean 'P4'?",
        ),
        (
            {"pyramid__smoothing": "depth"},
            "pyramid.smoothing = 'depth': not one of dense, low-rank, separable, depthwise; did you mean 'depthwise'?",
        ),
        (
            {"training__deepspeed": "fp23"},
            "training.deepspeed = 'fp23': no file fp23.json in config/deepspeed\n  fix: did you mean 'fp32'?",
        ),
        (
            {"schedules__mine": [{"name": "a", "epochs": 1, "lr": 1, "group_lr": {"studnet": 1}}]},
            "schedules.mine.0.group_lr.studnet = 'studnet': not one of student, projections, pyramid, alsn, heads; "
            "did you mean 'student'?",
        ),
        ({"paper__tables": ["tabel2"]}, "paper.tables = ['tabel2']: no table is called 'tabel2'; did you mean 'table2'?"),
        ({"paper__figures": ["figure33"]}, "no figure is called 'figure33'; did you mean 'figure3'?"),
        ({"paper__weights_run": "CMAPDK"}, "paper.weights_run = 'CMAPDK' names no run; did you mean 'CMAPKD'?"),
        # references to splits
        (
            {"distillation": ["picture/train"]},
            "distillation = 'picture/train' names no data set of `datasets`; did you mean 'pictures'?",
        ),
        (
            {"distillation": ["pictures/trian"]},
            "distillation = 'pictures/trian' names no split of pictures; did you mean 'train'?",
        ),
        ({"distillation": ["pictures"]}, "distillation.0 = 'pictures': must be `<dataset>/<split>`"),
        (
            {"evaluation__zeroshot": ["pictures/test"]},
            "evaluation.zeroshot = 'pictures/test' names no split of pictures; did you mean",
        ),
        (
            {"evaluation__vqa": {"train": "x/train", "test": ["pictures/train"]}},
            "evaluation.vqa.train = 'x/train' names no data set",
        ),
        (
            {"paper__labels": {"retrieval:pictures/tset_render": "A"}},
            "paper.labels = 'pictures/tset_render' names no split of pictures",
        ),
        # wrong types and values out of range
        ({"training__global_batch": "many"}, "training.global_batch = 'many': must be a whole number"),
        ({"training__global_batch": 8.5}, "training.global_batch = 8.5: must be a whole number"),
        ({"training__global_batch": 0}, "training.global_batch = 0: must be at least 2"),
        ({"training__warmup": 1}, "training.warmup = 1: must be less than 1"),
        ({"runs__KD__temperature": 0}, "runs.KD.temperature = 0: must be greater than 0"),
        ({"runs__KD__lr_scale": float("inf")}, "runs.KD.lr_scale = inf: must be finite"),
        ({"training__augmentation__flip": "maybe"}, "training.augmentation.flip = 'maybe': must be true or false"),
        ({"training__augmentation__scale": [1]}, "training.augmentation.scale = [1]: needs at least 2 of them"),
        ({"training__augmentation__scale": [1, 0.5]}, "scale = [1.0, 0.5] must be two shares of the area, ascending"),
        ({"distillation": "pictures/train"}, "distillation = 'pictures/train': must be a list, as in [a, b]"),
        ({"runs__KD": "kd"}, "runs.KD = 'kd': must be a mapping of keys to values"),
        ({"training": None}, "training = None: must be a mapping of keys to values"),
        ({"name": 5}, "name = 5: must be text (numbers and dates as text need quotes)"),
        ({"name": "../x"}, "name = '../x': a name becomes a file: up to 100 letters, digits, '_', '-' and '.' only"),
        ({"seeds": []}, "seeds = []: needs at least 1 of them"),
        ({"seeds": ["a"]}, "seeds.0 = 'a': must be a whole number"),
        ({"seeds": [-1]}, "seeds.0 = -1: must be at least 0"),
        ({"seeds": [1, 1]}, "seeds = [1, 1] names a seed twice"),
        ({"runs": {}}, "runs = {}: needs at least 1 of them"),
        ({"training__deepspeed": "x" * 300}, "x...: a name becomes a file"),  # a long value is cut
        (
            {"student__model": "ViT-B16"},
            "student.model = 'ViT-B16': is neither a file of config/models nor a model of open_clip\n  fix: did",
        ),
        ({"teacher__model": "mini-taecher"}, "did you mean 'mini-teacher'?"),
        # impossible combinations
        (
            {"teacher__pretrained": "openai"},
            "teacher: give exactly one of `pretrained` (a tag or a path) and `train` (from scratch)",
        ),
        ({"teacher": {}}, "teacher = {}: give exactly one of `pretrained` (a tag or a path) and `train` (from scratch)"),
        ({"pyramid__heads": 3}, "pyramid: text_channels = 256 is not divisible by heads = 3"),
        ({"pyramid__phrase_window": 4}, "pyramid: phrase_window = 4 must be odd, to be centred on a token"),
        ({"runs__CMAPKD__visual_levels": ["P2"]}, "runs.CMAPKD: visual_levels = ['P2'] must hold P5"),
        (
            {"runs__CMAPKD__manual_weights": [0.4, 0.3, 0.3, 0]},
            "manual_weights = [0.4, 0.3, 0.3, 0.0] must not be negative, and the top level's not 0",
        ),
        (
            {"schedules__progressive": [{"name": "low", "epochs": 1, "lr": 1, "visual_levels": ["P2"]}]},
            "schedules.progressive.low.visual_levels = ['P2'] must hold P5: the terms of runs.CMAPKD need it",
        ),
        (
            {
                "runs__CMAPKD__policy": "uniform",
                "schedules__progressive": [{"name": "a", "epochs": 1, "lr": 1, "trains": ["alsn"]}],
            },
            "runs.CMAPKD.schedule = 'progressive': leaves no stage that trains anything",
        ),
        ({"runs__Teacher": {"method": "kd"}}, "runs.Teacher: the name is reserved for the teacher's own row"),
        ({"runs__w/o A": {"method": "kd"}, "runs__w-o A": {"method": "kd"}}, "gets the same directory name as 'w/o A' (w-o-A)"),
        ({"training__ranks": 3}, "training.global_batch = 256 is not divisible by training.ranks = 3"),
        (
            {"training__global_batch": 6, "training__ranks": 2, "training__deepspeed": "fp32-accumulate2"},
            "training.global_batch = 6: is not divisible by training.ranks x gradient_accumulation_steps = 2 x 2\n"
            "  fix: use a multiple of 4",
        ),
    ],
)
def test_a_mistake_is_named_with_key_value_reason_and_spelling(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(experiment(**changes))


@pytest.mark.parametrize("key", ["name", "datasets", "distillation", "teacher", "runs", "evaluation"])
def test_a_missing_key_is_named(key: str) -> None:
    content = experiment()
    del content[key]
    assert f"- {key}: required, and missing" in refusal(content)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"runs__KD": {"weight": 1}}, "runs.KD.method"),
        ({"schedules__mine": [{"name": "a", "lr": 1}]}, "schedules.mine.0.epochs"),
        ({"teacher__train": {}}, "teacher.train.epochs"),
        ({"evaluation__vqa": {"test": ["pictures/train"]}}, "evaluation.vqa.train"),
    ],
)
def test_a_missing_key_of_a_section_is_named(changes: dict[str, Any], key: str) -> None:
    assert f"- {key}: required, and missing" in refusal(experiment(**changes))


def test_every_mistake_is_told_at_once_and_the_file_is_named() -> None:
    message = refusal(experiment(trainig=1, seeds=[-1], runs__KD__wieght=2))
    assert message.startswith("file.yaml: is refused:\n")
    assert [line for line in message.splitlines() if line.startswith("  - ")] == [
        "  - seeds.0 = -1: must be at least 0",
        "  - runs.KD.wieght = 2: unknown key; did you mean 'weight'?",
        "  - trainig = 1: unknown key; did you mean 'training'?",
    ]
    assert message.endswith("\n  fix: config/README.md lists every key with its type, default and unit")


# ---- files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runs:\n  KD: {method: kd}\n  KD: {method: scratch}\n", "key 'KD' is given twice"),
        ("a: [1\n", "is not valid YAML"),
        ("a: 2020-13-45\n", "is not valid YAML"),
        ("a: !!python/object:os.system {}\n", "is not valid YAML"),
        ("- a\n", "holds no keys\n  fix: start from a copy of config/mini.yaml"),
        ("", "holds no keys"),
        ("name: 2020-01-01\n", "name = '2020-01-01': is a date, which no key takes\n  fix: write it in quotes"),
        ("on: 1\n", "= True: is no text, but stands as a key\n  fix: write it in quotes"),
        ("a: &a {b: *a}\n", "is nested deeper than"),
        ("[" * 5000, "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_experiment_is_explained(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.yaml: cannot be read \(No such file or directory\)\n  fix: name one of"):
        load_experiment(tmp_path / "x.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_experiment(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_load_and_plan(path: Path) -> None:
    read = load_experiment(path)
    plan = make_plan(read)
    assert read.name == path.stem
    assert [run.name for run in plan.runs] == [name for name in read.runs for _ in read.seeds]
    assert all(parent in plan.stages for stage in plan.stages.values() for parent in stage.parents)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_effective_experiment_is_the_same_experiment(path: Path, tmp_path: Path) -> None:
    """What the workflow keeps with the results (every default written out) leads to the same plan."""
    read = load_experiment(path)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(read.model_dump(mode="json"), sort_keys=False))
    again = load_experiment(tmp_path / "experiment.yaml")
    assert again == read
    assert make_plan(again).stages == make_plan(read).stages


def test_yaml_numbers_without_a_point_are_numbers() -> None:
    """YAML 1.1 reads 1e-3 as text."""
    assert parse_experiment(experiment(runs__KD__lr_scale=yaml.safe_load("1e-3"))).runs["KD"].lr_scale == 1e-3


# ---- import


def test_import_brings_in_nothing_heavy() -> None:
    """Snakemake imports the configuration and the plan at every start, and in every job."""
    heavy = "{'torch', 'open_clip', 'pandas', 'matplotlib'} & set(sys.modules)"
    code = f"import sys, cmapkd.config, cmapkd.plan; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONFIG.parent)
