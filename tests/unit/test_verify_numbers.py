"""Numbers of metric files are computed again from their arrays: worked out by hand, for all strata."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from cmapkd.paper.verify_numbers import _numbers, _same

ARRAYS = {
    "retrieval/d/s/i2t_ranks": np.array([0, 6, 12, 0]),
    "retrieval/d/s/t2i_ranks": np.array([0, 3, 7, 20, 0]),
    "retrieval/d/s/owner": np.array([0, 0, 1, 2, 3]),
    "retrieval/d/s/stratum": np.array(["fine", "simple", "fine", "simple"]),
    "zeroshot/d/s/ranks": np.array([0, 4, 5]),
    "zeroshot/d/s/image": np.array([0, 1, 2]),
    "zeroshot/d/s/stratum": np.array(["fine", "fine", "simple"]),
    "vqa/d/s/accuracy": np.array([1.0, 0.0, 0.5]),
    "vqa/d/s/question_only": np.array([0.0, 0.0, 1.0]),
    "vqa/d/s/type": np.array(["yes/no", "other", "other"]),
    "vqa/d/s/image": np.array([0, 0, 1]),
    "vqa/d/s/stratum": np.array(["fine", "fine", "simple"]),
}
METRICS: dict[str, Any] = {
    "retrieval": {
        "d/s": {
            "all": {"i2t_r1": 50.0, "i2t_r10": 75.0, "t2i_r1": 40.0, "t2i_r5": 60.0, "images": 4, "captions": 5},
            "fine": {"i2t_r1": 50.0, "i2t_r10": 50.0, "t2i_r1": 100 / 3, "t2i_r5": 200 / 3, "images": 2, "captions": 3},
            "simple": {"i2t_r5": 50.0, "i2t_r10": 100.0, "t2i_r1": 50.0, "t2i_r10": 100.0, "images": 2, "captions": 2},
        }
    },
    "zeroshot": {"d/s": {"all": {"top1": 100 / 3, "top5": 200 / 3, "images": 3}, "fine": {"top1": 50.0, "top5": 100.0}}},
    "vqa": {
        "d/s": {
            "all": {"overall": 50.0, "yes_no": 100.0, "other": 25.0, "questions": 3},
            "fine": {"overall": 50.0, "yes_no": 100.0, "other": 0.0, "number": None, "questions": 2},
            "question_only": {"overall": 100 / 3, "yes_no": 0.0, "other": 50.0, "questions": 3},
        }
    },
}
PLACES = [
    (task, stratum, name)
    for task, splits in METRICS.items()
    for stratum, numbers in splits["d/s"].items()
    for name, value in numbers.items()
    if value is not None
]


def test_numbers_worked_out_by_hand_are_those_of_the_arrays() -> None:
    compared = list(_numbers(METRICS, ARRAYS))
    assert len(compared) == len(PLACES)
    assert [key for key, stated, made in compared if not _same(stated, made)] == []


@pytest.mark.parametrize("value", [99, 99.0, "50.0", None, True, float("nan")])
@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_each_of_them_is_caught_when_it_is_another(place: tuple[str, str, str], value: Any) -> None:
    task, stratum, name = place
    changed = copy.deepcopy(METRICS)
    changed[task]["d/s"][stratum][name] = value
    wrong = [key for key, stated, made in _numbers(changed, ARRAYS) if not _same(stated, made)]
    assert wrong == [f"{task}.d/s.{stratum}.{name}"]
