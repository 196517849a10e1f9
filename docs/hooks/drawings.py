"""Drawings of the method, made in the build from the configuration of the kept experiment: ``<!-- drawing: figure1 -->``.

They are the paper's own figures. Where there is no LaTeX, the page says so instead.
"""

from __future__ import annotations

import posixpath
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cmapkd.config import load_experiment
from cmapkd.paper.build import build_figure
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.figures import DRAWINGS, draw_tikz
from cmapkd.paper.html import escape

EXPERIMENT = Path(__file__).parents[1] / "results" / "mini" / "experiment.yaml"
MISSING = "*This drawing is made by LaTeX, which was not there when this site was built: `{command}` makes it.*"
_MARK = re.compile(r"^<!-- drawing: (\w+) -->$", flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, picture in draw(EXPERIMENT).items():
        files.append(File.generated(config, _uri(name), content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def shown(match: re.Match[str]) -> str:
        name = match[1]
        file = files.get_file_from_path(_uri(name))
        if file is None:
            return MISSING.format(command=f"cmapkd paper figure {name} --experiment config/mini.yaml")
        figure = draw_tikz(name, paper_context(load_experiment(EXPERIMENT), EXPERIMENT.parents[1]))
        address = posixpath.relpath(file.dest_uri, posixpath.dirname(page.file.dest_uri) or ".")
        image = f'<img src="{address}" alt="{escape(figure.title)}">'
        return f"<figure>{image}<figcaption>{escape(figure.caption)}</figcaption></figure>"

    return _MARK.sub(shown, markdown)


def draw(experiment: Path) -> dict[str, bytes]:
    """The drawings of an experiment as PNG, by name; none where there is no LaTeX."""
    pictures = {}
    with tempfile.TemporaryDirectory() as folder:
        context = replace(paper_context(load_experiment(experiment), experiment.parents[1]), results=Path(folder))
        for name in DRAWINGS:
            build_figure(name, context)
            if (picture := context.paper / f"{name}.png").is_file():
                pictures[name] = picture.read_bytes()
    return pictures


def _uri(name: str) -> str:
    return f"assets/{name}.png"
