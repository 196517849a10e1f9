"""Pages for a browser: the numbers, marks and parents of the tables; runs, curves, logs, data sets; nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_metrics import REPOSITORY, RUNS, arrays_of, context, write_all, write_metrics

from cmapkd.config import load_experiment
from cmapkd.errors import UserError
from cmapkd.files import read_json, write_json
from cmapkd.paper.build import build_figure, build_table, write_figure_page
from cmapkd.paper.context import PaperContext
from cmapkd.paper.curves import nice_ticks, render_curves, stages_of
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.html import LIMIT, nested, page
from cmapkd.paper.latex import best_and_second
from cmapkd.paper.log_page import LONGEST, logs_of, render_data_page, render_log_page, write_log_pages
from cmapkd.paper.picture import picture_of
from cmapkd.paper.run_page import render_run_page
from cmapkd.plan import TEACHER, Plan, make_plan

VOID = {"meta", "img", "br", "line", "polyline", "circle"}


class Document(HTMLParser):
    """A page's cells (attributes and text) and all its attributes; every element must be closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[tuple[dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "td":
            self.cells.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if "td" in self._open:
            self.cells[-1] = (self.cells[-1][0], self.cells[-1][1] + data)


def own_cells(document: Document) -> dict[tuple[str, str], tuple[dict[str, str | None], str]]:
    """Cells of the table itself by row and column."""
    return {(c["data-row"], c["data-column"]): (c, text) for c, text in document.cells if "data-row" in c}  # type: ignore[misc]


def loads_nothing(text: str) -> bool:
    return all(
        (value or "").startswith("data:") for _, name, value in Document(text).attributes if name in ("src", "href")
    ) and not re.search(r"<script|@import|url\(", text)


# ---- tables ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> PaperContext:
    noted = replace(RUNS[1], note="adapted <to> CLIP & so on")
    made = context(tmp_path_factory.mktemp("pages"), seeds=(0, 1, 2), runs=(RUNS[0], noted, RUNS[2]), appendix=("levels",))
    write_all(made)
    return made


def test_a_table_page_shows_every_number_as_printed_with_mark_and_parents(setting: PaperContext) -> None:
    table = build_table("table2", setting)
    text = (setting.paper / "table2.html").read_text()
    cells = own_cells(Document(text))
    content = read_json(setting.paper / "table2.json")
    marks = best_and_second(table)
    expected = {(row, column) for row, columns in content["cells"].items() for column in columns if row != "caption"}
    assert cells.keys() == expected
    for (row, column), (attributes, shown) in cells.items():
        cell = content["cells"][row][column]
        value, _, deviation = shown.partition(" ± ")
        assert float(value) == pytest.approx(cell["value"], abs=0.0501)
        assert (float(deviation) == pytest.approx(cell["std"], abs=0.0501)) if cell["std"] is not None else not deviation
        assert attributes.get("class", "") == marks.get((row, column), "")
        title = attributes["title"] or ""
        assert f"(n = {cell['n']})" in title
        for parent in cell["parents"]:
            assert f"{parent['file']}: {' / '.join(parent['keys'])}" in title
            assert parent["sha256"] in text
        assert repr(cell["value"]) in text
    assert {"best", "second"} <= {attributes.get("class") for attributes, _ in cells.values()}


def test_notes_captions_and_latex_are_there_and_escaped(setting: PaperContext) -> None:
    table = build_table("table2", setting)
    text = (setting.paper / "table2.html").read_text()
    words = Document(text).words
    assert f"Table 2: {table.title}" in words
    assert table.caption in words
    assert "* adapted <to> CLIP & so on" in words
    assert "adapted <to>" not in text
    assert (setting.paper / "table2.tex").read_text() in words
    assert loads_nothing(text)
    assert "Table A1" in (build_table("levels", setting) and (setting.paper / "levels.html").read_text())


def test_planned_numbers_stand_apart_and_say_so(tmp_path: Path) -> None:
    made = context(tmp_path, planned=True, appendix=("planned",))
    write_all(made)
    build_table("planned", made)
    text = (made.paper / "planned.html").read_text()
    cells = own_cells(Document(text))
    planned = {key for key, (attributes, _) in cells.items() if attributes.get("class") == "planned"}
    content = read_json(made.paper / "planned.json")["cells"]
    assert planned == {(row, column) for row in content for column, cell in content[row].items() if cell.get("planned")}
    assert planned
    head = text.index("not measured</h3>")
    places = {key: text.index(f'data-row="{key[0]}" data-column="{key[1]}"') for key in cells}
    assert all((places[key] > head) == (key in planned or "planned:" in key[1]) for key in cells)


