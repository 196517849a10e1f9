"""Tables: order, marks, planned numbers, captions, and the LaTeX and JSON they become."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from synthetic_metrics import ABLATIONS, REPOSITORY, RUNS, SPLITS, context, write_all, write_metrics, write_tuned

from cmapkd.config.methods import C2KDConfig, LLaVAKDConfig, PromptKDConfig
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of
from cmapkd.paper.build import build_table
from cmapkd.paper.cells import Cell, Column, Panel, Parent, Row, Table, Text, decimals_of, number_of
from cmapkd.paper.context import TEACHER, PaperContext, PaperRun
from cmapkd.paper.latex import best_and_second, escape, render_table
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import compute_table
from cmapkd.paper.tables.schedule import rate_text

PARENT = Parent("metrics/x/0.json", "0" * 64, "x", 0, ("metrics",))


@pytest.fixture
def setting(tmp_path: Path) -> PaperContext:
    made = context(tmp_path)
    write_all(made)
    return made


def test_a_number_without_a_parent_cannot_be_made() -> None:
    with pytest.raises(UserError, match="without a parent"):
        Cell(value=1.0, n=1, parents=())


def test_a_deviation_needs_two_seeds() -> None:
    with pytest.raises(UserError, match="deviation"):
        Cell(value=1.0, n=1, parents=(PARENT,), std=0.1)
    with pytest.raises(UserError, match="finite"):
        Cell(value=float("nan"), n=1, parents=(PARENT,))


def test_a_table_with_a_hole_is_refused() -> None:
    with pytest.raises(UserError, match="t / a / x"):
        Table("t", "T", "", (Row("a", "a"),), (Panel("", (Column("x", "X"),)),), {"a": {}})


@pytest.mark.parametrize("name", ["table2", "table3", "table5"])
def test_every_number_in_a_table_has_a_parent(setting: PaperContext, name: str) -> None:
    build_table(name, setting)
    content = read_json(setting.paper / f"{name}.json")
    assert content["table"] == name
    assert [row["row"] for row in content["rows"]] == [TEACHER, "Scratch", "KD", "CMAPKD"]
    cells = [cell for columns in content["cells"].values() for cell in columns.values()]
    assert cells
    for cell in cells:
        assert cell["n"] == 1
        assert cell["std"] is None
        for parent in cell["parents"]:
            assert set(parent) == {"file", "sha256", "run", "seed", "keys"}
            assert (setting.results / parent["file"]).is_file()


def test_table2_columns_and_values(setting: PaperContext) -> None:
    table = compute_table("table2", setting, Metrics(setting))
    metrics = ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mean_recall"]
    assert [column.key for column in table.columns()] == metrics + [f"{metric}@{SPLITS[1]}" for metric in metrics]
    assert table.cells["CMAPKD"]["i2t_r1"].value == 23.5
    assert "Emoji Scenes, unseen drawings (in place of COCO 5K), 1,000 images and 5,000 captions" in table.caption
    assert "Student initialisation: random." in table.caption
    assert "One seed (0)" in table.caption
    assert "with one seed not over trainings" in table.caption


def test_table3_has_the_question_only_baseline_unranked(setting: PaperContext) -> None:
    table = compute_table("table3", setting, Metrics(setting))
    assert table.cells["KD"]["vqa_question_only"].value == 31.25
    column = table.column("vqa_question_only")
    assert column is not None
    assert not column.ranked
    assert "in place of VQAv2" in table.caption
    assert "in place of ImageNet-1K" in table.caption


def test_table3_with_one_task_only(setting: PaperContext) -> None:
    table = compute_table("table3", dataclasses.replace(setting, vqa=()), Metrics(setting))
    assert [column.key for column in table.columns()] == ["top1", "top5"]
    assert table.title == "Zero-shot classification"
    with pytest.raises(UserError, match="needs a split"):
        compute_table("table3", dataclasses.replace(setting, vqa=(), zeroshot=()), Metrics(setting))


def test_table5_units_cut_and_speed_up(setting: PaperContext) -> None:
    table = compute_table("table5", setting, Metrics(setting))
    assert table.cells[TEACHER]["image_parameters"].value == pytest.approx(1.64938)
    assert table.cells["KD"]["image_flops"].value == pytest.approx(0.0132)
    assert table.cells["KD"]["parameter_cut"].value == pytest.approx(75.0)
    teacher, student = (table.cells[row]["latency_batch1"].value for row in (TEACHER, "KD"))
    assert table.cells["KD"]["speed_up"].value == pytest.approx(teacher / student)
    assert "speed_up" not in table.cells[TEACHER]
    assert "Latency on AMD EPYC 7B13, 2 threads." in table.caption


def test_latencies_of_different_devices_are_not_compared(setting: PaperContext) -> None:
    write_metrics(setting, "KD", 0, 21.5, edit=lambda c: c["metrics"]["efficiency"].update(device="another machine"))
    table = compute_table("table5", setting, Metrics(setting))
    assert "speed_up" not in table.cells["KD"]
    assert "speed_up" in table.cells["CMAPKD"]
    assert "KD: another machine" in table.caption
    assert "no speed-up is given across devices" in table.caption


def test_unknown_table_has_the_nearest_spelling(setting: PaperContext) -> None:
    with pytest.raises(UserError, match="did you mean 'table2'"):
        compute_table("tabel2", setting, Metrics(setting))


def _ranked(values: dict[str, float], direction: str = "up", teacher: float = 99.0) -> Table:
    cells = {row: {"x": Cell(value=value, n=1, parents=(PARENT,))} for row, value in {TEACHER: teacher, **values}.items()}
    rows = (Row(TEACHER, TEACHER, teacher=True), *(Row(row, row) for row in values))
    return Table("t", "T", "", rows, (Panel("", (Column("x", "X", direction=direction),)),), cells)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "direction", "expected"),
    [
        ({"a": 1.0, "b": 3.0, "c": 2.0}, "up", {"b": "best", "c": "second"}),
        ({"a": 1.0, "b": 3.0, "c": 2.0}, "down", {"a": "best", "c": "second"}),
        ({"a": 2.01, "b": 2.04, "c": 1.0}, "up", {"a": "best", "b": "best", "c": "second"}),  # equal as printed
        ({"a": 1.0, "b": 3.0}, "up", {"b": "best"}),
        ({"a": 1.0}, "up", {}),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "up", {}),
    ],
)
def test_best_and_second_are_students_only(values: dict[str, float], direction: str, expected: dict[str, str]) -> None:
    assert best_and_second(_ranked(values, direction)) == {(row, "x"): mark for row, mark in expected.items()}


def test_significance_decides_on_bold() -> None:
    table = _ranked({"a": 1.0, "b": 3.0, "c": 2.0})
    assert best_and_second(table, lambda table, row, column: False) == {("c", "x"): "second"}
    assert "\\textbf{3.0}" in render_table(table, lambda table, row, column: row == "b")


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 100), min_size=2))
def test_the_best_printed_value_is_marked(values: dict[str, float]) -> None:
    marks = best_and_second(_ranked(values))
    printed = {row: round(value, 1) for row, value in values.items()}
    if len(set(printed.values())) > 1:
        assert {row for (row, _), mark in marks.items() if mark == "best"} == {
            row for row in values if number_of(values[row], 1) == number_of(max(values.values()), 1)
        }


@pytest.mark.parametrize(
    ("values", "decimals"),
    [
        ([303.97, 86.19], 1),
        ([0.412, 15.3], 3),
        ([0.0132], 4),
        ([162.03], 0),
        ([304.0, 86.0], 0),
        ([0.0], 0),
        ([], 0),
        ([1e-9], 4),
    ],
)
def test_decimals_follow_the_smallest_number(values: list[float], decimals: int) -> None:
    assert decimals_of(values, None) == decimals


def test_minus_zero_is_not_printed() -> None:
    assert number_of(-0.04, 1) == "0.0"
    assert number_of(-0.06, 1) == "-0.1"


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("50% & more_$", r"50\% \& more\_\$"),
        ("image → text", r"image $\rightarrow$ text"),
        ("a\\b{c}", r"a\textbackslash{}b\{c\}"),
    ],
)
def test_escape(text: str, latex: str) -> None:
    assert escape(text) == latex


@pytest.mark.parametrize("planned", [False, True])
def test_planned_numbers_are_in_no_table_of_results(setting: PaperContext, planned: bool) -> None:
    setting = dataclasses.replace(setting, runs=(*RUNS, *ABLATIONS), planned=planned)
    write_all(setting)
    for name in ("glance", "table2", "table3", "table4", "table5", "significance"):
        build_table(name, setting)
        assert "planned" not in (setting.paper / f"{name}.tex").read_text()
        assert "planned" not in (setting.paper / f"{name}.json").read_text().replace('"planned": false', "")


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_planned_numbers_are_always_labelled(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    setting = context(tmp_path, planned=True, seeds=seeds, runs=(*RUNS, *ABLATIONS), appendix=("planned",))
    write_all(setting)
    table = build_table("planned", setting)
    assert "they are not results" in table.caption
    assert [len(table.shown(panel)) for panel in table.panels] == [4, 3, 3, 3]
    for panel in table.panels:
        kinds = [column.planned for column in panel.columns]
        assert kinds == sorted(kinds) and 2 * sum(kinds) == len(kinds)  # measured ones first, as many as planned ones
        for column in panel.columns:
            assert not column.ranked
            for row in table.shown(panel):
                cell = table.cell(row.key, column.key)
                assert cell is None or cell.planned == column.planned
    text = (setting.paper / "planned.tex").read_text()
    blocks = re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.S)
    assert len(blocks) == 4
    for block in blocks:
        assert re.search(r"\{measured\} & .*planned, not measured", block)
        assert "\\textbf" not in block
    for name, place in (("table2", 0), ("table5", 3)):
        results = compute_table(name, setting, Metrics(setting))
        columns = [column.key.partition(":")[2] for column in table.panels[place].columns if not column.planned]
        for row in table.panels[place].rows:
            for column in columns:
                assert table.cells[row][f"{name}:{column}"] == results.cells[row][column]
    assert "57.2" in blocks[0] and "\\emph{57.2}" in blocks[0]


def test_planned_numbers_are_those_of_the_design() -> None:
    planned = yaml.safe_load((REPOSITORY / "config" / "planned.yaml").read_text())
    assert {name: len(rows) for name, rows in planned.items()} == {"table2": 8, "table3": 5, "table4": 8, "table5": 4}
    assert list(planned["table2"]["CMAPKD"].values()) == [57.2, 80.8, 88.7, 42.9, 70.3, 80.6, 70.1]
    assert list(planned["table2"]["C2KD"].values()) == [55.7, 79.4, 87.8, 41.5, 68.5, 79.3, 68.7]
    assert list(planned["table3"]["LLaVA-KD"].values()) == [74.5, 86.8, 52.1, 66.3, 65.7]
    assert planned["table4"]["w/o relation"] == {"i2t_r1": 56.5, "vqa_overall": 74.7}
    assert list(planned["table5"]["CLIP-L"].values()) == [304, 120, 45, 58.4]


def test_a_missing_planned_file_is_an_error(setting: PaperContext, tmp_path: Path) -> None:
    broken = dataclasses.replace(setting, planned=True, planned_file=tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"paper\.planned"):
        compute_table("planned", broken, Metrics(broken))


def test_planned_numbers_are_shown_on_request_only(setting: PaperContext) -> None:
    with pytest.raises(UserError, match="not asked for"):
        compute_table("planned", setting, Metrics(setting))


def test_notes_and_deviations_are_printed(tmp_path: Path) -> None:
    notes = {config.model_fields["method"].default: config.note for config in (C2KDConfig, LLaVAKDConfig, PromptKDConfig)}
    runs = (*(PaperRun(name, method=name, note=note) for name, note in notes.items()), *RUNS)
    setting = context(tmp_path, runs=runs, seeds=(0, 1), planned=True)
    write_all(setting)
    for name in ("glance", "table2", "table3", "table5"):
        text = render_table(compute_table(name, setting, Metrics(setting)))
        for row, word, mark in (
            ("c2kd", "frozen", "ast"),
            ("llava", "dual encoder", "dagger"),
            ("prompt", "text tower", "ddagger"),
        ):
            assert re.search(rf"^{row}[\w\\]*\$\^{{\\{mark}}}\$ &", text, re.M), (name, row)
            assert re.search(rf"\$\^{{\\{mark}}}\$\\,[^$]*{word}", text), (name, row)
        assert "Student initialisation: random." in text
        assert "over 2 seeds" in text
    assert "$\\pm$0.3" in text


def test_ablations_are_not_rows_of_the_method_tables(tmp_path: Path) -> None:
    setting = context(tmp_path, runs=(*RUNS, PaperRun("w/o ALSN", group="ablation")))
    write_all(setting)
    assert [row.key for row in compute_table("table2", setting, Metrics(setting)).rows] == [TEACHER, "Scratch", "KD", "CMAPKD"]


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
