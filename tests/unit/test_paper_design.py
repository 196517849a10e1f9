"""Drawings and algorithms follow the configuration: sizes as the models have them, constants as they are set, words escaped."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from config_examples import experiment, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_metrics import context as synthetic

from cmapkd.config import parse_experiment
from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.models import towers
from cmapkd.models.pyramid import VisualPyramid
from cmapkd.paper.algorithms import ALGORITHMS, compute_algorithm
from cmapkd.paper.build import build_algorithm, build_figure, build_numbers
from cmapkd.paper.constants import decimals, plain
from cmapkd.paper.context import EXPERIMENT_FILE, PaperContext
from cmapkd.paper.design import PaperModel, quarters
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.figures import DRAWINGS, draw_tikz
from cmapkd.paper.figures.tikz import fill, standalone
from cmapkd.paper.trace import trace
from cmapkd.plan import model_settings

PARTS = [*DRAWINGS, *ALGORITHMS]


def context(directory: Path, **changes: Any) -> PaperContext:
    """The small experiment with all drawings and algorithms; ``a__b=value`` sets key ``a.b``."""
    shown = {"paper__figures": list(DRAWINGS), "paper__algorithms": list(ALGORITHMS), "paper__tables": []}
    return paper_context(parse_experiment(experiment(**{**shown, **changes})), directory)


def latex(name: str, setting: PaperContext) -> str:
    return draw_tikz(name, setting).tikz if name in DRAWINGS else compute_algorithm(name, setting).latex


def words(name: str, setting: PaperContext) -> str:
    """The LaTeX on one line."""
    return " ".join(latex(name, setting).split())


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(4, 49))
def test_tapped_blocks_are_those_of_the_towers(depth: int) -> None:
    assert quarters(depth) == tuple(index + 1 for index in towers.quarter_depths(depth))


@settings(deadline=None, max_examples=12)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_cells_of_the_levels_are_those_of_the_pyramid(rows: int, columns: int) -> None:
    maps = VisualPyramid(width=2, channels=2)([torch.zeros(1, 2, rows, columns)] * 4)
    model = PaperModel("m", "random", (rows * 3, columns * 3), (3, 3), 4, 2, 4, 2, 8, 2)
    assert model.level_grids == {level: tuple(found.shape[-2:]) for level, found in maps.items()}


def test_sizes_of_a_model_are_those_of_its_tower(tmp_path: Path) -> None:
    design = context(tmp_path).design
    assert design is not None
    for model in (design.student, design.teacher):
        made = towers.Tapped(towers.create(**model_settings(model.name, "model"), init="random")).shapes()
        assert (model.grid, model.image_width, model.text_width) == (made.grid, made.image_width, made.text_width)
        assert (model.image_layers, model.text_layers) == (made.image_layers, made.text_layers)
        assert (model.context_length, model.embed_dim) == (made.context_length, made.embed_dim)


def test_the_models_of_the_paper_have_the_grids_of_the_design(tmp_path: Path) -> None:
    large = {"teacher": {"model": "ViT-L-14", "pretrained": "openai"}, "student__model": "ViT-B-16"}
    design = context(tmp_path, **large).design
    assert design is not None
    assert {level: grid[0] for level, grid in design.student.level_grids.items()} == {"P2": 56, "P3": 28, "P4": 14, "P5": 7}
    assert design.teacher.level_grids["P4"] == (16, 16)
    assert (design.student.image_taps, design.teacher.image_taps) == ((3, 6, 9, 12), (6, 12, 18, 24))


# ---- the text follows the configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "before", "after"),
    [
        ("figure1", {"student__model": "ViT-B-16", "teacher__model": "ViT-B-16"}, r"16\,$\times$\,16", r"56\,$\times$\,56"),
        ("figure1", {"runs__CMAPKD__weights": {"align": 0.7125}}, "16 pairs, weight 0.5}", "16 pairs, weight 0.713}"),
        ("figure1", {"runs__CMAPKD__policy": "uniform"}, r"\textbf{ALSN}", "equal weights"),
        ("figure1", {"runs__CMAPKD__visual_levels": ["P5"]}, "16 pairs", "4 pairs"),
        ("figure1", {"runs__CMAPKD__teacher_pyramid": "random"}, "pyramid was fitted", "its pyramid random"),
        ("figure2", {"pyramid__channels": 48}, "256 channels", "48 channels"),
        ("figure2", {"pyramid__phrase_window": 5}, "attention within 3", "attention within 5"),
        ("figure2", {"pyramid__smoothing": "depthwise"}, "smoothing is dense", "smoothing is depthwise"),
        ("figure2", {"student__model": "ViT-B-32", "teacher__model": "ViT-B-32"}, r"block\\4 (8)", r"block\\12 (12)"),
        ("figure2", {"runs__CMAPKD__alpha": "learned"}, "in each cell", "learned"),
        ("algorithm1", {"runs__CMAPKD__alsn": {"hidden": [96, 32]}}, "512 and 256", "96 and 32"),
        ("algorithm1", {"runs__CMAPKD__alsn": {"entropy_weight": 0.25}}, r"\eta=0.1", r"\eta=0.25"),
        ("algorithm1", {"runs__CMAPKD__alsn": {"objective": "task"}}, "what depends on ALSN", "unit root mean square"),
        ("algorithm1", {"runs__CMAPKD__policy": "manual"}, r"\textbf{alsn}", "no stage of this experiment trains ALSN"),
        ("algorithm2", {"runs__CMAPKD__beta": 0.75}, r"{single}} + 0.5\,", r"{single}} + 0.75\,"),
        ("algorithm2", {"runs__CMAPKD__temperature_kd": 0.0312}, "temperature 0.1,", "temperature 0.0312,"),
        ("algorithm2", {"training__global_batch": 96}, "batch of 256 pairs", "batch of 96 pairs"),
        ("algorithm2", {"runs__CMAPKD__embedding": {"cross": 2.5}}, r"\Return", r"2.5\,\cdot\,\text{InfoNCE"),
        ("algorithm2", {"runs__CMAPKD__lr_scale": 3.0}, r"5$\cdot$10$^{-}$$^{5}$", r"1.5$\cdot$10$^{-}$$^{4}$"),
        ("algorithm2", {"teacher__pyramid": {"epochs": 3}}, "1 epoch, ", "3 epochs, "),
    ],
)
def test_a_changed_key_changes_the_text(tmp_path: Path, name: str, changes: dict[str, Any], before: str, after: str) -> None:
    first = words(name, context(tmp_path))
    second = words(name, context(tmp_path, **changes))
    assert before in first
    assert after not in first
    assert after in second


def test_the_schedule_of_a_run_stands_in_the_algorithm(tmp_path: Path) -> None:
    stages = [
        {"name": "start", "epochs": 0.5, "lr": 2e-4, "visual_levels": ["P5"], "language_levels": ["L4"], "trains": ["student"]},
        {"name": "all", "epochs": 2, "lr": 1e-4, "trains": ["student", "alsn"], "group_lr": {"alsn": 3e-4}, "policy": "alsn"},
    ]
    text = words("algorithm2", context(tmp_path, schedules__progressive=stages))
    assert r"\textbf{start}: 0.5 epochs; $\mathcal{V}=\{P_5\}$, $\mathcal{T}=\{L_4\}$; equal weights; trains student at" in text
    assert r"\textbf{all}: 2 epochs; $\mathcal{V}=\{P_2,P_3,P_4,P_5\}$" in text
    assert r"ALSN at \mbox{3$\cdot$10$^{-}$$^{4}$ $\rightarrow$ 0}" in text
    assert r"\textbf{all}: 2 epochs, learning rate" in words("algorithm1", context(tmp_path, schedules__progressive=stages))


@pytest.mark.parametrize("name", PARTS)
def test_names_are_escaped(tmp_path: Path, name: str) -> None:
    setting = context(tmp_path)
    assert setting.design is not None
    student = dataclasses.replace(setting.design.student, name="my_model #2 & 50%")
    changed = dataclasses.replace(setting, design=dataclasses.replace(setting.design, student=student))
    text = latex(name, changed)
    assert "my_model" not in text
    assert (r"my\_model \#2 \& 50\%" in text) == (name in ("figure1", "algorithm2"))  # the others name no model


@pytest.mark.parametrize("name", PARTS)
def test_every_constant_has_the_experiment_as_parent(tmp_path: Path, name: str) -> None:
    setting = context(tmp_path)
    part = draw_tikz(name, setting) if name in DRAWINGS else compute_algorithm(name, setting)
    content = part.to_json()
    entries = [entry for kind in ("cells", "texts") for row in content[kind].values() for entry in row.values()]
    assert len(entries) >= 8
    digest = setting.experiment_digest
    assert {(parent["file"], parent["sha256"]) for entry in entries for parent in entry["parents"]} == {
        (EXPERIMENT_FILE, digest)
    }
    assert context(tmp_path, runs__CMAPKD__gamma=0.4).experiment_digest != digest
    assert context(tmp_path, paper__title="Another").experiment_digest == digest


def test_what_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    assert "no figure is called 'figure0'" in refusal(experiment(paper__figures=["figure0"]))
    assert "no algorithm is called 'algorithm3'" in refusal(experiment(paper__algorithms=["algorithm3"]))
    shown = {"paper__figures": ["figure2"]}
    assert "'CMAPKd' names no run, figure2 shows it" in refusal(experiment(**shown, paper__full_run="CMAPKd"))
    assert "'KD' has no pyramids, which figure2 shows" in refusal(experiment(**shown, paper__full_run="KD"))
    with pytest.raises(UserError, match="is not a run with pyramids of known models"):
        draw_tikz("figure1", synthetic(tmp_path))


# ---- numbers and templates -------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e6))
def test_a_constant_is_printed_with_three_digits(value: float) -> None:
    text = plain(value)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=5.01e-3)
    assert text == f"{float(text):.{decimals(value)}f}"
    assert "." not in text or not text.endswith("0")


def test_a_template_shows_exactly_its_values() -> None:
    assert fill("a{<<b>>} <<c>><<c>>", {"b": r"\d1", "c": "<<b>>"}) == r"a{\d1} <<b>><<b>>"
    with pytest.raises(ValueError, match="differ in \\['c'\\]"):
        fill("<<b>>", {"b": "1", "c": "2"})
    with pytest.raises(ValueError, match="differ in \\['b'\\]"):
        fill("<<b>>", {})


def test_without_latex_a_drawing_is_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    setting = context(tmp_path)
    setting.paper.mkdir(parents=True)
    (setting.paper / "figure1.pdf").write_text("an older one")
    build_figure("figure1", setting)
    assert sorted(path.name for path in setting.paper.iterdir()) == ["figure1.html", "figure1.json", "figure1.tex"]
    assert "\\begin{tikzpicture}" in (setting.paper / "figure1.tex").read_text()


def test_constants_are_macros_and_can_be_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmapkd.paper.build.has_latex", lambda: False)
    setting = context(tmp_path, runs__CMAPKD__weights={"align": 0.7125})
    for name in DRAWINGS:
        build_figure(name, setting)
    for name in ALGORITHMS:
        build_algorithm(name, setting)
    build_numbers(setting)
    numbers = (setting.paper / "numbers.tex").read_text()
    assert r"\cmapkd@set{value}{figure1}{weights}{align}{0.713}" in numbers
    assert r"\cmapkd@set{text}{figure1}{student}{model}{mini-student}" in numbers
    assert r"\cmapkd@set{name}{names}{names}{full_run}{CMAPKD}" in numbers
    told = trace(setting, "algorithm2", "weights", "align")
    assert "0.7125" in told
    assert "configured, not measured" in told
    assert read_json(setting.paper / "figure1.json")["cells"]["weights"]["align"]["value"] == 0.7125


# ---- where LaTeX is --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_a_page_of_its_own_size_with_embedded_fonts(tmp_path: Path, name: str) -> None:
    import pypdf

    setting = context(tmp_path)
    build_figure(name, setting)
    first = (setting.paper / f"{name}.pdf").read_bytes()
    build_figure(name, setting)
    assert (setting.paper / f"{name}.pdf").read_bytes() == first
    reader = pypdf.PdfReader(setting.paper / f"{name}.pdf")
    (page,) = reader.pages
    assert float(page.mediabox.width) / 72 * 25.4 == pytest.approx(122, abs=0.2)  # [mm]
    fonts = [entry.get_object() for entry in page["/Resources"]["/Font"].get_object().values()]
    assert len(fonts) >= 4
    assert all("/FontFile" in font["/FontDescriptor"] for font in fonts)
    assert not {"/CreationDate", "/ModDate"} & set(reader.metadata or {})
    assert "\\end{document}" in standalone(draw_tikz(name, setting).tikz)