def test_names_of_runs_cannot_break_a_page(tmp_path: Path) -> None:
    name = '<img src=x onerror="alert(1)">'
    made = context(tmp_path, runs=(replace(RUNS[0], name=name), RUNS[1]))
    write_all(made)
    build_table("table2", made)
    text = (made.paper / "table2.html").read_text()
    assert loads_nothing(text)
    assert name in Document(text).words


# ---- figures ---------------------------------------------------------------------------------------------------------------


def test_a_figure_page_holds_the_picture_of_the_pdf(setting: PaperContext) -> None:
    figure = build_figure("figure3", setting)
    text = (setting.paper / "figure3.html").read_text()
    document = Document(text)
    (address,) = [value for tag, name, value in document.attributes if (tag, name) == ("img", "src")]
    picture = base64.b64decode((address or "").removeprefix("data:image/png;base64,"))
    assert picture == (setting.paper / "figure3.png").read_bytes()
    image = np.asarray(Image.open(io.BytesIO(picture)))
    assert image.shape[1] == 1464
    assert (image[0, 0] == 255).all()
    assert image.std() > 10, "the picture is empty"
    assert figure.caption in document.words
    assert all(parent.sha256 in document.words for parent in figure.parents)
    assert loads_nothing(text)


def test_a_figure_that_could_not_be_drawn_still_has_a_page(setting: PaperContext) -> None:
    figure = build_figure("figure3", setting)
    (setting.paper / "figure3.pdf").unlink()
    write_figure_page(figure, setting, latex=r"\draw (0, 0) -- (1 < 2);")
    words = Document((setting.paper / "figure3.html").read_text()).words
    assert "there was no LaTeX" in words
    assert r"\draw (0, 0) -- (1 < 2);" in words
    assert figure.caption in words
    assert not (setting.paper / "figure3.png").exists(), "an older picture may show other numbers"


def test_a_picture_has_the_pages_colours_and_gets_smaller_when_it_must(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2))
    figure.add_axes((0.25, 0.25, 0.5, 0.5)).axis("off")
    figure.axes[0].imshow(np.random.default_rng(0).random((150, 300, 3)), aspect="auto")
    figure.add_artist(__import__("matplotlib").patches.Rectangle((0, 0), 0.2, 1, color="red"))
    figure.savefig(tmp_path / "a.pdf")
    large = picture_of(tmp_path / "a.pdf", width=900)
    image = Image.open(io.BytesIO(large))
    assert image.size == (900, 450)
    assert image.getpixel((50, 200)) == (255, 0, 0)
    assert image.getpixel((890, 5)) == (255, 255, 255)
    assert picture_of(tmp_path / "a.pdf", width=900) == large
    small = picture_of(tmp_path / "a.pdf", width=900, largest=len(large) - 1)
    assert Image.open(io.BytesIO(small)).size[0] == 600
    with pytest.raises(ValueError, match="page 2 cannot be drawn"):
        picture_of(tmp_path / "a.pdf", page=1)
    (tmp_path / "b.pdf").write_text("no PDF")
    with pytest.raises(ValueError, match="cannot be drawn"):
        picture_of(tmp_path / "b.pdf")


# ---- pages ------------------------------------------------------------------------------------------------------------------

leaves = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6), st.text(max_size=12), st.none(), st.booleans())
names = st.text(min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.dictionaries(names, leaves, max_size=4), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12
    )
)
def test_nested_numbers_are_all_shown_once_under_their_keys(content: dict[str, Any]) -> None:
    def paths(value: Any, above: tuple[str, ...] = ()) -> list[str]:
        if not isinstance(value, dict):
            return [" / ".join(above)]
        return [path for key, entry in value.items() for path in paths(entry, (*above, key))]

    document = Document(nested(content))
    titles = [attributes["title"] for attributes, _ in document.cells if "title" in attributes]
    found = sorted(re.sub(r" = -?[\d.einf+-]+$", "", title or "") if "=" in (title or "") else title or "" for title in titles)
    expected = sorted(re.sub(r" = -?[\d.einf+-]+$", "", path) if "=" in path else path for path in paths(content))
    assert found == expected


