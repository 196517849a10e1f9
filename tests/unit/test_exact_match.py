"""Visual questions with one answer: exact match of normal forms, in scores, targets, metric names and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import public_fixtures as make
import pytest
import torch
from public_fixtures import build
from synthetic_metrics import RUNS, SPLITS, context, write_metrics

from cmapkd.config.evaluation import EvaluationConfig
from cmapkd.config.sources import OwnConfig
from cmapkd.data.split import Split
from cmapkd.data.transforms import EvaluationTransform
from cmapkd.evaluation import efficiency, vqa
from cmapkd.evaluation.evaluate import evaluate_model
from cmapkd.export.card import _name
from cmapkd.files import read_json
from cmapkd.paper.context import TEACHER
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import compute_table


@pytest.mark.parametrize(
    ("answer", "given", "expected"),
    [
        ("red", "red", 1.0),
        ("red", "blue", 0.0),
        ("The Red.", "red", 1.0),  # one answer cannot agree with others: both sides are normalized
        ("2", "two", 1.0),
        ("t shirt", "T-shirt", 1.0),
        ("", "a", 1.0),
        ("red car", "red", 0.0),
    ],
)
def test_one_answer_is_matched_exactly(answer: str, given: str, expected: float) -> None:
    assert vqa.accuracy(answer, [given]) == expected
    assert vqa.ceiling([given], {vqa.normalise(answer)}) == expected


def test_targets_of_one_answer_are_one() -> None:
    indices, values = vqa.soft_targets([["Red"], ["two"], ["yak"]], ["red", "2"])
    assert torch.zeros(3, 2).scatter_add_(1, indices, values).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_ten_answers_are_scored_as_before() -> None:
    assert [vqa.accuracy("cat", ["cat"] * n + ["dog"] * (10 - n)) for n in range(5)] == pytest.approx([0, 0.3, 0.6, 0.9, 1])
    assert vqa.accuracy("Yes", ["yes"] * 10) == 0  # unanimous annotators: nothing is normalised


class MeanColor(torch.nn.Module):
    """Sees the mean color and reads nothing, so that only the image can answer."""

    def encode_image(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.cat([images.mean((2, 3)), torch.ones(len(images), 5)], 1), dim=1)

    def encode_text(self, texts: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.ones(len(texts), 8), dim=1)


@pytest.mark.parametrize(("annotators", "name"), [(1, "exact_match"), (10, None)])
def test_a_separable_set_reaches_its_ceiling(
    annotators: int, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr(efficiency, "efficiency", lambda *_, **__: {})
    rows = "image,split,question,answer\n"
    for number in range(40):
        (tmp_path / f"{number}.png").parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (255, 0, 0) if number % 2 else (0, 0, 255)).save(tmp_path / f"{number}.png")
        answer = "|".join(["red" if number % 2 else "blue"] * annotators)
        rows += f"{number}.png,{'train' if number < 30 else 'test'},what color is it?,{answer}\n"
    make.write(tmp_path / "t.csv", rows)
    build(OwnConfig, tmp_path, tmp_path / "out", table="t.csv", splits=("train", "test"))
    tasks: dict[str, Any] = {"train": "data/train", "test": ["data/test"], "min_count": 2, "epochs": 40, "hidden": 32}
    found = evaluate_model(
        MeanColor(),
        lambda texts: torch.ones(len(texts), 4, dtype=torch.long),
        EvaluationTransform({"size": 16}),
        splits={f"data/{split}": Split(tmp_path / "out", split) for split in ("train", "test")},
        tasks=EvaluationConfig.model_validate({"vqa": tasks}),
        seed=0,
    )
    measured = found.metrics["vqa"]["data/test"]
    assert (measured["all"]["overall"], measured["all"]["ceiling"]) == (100.0, 100.0)
    assert measured["question_only"]["overall"] == 50.0
    assert measured["all"].get("metric") == name  # VQAv2's accuracy is what a file without the key holds
    assert np.array_equal(found.per_query["vqa/data/test/accuracy"], np.ones(10))


@pytest.mark.parametrize(("table", "exact", "official"), [("table3", "VQA exact match", "VQA accuracy")])
def test_tables_say_which_accuracy_it_is(table: str, exact: str, official: str, tmp_path: Path) -> None:
    def mark(content: dict[str, Any]) -> None:
        content["metrics"]["vqa"][SPLITS[0]]["all"]["metric"] = "exact_match"

    for name, edit, expected in (("a", None, official), ("b", mark, exact)):
        setting = context(tmp_path / name)
        write_metrics(setting, TEACHER, setting.teacher_seed, 32.0, edit=edit)
        for run in RUNS:
            for seed in setting.seeds:
                write_metrics(setting, run.name, seed, 20.0 + seed, alsn=run.method == "cmapkd", edit=edit)
        found = compute_table(table, setting, Metrics(setting))
        groups = {column.group for panel in found.panels for column in panel.columns if column.key.startswith("vqa")}
        assert groups == {expected}
        assert read_json(setting.metric_file("KD", 0))["metrics"]["vqa"]


def test_the_card_of_a_model_says_which_accuracy_it_is() -> None:
    assert _name("overall", {"metric": "exact_match"}) == "exact match"
    assert _name("yes_no", {"metric": "exact_match"}) == "exact match, yes/no"
    assert _name("overall", {}) == "accuracy"
