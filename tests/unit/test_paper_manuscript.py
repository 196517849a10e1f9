"""The article: it compiles with all parts and with none, its references lead somewhere, its numbers are the experiment's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from config_examples import experiment
from synthetic_metrics import ABLATIONS, RUNS, context, write_all

from cmapkd.config import parse_experiment
from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.paper import build, manuscript
from cmapkd.paper.algorithms import ALGORITHMS
from cmapkd.paper.build import build_algorithm, build_document, build_figure, build_table
from cmapkd.paper.context import PaperContext
from cmapkd.paper.design import paper_design
from cmapkd.paper.manuscript import build_manuscript, missing_for_manuscript, sources

ARTICLE = Path(__file__).parents[2] / "paper" / "manuscript.tex"
TABLES = ("table1", "table2", "table3", "table4", "table5")
needs_lncs = pytest.mark.skipif(bool(missing_for_manuscript()), reason=f"no {', '.join(missing_for_manuscript())}")


def setting(directory: Path, **changes: object) -> PaperContext:
    """Made-up results of an experiment whose full method is that of the small example."""
    made = context(
        directory,
        runs=(*RUNS, *ABLATIONS),
        tables=TABLES,
        appendix=("levels",),
        figures=("figure1", "figure2", "figure3"),
        algorithms=tuple(ALGORITHMS),
        design=paper_design(parse_experiment(experiment())),
        manuscript=ARTICLE,
    )
    made = dataclasses.replace(made, **changes)  # type: ignore[arg-type]
    write_all(made)
    return made


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Logs of all LaTeX runs."""
    kept: list[str] = []
    read = build._log
    monkeypatch.setattr(build, "_log", lambda *given: kept.append(read(*given)) or kept[-1])
    return kept


def fonts(page: object) -> list[object]:
    """Fonts of a page and of the figures on it."""
    found, waiting = [], [page["/Resources"].get_object()]  # type: ignore[index]
    while waiting:
        resources = waiting.pop()
        found += (
            [font.get_object() for font in resources.get("/Font", {}).get_object().values()] if "/Font" in resources else []
        )
        inner = resources["/XObject"].get_object().values() if "/XObject" in resources else []
        waiting += [form.get_object()["/Resources"].get_object() for form in inner if "/Resources" in form.get_object()]
    return found


def embedded(font: object) -> bool:
    described = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font  # type: ignore[index,operator]
    return any(key.startswith("/FontFile") for key in described["/FontDescriptor"])


@needs_lncs
def test_the_article_with_all_parts(tmp_path: Path, logs: list[str]) -> None:
    import pypdf

    made = setting(tmp_path)
    for name in made.all_tables:
        build_table(name, made)
    for name in made.figures:
        build_figure(name, made)
    for name in made.algorithms:
        build_algorithm(name, made)
    build_document(made)
    logs.clear()
    assert build_manuscript(made)
    overfull = [float(points) for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt too", logs[-1])]
    assert max(overfull, default=0) <= 5
    assert "undefined" not in logs[-1].replace("Unable to redefine", "")
    pages = pypdf.PdfReader(made.paper / "manuscript.pdf").pages
    assert float(pages[0].mediabox.width) > 400
    text = " ".join(" ".join(page.extract_text().split()) for page in pages)
    assert "??" not in text
    parts = ("Table 1.", "Table 5.", "Table A1.", "Fig.1.", "Fig.2.", "Fig.3.", "Algorithm 1:", "Algorithm 2:", "References")
    for part in parts:
        assert part in text
    recall = {
        row: cells["mean_recall"]["value"]
        for row, cells in read_json(made.paper / "table2.json")["cells"].items()
        if row != "caption"
    }
    assert f"mean recall is {recall['CMAPKD']:.1f} for CMAPKD and {recall['Teacher']:.1f} for the teacher" in text
    listed = ", ".join(f"{recall[row]:.1f} ({row})" for row in ("Teacher", "Scratch", "KD", "CMAPKD"))
    assert f"mean recall is {listed}." in text
    used = [font for page in pages for font in fonts(page)]
    assert len(used) > 20
    assert all(embedded(font) for font in used)


@needs_lncs
def test_the_article_with_nothing_but_names(tmp_path: Path) -> None:
    import pypdf

    made = setting(tmp_path, tables=(), appendix=(), figures=(), algorithms=(), vqa=(), zeroshot=(), seeds=(0, 1))
    build_document(made)
    assert build_manuscript(made)
    text = " ".join(page.extract_text() for page in pypdf.PdfReader(made.paper / "manuscript.pdf").pages)
    assert "??" not in text
    assert "Numbers are means over 2 seeds" in " ".join(text.split())
    assert "Fig." not in text
    assert "Table " not in text
    assert "Further tables" not in text


@needs_lncs
def test_a_reference_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    article = tmp_path / "article.tex"
    article.write_text("\\documentclass{article}\n\\begin{document}\nSee \\ref{fig:none}.\n\\end{document}\n")
    made = setting(tmp_path, tables=(), appendix=(), figures=(), algorithms=(), manuscript=article)
    build_document(made)
    with pytest.raises(UserError, match="fig:none' on page 1 undefined"):
        build_manuscript(made)
    assert not (made.paper / "manuscript.pdf").exists()


def test_without_lncs_or_an_article_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = setting(tmp_path, figures=(), algorithms=())
    made.paper.mkdir(parents=True)
    for changed, missing in ((made, ["llncs.cls"]), (dataclasses.replace(made, manuscript=None), [])):
        monkeypatch.setattr(manuscript, "missing_for_manuscript", lambda found=missing: found)
        (made.paper / "manuscript.pdf").write_text("an older one")
        assert build_manuscript(changed) is False
        assert not (made.paper / "manuscript.pdf").exists()


def test_files_of_the_article(tmp_path: Path) -> None:
    assert [path.name for path in sources(setting(tmp_path))] == ["manuscript.tex", "references.bib"]
    with pytest.raises(UserError, match="there is no such file"):
        sources(setting(tmp_path, manuscript=tmp_path / "none.tex"))


def test_every_citation_is_in_the_references_and_the_other_way_round() -> None:
    cited = {key for group in re.findall(r"\\cite\{([^}]*)\}", ARTICLE.read_text()) for key in group.split(",")}
    assert cited == set(re.findall(r"^@\w+\{(\w+),", (ARTICLE.parent / "references.bib").read_text(), flags=re.MULTILINE))


def test_the_article_types_no_result() -> None:
    """Numbers with decimals are macros; what remains are bounds worked out in the text, and lengths."""
    body = ARTICLE.read_text().partition(r"\begin{document}")[2]
    assert re.findall(r"(?<![\d{=])\d+\.\d+", body) == ["0.11", "0.48"]