def test_a_page_that_is_too_large_leaves_out_what_it_can() -> None:
    part = "x" * (LIMIT // 2)
    text = page("Title", "needed", optional=["first" + part, "second" + part])
    assert "needed" in text
    assert "firstx" in text
    assert "secondx" not in text
    assert "too large with 1 more" in text
    assert "too large" not in page("Title", "needed", optional=["first"])
    with pytest.raises(ValueError, match="cannot be opened from a report"):
        page("Title", part * 2)


# ---- curves -----------------------------------------------------------------------------------------------------------------


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_ticks_are_round_and_span_the_values(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-9 * abs(low):
        return  # no room between neighbouring floats
    ticks = nice_ticks(low, high)
    steps = np.diff(ticks)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * (high - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - round_) for round_ in (1, 2, 5, 10)) < 1e-3 + 1e-6 * abs(low) / width
    assert np.ptp(steps) <= 1e-6 * steps[0] + 4 * np.spacing(max(abs(low), abs(high)))


def test_curves_lie_where_the_values_say() -> None:
    loss = np.array([4.0, 3.0, np.nan, 1.0], np.float32)
    step = np.array([0, 10, 20, 30], np.float32)
    arrays = {"curves/1/fine/step": step[:1], "curves/1/fine/loss": loss[:1]}
    arrays |= {"curves/0/coarse/step": step, "curves/0/coarse/loss": loss, "curves/0/coarse/data_seconds": step, "other": step}
    stages = stages_of(arrays)
    assert [name for name, _ in stages] == ["coarse", "fine"]
    text = render_curves(stages)
    assert text.count("<svg") == 1, "neither steps nor waiting times are curves"
    (line,) = re.findall(r'<polyline points="([^"]+)"', text)
    points = np.array([point.split(",") for point in line.split()], float)
    assert len(points) == 3  # without the one that is not a number
    x, y = points.T
    assert (x[1] - x[0]) * 2 == pytest.approx(x[2] - x[1], abs=0.2)  # steps 0, 10, 30
    assert (y[1] - y[0]) * 2 == pytest.approx(y[2] - y[1], abs=0.2)  # losses 4, 3, 1: down is down
    assert y[2] > y[0]
    ((cx, cy),) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)
    assert float(cy) == pytest.approx(y[0], abs=0.1)  # the second stage starts at 4 again
    assert float(cx) == pytest.approx(x[2] + (x[1] - x[0]), abs=0.2)  # and one block after the first
    assert render_curves([]) == ""


# ---- runs, logs, data -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, PaperContext]:
    """Made-up results of the smoke experiment's CMAPKD run."""
    experiment = load_experiment(REPOSITORY / "config/smoke.yaml")
    plan = make_plan(experiment)
    setting = paper_context(experiment, tmp_path_factory.mktemp("results"), Path("config/smoke.yaml"))
    curves = {f"curves/0/coarse/{name}": np.linspace(3, 1, 5, dtype=np.float32) for name in ("step", "loss", "task")}
    arrays = {name: values for name, values in arrays_of(23.0, 0, alsn=True).items() if not name.startswith("curves/")}
    write_metrics(setting, "CMAPKD", 0, 23.456789, alsn=True, arrays=arrays | curves)
    stages = [
        {
            "address": address,
            "label": plan.stages[address].label,
            "summary": {"steps": 12, "last": {"loss": 1.5}, "nan_retries": [{"step": 7, "restarted_at": 4, "lr_factor": 0.5}]},
            "provenance": {"commit": "c0ffee" * 7, "dirty": True, "wall_seconds": 90.0, "started": "2024-01-02T03:04:05+00:00"},
        }
        for address in plan.run("CMAPKD/0").stages
    ]
    write_json(setting.results / "runs/CMAPKD/0/run.json", {"run": "CMAPKD", "seed": 0, "stages": stages})
    return plan, setting


def test_a_run_page_shows_what_was_configured_trained_and_measured(smoke: tuple[Plan, PaperContext]) -> None:
    plan, setting = smoke
    text = render_run_page(plan, setting, "CMAPKD/0")
    document = Document(text)
    for word in (
        "CMAPKD, seed 0", "progressive", "mini-student", *plan.run("CMAPKD/0").stages, "c0ffeec0ffee with uncommitted changes",
        "again from step 4 with rates x 0.5", "2024-01-02 03:04:05", "da7a" * 16, "cmapkd evaluate CMAPKD 0", "temperature",
        "--force --configfile config/smoke.yaml --config ", "retrieval/emoji_scenes/test_render/margin", "1000 × 4",
    ):  # fmt: skip
        assert word in document.words, word
    assert text.count("<svg") == 2
    title = "retrieval / emoji_scenes/test_render / all / i2t_r1 = "
    file = read_json(setting.metric_file("CMAPKD", 0))
    value = file["metrics"]["retrieval"]["emoji_scenes/test_render"]["all"]["i2t_r1"]
    (shown,) = [text for attributes, text in document.cells if (attributes.get("title") or "").startswith(title)]
    assert float(shown) == pytest.approx(value, rel=1e-3)
    assert f'{title}{value!r}"' in text
    assert loads_nothing(text)
    assert text == render_run_page(plan, setting, "CMAPKD/0")


