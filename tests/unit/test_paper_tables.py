"""Tables: order, marks, planned numbers, captions, and the LaTeX and JSON they become."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from synthetic_metrics import ABLATIONS, REPOSITORY, RUNS, SPLITS, context, write_all, write_metrics

from cmapkd.config.methods import C2KDConfig, LLaVAKDConfig, PromptKDConfig
from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.paper.build import build_table
from cmapkd.paper.cells import Cell, Column, Panel, Parent, Row, Table, decimals_of, number_of
from cmapkd.paper.context import TEACHER, PaperContext, PaperRun
from cmapkd.paper.latex import best_and_second, escape, render_table
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import compute_table

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
