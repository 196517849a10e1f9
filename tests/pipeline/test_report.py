"""The HTML report of the finished smoke experiment, made without a network and opened in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipeline.browser import Browser, find_browser
from tests.pipeline.conftest import Checkout

PAGE = "data:text/html"  # how the report addresses the pages in it
PDFS = ("paper", "manuscript")  # where LaTeX is
ROWS = "[...document.querySelectorAll('nav tbody tr')]"


@pytest.fixture(scope="module")
def report(finished: Checkout) -> Path:
    """`snakemake --report` with every request to another machine going nowhere."""
    path = finished.home / "report.html"
    dead = "http://127.0.0.1:9"  # the port where nothing answers
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(name, dead)
        for name in ("no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        finished.snakemake("--report", str(path))
    return path


@pytest.fixture(scope="module")
def browser(report: Path) -> Iterator[Browser]:
    """The report in a browser that reaches no network; one browser for all tests, as starting it costs the most."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: scripts/setup-browser.sh installs it where it may")
    with Browser(program) as started:
        started.open(report)
        yield started


def category(browser: Browser, name: str) -> list[str]:
    """Go home and into a category; the entries listed there."""
    browser.run("app.setView({navbarMode: 'menu', content: 'rulegraph'})")
    browser.click(name)
    browser.wait(f"{ROWS}.length > 0")
    return [" ".join(row.split()) for row in browser.run(f"{ROWS}.map(row => row.innerText)")]


def show(browser: Browser, entry: str) -> None:
    """Press the eye beside an entry."""
    found = f"{ROWS}.find(row => row.innerText.split(/\\s+/).join(' ').trim() === {json.dumps(entry)})"
    browser.run(f"{found}.querySelector('td:last-child a').click()")


