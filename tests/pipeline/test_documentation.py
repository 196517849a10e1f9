"""The documentation as a site: built strictly and without a network, opened in a browser from its folder, searched, clicked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.pipeline.browser import Browser, find_browser
from tests.pipeline.conftest import REPOSITORY

PAGES = ("index", "tutorial", "trust", "troubleshooting", "methods/index", "methods/cmapkd", "data/index", "cluster")
PAGES += ("results/mini/index", "results/mini/runs", "configuration", "commands", "contributing", "reference/cmapkd.objectives")
DEAD = "http://127.0.0.1:9"  # the port where nothing answers


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with every request to another machine going nowhere."""
    out = tmp_path_factory.mktemp("site")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), DEAD)
    environment = {**os.environ, **proxies, "PYTHONPATH": str(REPOSITORY), "PATH": programs, "NO_MKDOCS_2_WARNING": "1"}
    command = ["mkdocs", "build", "-q", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_no_page_names_a_folder_of_the_machine(site: Path) -> None:
    pages = [path for path in site.rglob("*") if path.suffix in (".html", ".json", ".xml")]
    assert len(pages) > 50
    assert [str(path) for path in pages if str(REPOSITORY).encode() in path.read_bytes()] == []


@pytest.fixture(scope="module")
def browser(site: Path) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: scripts/setup-browser.sh installs it where it may")
    with Browser(program) as started:
        yield started


class Addresses(HTMLParser):
    """What a page loads by itself, where it leads, and the names of its places."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if "id" in given:
            self.places.add(given["id"])
        if tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(given["href"])
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])


def test_pages_load_nothing_from_elsewhere_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: Addresses(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    del pages[site / "404.html"]  # its addresses are from the root of a server
    assert len(pages) > 40
    lost, foreign = [], []
    for path, found in pages.items():
        foreign += [f"{path.relative_to(site)}: {address}" for address in found.loaded if re.match(r"(https?:)?//", address)]
        for link in (*found.links, *found.loaded):
            if re.match(r"[a-z]+:|//", link):
                continue
            file, _, place = link.partition("#")
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            known = target.is_file() and (not place or target not in pages or place in pages[target].places)
            if not known and not (place.startswith("__") or link in ("#", ".", "./")):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert foreign == []
    assert lost == []


def test_formulas_are_mathml_and_no_scripts_are_needed_for_them(site: Path) -> None:
    for name in ("cmapkd", "kd", "clip_kd"):
        text = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in text
        assert "arithmatex" not in text
    assert "MathJax" not in "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))


def test_results_lead_to_the_runs_behind_them(site: Path) -> None:
    text = (site / "results" / "mini" / "index.html").read_text(encoding="utf-8")
    table = json.loads((REPOSITORY / "docs/results/mini/paper/table2.json").read_text())
    value = table["cells"]["CMAPKD"]["i2t_r1"]["value"]
    assert f'<a href="runs.html#CMAPKD-0" title="cmapkd trace table2 CMAPKD i2t_r1">{value:.1f}' in text
    cells = sum(len(columns) for row, columns in table["cells"].items() if row != "caption")
    assert text.count('title="cmapkd trace table2 ') == cells
    runs = (site / "results" / "mini" / "runs.html").read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "docs/results/mini/metrics").glob("*/*.json")):
        assert json.loads(path.read_text())["provenance"]["stages"][-1]["address"] in runs


def test_every_command_and_module_is_in_the_reference(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    for name in ("data-fetch", "train", "paper", "paper-keep", "trace", "config-check"):
        assert f'id="cmapkd-{name}"' in commands
    reference = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    for path in sorted((REPOSITORY / "cmapkd").rglob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            assert f'id="{module}"' in reference


@pytest.mark.parametrize("scheme", ["default", "slate"])
def test_pages_open_without_errors_in_both_schemes(browser: Browser, site: Path, scheme: str) -> None:
    for page in PAGES:
        browser.open(site / f"{page}.html")
        browser.run(f"document.body.setAttribute('data-md-color-scheme', {json.dumps(scheme)})")
        browser.run("Promise.all(document.getAnimations().map(one => one.finished)).then(() => true)")  # colours fade over
        broken = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
        assert browser.run(broken) == []
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.run(wide) <= 0, f"{page} has to be scrolled sideways"
        if folder := os.environ.get("CMAPKD_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            browser.screenshot(Path(folder) / f"docs-{page.replace('/', '-')}-{scheme}.png")
    assert browser.errors == []


def test_the_search_finds_a_message_from_a_folder(browser: Browser, site: Path) -> None:
    """Without a server and without a network: the search index is in a script, its worker in a frame."""
    browser.open(site / "index.html")
    browser.run("document.querySelector('#__search').click()")
    browser.run(
        "(field => { field.focus(); field.value = 'without getting on'; for (const name of ['input', 'keyup'])"
        " field.dispatchEvent(new Event(name, { bubbles: true })) })(document.querySelector('.md-search__input'))"
    )
    results = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.getAttribute('href'))"
    browser.wait(f"{results}.some(link => link.includes('troubleshooting.html'))")
    assert browser.errors == []
