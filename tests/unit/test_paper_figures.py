"""What all figures have in common; figure 3 over seeds, training curves and the pareto plot; runs without some levels."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Canvas
from scipy import stats
from synthetic_metrics import RUNS, SPLITS, arrays_of, context, rewrite_arrays, write_all, write_metrics

from cmapkd.errors import UserError
from cmapkd.evaluation.curves import read_curves
from cmapkd.files import read_json
from cmapkd.paper import build
from cmapkd.paper.build import build_figure
from cmapkd.paper.context import TEACHER, PaperContext, PaperRun
from cmapkd.paper.figures import DRAWINGS, FIGURES, level_maps, pareto, training_curves
from cmapkd.paper.tables import TABLES

SPLIT = SPLITS[0]


@pytest.fixture
def setting(tmp_path: Path) -> PaperContext:
    made = context(tmp_path)
    write_all(made)
    return made


@pytest.fixture
def drawn() -> None:
    """For tests that look at what was drawn; the others do without the time that writing a PDF takes."""


@pytest.fixture(autouse=True)
def _fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level_maps, "PICTURES", 6)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Canvas, "savefig", lambda self, path, **options: Path(path).write_bytes(b""))
        monkeypatch.setattr(build, "picture_of", lambda pdf: b"")


# ---- all figures ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Built:
    setting: PaperContext
    latex: str  # what LaTeX said


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A paper with every figure, drawn once."""
    figures = ("figure3", "figure4", "figure5", "figure6")
    changes = {"tables": ("table2",), "figures": figures, "appendix_figures": ("curves", "pareto"), "seeds": (0, 1)}
    setting = context(tmp_path_factory.mktemp("paper"), **changes)
    write_all(setting)
    logs = [""]
    read = build._log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level_maps, "PICTURES", 6)
        patch.setattr(build, "_log", lambda *given: logs.append(read(*given)) or logs[-1])
        build.build_paper(setting)
    return Built(setting, logs[-1])


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in DRAWINGS])
def test_figures_have_the_width_truetype_fonts_parents_and_the_same_bytes(name: str, built: Built, drawn: None) -> None:
    import pypdf

    path = built.setting.paper / f"{name}.pdf"
    first = path.read_bytes(), path.with_suffix(".json").read_bytes()
    build_figure(name, built.setting)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == first
    page = pypdf.PdfReader(path).pages[0]
    assert float(page.mediabox.width) / 72 * 25.4 == pytest.approx(122, abs=0.2)  # [mm]
    assert float(page.mediabox.height) / 72 * 25.4 < 185  # fits a page
    fonts = [font.get_object() for font in page["/Resources"]["/Font"].values()]
    below = [font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font for font in fonts]
    assert below
    for font in below:
        assert font["/Subtype"] in ("/CIDFontType2", "/TrueType")
        assert "/FontFile2" in font["/FontDescriptor"]
    assert b"CreationDate" not in first[0]
    content = read_json(path.with_suffix(".json"))
    assert content["parents"]
    assert content["caption"].endswith(".")
    assert all(cell["parents"] for row in content["cells"].values() for cell in row.values())


def test_no_figure_is_called_like_a_table() -> None:
    assert not set(FIGURES) & set(TABLES)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_figures_of_the_appendix_are_numbered_by_themselves(built: Built) -> None:
    import pypdf

    pages = [page.extract_text() for page in pypdf.PdfReader(built.setting.paper / "paper.pdf").pages]
    text = " ".join(pages)
    assert [f"Figure {number}." in text for number in (3, 4, 5, 6, "A1", "A2")] == [True] * 6
    assert "Figure A2" in pages[0]  # in the list of figures, with a reference that is resolved
    assert "??" not in text
    assert "Overfull" not in built.latex
    assert "Float too large" not in built.latex
    numbers = (built.setting.paper / "numbers.tex").read_text()
    assert r"{figure6}{student}{difference}" in numbers
    assert r"{figure4}{simple}{images}{250}" in numbers  # a count, without decimals


def test_the_run_that_is_shown(setting: PaperContext) -> None:
    other = PaperRun("CMAPKD-E", method="cmapkd", level_temperature=0.2)
    both = dataclasses.replace(setting, runs=(other, *RUNS))
    write_all(both)
    assert build_figure("figure6", both).values["run"] == "CMAPKD"  # the full run, although it is not the first
    assert build_figure("figure6", dataclasses.replace(both, full_run="gone")).values["run"] == "CMAPKD-E"
    chosen = build_figure("figure6", dataclasses.replace(both, analysis_run="CMAPKD-E"))
    assert (chosen.values["run"], chosen.cells["caption"]["temperature"].value) == ("CMAPKD-E", 0.2)
    for figure in ("figure4", "figure5", "figure6"):
        with pytest.raises(UserError, match="recorded no") as caught:
            build_figure(figure, dataclasses.replace(setting, analysis_run="KD"))
        assert caught.value.key == "paper.analysis_run"
        with pytest.raises(UserError, match="did you mean 'CMAPKD'"):
            build_figure(figure, dataclasses.replace(setting, analysis_run="CMAPKDD"))