def keep(browser: Browser, name: str) -> None:
    """Keep a screenshot in CMAPKD_SCREENSHOTS, for a person to look at."""
    if folder := os.environ.get("CMAPKD_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(folder) / f"{name}.png")


def test_the_report_starts_with_what_it_is_and_its_categories(browser: Browser) -> None:
    browser.wait("document.querySelector('#app').innerText.includes('Experiment smoke')")
    browser.wait("document.querySelectorAll('.vega-embed svg, .vega-embed canvas').length > 0")  # the graph of the rules
    links = browser.run("[...document.querySelectorAll('nav a')].map(link => link.textContent.trim())")
    expected = ["Algorithms", "Data", "Figures", "Logs", "Paper", "Runs", "Tables"]
    assert [link for link in links if link in expected] == expected
    keep(browser, "start")
    assert browser.errors == []


def test_every_table_opens_and_shows_its_numbers(browser: Browser, finished: Checkout) -> None:
    entries = category(browser, "Tables")
    parts = [f"Table {number}" for number in (0, 1, 2, 3, 4, 5, "A1", "A2", "A3")]
    names = {"Table 0": "glance", "Table A1": "significance", "Table A2": "levels", "Table A3": "alsn"}
    assert [entry.rpartition(entry.removeprefix(part))[0] for entry, part in zip(entries, parts, strict=True)] == parts
    for entry, part in zip(entries, parts, strict=True):
        show(browser, entry)
        browser.wait(f"document.title.startsWith({json.dumps(part + ': ')})", PAGE)
        name = names.get(part, part.lower().replace(" ", ""))
        content = json.loads((finished.home / f"paper/{name}.json").read_text())
        labels = browser.run("[...document.querySelectorAll('tbody th')].map(cell => cell.textContent)", PAGE)
        assert {row["label"] for row in content["rows"]} <= set(labels)
    show(browser, next(entry for entry in entries if entry.startswith("Table 2 ")))
    browser.wait("document.title.startsWith('Table 2: ')", PAGE)
    cells = json.loads((finished.home / "paper/table2.json").read_text())["cells"]
    for row in ("Teacher", "KD", "CMAPKD"):
        cell = f'document.querySelector(\'td[data-row="{row}"][data-column="i2t_r1"]\')'
        assert browser.run(f"{cell}.textContent", PAGE) == f"{cells[row]['i2t_r1']['value']:.1f}"
        assert f"metrics/{row}/0.json: metrics / retrieval" in browser.run(f"{cell}.title", PAGE)
    keep(browser, "table")
    assert browser.errors == []


def test_a_figure_is_drawn(browser: Browser, finished: Checkout) -> None:
    entries = category(browser, "Figures")
    drawings = shutil.which("pdflatex") is not None
    numbers = [*([1, 2] if drawings else []), 3, 4, 5, 6, "A1", "A2"]
    for number in numbers:
        show(browser, next(entry for entry in entries if entry.startswith(f"Figure {number} ")))
        browser.wait(f"document.title.startsWith('Figure {number}: ') && document.images.length === 1", PAGE)
        assert browser.wait("document.images[0].naturalWidth", PAGE) > 1000
    show(browser, next(entry for entry in entries if entry.startswith("Figure 3 ")))
    browser.wait("document.title.startsWith('Figure 3: ')", PAGE)
    assert browser.wait("document.images.length === 1 && document.images[0].naturalWidth", PAGE) == 1464
    shown = browser.run("document.images[0].getBoundingClientRect().toJSON()", PAGE)
    assert shown["width"] > 400
    assert shown["height"] > 150
    colours = (
        "(image => { const canvas = document.createElement('canvas'); canvas.width = canvas.height = 200;"
        "const paper = canvas.getContext('2d'); paper.drawImage(image, 0, 0, 200, 200);"
        "return new Set(new Uint32Array(paper.getImageData(0, 0, 200, 200).data.buffer)).size })(document.images[0])"
    )
    assert browser.run(colours, PAGE) > 50, "the picture is empty"
    keep(browser, "figure")
    assert browser.errors == []


def test_every_run_has_a_page_with_curves_and_measurements(browser: Browser, finished: Checkout) -> None:
    entries = category(browser, "Runs")
    assert sorted(entries) == ["CMAPKD 0", "KD 0", "Scratch 0", "Teacher 0", "w/o ALSN (uniform) 0"]
    show(browser, "CMAPKD 0")
    browser.wait("document.title === 'CMAPKD, seed 0' && document.querySelectorAll('svg polyline').length > 4", PAGE)
    metrics = json.loads((finished.home / "metrics/CMAPKD/0.json").read_text())
    text = browser.run("document.body.innerText", PAGE)
    addresses = [stage["address"] for stage in metrics["provenance"]["stages"]]
    assert addresses
    assert [address for address in addresses if address not in text] == []
    value = metrics["metrics"]["retrieval"]["emoji_scenes/test_render"]["all"]["mean_recall"]
    cell = "document.querySelector('td[title^=\"retrieval / emoji_scenes/test_render / all / mean_recall = \"]')"
    assert float(browser.run(f"{cell}.title", PAGE).partition(" = ")[2]) == value
    assert float(browser.run(f"{cell}.textContent", PAGE)) == pytest.approx(value, rel=1e-3)
    keep(browser, "run")
    assert browser.errors == []


def test_data_logs_and_the_paper_are_there(browser: Browser, finished: Checkout) -> None:
    entries = category(browser, "Data")
    assert "emoji_scenes all of it" in entries
    show(browser, "emoji_scenes test_render")
    assert browser.wait("document.querySelector('#app img[src^=\"data:image/png\"]')?.naturalWidth") > 200
    show(browser, "emoji_scenes all of it")
    browser.wait("document.body.innerText.includes('overlap_with_train')", PAGE)
    entries = category(browser, "Logs")
    stages = {path.name for path in (finished.home / "stages").iterdir()}
    assert sum(entry.startswith("training ") for entry in entries) == len(stages)
    assert sum(entry.startswith("evaluation ") for entry in entries) == 5
    show(browser, "training KD, seed 0: train")
    browser.wait("document.body.innerText.includes('KD, seed 0: train: done, 8 steps')", PAGE)
    entries = category(browser, "Paper")
    files = {"numbers.tex", "paper.tex", *(path.name for path in (finished.home / "paper").glob("*.pdf") if path.stem in PDFS)}
    assert {entry.split()[0] for entry in entries} == files
    assert browser.errors == []


def test_pages_are_as_they_are_in_the_results(browser: Browser, finished: Checkout) -> None:
    """What the report holds is what the results folder holds: all of it, byte for byte."""
    given = browser.run("Object.fromEntries(Object.entries(results).map(([path, entry]) => [path, entry.data_uri.length]))")
    pages = [
        *finished.home.glob("report/**/*.html"),
        *finished.home.glob("paper/*.html"),
        *finished.home.glob("contact/*/*.png"),
    ]
    assert len(pages) > 20
    for page in pages:
        length = 4 * ((page.stat().st_size + 2) // 3)
        assert 0 <= given[str(page.relative_to(finished.root))] - length < 200, page
        assert given[str(page.relative_to(finished.root))] < 2 * 1024**2, f"{page}: browsers refuse addresses that long"
    assert {Path(path).name for path in given} >= {"table2.tex", "figure3.pdf", "paper.tex"}


def test_mistakes_of_scripts_would_be_noticed(tmp_path: Path) -> None:
    """The tests above rely on it."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: scripts/setup-browser.sh installs it where it may")
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<title>bad</title><script>console.error('said so');"
        "setTimeout(() => { document.title = 'done'; undefinedthing() })</script>"
        '<script src="https://cdn.example/vega.js"></script>'
    )
    with Browser(program) as started:
        started.open(bad)
        started.wait("document.title === 'done'")
        started.run("1")
        told = " ".join(started.errors)
    assert "said so" in told
    assert "undefinedthing is not defined" in told
    assert "cdn.example/vega.js" in told


def test_editing_a_page_makes_those_pages_again_and_nothing_else(
    finished: Checkout, edit: Callable[[str, str, str], None]
) -> None:
    edit("cmapkd/paper/curves.py", "\n\n\ndef ", "\n\n\nEDITED = 1\n\n\ndef ")
    names = ("Teacher", "Scratch", "KD", "CMAPKD", "w-o-ALSN-uniform")
    assert sorted(finished.planned()) == sorted(f"Page of {name}, seed 0" for name in names)
