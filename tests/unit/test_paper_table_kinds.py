"""Tables of their own kind: the schedule, ablations, tuned values, levels and the layer selection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_metrics import ABLATIONS, RUNS, context, write_all, write_metrics, write_tuned

from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of
from cmapkd.paper.build import build_table
from cmapkd.paper.cells import Column, Panel, Row, Table, Text
from cmapkd.paper.context import TEACHER, PaperContext, PaperRun
from cmapkd.paper.latex import best_and_second, render_table
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import compute_table
from cmapkd.paper.tables.schedule import rate_text

# ---- table 1: the schedule --------------------------------------------------------------------------------------------------


def test_table1_is_the_configuration_and_needs_no_metrics(tmp_path: Path) -> None:
    setting = context(tmp_path)
    build_table("table1", setting)
    content = read_json(setting.paper / "table1.json")
    assert [row["row"] for row in content["rows"]] == ["progressive/medium", "progressive/fine", "standard/train"]
    texts = {row: {column: text["text"] for column, text in columns.items()} for row, columns in content["texts"].items()}
    assert texts["progressive/medium"] == {
        "levels": "P4–P5; L3–L4", "lr": "1.2·10⁻³ → 7.2·10⁻⁴", "trains": "student, pyramid", "policy": "uniform",
    }  # fmt: skip
    assert texts["progressive/fine"]["lr"] == "1·10⁻³\nALSN 5·10⁻⁵"
    assert texts["progressive/fine"]["policy"] == "ALSN"
    assert (texts["standard/train"]["levels"], texts["standard/train"]["policy"]) == ("", "")
    assert content["cells"]["progressive/fine"]["epochs"]["value"] == 2.4
    assert content["cells"]["caption"]["global_batch"]["value"] == 128
    for part in ("cells", "texts"):
        for columns in content[part].values():
            for cell in columns.values():
                assert {parent["file"] for parent in cell["parents"]} == {"experiment.yaml"}
    assert "nothing here is measured" in content["caption"]
    assert "factor" not in content["caption"]


def test_table1_in_latex_has_sections_and_lines(tmp_path: Path) -> None:
    setting = context(tmp_path)
    text = render_table(compute_table("table1", setting, Metrics(setting)))
    assert text.index("\\emph{progressive}") < text.index("medium &") < text.index("\\emph{standard}") < text.index("train &")
    assert "\\begin{tabular}[t]{@{}l@{}}1$\\cdot$10$^{-}$$^{3}$ \\\\ ALSN 5$\\cdot$10" in text
    assert "0.8 & P4--P5; L3--L4" in text
    assert "train & 4.0 & ---" in text


def test_table1_names_the_factors_of_runs(tmp_path: Path) -> None:
    setting = context(tmp_path, runs=(*RUNS[:2], dataclasses.replace(RUNS[2], lr_scale=0.5)))
    table = compute_table("table1", setting, Metrics(setting))
    assert "a factor: CMAPKD 0.5." in table.caption
    assert table.texts["caption"]["lr_scale"].text == "CMAPKD 0.5"


def test_table1_without_a_schedule_is_an_error(tmp_path: Path) -> None:
    setting = context(tmp_path, stages=())
    with pytest.raises(UserError, match="needs a schedule"):
        compute_table("table1", setting, Metrics(setting))


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1.5e-3, "1.5·10⁻³"), (1e-5, "1·10⁻⁵"), (0.6 * 1.5e-3, "9·10⁻⁴"), (0.0999999, "1·10⁻¹"), (12.0, "1.2·10¹")],
)
def test_rates_are_printed_short(rate: float, text: str) -> None:
    assert rate_text(rate) == text


def test_a_table_with_a_hole_among_its_texts_is_refused() -> None:
    with pytest.raises(UserError, match="has no text"):
        Table("t", "T", "", (Row("a", "a"),), (Panel("", (Column("x", "X", text=True),)),), {"a": {}})
    with pytest.raises(UserError, match="without a parent"):
        Text("x", ())


# ---- table 4: ablations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ablated(tmp_path: Path) -> PaperContext:
    made = context(tmp_path, runs=(*RUNS, *ABLATIONS), seeds=(0, 1))
    write_all(made, {TEACHER: 32.0, "CMAPKD": 23.5, "w/o relation": 22.0, "one-stage": 24.0})
    return made


def test_table4_rows_values_and_differences(ablated: PaperContext) -> None:
    table = compute_table("table4", ablated, Metrics(ablated))
    assert [row.key for row in table.rows] == ["w/o relation", "one-stage", "CMAPKD"]
    assert [column.key for column in table.columns()] == [
        "i2t_r1",
        "t2i_r1",
        "mean_recall",
        "difference",
        "vqa_overall",
        "top1",
    ]
    table2 = compute_table("table2", ablated, Metrics(ablated))
    for column in ("i2t_r1", "t2i_r1", "mean_recall"):
        assert table.cells["CMAPKD"][column] == table2.cells["CMAPKD"][column]
    for row in ("w/o relation", "one-stage"):
        difference = table.cells[row]["difference"]
        expected = table.cells[row]["mean_recall"].value - table.cells["CMAPKD"]["mean_recall"].value
        assert difference.value == pytest.approx(expected)
        assert abs(difference.value) > 0.4
        assert difference.std == pytest.approx(0, abs=0.02)  # every seed shifts both runs alike: paired, the spread cancels
        assert {(parent.run, parent.seed) for parent in difference.parents} == {(r, s) for r in (row, "CMAPKD") for s in (0, 1)}
    assert "difference" not in table.cells["CMAPKD"]
    assert "w/o relation (weights.relation = 0); one-stage (schedule = one_stage)" in table.caption
    assert "in place of COCO 5K), 1,000 images and 5,000 captions" in table.caption


def test_table4_prints_signs_marks_and_a_rule_above_the_full_method(ablated: PaperContext) -> None:
    table = compute_table("table4", ablated, Metrics(ablated))
    assert best_and_second(table)["one-stage", "mean_recall"] == "best"
    assert not any(column == "difference" for _, column in best_and_second(table))
    rows = {line.partition(" & ")[0]: line for line in render_table(table).splitlines()}
    below, above = (f"{abs(table.cells[row]['difference'].value):.1f}" for row in ("w/o relation", "one-stage"))
    assert f"$-${below}" in rows["w/o relation"]
    assert f"+{above}" in rows["one-stage"]
    assert "---" in rows["CMAPKD"]
    assert "\\midrule%\nCMAPKD &" in render_table(table)


def test_table4_shows_what_is_evaluated(ablated: PaperContext) -> None:
    setting = dataclasses.replace(ablated, vqa=(), zeroshot=(), planned=True)
    table = compute_table("table4", setting, Metrics(setting))
    assert [column.key for column in table.columns()][-1] == "difference"
    planned = compute_table("planned", setting, Metrics(setting))
    assert planned.cells["CMAPKD"]["planned:table4:i2t_r1"].value == 57.2
    assert planned.cells["w/o relation"]["planned:table4:i2t_r1"].value == 56.5
    assert planned.cells["w/o relation"]["table4:i2t_r1"] == table.cells["w/o relation"]["i2t_r1"]


def test_table4_refuses_what_it_cannot_show(ablated: PaperContext) -> None:
    for changes, reason in (
        ({"full_run": "CMAPDK"}, "did you mean 'CMAPKD'"),
        ({"runs": RUNS}, "group: ablation"),
        ({"retrieval": ()}, "needs a test split"),
    ):
        setting = dataclasses.replace(ablated, **changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=reason):
            compute_table("table4", setting, Metrics(setting))


def test_table4_names_the_missing_run(ablated: PaperContext) -> None:
    ablated.metric_file("one-stage", 1).unlink()
    with pytest.raises(UserError, match=r"is missing \(1 of 2 configured seeds are there\) \(needed for table4 / one-stage"):
        compute_table("table4", ablated, Metrics(ablated))


# ---- appendix: tuned values -------------------------------------------------------------------------------------------------


def test_tuned_values_and_scores_are_those_of_the_file(tmp_path: Path) -> None:
    setting = context(tmp_path, tuned_file=write_tuned(tmp_path))
    table = build_table("tuned", setting)
    assert [row.key for row in table.rows] == ["KD", "CMAPKD"]  # in the experiment's order
    assert table.texts["CMAPKD"]["values"].text == "lr_scale = 1.5\nweights.align = 0.5123"
    values = {column: cell.value for column, cell in table.cells["CMAPKD"].items()}
    assert values == {"trials": 2, "default_score": 40.0, "score": 41.5, "min": 29.5, "median": 38.25, "max": 41.5}
    for word in ("emoji_scenes/validation", "mean_recall", "Sampler gp, seed 100, 3 trials", "each over 0.5 of"):
        assert word in table.caption
    parent = table.cells["KD"]["median"].parents[0]
    assert parent.sha256 == sha256_of(setting.tuned_file or "")
    assert parent.keys == ("runs", "KD", "scores", "median")
    assert setting.resolve(parent.file) == setting.tuned_file


def test_an_unfinished_search_is_noted(tmp_path: Path) -> None:
    path = write_tuned(tmp_path, lambda content: content["runs"]["KD"].update(complete=False))
    setting = context(tmp_path, tuned_file=path)
    text = render_table(compute_table("tuned", setting, Metrics(setting)))
    assert "KD$^{\\ast}$" in text
    assert "CMAPKD$^" not in text
    assert "The search was not complete." in text


def test_a_tuned_table_needs_its_file(tmp_path: Path) -> None:
    for file, reason in ((None, "no file of tuned values is configured"), (tmp_path / "none.yaml", "is missing")):
        setting = context(tmp_path, tuned_file=file)
        with pytest.raises(UserError, match=reason) as caught:
            compute_table("tuned", setting, Metrics(setting))
        assert caught.value.key == "tuned"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda content: content["runs"]["KD"].pop("score"), "runs / KD / score is missing"),
        (lambda content: content["runs"]["KD"].update(score=None), "runs / KD / score is None"),
        (lambda content: content["runs"]["KD"]["scores"].update(min=float("nan")), "not a finite number"),
        (lambda content: content["runs"]["KD"]["values"].update(lr_scale=True), "runs / KD / values / lr_scale is True"),
        (lambda content: content.pop("search"), "search is missing"),
        (lambda content: content.update(runs={"other": {}}), "names no run of this experiment"),
    ],
)
def test_a_damaged_tuned_file_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], None], reason: str) -> None:
    setting = context(tmp_path, tuned_file=write_tuned(tmp_path, edit))
    with pytest.raises(UserError, match=reason) as caught:
        compute_table("tuned", setting, Metrics(setting))
    assert caught.value.key == str(setting.tuned_file)


# ---- appendix: levels -------------------------------------------------------------------------------------------------------


def test_the_table_of_levels_reads_runs_with_a_pyramid_and_their_teacher(tmp_path: Path) -> None:
    setting = context(tmp_path)
    write_all(setting)
    table = build_table("levels", setting)
    assert [row.key for row in table.rows] == ["Teacher's pyramid", "CMAPKD"]
    student, teacher = table.cells["CMAPKD"], table.cells["Teacher's pyramid"]
    file = setting.metric_file("CMAPKD", setting.seeds[0])
    assert student["P2-L1"].parents[0].keys == ("metrics", "levels", "student", "accuracy", "P2-L1")
    assert teacher["P2-L1"].value == pytest.approx(student["P2-L1"].value + 9)
    assert (student["cka_visual"].value, student["alike"].value) == (0.9, 0.6)
    assert [student[f"weight_L{place}"].value for place in range(1, 5)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert "alike" not in teacher and "weight_P2" not in teacher
    assert student["P2-L1"].parents[0].sha256 == sha256_of(file)


def test_levels_that_a_run_lacks_are_left_blank_and_wrong_ones_refused(tmp_path: Path) -> None:
    setting = context(tmp_path)
    write_all(setting)

    def top_alone(content: dict[str, Any]) -> None:
        levels = content["metrics"]["levels"]
        for side in ("student", "teacher"):
            levels[side] = {"accuracy": {"P5-L4": 12.5}, "mean_cka": {}}
        del levels["weights"], levels["follows"]

    for seed in setting.seeds:
        write_metrics(setting, "CMAPKD", seed, 23.0, alsn=True, edit=top_alone)
    table = compute_table("levels", setting, Metrics(setting))
    assert set(table.cells["CMAPKD"]) == {"P5-L4", "alike"}
    render_table(table)
    edit = lambda content: content["metrics"]["levels"]["both"].update(mean_cka=1.5)  # noqa: E731
    write_metrics(setting, "CMAPKD", setting.seeds[0], 23.0, alsn=True, edit=edit)
    with pytest.raises(UserError, match=r"mean_cka is 1\.5, outside 0 to 1 \(needed for levels / CMAPKD / alike"):
        compute_table("levels", setting, Metrics(setting))


# ---- appendix: layer selection ----------------------------------------------------------------------------------------------


def test_the_table_of_the_layer_selection(tmp_path: Path) -> None:
    changes = ("policy = manual", "manual_weights = [0.4, 0.3, 0.2, 0.1]")
    fixed = PaperRun("searched", method="cmapkd", group="ablation", changes=changes)
    setting = context(tmp_path, runs=(*RUNS, fixed))
    write_all(setting)

    def without(content: dict[str, Any]) -> None:
        del content["metrics"]["levels"]["weights"], content["metrics"]["levels"]["follows"]

    for seed in setting.seeds:
        write_metrics(setting, "searched", seed, 20.0, alsn=True, edit=without)
    table = build_table("alsn", setting)
    assert [row.key for row in table.rows] == ["CMAPKD", "searched"]
    cells = table.cells["CMAPKD"]
    assert (cells["samples_visual"].value, cells["nearest_language"].value) == (0.04, 75)
    assert cells["strata_visual"].value == pytest.approx(0.26 - 0.2)
    assert {parent.keys[-1] for parent in cells["strata_visual"].parents} == {"P2", "P3", "P4", "P5"}
    assert set(table.cells["searched"]) == {"mean_recall"}
    assert "searched: [0.4, 0.3, 0.2, 0.1]" in table.caption
    render_table(table)


def test_without_learned_weights_there_is_no_table_of_them(tmp_path: Path) -> None:
    setting = context(tmp_path, runs=RUNS[:2])
    write_all(setting)
    with pytest.raises(UserError, match="alsn needs a run with the policy alsn"):
        compute_table("alsn", setting, Metrics(setting))
