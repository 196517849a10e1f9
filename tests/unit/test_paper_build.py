"""The document: macros, figure, PDF; reproducible, without torch, and with clear words when LaTeX fails or is missing."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from synthetic_metrics import ABLATIONS, RUNS, SAMPLES, SPLITS, arrays_of, context, write_all, write_metrics, write_tuned

from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of
from cmapkd.paper.build import (
    build_document,
    build_figure,
    build_numbers,
    build_paper,
    build_pdf,
    build_table,
    compile_pdf,
    latex_errors,
)
from cmapkd.paper.context import TEACHER, PaperContext, PaperRun
from cmapkd.paper.figures.weights_by_difficulty import moving_average, spearman

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")


@pytest.fixture
def setting(tmp_path: Path) -> PaperContext:
    made = context(tmp_path)
    write_all(made)
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> PaperContext:
    """A whole paper, built once for the tests that only look at it."""
    made = context(tmp_path_factory.mktemp("paper"))
    write_all(made)
    build_paper(made)
    return made


@needs_latex
def test_the_pdf_has_every_part_and_embedded_fonts(built: PaperContext) -> None:
    import pypdf

    reader = pypdf.PdfReader(built.paper / "paper.pdf")
    text = " ".join(page.extract_text() for page in reader.pages)
    for part in (
        "Table 2",
        "Table 3",
        "Table 5",
        "Figure 3",
        "synthetic",
        "0123456789ab",
        "da7ada7ada7a",
        "in place of COCO 5K",
    ):
        assert part in text
    assert not {"/CreationDate", "/ModDate"} & set(reader.metadata or {})


@needs_latex
def test_a_second_build_gives_the_same_bytes(built: PaperContext, tmp_path: Path) -> None:
    again = dataclasses.replace(built, results=tmp_path / "synthetic")
    shutil.copytree(built.results / "metrics", again.results / "metrics")
    assert build_paper(again)
    names = sorted(path.name for path in built.paper.iterdir())
    assert names == sorted(path.name for path in again.paper.iterdir())
    assert {name for name in names if sha256_of(built.paper / name) != sha256_of(again.paper / name)} == set()


def test_without_latex_all_but_the_pdf_is_made(setting: PaperContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    setting.paper.mkdir(parents=True)
    (setting.paper / "paper.pdf").write_text("an older one")
    assert build_paper(setting) is False
    assert not (setting.paper / "paper.pdf").exists()
    assert {"paper.tex", "numbers.tex", "table2.tex", "figure3.pdf"} <= {path.name for path in setting.paper.iterdir()}


@needs_latex
def test_a_latex_error_is_shown_with_its_line(tmp_path: Path) -> None:
    source = tmp_path / "paper.tex"
    source.write_text("\\documentclass{article}\n\\begin{document}\n\\undefinedthing\n\\end{document}\n")
    with pytest.raises(UserError) as caught:
        compile_pdf([source], tmp_path / "paper.pdf")
    assert "paper.tex:3: Undefined control sequence" in caught.value.reason
    assert "undefinedthing" in caught.value.reason
    assert not (tmp_path / "paper.pdf").exists()


def test_a_log_without_errors_shows_its_end() -> None:
    assert latex_errors("\n".join(f"line {i}" for i in range(50))).endswith("line 49")


def _compile(directory: Path, body: str) -> Path:
    source = directory / "prose.tex"
    source.write_text(f"\\documentclass{{article}}\n\\input{{numbers}}\n\\begin{{document}}\n{body}\n\\end{{document}}\n")
    compile_pdf([source, directory / "numbers.tex"], directory / "prose.pdf")
    return directory / "prose.pdf"


@needs_latex
def test_macros_give_the_printed_numbers(tmp_path: Path) -> None:
    import pypdf

    setting = context(tmp_path, runs=(PaperRun("w/o ALSN (uniform)", method="cmapkd"), PaperRun("50% & more")), seeds=(0, 1))
    write_all(setting)
    build_paper(setting)
    keys = ("table2", "w/o ALSN (uniform)"), ("table2", "50-more"), ("figure3", "P5")
    body = (
        rf"A \cmapkd{{{keys[0][0]}}}{{{keys[0][1]}}}{{i2t_r1}} B \cmapkdstd{{table2}}{{w/o ALSN (uniform)}}{{i2t_r1}} "
        rf"C \cmapkd{{table2}}{{50-more}}{{i2t_r1@emoji_scenes/test_concept}} D \cmapkd{{table2}}{{caption}}{{images}} "
        rf"\section{{E \cmapkd{{figure3}}{{P5}}{{rho}}}}"
    )
    text = " ".join(pypdf.PdfReader(_compile(setting.paper, body)).pages[0].extract_text().split())
    rho = read_json(setting.paper / "figure3.json")["cells"]["P5"]["rho"]["value"]
    assert "A 20.2 B 0.3 C 20.2 D 1000" in text
    assert re.search(rf"E .{abs(rho):.2f}", text)


@needs_latex
def test_an_undefined_macro_is_an_error_that_names_it(built: PaperContext, tmp_path: Path) -> None:
    shutil.copy(built.paper / "numbers.tex", tmp_path)
    with pytest.raises(UserError, match=r"There is no value {table2}{CMAPKD}{i2t_r2}"):
        _compile(tmp_path, r"\cmapkd{table2}{CMAPKD}{i2t_r2}")


@needs_latex
def test_a_planned_number_stays_planned_in_prose(tmp_path: Path) -> None:
    setting = context(tmp_path, planned=True, figures=(), appendix=("planned",))
    write_all(setting)
    for name in setting.all_tables:
        build_table(name, setting)
    build_numbers(setting)
    assert r"{planned}{CMAPKD}{planned:table2:i2t_r1}{57.2 (planned)}" in (setting.paper / "numbers.tex").read_text()


@needs_latex
def test_a_document_needs_its_parts(setting: PaperContext) -> None:
    with pytest.raises(UserError, match="is not built yet") as caught:
        build_document(setting)
    assert caught.value.key.endswith("table2.json")
    with pytest.raises(UserError, match="is not built yet"):
        build_pdf(setting)


def test_the_paper_needs_no_torch(setting: PaperContext) -> None:
    code = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "open_clip", "deepspeed", "transformers"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
from pathlib import Path
from synthetic_metrics import context
from cmapkd.config.paper import PaperConfig
from cmapkd.paper.build import build_paper
from cmapkd.paper.trace import trace
setting = context(Path(sys.argv[1]))
build_paper(setting)
assert "CMAPKD" in trace(setting, "table2", "CMAPKD", "i2t_r1")
"""
    directory = setting.results.parents[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, env=environment)


