"""Trace: from a number back to its run, and refusal when the chain is broken."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from synthetic_metrics import STAGES, context, write_all, write_metrics, write_tuned

from cmapkd.errors import UserError
from cmapkd.files import sha256_of
from cmapkd.paper.build import build_figure, build_numbers, build_table
from cmapkd.paper.context import PaperContext, PaperRun
from cmapkd.paper.trace import address_of, chain, parse_macro, tell, trace


@pytest.fixture
def setting(tmp_path: Path) -> PaperContext:
    made = context(tmp_path, seeds=(0, 1), planned=True, appendix=("planned",))
    write_all(made)
    for name in made.all_tables:
        build_table(name, made)
    return made


def test_the_whole_chain_is_printed(setting: PaperContext) -> None:
    text = trace(setting, "table2", "CMAPKD", "i2t_r1")
    assert text.startswith("table2 / CMAPKD / i2t_r1 = 23.7 ± 0.282843")
    for seed in (0, 1):
        path = setting.metric_file("CMAPKD", seed)
        assert f"from {path}" in text
        assert f"sha256: {sha256_of(path)} (verified now)" in text
        assert f"run: CMAPKD, seed {seed}" in text
        folder = f"--config results={setting.results.parent}"
        assert f"recomputed by: snakemake --cores all --force --configfile config/synthetic.yaml {folder} -- {path}" in text
    for part in (
        "i2t_r1 = 23.5",
        "i2t_r1 = 23.9",
        "commit: 0123456789abcdef0123456789abcdef01234567 (clean)",
        "configuration: c0ffee",
        "data: emoji_scenes da7a",
        "trained in: coarse-1a2b3c",
        "trained in: fine-4d5e6f",
        "image: none",
        "host: laptop",
        "took 12.5 s",
        "command: cmapkd evaluate CMAPKD 0",
        "torch 2.14.1",
        "macro: \\cmapkd{table2}{CMAPKD}{i2t_r1}",
        f"cmapkd train coarse-1a2b3c --experiment config/synthetic.yaml --results {setting.results.parent}",
        "cmapkd collect CMAPKD/1 --experiment",
        "cmapkd evaluate CMAPKD/1 --experiment",
        "cmapkd paper table table2 --experiment",
    ):
        assert part in text


def test_stages_with_their_own_origin_are_told(setting: PaperContext) -> None:
    stage = {
        "address": "fine-1",
        "label": "CMAPKD seed 0: fine",
        "commit": "fedcba",
        "dirty": True,
        "host": "node7",
        "wall_seconds": 90,
    }
    write_metrics(setting, "KD", 0, 20.0, edit=lambda c: c["provenance"].update(stages=[stage]))
    build_table("table2", setting)
    text = trace(setting, "table2", "KD", "i2t_r1")
    assert "trained in: fine-1 (CMAPKD seed 0: fine) commit fedcba (with uncommitted changes) on node7 took 90 s" in text
    assert "trained for: 90.0 s in all, in 1 stage" in text


def test_a_ratio_names_the_teacher_too(setting: PaperContext) -> None:
    text = trace(setting, "table5", "KD", "speed_up")
    assert "teacher / student" in text
    assert "run: Teacher, seed 0" in text
    assert "run: KD, seed 1" in text


def test_a_planned_number_is_called_so(setting: PaperContext) -> None:
    text = trace(setting, "planned", "CMAPKD", "planned:table2:i2t_r1")
    assert "PLANNED before any experiment: this is not a result" in text
    assert "planned.yaml" in text


def test_a_number_of_a_figure_or_a_caption_can_be_traced(setting: PaperContext) -> None:
    build_figure("figure3", setting)
    assert "metrics/Teacher/0.npz" in trace(setting, "figure3", "P2", "rho")
    assert "= 1000" in trace(setting, "table2", "caption", "images")


def test_a_row_may_be_named_by_its_label(setting: PaperContext) -> None:
    assert trace(setting, "table2", setting.teacher_label, "i2t_r1") == trace(setting, "table2", "Teacher", "i2t_r1")


@pytest.mark.parametrize(
    ("cell", "key", "hint"),
    [
        (("tabel2", "CMAPKD", "i2t_r1"), "table", "did you mean 'table2'?"),
        (("table2", "CMAPK", "i2t_r1"), "row", "did you mean 'CMAPKD'?"),
        (("table2", "CMAPKD", "i2t_r11"), "column", "did you mean 'i2t_r1'?"),
    ],
)
def test_unknown_names_have_the_nearest_spelling(
    setting: PaperContext, cell: tuple[str, str, str], key: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        trace(setting, *cell)
    assert caught.value.key == key
    assert caught.value.fix == hint


def test_a_changed_parent_is_an_error(setting: PaperContext) -> None:
    path = setting.metric_file("CMAPKD", 1)
    path.write_text(path.read_text().replace("23.9", "93.9"))
    with pytest.raises(UserError, match="changed since table2 was built") as caught:
        trace(setting, "table2", "CMAPKD", "i2t_r1")
    assert caught.value.key == str(path)
    assert trace(setting, "table2", "KD", "i2t_r1")  # other cells still stand


def test_a_missing_parent_is_an_error(setting: PaperContext) -> None:
    setting.metric_file("CMAPKD", 1).unlink()
    with pytest.raises(UserError, match="is missing; table2 / CMAPKD / i2t_r1 was made from it"):
        trace(setting, "table2", "CMAPKD", "i2t_r1")


def test_a_table_edited_by_hand_is_an_error(setting: PaperContext) -> None:
    path = setting.paper / "table2.json"
    content = json.loads(path.read_text())
    content["cells"]["CMAPKD"]["i2t_r1"]["value"] = 57.2
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not what its parents give"):
        trace(setting, "table2", "CMAPKD", "i2t_r1")


def test_a_table_that_is_not_built_is_an_error(setting: PaperContext) -> None:
    (setting.paper / "table3.json").unlink()
    with pytest.raises(UserError, match="is not built yet"):
        trace(setting, "table3", "CMAPKD", "top1")


def test_results_can_be_moved(setting: PaperContext, tmp_path: Path) -> None:
    moved = setting.results.rename(tmp_path / "elsewhere")
    assert "verified now" in trace(dataclasses.replace(setting, results=moved), "table2", "KD", "i2t_r1")


def test_macro_names() -> None:
    assert parse_macro(r"\cmapkd{table2}{w/o ALSN (uniform)}{i2t_r1}") == ("table2", "w/o ALSN (uniform)", "i2t_r1")
    with pytest.raises(UserError, match="is not of the form"):
        parse_macro("table2")


@pytest.mark.parametrize(
    "words",
    [
        [r"\cmapkd{table2}{CMAPKD}{i2t_r1}"],
        ["cmapkd{table2}{CMAPKD}{i2t_r1}"],  # a shell took the backslash
        [r" \cmapkdstd{table2}{CMAPKD}{i2t_r1} "],
        ["table2", "CMAPKD", "i2t_r1"],
    ],
)
def test_a_macro_is_an_address(words: list[str]) -> None:
    assert address_of(words) == ("table2", "CMAPKD", "i2t_r1")


@pytest.mark.parametrize("words", [["table2", "CMAPKD"], ["table2"], [], ["a", "b", "c", "d"]])
def test_what_is_no_address_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        address_of(words)
    assert caught.value.fix


def test_every_macro_leads_to_its_number(tmp_path: Path) -> None:
    made = context(tmp_path, runs=(PaperRun("50% & more"), PaperRun("CMAPKD", method="cmapkd")), tables=("table2",), figures=())
    write_all(made)
    build_table("table2", made)
    build_numbers(made)
    macros = re.findall(r"set\{value\}(\{.*?\}\{.*?\}\{.*?\})\{(.*)\}", (made.paper / "numbers.tex").read_text())
    assert any("{50-more}" in name for name, _ in macros)
    for name, value in macros:
        found = chain(made, *address_of([f"\\cmapkd{name}"]))
        assert f"{found['value']:.1f}" == value or f"{found['value']:.0f}" == value
        assert found["macro"] == f"\\cmapkd{name}"


def test_the_chain_is_json_with_everything_that_the_text_says(setting: PaperContext) -> None:
    found = json.loads(json.dumps(chain(setting, "table2", "CMAPKD", "i2t_r1")))
    assert found["value"] == pytest.approx(23.7)
    assert found["n"] == 2
    assert [(parent["run"], parent["seed"], parent["value"]) for parent in found["parents"]] == [
        ("CMAPKD", 0, 23.5),
        ("CMAPKD", 1, 23.9),
    ]
    for parent in found["parents"]:
        assert parent["provenance"]["data_digests"] == {"emoji_scenes": "da7a" * 16}
        assert parent["provenance"]["wall_seconds"] == 12.5
        assert parent["commands"]["snakemake"].startswith("snakemake ")
        assert parent["commands"]["cmapkd"][-1].startswith("cmapkd evaluate CMAPKD/")
    assert tell(found) == trace(setting, "table2", "CMAPKD", "i2t_r1")
    words = chain(dataclasses.replace(setting, tables=("table1", *setting.tables)), *_schedule(setting))
    assert words["text"]
    assert "value" not in words


def _schedule(setting: PaperContext) -> tuple[str, str, str]:
    build_table("table1", dataclasses.replace(setting, tables=("table1",)))
    return "table1", "progressive/medium", "lr"


def test_what_was_configured_is_traced_to_the_experiment(setting: PaperContext) -> None:
    made = dataclasses.replace(setting, tables=("table1",))
    build_table("table1", made)
    text = trace(made, "table1", "progressive/medium", "lr")
    assert "= 1.2·10⁻³ → 7.2·10⁻⁴" in text
    assert "from config/synthetic.yaml (configured, not measured)" in text
    assert "schedules / progressive / medium / lr" in text
    assert "recomputed from its parents now: the same" in text
    assert "epochs = 0.8" in trace(made, "table1", "progressive/medium", "epochs")
    retitled = dataclasses.replace(made, title="Another")
    assert trace(retitled, "table1", "progressive/medium", "lr") == text  # the title is no part of the schedule
    longer = dataclasses.replace(made, stages=(dataclasses.replace(STAGES[0], epochs=1.0), *STAGES[1:]))
    with pytest.raises(UserError, match="runs or schedules changed since table1 was built"):
        trace(longer, "table1", "progressive/medium", "lr")


def test_a_tuned_value_is_traced_to_its_file(setting: PaperContext, tmp_path: Path) -> None:
    made = dataclasses.replace(setting, appendix=("tuned",), tuned_file=write_tuned(tmp_path))
    build_table("tuned", made)
    assert f"from {made.tuned_file}" in trace(made, "tuned", "KD", "values")
    assert "number of trials with a score" in trace(made, "tuned", "KD", "trials")
    write_tuned(tmp_path, lambda content: content["runs"]["KD"].update(score=1.0))
    with pytest.raises(UserError, match="changed since tuned was built"):
        trace(made, "tuned", "KD", "score")


def test_an_edited_text_is_an_error(setting: PaperContext) -> None:
    made = dataclasses.replace(setting, tables=("table1",))
    build_table("table1", made)
    path = made.paper / "table1.json"
    content = json.loads(path.read_text())
    content["texts"]["progressive/fine"]["trains"]["text"] = "everything"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not what its parents give"):
        trace(made, "table1", "progressive/fine", "trains")
