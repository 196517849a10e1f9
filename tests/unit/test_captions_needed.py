"""A use is checked where its data are prepared: splits that lack captions or answers are counted, and refused at the build."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import public_fixtures as make
import pytest
import torch
from public_fixtures import build, read, source

from cmapkd.config import sources as options
from cmapkd.config.evaluation import EvaluationConfig
from cmapkd.data.answers import EXACT_MATCH, VQA_ACCURACY, accuracy_name
from cmapkd.data.shards import write_dataset
from cmapkd.data.sources.public.annotations import is_blank
from cmapkd.data.sources.public.summary import build_summary
from cmapkd.data.split import CorruptSample, Split
from cmapkd.data.stream import Stream
from cmapkd.data.transforms import EvaluationTransform, TrainTransform
from cmapkd.errors import UserError
from cmapkd.evaluation.evaluate import evaluate_model

BLANK = ["", "   ", "\n\n", "\ufeff", "\u200b", "\u200b \u2060", "\0", "\u3164", "\u2800", "\u0301", "\u00ad"]


def folder(root: Path, texts: list[str], split: str = "train") -> Path:
    for number, text in enumerate(texts):
        make.write(root / split / f"{number:03d}.jpg", make.jpeg(number))
        make.write(root / split / f"{number:03d}.txt", text)
    return root


def used(root: Path, out: Path, use: str, split: str = "train", kind: type = options.OwnConfig, **keys: Any) -> Any:
    """Build with what an experiment does with the split."""
    made = source(kind, root, **keys)
    made.uses = {split: frozenset({use})} if use else {}
    return write_dataset(made, out, dataset="data")


@pytest.mark.parametrize("text", BLANK)
def test_what_shows_nothing_is_no_caption(text: str, tmp_path: Path) -> None:
    assert is_blank(text)
    manifest = build(options.OwnConfig, folder(tmp_path, ["a dog", text]), tmp_path / "out")
    assert manifest["splits"]["train"]["captions"] == 1
    assert manifest["leakage"]["train"]["without_caption"] == manifest["splits"]["train"]["without_caption"] == 1
    assert manifest["leakage"]["train"]["without_caption_examples"] == ["train/001.jpg"]


@pytest.mark.parametrize("text", ["a", "犬", "🐕", "👩‍👩‍👧", ".", "é", "e\u0301", "a\0b", "²"])
def test_what_shows_something_is_a_caption(text: str) -> None:
    assert not is_blank(text)


@pytest.mark.parametrize(
    ("use", "texts", "keys", "refused"),
    [
        ("distillation", ["a dog"] * 9 + [""], {}, "1 of 10 images .* have no caption, and this split is distilled on"),
        ("distillation", ["a dog"] * 9 + [""], {"without_caption": 0.1}, None),
        ("distillation", ["a dog"] * 8 + [" "] * 2, {"without_caption": 0.1}, "2 of 10 images"),
        ("retrieval", ["a dog"] * 9 + ["\u200b"], {"without_caption": 0.5}, "images and captions are searched in this split"),
        ("retrieval", ["a dog"] * 9, {}, None),
        ("zeroshot", ["a dog"] * 3, {}, "evaluation.zeroshot names this split, and no image of it has a class"),
        ("vqa", ["a dog"] * 3, {}, "evaluation.vqa names this split, and no image of it has a question"),
        ("", [""] * 3, {}, None),
    ],
)
def test_a_use_decides_how_many_captions_may_lack(
    use: str, texts: list[str], keys: dict[str, Any], refused: str | None, tmp_path: Path
) -> None:
    folder(tmp_path / "root", texts)
    if refused is None:
        assert used(tmp_path / "root", tmp_path / "out", use, **keys)["leakage"]["train"]["without_caption"] < len(texts) + 1
        return
    with pytest.raises(UserError, match=refused) as raised:
        used(tmp_path / "root", tmp_path / "out", use, **keys)
    assert use in ("zeroshot", "vqa") or "does not help" in str(raised.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_data_set_of_captions_without_any_is_refused_whatever_it_is_for(tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root", split="train")
    path = root / "annotations" / "captions_train2017.json"
    make.write(path, {**json.loads(path.read_text()), "annotations": []})
    with pytest.raises(UserError, match="20 of 20 images of coco_captions/train have no caption"):
        build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))
    build(options.ImagenetConfig, make.imagenet(tmp_path / "imagenet"), tmp_path / "classes")  # it is not for captions


def test_a_finished_data_set_is_judged_by_the_uses_of_today(tmp_path: Path) -> None:
    folder(tmp_path / "root", ["a dog", ""])
    used(tmp_path / "root", tmp_path / "out", "")
    with pytest.raises(UserError, match="1 of 2 images"):
        used(tmp_path / "root", tmp_path / "out", "retrieval")


def test_the_experiment_says_what_a_split_is_for() -> None:
    from types import SimpleNamespace

    from cmapkd.config.uses import split_uses

    evaluation = EvaluationConfig.model_validate(
        {
            "retrieval": ["a/test"],
            "validation": ["a/val"],
            "zeroshot": ["b/val"],
            "vqa": {"train": "a/train", "test": ["a/val"]},
        }
    )
    experiment: Any = SimpleNamespace(distillation=["a/train", "b/train"], evaluation=evaluation)
    assert split_uses(experiment, "a") == {
        "train": {"distillation", "vqa"}, "val": {"retrieval", "vqa"}, "test": {"retrieval"},
    }  # fmt: skip
    assert split_uses(experiment, "b") == {"train": {"distillation"}, "val": {"zeroshot"}}


def test_a_build_prints_what_it_left_out_and_changed(tmp_path: Path) -> None:
    folder(tmp_path / "root", ["a dog\na dog", "", "a cat"])
    make.write(tmp_path / "root" / "train" / "002.jpg", b"<html>")
    manifest = build(options.OwnConfig, tmp_path / "root", tmp_path / "out", bad_pictures=0.5)
    lines = build_summary(manifest, "train")
    assert "left out: 1 pictures of another form" in lines
    assert any("train/002.jpg" in line and "web page" in line for line in lines)
    assert "without a caption: 1, e.g. train/001.jpg" in lines
    assert any("twice" in line and line.endswith(": 1") for line in lines)
    clean = build(options.OwnConfig, folder(tmp_path / "clean", ["a dog"]), tmp_path / "b")
    assert build_summary(clean, "train") == []


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    made = source(options.OwnConfig, folder(tmp_path / "root", ["a", "b"]))
    made.removed = {"train": frozenset({"train/000.jpg", "train/001.jpg"})}
    with pytest.raises(UserError, match="no sample of own/train is left: 2 of 2 were removed for overlap"):
        write_dataset(made, tmp_path / "out", dataset="data")


def test_training_says_that_a_build_does_not_help(tmp_path: Path) -> None:
    used(folder(tmp_path / "root", ["", "", "a"]), tmp_path / "out", "")
    preprocess = {"size": 32, "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic", "resize_mode": "shortest"}
    stream = Stream(
        [Split(tmp_path / "out", "train")], 0, lambda _: torch.zeros(1, 4, dtype=torch.long), TrainTransform(preprocess)
    )
    with pytest.raises(UserError, match="it has no caption to train on") as raised:
        [stream[position] for position in range(3)]
    assert "building it again does not help" in str(raised.value)
    assert "rewrites damaged shards" not in str(raised.value)
    error = stream.splits[0].corrupt(0, "it has no caption to train on")
    assert str(copy.copy(error)) == str(error)  # as pickle rebuilds it, when a worker of the data loader sends it
    assert "rewrites damaged shards" in str(CorruptSample("a.tar", "key", "CRC"))


class Blind(torch.nn.Module):
    """A model that must not be asked: the split is refused before."""

    def encode_image(self, *_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("images were encoded")


def table(root: Path, answers: str, rows: int = 4) -> Path:
    for number in range(rows):
        make.write(root / f"{number}.jpg", make.jpeg(number))
    make.write(root / "t.csv", "image,question,answer\n" + "".join(f"{n}.jpg,what is it?,{answers}\n" for n in range(rows)))
    return root


@pytest.mark.parametrize("answers", ["red|red|red", "|".join(["red"] * 9), "|".join(["red"] * 11), "red|blue"])
def test_numbers_of_answers_without_a_published_accuracy_are_refused(answers: str, tmp_path: Path) -> None:
    root = table(tmp_path / "root", answers)
    count = answers.count("|") + 1
    with pytest.raises(UserError, match=rf"no published accuracy is defined .* 4 with {count}"):
        used(root, tmp_path / "out", "vqa", table="t.csv")
    build(options.OwnConfig, root, tmp_path / "out", table="t.csv")  # for another use the questions do not matter
    tasks = EvaluationConfig.model_validate({"vqa": {"train": "data/train", "test": ["data/train"]}})
    with pytest.raises(UserError, match="no published accuracy is defined"):
        evaluate_model(
            Blind(), lambda _: torch.zeros(1, 4), EvaluationTransform({"size": 32}),
            splits={"data/train": Split(tmp_path / "out", "train")}, tasks=tasks, seed=0,
        )  # fmt: skip


def test_a_search_without_captions_is_refused_before_images_are_encoded(tmp_path: Path) -> None:
    build(options.OwnConfig, folder(tmp_path / "root", ["a", ""]), tmp_path / "out")
    with pytest.raises(UserError, match="caption for 1 of its 2 images"):
        evaluate_model(
            Blind(), lambda _: torch.zeros(1, 4), EvaluationTransform({"size": 32}),
            splits={"data/train": Split(tmp_path / "out", "train")},
            tasks=EvaluationConfig.model_validate({"retrieval": ["data/train"]}), seed=0,
        )  # fmt: skip


def test_the_name_of_an_accuracy_follows_from_the_answers() -> None:
    assert accuracy_name({10: 7}, key="a/b") == VQA_ACCURACY
    assert accuracy_name({1: 7}, key="a/b") == EXACT_MATCH
    with pytest.raises(UserError, match="differ in the number of their answers"):
        accuracy_name({1: 7, 10: 1}, key="a/b")


def test_questions_without_answers_are_counted_and_refused(tmp_path: Path) -> None:
    root = make.vqa(tmp_path / "root", "val", range(1, 4))
    path = root / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    for record in content["annotations"][:2]:
        record["answers"] = []
    make.write(path, content)
    with pytest.raises(UserError, match="2 of 6 questions have no answer, for example 1000, 1001") as raised:
        build(options.Vqav2Config, root, tmp_path / "out", splits=("val",))
    assert "delete" not in str(raised.value)


def test_vqav2_keeps_its_counts(tmp_path: Path) -> None:
    root = make.vqa(tmp_path / "root", "val", range(1, 4))
    manifest = used(root, tmp_path / "out", "vqa", "val", options.Vqav2Config, splits=("val",))
    assert manifest["leakage"]["val"]["questions_with_10_answers"] == 6
    assert read(tmp_path / "out", "val")[0].captions == []