@pytest.mark.parametrize("figure", ["figure4", "figure5", "figure6"])
def test_without_a_run_that_has_levels(figure: str, tmp_path: Path) -> None:
    setting = context(tmp_path, runs=(PaperRun("KD"),))
    write_all(setting)
    with pytest.raises(UserError, match="no run recorded"):
        build_figure(figure, setting)
    with pytest.raises(UserError, match="needs a test split"):
        build_figure(figure, dataclasses.replace(setting, retrieval=()))


def test_a_run_without_visual_pyramid(setting: PaperContext, drawn: None) -> None:
    _check_run_with(("P5",), setting)


def test_a_run_with_two_visual_levels(setting: PaperContext) -> None:
    _check_run_with(("P4", "P5"), setting)


def _check_run_with(visual: tuple[str, ...], setting: PaperContext) -> None:
    """Figures of a run that has and records these visual levels alone."""
    count = len(visual)

    def change(arrays: dict[str, np.ndarray]) -> None:
        for level in {"P2", "P3", "P4", "P5"} - set(visual):
            for side in ("student", "teacher"):
                del arrays[f"levels/{SPLIT}/{side}/{level}"]
        for side in ("student", "teacher"):
            arrays[f"levels/{SPLIT}/{side}/similarity"] = arrays[f"levels/{SPLIT}/{side}/similarity"][:, -count:]
        weights = arrays[f"alsn/{SPLIT}/visual"][:, -count:]
        arrays[f"alsn/{SPLIT}/visual"] = weights / weights.sum(axis=1, keepdims=True)

    rewrite_arrays(setting, change)
    for figure in ("figure3", "figure4", "figure5", "figure6"):
        built = build_figure(figure, setting)
        if figure == "figure6":
            assert ("p" in built.cells["student"]) == (count == 2)
            assert ("no order of levels to test" in built.caption) == (count == 1)
            assert set(built.values["visual"]) == set(visual)
        if figure in ("figure3", "figure5"):
            assert "P5" in built.cells
            assert "P2" not in built.cells
        if figure == "figure4":
            assert ("visual: none, the weights are constant" in built.caption) == (count == 1)


# ---- figure 3 ---------------------------------------------------------------------------------------------------------------


def test_figure3_over_seeds(tmp_path: Path) -> None:
    seeds = (0, 1, 2)
    setting = context(tmp_path, seeds=seeds)
    write_all(setting)
    figure = build_figure("figure3", setting)
    found = []
    for seed in seeds:
        arrays = arrays_of(0.0, seed, alsn=True)
        found.append(stats.spearmanr(-arrays[f"retrieval/{SPLIT}/margin"], arrays[f"alsn/{SPLIT}/visual"][:, 1]).statistic)
    rho = figure.cells["P3"]["rho"]
    assert (rho.value, rho.std, rho.n) == pytest.approx((np.mean(found), np.std(found, ddof=1), 3))
    assert figure.cells["P3"]["rho_low"].value < min(found) < max(found) < figure.cells["P3"]["rho_high"].value
    curve = figure.values["curves"]["P3"]
    alone = build_figure("figure3", dataclasses.replace(setting, seeds=(1,))).values["curves"]["P3"]
    assert all(np.array(curve["low"]) <= np.array(alone["low"]) + 1e-6)  # the band holds that of each seed
    assert all(np.array(curve["high"]) >= np.array(alone["high"]) - 1e-6)


# ---- curves -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600))
def test_stage_length_is_that_of_the_log(tmp_path_factory: pytest.TempPathFactory, steps: int) -> None:
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    log.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(steps)))
    assert training_curves.stage_length(read_curves(log)["step"]) == steps


def test_curves_show_terms_of_all_stages(tmp_path: Path) -> None:
    setting = context(tmp_path, seeds=(0, 1))
    write_all(setting)
    figure = build_figure("curves", setting)
    assert list(figure.values) == ["CMAPKD", "Scratch", "KD"]  # the full method first
    assert [stage["stage"] for stage in figure.values["CMAPKD"]] == ["coarse", "fine"]
    assert set(figure.values["CMAPKD"][0]["terms"]) == {"loss", "task", "distillation", "intra"}  # no weights, no rates
    assert figure.values["CMAPKD"][1]["steps"][0] == pytest.approx(102)  # after 100 steps of the first stage
    assert figure.cells["CMAPKD"]["steps"].value == 200
    last = [arrays_of(23.5, seed, alsn=True)["curves/1/fine/loss"][-1] for seed in (0, 1)]
    cell = figure.cells["CMAPKD"]["last loss"]
    assert (cell.value, cell.n) == pytest.approx((np.mean(last), 2))


