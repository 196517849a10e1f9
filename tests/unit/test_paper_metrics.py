"""Metric files are read strictly: each kind of bad file stops with a message that names the file and the cell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_metrics import SPLITS, context, write_all, write_metrics

from cmapkd.errors import UserError
from cmapkd.paper.context import PaperContext, PaperRun
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import compute_table

KEYS = ("retrieval", SPLITS[0], "all", "i2t_r1")
CELL = "table2 / KD / i2t_r1"


@pytest.fixture
def setting(tmp_path: Path) -> PaperContext:
    made = context(tmp_path)
    write_all(made)
    return made


def test_mean_and_sample_deviation_over_seeds(tmp_path: Path) -> None:
    setting = context(tmp_path, seeds=(0, 1, 2))
    write_all(setting)
    cell = Metrics(setting).mean("KD", KEYS, CELL)
    values = [21.5, 21.9, 22.3]
    assert cell.value == pytest.approx(np.mean(values))
    assert cell.std == pytest.approx(np.std(values, ddof=1))
    assert cell.n == 3
    assert [(parent.file, parent.seed) for parent in cell.parents] == [(f"metrics/KD/{seed}.json", seed) for seed in (0, 1, 2)]
    assert cell.parents[0].keys == ("metrics", *KEYS)


def test_one_seed_has_no_deviation(setting: PaperContext) -> None:
    cell = Metrics(setting).mean("KD", KEYS, CELL)
    assert (cell.value, cell.std, cell.n) == (21.5, None, 1)


def test_ratio_to_the_teacher_has_the_teacher_as_parent(setting: PaperContext) -> None:
    keys = ("efficiency", "image_parameters")
    cell = Metrics(setting).against_teacher("KD", keys, CELL, lambda t, s: 100 * (1 - s / t), "cut")
    assert cell.value == pytest.approx(75.0)
    assert [parent.run for parent in cell.parents] == ["Teacher", "KD"]


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _empty(path: Path) -> None:
    path.write_text("")


def _nan(path: Path) -> None:
    path.write_text(path.read_text().replace('"i2t_r1": 21.5', '"i2t_r1": NaN'))


def _twice(path: Path) -> None:
    path.write_text(path.read_text().replace('"i2t_r1": 21.5', '"i2t_r1": 21.5, "i2t_r1": 99.0'))


def _copy(path: Path) -> None:
    shutil.copy(path, path.parent / "0-better.json")


def _copy_elsewhere(path: Path) -> None:
    (path.parents[1] / "old").mkdir()
    shutil.copy(path, path.parents[1] / "old" / "0.json")


def _arrays(path: Path) -> None:
    path.with_suffix(".npz").write_bytes(b"something else")


def _no_arrays(path: Path) -> None:
    path.with_suffix(".npz").unlink()


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_remove, "is missing (0 of 1 configured seeds are there)"),
        (_truncate, "truncated or not valid JSON"),
        (_empty, "is empty"),
        (_nan, "the number NaN is not finite"),
        (_twice, "the key 'i2t_r1' is given twice"),
        (_copy, "two files for one cell"),
        (_copy_elsewhere, "two files for one cell"),
        (_arrays, "one of the two was changed"),
        (_no_arrays, "is missing; 0.json names it"),
        (_edit(lambda c: c.update(run="CMAPKD")), "is of CMAPKD, seed 0, not of KD, seed 0"),
        (_edit(lambda c: c.update(seed=3)), "is of KD, seed 3, not of KD, seed 0"),
        (_edit(lambda c: c.update(seed="0")), "seed is '0', not of type int"),
        (_edit(lambda c: c.pop("provenance")), "provenance is missing"),
        (_edit(lambda c: c["metrics"].pop("retrieval")), "metrics / retrieval is missing"),
        (_edit(lambda c: c["metrics"]["retrieval"][SPLITS[0]]["all"].pop("i2t_r1")), "did you mean 'i2t_r"),
        (_edit(lambda c: c["metrics"]["retrieval"][SPLITS[0]]["all"].update(i2t_r1="21.5")), "is '21.5', not a number"),
        (_edit(lambda c: c["metrics"]["retrieval"][SPLITS[0]]["all"].update(i2t_r1=True)), "is True, not a number"),
        (_edit(lambda c: c["metrics"]["retrieval"][SPLITS[0]]["all"].update(i2t_r1=None)), "is None, not a number"),
        (_edit(lambda c: c["metrics"]["retrieval"][SPLITS[0]]["all"].update(i2t_r1=215)), "is 215, outside 0 to 100"),
        (_edit(lambda c: c["per_query"].pop("sha256")), "per_query / sha256 is missing"),
        (_edit(lambda c: c["per_query"].update(file="../CMAPKD/0.npz")), "not a file beside it"),
        (_edit(lambda c: c["provenance"].pop("data_digests")), "data_digests is missing"),
        (
            _edit(lambda c: c["provenance"].update(data_digests={"emoji_scenes": "other"})),
            "runs of different data in one table",
        ),
        (_edit(lambda c: c["metrics"]["retrieval"][SPLITS[0]]["all"].update(images=999)), "not evaluated on the same data"),
    ],
)
def test_a_bad_file_is_named_with_its_cell(setting: PaperContext, damage: Callable[[Path], None], reason: str) -> None:
    damage(setting.metric_file("KD", 0))
    with pytest.raises(UserError) as caught:
        compute_table("table2", setting, Metrics(setting))
    assert reason in caught.value.reason
    assert "metrics/KD/0" in caught.value.key
    assert "needed for table2 / " in caught.value.reason


def test_fewer_seeds_than_configured(tmp_path: Path) -> None:
    setting = context(tmp_path, seeds=(0, 1, 2))
    write_all(setting)
    setting.metric_file("KD", 1).unlink()
    with pytest.raises(UserError, match=r"2 of 3 configured seeds are there") as caught:
        Metrics(setting).mean("KD", KEYS, CELL)
    assert caught.value.key.endswith("metrics/KD/1.json")
    assert "snakemake" in caught.value.fix


def test_files_being_written_and_other_experiments_do_not_matter(setting: PaperContext) -> None:
    directory = setting.metric_file("KD", 0).parent
    shutil.copy(directory / "0.json", directory / ".0.json.x1.json")  # a temporary file of an atomic write
    (directory.parent / "Removed run").mkdir()
    (directory.parent / "Removed run" / "0.json").write_text("{")
    assert Metrics(setting).mean("KD", KEYS, CELL).value == 21.5


def test_names_that_share_a_directory_are_refused(tmp_path: Path) -> None:
    for names in (("w/o ALSN", "w-o ALSN"), ("KD", "kd"), ("teacher",)):
        with pytest.raises(UserError, match="shares the directory name"):
            context(tmp_path, runs=tuple(PaperRun(name) for name in names))


def test_names_with_spaces_and_slashes_have_directories(tmp_path: Path) -> None:
    setting = context(tmp_path, runs=(PaperRun("w/o ALSN (uniform)"),))
    path = write_metrics(setting, "w/o ALSN (uniform)", 0, 20.0)
    assert path.parent.parent == setting.results / "metrics"
    assert Metrics(setting).mean("w/o ALSN (uniform)", KEYS, CELL).value == 20.0
