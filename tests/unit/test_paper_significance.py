"""What tables test, what is bold, the tables of significance and at a glance, and refusal of arrays that do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_metrics import ABLATIONS, RUNS, SPLITS, arrays_of, context, write_all, write_metrics

from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of
from cmapkd.paper.build import build_table
from cmapkd.paper.cells import Difference
from cmapkd.paper.context import TEACHER, Bootstrap, PaperContext, PaperRun
from cmapkd.paper.latex import best_and_second, render_table
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.queries import RECALLS, Queries
from cmapkd.paper.statistics import holm
from cmapkd.paper.tables import compute_table

FAMILY = (*RUNS, PaperRun("CMAPKD-E", method="cmapkd"))
LEVELS = {TEACHER: 40.0, "Scratch": 17.0, "KD": 21.5, "CMAPKD": 23.5, "CMAPKD-E": 33.5}
RANKS = f"retrieval/{SPLITS[0]}/i2t_ranks"
OWNER = f"retrieval/{SPLITS[0]}/owner"


@pytest.fixture
def setting(tmp_path: Path) -> PaperContext:
    made = context(tmp_path, runs=FAMILY, seeds=(0, 1, 2))
    write_all(made, LEVELS)
    return made


def pairs(tests: tuple[Difference, ...], column: str) -> set[tuple[str, str]]:
    return {(test.row, test.against) for test in tests if test.column == column}


def test_queries_give_the_metrics_of_the_files(setting: PaperContext) -> None:
    metrics = Metrics(setting)
    queries = Queries(setting, metrics, ["KD", "CMAPKD"])
    wanted = [("retrieval", SPLITS[1], "all", name) for name in (*RECALLS, "mean_recall")]
    wanted += [("vqa", SPLITS[0], "all", name) for name in ("overall", "yes_no", "number", "other")]
    wanted += [("zeroshot", SPLITS[0], "all", name) for name in ("top1", "top5")]
    for keys, sample in queries.samples(wanted, "cell").items():
        expected = [metrics.number(run, seed, keys, "cell")[0] for run in ("KD", "CMAPKD") for seed in (0, 1, 2)]
        assert sample.value == pytest.approx(expected)
        assert sample.draws.mean(0) == pytest.approx(expected, abs=0.2)
        assert queries.of(sample, "CMAPKD").value == pytest.approx(expected[3:])


def test_captions_are_resampled_with_their_image(tmp_path: Path) -> None:
    """Five captions that all stand or fall with their image tell as much as one: the error is that of 1,000, not of 5,000."""
    setting = context(tmp_path)
    hits = np.arange(1000) < 150
    arrays = arrays_of(15.0, 0, alsn=False)
    arrays[f"retrieval/{SPLITS[0]}/t2i_ranks"] = np.where(np.repeat(hits, 5), 0, 99).astype(np.int32)

    def edit(content: dict[str, Any]) -> None:
        content["metrics"]["retrieval"][SPLITS[0]]["all"]["t2i_r1"] = 15.0

    write_metrics(setting, "KD", 0, 15.0, arrays=arrays, edit=edit)
    keys = ("retrieval", SPLITS[0], "all", "t2i_r1")
    sample = Queries(setting, Metrics(setting), ["KD"]).samples([keys], "cell")[keys]
    assert sample.draws.std() == pytest.approx(100 * np.sqrt(0.15 * 0.85 / 1000), rel=0.05)


def test_each_student_meets_the_best_baseline_and_the_best_the_next_best(setting: PaperContext) -> None:
    table = compute_table("table2", setting, Metrics(setting))
    expected = {("Scratch", "KD"), ("CMAPKD", "KD"), ("CMAPKD-E", "KD"), ("CMAPKD-E", "CMAPKD")}
    for column in table.columns():
        assert pairs(table.tests, column.key) == expected
    assert len(table.tests) == 14 * 4
    assert "Holm over 56 tests, level 0.05" in table.caption
    assert "4,000 resamples) and a t distribution for the spread between seeds" in table.caption
    assert "not tested" not in table.caption
    assert [test.corrected for test in table.tests] == pytest.approx(holm([test.p for test in table.tests]))
    for test in table.tests:
        cells = table.cells[test.row][test.column], table.cells[test.against][test.column]
        assert test.difference == pytest.approx(cells[0].value - cells[1].value)
        assert test.low < test.difference < test.high
        assert test.significant == (test.corrected < 0.05)


def test_a_baseline_that_is_best_meets_the_best_of_all_others(tmp_path: Path) -> None:
    setting = context(tmp_path, runs=FAMILY)
    write_all(setting, {**LEVELS, "KD": 35.0})
    table = compute_table("glance", setting, Metrics(setting))
    assert pairs(table.tests, "top1") == {("Scratch", "KD"), ("CMAPKD", "KD"), ("CMAPKD-E", "KD")}
    assert not table.significantly_best("KD", "top1")
    write_all(setting, {**LEVELS, "KD": 45.0})
    table = compute_table("glance", setting, Metrics(setting))
    assert table.significantly_best("KD", "top1")  # by the test of the other against it
    assert not table.significantly_best("CMAPKD-E", "top1")


def test_bold_needs_a_significant_difference(tmp_path: Path) -> None:
    setting = context(tmp_path)
    for better, bold in ((22.0, False), (40.0, True)):
        write_all(setting, {TEACHER: 50.0, "Scratch": 17.0, "KD": 21.5, "CMAPKD": better})
        build_table("table2", setting)
        text = (setting.paper / "table2.tex").read_text()
        assert (f"\\textbf{{{better}}}" in text) == bold
        assert "\\underline{21.5}" in text
        assert "nothing is said of another seed" in text


def test_tests_are_kept_with_the_digests_of_their_arrays(setting: PaperContext) -> None:
    build_table("table3", setting)
    content = read_json(setting.paper / "table3.json")["tests"]
    assert {test["column"] for test in content["tests"]} == {
        "vqa_overall", "vqa_yes_no", "vqa_number", "vqa_other", "top1", "top5",
    }  # fmt: skip
    files = {parent["file"] for parent in content["parents"]}
    assert files == {f"metrics/{run.name}/{seed}.npz" for run in FAMILY for seed in (0, 1, 2)}
    for parent in content["parents"]:
        assert sha256_of(setting.results / parent["file"]) == parent["sha256"]


def test_ablations_meet_the_full_method_and_the_best_the_next_best(tmp_path: Path) -> None:
    setting = context(tmp_path, runs=(*RUNS, *ABLATIONS, PaperRun("more", method="cmapkd", group="ablation")), seeds=(0, 1))
    write_all(setting, {TEACHER: 32.0, "CMAPKD": 23.5, "w/o relation": 22.0, "one-stage": 24.0, "more": 36.0})
    table = compute_table("table4", setting, Metrics(setting))
    full = {("w/o relation", "CMAPKD"), ("one-stage", "CMAPKD"), ("more", "CMAPKD")}
    assert pairs(table.tests, "top1") == full | {("more", "one-stage")}
    assert {test.column for test in table.tests} == {"i2t_r1", "t2i_r1", "mean_recall", "vqa_overall", "top1"}
    assert best_and_second(table)["more", "top1"] == "best"


def test_one_student_is_compared_with_nothing(tmp_path: Path) -> None:
    setting = context(tmp_path, runs=RUNS[:1])
    write_all(setting)
    table = compute_table("table2", setting, Metrics(setting))
    assert table.tests == ()
    assert "Holm" not in table.caption


def test_too_few_resamples_are_refused(setting: PaperContext) -> None:
    few = dataclasses.replace(setting, bootstrap=Bootstrap(samples=100))
    for name in ("table2", "significance"):
        with pytest.raises(UserError, match=f"{name} has .* tests") as caught:
            compute_table(name, few, Metrics(few))
        assert caught.value.key == "paper.bootstrap.samples"


def _array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[PaperContext], None]:
    def damage(setting: PaperContext) -> None:
        arrays = arrays_of(21.9, 1, alsn=False)
        arrays[name] = change(arrays[name])
        write_metrics(setting, "KD", 1, 21.9, arrays=arrays)

    return damage


def _without(setting: PaperContext) -> None:
    arrays = arrays_of(21.9, 1, alsn=False)
    del arrays[RANKS]
    write_metrics(setting, "KD", 1, 21.9, arrays=arrays)


def _edited(setting: PaperContext) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["metrics"]["retrieval"][SPLITS[0]]["all"]["mean_recall"] += 5

    write_metrics(setting, "KD", 1, 21.9, edit=edit)


def _truncated(setting: PaperContext) -> None:
    path = setting.metric_file("KD", 1).with_suffix(".npz")
    path.write_bytes(path.read_bytes()[:-100])


def _missing(setting: PaperContext) -> None:
    setting.metric_file("KD", 1).unlink()


def _doubled(setting: PaperContext) -> None:
    path = setting.metric_file("KD", 1)
    (path.parent / "copy.json").write_bytes(path.read_bytes())


@pytest.mark.parametrize("name", ["glance", "table2", "significance"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_edited, "but the queries in 1.npz give"),
        (_without, "has no array"),
        (_truncated, "one of the two was changed"),
        (_missing, "2 of 3 configured seeds are there"),
        (_doubled, "two files for one cell"),
        (_array(RANKS, lambda array: array[:-1]), "999 queries"),
        (_array(RANKS, lambda array: array - 1), "a value that no query can have"),
        (_array(RANKS, lambda array: array.astype(float)), "is of type float64"),
        (_array(RANKS, lambda array: array[:, None]), r"shape \(1000, 1\)"),
        (_array(RANKS, lambda array: np.roll(array, 1) * 0), "but the queries in 1.npz give"),
        (_array(OWNER, lambda array: array[::-1]), "not evaluated on the same queries"),
    ],
)
def test_a_bad_array_is_named_with_its_table_and_nothing_is_written(
    setting: PaperContext, name: str, damage: Callable[[PaperContext], None], reason: str
) -> None:
    damage(setting)
    with pytest.raises(UserError, match=reason) as caught:
        build_table(name, setting)
    assert "metrics/KD/1" in caught.value.key
    assert f"needed for {name} / " in caught.value.reason
    assert not setting.paper.exists()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("accuracy", lambda array: array * 2, "a value that no query can have"),
        ("accuracy", lambda array: array * np.nan, "a value that no query can have"),
        ("accuracy", lambda array: array[::-1], "the queries in 1.npz give"),
        ("type", lambda array: array[::-1], "not evaluated on the same queries"),
        ("image", lambda array: array + 1, "not evaluated on the same queries"),
    ],
)
def test_bad_answers_are_refused(
    setting: PaperContext, name: str, change: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    _array(f"vqa/{SPLITS[0]}/{name}", change)(setting)
    with pytest.raises(UserError, match=reason) as caught:
        compute_table("table3", setting, Metrics(setting))
    assert "metrics/KD/1" in caught.value.key


# ---- results at a glance ----------------------------------------------------------------------------------------------------


def test_the_glance_has_the_numbers_of_the_other_tables(setting: PaperContext) -> None:
    metrics = Metrics(setting)
    glance, others = (
        compute_table("glance", setting, metrics),
        [compute_table(f"table{n}", setting, metrics) for n in (2, 3, 5)],
    )
    columns = ["mean_recall", f"mean_recall@{SPLITS[1]}", "vqa_overall", "top1", "top5", "image_parameters"]
    assert [column.key for column in glance.columns()] == columns
    assert [row.key for row in glance.rows] == [TEACHER, "Scratch", "KD", "CMAPKD", "CMAPKD-E"]
    for row in glance.rows:
        for column in columns:
            found = next(table.cells[row.key][column] for table in others if column in table.cells[row.key])
            assert glance.cells[row.key][column] == found
    for words in ("a: Emoji Scenes, unseen drawings (in place of COCO 5K); b: ", "Student initialisation: random."):
        assert words in glance.caption
    assert {test.column for test in glance.tests} == set(columns[:-1])


def test_the_glance_shows_what_is_evaluated(setting: PaperContext) -> None:
    less = dataclasses.replace(setting, retrieval=SPLITS[:1], vqa=(), zeroshot=())
    assert [column.key for column in compute_table("glance", less, Metrics(less)).columns()] == [
        "mean_recall",
        "image_parameters",
    ]
    with pytest.raises(UserError, match="needs a test split"):
        compute_table("glance", dataclasses.replace(less, retrieval=()), Metrics(less))


# ---- the table of significance ----------------------------------------------------------------------------------------------


def test_significance_compares_the_family_with_its_best_baseline(setting: PaperContext) -> None:
    metrics = Metrics(setting)
    table, glance = compute_table("significance", setting, metrics), compute_table("glance", setting, metrics)
    assert len(table.rows) == 5 * 2
    assert {row.label for row in table.rows} == {"CMAPKD − KD", "CMAPKD-E − KD"}
    corrected = holm([table.cells[row.key]["p"].value for row in table.rows])
    for row, p in zip(table.rows, corrected, strict=True):
        run, _, number = row.key.partition(" ")
        column = number.replace("overall", "vqa_overall")
        found = table.cells[row.key]
        test = next(t for t in glance.tests if (t.row, t.against, t.column) == (run, "KD", column))
        assert [found[key].value for key in ("difference", "low", "high", "p")] == pytest.approx(
            [test.difference, test.low, test.high, test.p]
        )
        assert found["corrected"].value == pytest.approx(p)
        assert found["difference"].n == 3
        assert {parent.run for parent in found["difference"].parents} == {run, "KD"}
        assert all(parent.file.endswith(".npz") for parent in found["p"].parents)
        assert len(found["p"].parents) == 4 * 3  # the variance between seeds is that of all students
        assert 0 < 2.8 * found["error"].value <= found["detectable"].value * 1.01
        assert found["detectable"].value < found["detectable_corrected"].value
    numbers = table.cells["caption"]
    assert (
        f"{numbers['detectable'].value:.2f} and {numbers['detectable_corrected'].value:.2f} points of mean recall"
        in table.caption
    )
    assert "3 seeds" in table.caption
    assert "CMAPKD $-$ KD & +" in render_table(table)


def test_significance_needs_a_full_run_a_baseline_and_a_split(setting: PaperContext) -> None:
    for changes, reason in (
        ({"full_run": "CMAPDK"}, "is not a run of the group"),
        ({"runs": FAMILY[2:]}, "needs a run of another method"),
        ({"retrieval": (), "vqa": (), "zeroshot": ()}, "needs a test split"),
    ):
        changed = dataclasses.replace(setting, **changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=reason):
            compute_table("significance", changed, Metrics(changed))
