"""Text of users in LaTeX, HTML, Markdown, figures, macros and folders: it is shown as it is, and commands nothing."""

from __future__ import annotations

import html
import shutil
import subprocess
import unicodedata
from pathlib import Path

import markdown
import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from cmapkd.evaluation.zeroshot import ClassPrompts, build_classifier
from cmapkd.files import slug
from cmapkd.paper.characters import LATEX, LATIN, unprintable
from cmapkd.paper.document import PREAMBLE
from cmapkd.paper.figures import tikz
from cmapkd.paper.figures.style import plain as in_figure
from cmapkd.paper.latex import escape, macro_key
from cmapkd.paper.markdown import markdown_table
from cmapkd.paper.markdown import plain as in_markdown
from cmapkd.workflow import as_label

HOSTILE = [
    r"\input{/etc/passwd}", r"\immediate\write18{touch x}", "^^5cinput{/etc/passwd}", "%&_#$~{}^", "a\\\n\\end{document}",
    "x`y'z\"", "--- ``q'' << >> ,, !` ?`", "<script>alert(1)</script>", "{run} %s $HOME", "\\\\ & \\hline",
]  # fmt: skip
LATEX_MISSING = shutil.which("pdflatex") is None


def typeset(preamble: str, body: str, folder: Path) -> str:
    """Typeset a document and return its text."""
    (folder / "x.tex").write_text(preamble + body + "\\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "x.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Missing character" not in (folder / "x.log").read_text(errors="replace")
    from pypdf import PdfReader

    return "\n".join(page.extract_text() for page in PdfReader(folder / "x.pdf").pages)


@pytest.mark.skipif(LATEX_MISSING, reason="no pdflatex here")
@pytest.mark.parametrize("preamble", [PREAMBLE + "\\begin{document}\n", tikz.PREAMBLE + "\\fontfamily{phv}\\selectfont\n"])
def test_every_character_that_is_accepted_is_typeset(preamble: str, tmp_path: Path) -> None:
    accepted = [chr(code) for code in range(0x20, 0x2500) if unprintable(chr(code)) is None]
    assert len(accepted) > 350
    typeset(preamble, "\n\n".join(f"\\mbox{{{escape(character)}}}" for character in accepted), tmp_path)


@pytest.mark.skipif(LATEX_MISSING, reason="no pdflatex here")
def test_hostile_text_is_typeset_as_text(tmp_path: Path) -> None:
    others = ["模型", "😀 run", "a\u202eb", "a\x07b", "e\u0301", "ﷺ", "\u200b", "\ud800", "\U0010ffff"]
    text = typeset(PREAMBLE + "\\begin{document}\n", "\n\n".join(escape(name) for name in HOSTILE + others), tmp_path)
    assert "root:x" not in text and not (tmp_path / "x").exists()
    flat = text.replace(" ", "")
    for shown in (r"\input{/etc/passwd}", "^^5cinput", "%&_#$~{}^", "---", "[U+6A21]", "[U+202E]", "{run}%s$HOME"):
        assert shown in flat, shown


def test_what_is_accepted_and_what_is_not() -> None:
    for name in ("CMAPKD (ours)", "w/o ALSN, λ = 0.5", "modèle → élève", "Łódź", "10⁻³ × 2", "a_b %", "O'Brien & Co."):
        assert unprintable(name) is None, name
    for character in LATIN:
        assert unicodedata.normalize("NFC", character) == character and character.isprintable()
    assert not set(LATEX) & set(LATIN)
    assert [escape(text) for text in ("a--b", "α→β", "a|b")] == ["a-{}-b", r"$\alpha$$\rightarrow$$\beta$", r"a\textbar{}b"]


def test_folders_and_macros_are_ascii_and_keep_what_they_were() -> None:
    known = {"w/o ALSN (uniform)": "w-o-ALSN-uniform", "CMAPKD": "CMAPKD", "a b": "a-b", "...": "run", "KD+": "KD"}
    spelled = {"modèle": "modele", "λ=0.5": "lambda-0.5", "αΒ": "alpha-Beta", "Łódź": "Lodz", "Ærø": "Aero", "模型": "run"}
    for name, folder in {**known, **spelled}.items():
        assert slug(name) == folder
        assert macro_key(name).isascii()


def markup(text: str) -> str:
    return markdown.markdown(text, extensions=["tables", "attr_list"])


MARKED = ["[c](javascript:alert(3))", "<img src=x onerror=alert(2)>", "a|b", "`code`", "**b** _i_", "{: #x }"]


@pytest.mark.parametrize("text", HOSTILE + MARKED)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    table = {
        "table": "table2", "title": text, "caption": text,
        "columns": [{"panel": text, "column": "c", "group": "", "header": text, "direction": "up", "decimals": 1}],
        "rows": [{"row": "r", "label": text}], "cells": {"r": {"c": {"value": 1.0, "std": None}}},
    }  # fmt: skip
    page = markup("\n".join(markdown_table(table)))
    for tag in ("<script", "<img", "<a ", "<code", "<em", "<b>"):
        assert tag not in page
    shown = html.unescape(page)
    flat = text.replace("\n", "; ")
    assert shown.count(flat) == 5, (flat, page)
    assert page.count("<td") == 2 and page.count("<th>") + page.count("<th ") == 2
    assert "\n" not in in_markdown(text)


@pytest.mark.parametrize("text", [r"$\frac$", "a$b$c", "_hidden", r"\$x$", "$", "{x}", "%s"])
def test_a_figure_shows_text_as_it_is(text: str, tmp_path: Path) -> None:
    with mpl.rc_context({"pdf.compression": 0}):
        canvas = Figure()
        axes = canvas.subplots()
        axes.plot([0, 1], label=in_figure(text))
        axes.set_title(in_figure(text))
        legend = axes.legend()
        canvas.savefig(tmp_path / "x.svg", metadata={"Date": None})
    assert [entry.get_text().strip() for entry in legend.get_texts()] == [text.replace("$", r"\$")]
    assert html.escape(text, quote=False) in (tmp_path / "x.svg").read_text()  # in the comment before its glyphs


def test_a_template_of_classes_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Model:
        def encode_text(self, texts: list[str], normalize: bool = True) -> object:
            import torch

            asked.extend(texts)
            return torch.ones(len(texts), 2)

    class Texts(list):  # type: ignore[type-arg]
        def to(self, device: object) -> Texts:
            return self

    templates = ("a {} {0.__class__} {", "{} %s")
    build_classifier(Model(), Texts, ClassPrompts(("x{y}",), templates), device="cpu")  # type: ignore[arg-type]
    assert asked == ["a x{y} {0.__class__} {", "x{y} %s"]


def test_a_label_of_the_report_is_no_pattern_of_snakemake() -> None:
    io = pytest.importorskip("snakemake.io")
    for text in ("{run}", "{unknown} x", "{run,.*}", "{{run}}", "{"):
        shown = io.apply_wildcards(as_label(text), {"run": "FOLDER"})
        assert shown.replace("\u2060", "") == text