def test_tables_do_not_import_matplotlib(setting: PaperContext) -> None:
    code = """
import sys
from pathlib import Path
from synthetic_metrics import context
from cmapkd.paper.build import build_table
build_table("table2", context(Path(sys.argv[1])))
assert not {"matplotlib", "torch", "pandas", "scipy"} & set(sys.modules), sorted(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code, str(setting.results.parents[1])], check=True, env=environment)


@needs_latex
def test_every_table_fits_and_the_appendix_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pypdf

    from cmapkd.paper import build

    logs: list[str] = []
    read = build._log
    monkeypatch.setattr(build, "_log", lambda *given: logs.append(read(*given)) or logs[-1])
    setting = context(
        tmp_path,
        runs=(*RUNS, *ABLATIONS),
        tables=("table1", "table2", "table3", "table4", "table5"),
        appendix=("tuned",),
        tuned_file=write_tuned(tmp_path),
    )
    write_all(setting)
    assert build_paper(setting)
    pages = [page.extract_text() for page in pypdf.PdfReader(setting.paper / "paper.pdf").pages]
    assert "Table A1" in pages[-1]
    assert "Table A1" in pages[0]  # the list of tables, with a reference that is resolved
    text = " ".join(pages)
    assert [f"Table {number}" in text for number in range(1, 6)] == [True] * 5
    assert "Overfull" not in logs[-1]
    assert "??" not in text


# ---- figure 3 ---------------------------------------------------------------------------------------------------------------


def test_figure3_numbers_equal_scipy_and_have_parents(setting: PaperContext) -> None:
    figure = build_figure("figure3", setting)
    arrays = arrays_of(0.0, 0, alsn=True)
    margin, weights = arrays[f"retrieval/{SPLITS[0]}/margin"], arrays[f"alsn/{SPLITS[0]}/visual"]
    for index, level in enumerate(("P2", "P3", "P4", "P5")):
        assert figure.cells[level]["rho"].value == pytest.approx(spearmanr(-margin, weights[:, index]).statistic)
    content = read_json(setting.paper / "figure3.json")
    assert {parent["file"] for parent in content["parents"]} == {"metrics/Teacher/0.npz", "metrics/CMAPKD/0.npz"}
    for parent in content["parents"]:
        assert sha256_of(setting.results / parent["file"]) == parent["sha256"]
    assert len(content["values"]["points"]["P2"]) == 100
    margins = content["values"]["margin"]
    assert margins == sorted(margins, reverse=True)  # easy to hard


def test_figure3_is_lncs_wide_with_truetype_fonts_and_the_same_bytes_each_time(setting: PaperContext) -> None:
    import pypdf

    build_figure("figure3", setting)
    first = (setting.paper / "figure3.pdf").read_bytes()
    build_figure("figure3", setting)
    assert (setting.paper / "figure3.pdf").read_bytes() == first
    page = pypdf.PdfReader(setting.paper / "figure3.pdf").pages[0]
    assert float(page.mediabox.width) / 72 * 25.4 == pytest.approx(122, abs=0.2)  # [mm]
    assert b"/CIDFontType2" in first or b"/TrueType" in first
    assert b"/Type3" not in first
    assert b"CreationDate" not in first


def test_figure3_with_uniform_weights_says_constant(setting: PaperContext) -> None:
    arrays = arrays_of(0.0, 0, alsn=True)
    arrays |= {name: np.full((SAMPLES, 4), 0.25) for name in arrays if name.startswith("alsn")}
    write_metrics(setting, "CMAPKD", 0, 23.0, arrays=arrays)
    figure = build_figure("figure3", setting)
    assert figure.cells["P2"] == {}
    assert "Constant: P2" in figure.caption


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays.pop(f"alsn/{SPLITS[0]}/language"), "has no array"),
        (lambda arrays: arrays.update({f"alsn/{SPLITS[0]}/visual": np.full((10, 4), 0.25)}), "the shape should be"),
        (lambda arrays: arrays.update({f"alsn/{SPLITS[0]}/visual": np.full((SAMPLES, 4), 0.3)}), "do not add up to one"),
        (lambda arrays: arrays.update({f"alsn/{SPLITS[0]}/visual": np.full((SAMPLES, 4), np.nan)}), "not finite"),
    ],
)
def test_figure3_refuses_bad_weights(setting: PaperContext, change: object, reason: str) -> None:
    arrays = arrays_of(0.0, 0, alsn=True)
    change(arrays)  # type: ignore[operator]
    write_metrics(setting, "CMAPKD", 0, 23.0, arrays=arrays)
    with pytest.raises(UserError, match=reason) as caught:
        build_figure("figure3", setting)
    assert "CMAPKD/0.npz" in caught.value.key
    assert not (setting.paper / "figure3.pdf").exists()


def test_figure3_without_weights_says_so(tmp_path: Path) -> None:
    setting = context(tmp_path, runs=(PaperRun("KD"),))
    write_all(setting)
    with pytest.raises(UserError, match="no run recorded layer weights"):
        build_figure("figure3", setting)
    with pytest.raises(UserError, match="did you mean 'KD'"):
        build_figure("figure3", dataclasses.replace(setting, weights_run="KDD"))


def test_moving_average_equals_the_plain_formula() -> None:
    values = np.random.default_rng(0).normal(5, 1, 40)
    mean, half = moving_average(values, 9)
    for i in range(40):
        window = values[max(0, i - 4) : i + 5]
        assert mean[i] == pytest.approx(window.mean())
        assert half[i] == pytest.approx(1.959964 * window.std(ddof=1) / np.sqrt(len(window)), rel=1e-6)


def test_spearman_interval_holds_the_value_and_refuses_constants() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=200)
    rho, low, high = spearman(x, 0.5 * x + generator.normal(size=200)) or (0, 0, 0)
    assert -1 < low < rho < high < 1
    assert spearman(x, np.ones(200)) is None
    assert spearman(x, x) is not None  # a perfect correlation has a finite interval


def test_the_teacher_margin_is_the_difficulty(setting: PaperContext) -> None:
    arrays = arrays_of(0.0, 0, alsn=False)
    arrays[f"retrieval/{SPLITS[0]}/margin"] = arrays[f"retrieval/{SPLITS[0]}/margin"][::-1].copy()
    before = build_figure("figure3", setting).cells["P5"]["rho"].value
    write_metrics(setting, TEACHER, 0, 32.0, arrays=arrays)
    assert abs(build_figure("figure3", setting).cells["P5"]["rho"].value) < abs(before) / 2


def test_the_weight_axis_does_not_blow_up_noise() -> None:
    from cmapkd.paper.figures.weights_by_difficulty import _limits

    flat = {"visual": np.full((20, 4), 0.25), "language": np.full((20, 4), 0.25)}
    low, high = _limits(flat, np.arange(20))
    assert low < 0.15
    assert high > 0.35
    one_hot = {"visual": np.tile([0.0, 0.0, 1.0, 0.0], (20, 1))}
    low, high = _limits(one_hot, np.arange(20))
    assert low < 0
    assert high > 1