def test_a_run_page_refuses_another_runs_history(smoke: tuple[Plan, PaperContext]) -> None:
    plan, setting = smoke
    path = setting.results / "runs/CMAPKD/0/run.json"
    before = path.read_text()
    write_json(path, {**json.loads(before), "stages": json.loads(before)["stages"][1:]})
    with pytest.raises(UserError, match="is of other stages than the experiment has now"):
        render_run_page(plan, setting, "CMAPKD/0")
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        render_run_page(plan, setting, "CMAPKD/0")
    path.write_text(before)
    with pytest.raises(UserError, match="is missing"):
        render_run_page(plan, setting, "KD/0")


def test_every_job_behind_the_metrics_has_a_page_of_its_log(smoke: tuple[Plan, PaperContext], tmp_path: Path) -> None:
    plan, _ = smoke
    (tmp_path / "logs/train").mkdir(parents=True)
    address = plan.run("KD/0").stages[0]
    (tmp_path / f"logs/train/{address}.log").write_text("  1/8\r  8/8 <end>\nKD: done\n")
    (tmp_path / "benchmarks/train").mkdir(parents=True)
    (tmp_path / f"benchmarks/train/{address}.jsonl").write_text('{"s": 61.5, "max_rss": 925.3, "io_in": 3, "cpu_time": "-"}\n')
    written = write_log_pages(plan, tmp_path, tmp_path / "pages")
    assert {f"{path.parent.name}/{path.stem}" for path in written} == logs_of(plan).keys()
    assert {path.stem for path in written if path.parent.name == "training"} == plan.stages.keys()
    assert {path.stem for path in written if path.parent.name == "evaluation"} == {
        f"{name}-0" for name in (TEACHER, "Scratch", "KD", "CMAPKD", "w-o-ALSN-uniform")
    }
    words = Document((tmp_path / f"pages/training/{address}.html").read_text()).words
    assert "KD, seed 0: train" in words
    assert "  8/8 <end>\nKD: done" in words
    assert "1/8" not in words
    assert "61.5" in words
    assert "925.3" in words
    assert "no longer there" in (tmp_path / "pages/evaluation/KD-0.html").read_text()


def test_of_a_long_log_the_end_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"line {number}\n" for number in range(40_000)))
    text = render_log_page("A job", log, None)
    assert "line 39999" in text
    assert "line 10\n" not in text
    assert f"The last {LONGEST:,} of" in text
    log.write_text("")
    log.with_name(f"{log.stem}.attempt-1.log").write_text("the first one")
    log.with_name(f"{log.stem}.attempt-10.log").write_text("the tenth one")
    log.with_name(f"{log.stem}.attempt-2.log").write_text("the second one")
    text = render_log_page("A job", log, None)
    assert [text.index(f"the {which} one") for which in ("tenth", "second", "first")] == sorted(
        text.index(f"the {which} one") for which in ("tenth", "second", "first")
    )
    assert "Attempt 10" in text
    assert "It printed nothing" in render_log_page("A job", log, tmp_path / "missing.jsonl")


def test_a_data_page_shows_counts_leaks_and_licences() -> None:
    split = {"samples": 7, "captions": 35, "strata": {"simple": 3, "complex": 4}, "shards": [{"bytes": 100}, {"bytes": 23}]}
    sources = [{"name": "@x/noto", "version": "1.2", "licence": "Apache-2.0", "sha256": "ab" * 32}]
    leakage = {"overlap_with_train": {"test": {"identical_pictures": 0}, "validation": {"identical_pictures": 2}}}
    text = render_data_page(
        {"dataset": "emoji", "splits": {"test": split}, "sources": sources, "leakage": leakage, "config": {}}
    )
    document = Document(text)
    values = [text for _, text in document.cells]
    assert values[2:9] == ["7", "35", "3", "4", "2", "123", "0"]
    assert "Apache-2.0" in values
    assert ({"title": "overlap_with_train / validation / identical_pictures"}, "2") in document.cells
    assert "emoji" in document.words