def test_runs_without_curves_are_named(setting: PaperContext) -> None:
    def without(arrays: dict[str, np.ndarray]) -> None:
        for name in [name for name in arrays if name.startswith("curves")]:
            del arrays[name]

    rewrite_arrays(setting, without, "KD")
    assert "No curves were recorded of KD" in build_figure("curves", setting).caption
    with pytest.raises(UserError, match="no run recorded training curves"):
        build_figure("curves", dataclasses.replace(setting, runs=(PaperRun("KD"),)))


# ---- pareto -----------------------------------------------------------------------------------------------------------------


def test_front_by_hand() -> None:
    points = {"cheap": (1.0, 10.0), "worse": (2.0, 9.0), "same": (1.0, 10.0), "good": (3.0, 20.0), "dear": (4.0, 20.0)}
    assert pareto.front(points) == ["cheap", "same", "good"]


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_front_rises_and_dominates_the_rest(points: dict[str, tuple[float, float]]) -> None:
    found = pareto.front(points)
    shown = [points[name] for name in found]
    assert shown == sorted(shown)
    assert [gain for _, gain in shown] == sorted(gain for _, gain in shown)
    for name in set(points) - set(found):
        assert any(c <= points[name][0] and g >= points[name][1] for c, g in shown)


def test_pareto_numbers_and_notes(tmp_path: Path) -> None:
    runs = (*RUNS, PaperRun("PromptKD", method="promptkd", deploys_teacher=True))
    setting = context(tmp_path, runs=runs, seeds=(0, 1))
    write_all(setting)
    figure = build_figure("pareto", setting)
    recorded = [read_json(setting.metric_file("KD", seed))["metrics"] for seed in (0, 1)]
    recalls = [content["retrieval"][SPLIT]["all"]["mean_recall"] for content in recorded]
    cell = figure.cells["KD"]["mean_recall"]
    assert (cell.value, cell.std) == pytest.approx((np.mean(recalls), np.std(recalls, ddof=1)))
    assert figure.cells[TEACHER]["parameters"].value == pytest.approx(15.29876)
    assert "PromptKD uses the teacher's text tower" in figure.caption
    assert "Latency at batch size 1 on AMD EPYC 7B13" in figure.caption
    spread = [figure.cells[row]["latency"].value for row in ("Scratch", "KD", "CMAPKD", "PromptKD")]  # the same image tower
    assert figure.cells["caption"]["low"].value == min(spread)
    assert f"{min(spread):.2f} to {max(spread):.2f} ms: that is the noise" in figure.caption
    assert figure.values["fronts"]["latency"] == ["CMAPKD", TEACHER]  # the fastest of equal towers gets no credit for it
    write_metrics(setting, "KD", 1, 21.0, edit=lambda content: content["metrics"]["efficiency"].update(device="other"))
    assert "cannot be compared" in build_figure("pareto", setting).caption


# ---- configuration ----------------------------------------------------------------------------------------------------------


def test_what_the_paper_is_told_of_figures() -> None:
    from pydantic import ValidationError

    from cmapkd.config import load_experiment
    from cmapkd.config.paper import PaperConfig
    from cmapkd.paper.experiment import paper_context
    from cmapkd.workflow import figure_params, paper_params

    experiment = load_experiment(Path(__file__).parents[2] / "config" / "mini.yaml")
    shown = paper_context(experiment, Path("results"))
    runs = {run.name: run for run in shown.runs}
    assert runs["CMAPKD"].level_temperature == 0.1
    assert (runs["KD"].level_temperature, runs["KD"].deploys_teacher, runs["PromptKD"].deploys_teacher) == (None, False, True)
    assert shown.all_figures == (*(f"figure{number}" for number in range(1, 7)), "curves", "pareto")
    for change in ({"analysis_run": "CMAPKD-E"}, {"appendix_figures": ()}):
        assert paper_params(dataclasses.replace(shown, **change)) != paper_params(shown)  # type: ignore[arg-type]
    assert len({figure_params(shown, name)["code"] for name in FIGURES}) == len(FIGURES)
    with pytest.raises(ValidationError, match="appendix_figures names 'figure3'"):
        PaperConfig(appendix_figures=("figure3",))
    with pytest.raises(ValidationError, match="no figure is called 'parato'"):
        PaperConfig(appendix_figures=("parato",))
