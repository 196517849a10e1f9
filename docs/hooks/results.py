"""Results that the repository keeps: tables whose every number leads to the run behind it, and a page of those runs.

The tables are rendered from the JSON that ``cmapkd paper keep`` copied, by the code that rendered the page for the repository;
only the links are added. A number's link goes to its first metric file on the page of runs; its tooltip is the command that
prints the whole chain.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cmapkd.config import load_experiment
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.markdown import code, markdown_table, plain

TITLE = "Results"
KEPT = Path(__file__).parents[1] / "results"
INTRODUCTION = """Every number of the tables below leads to the metric file that it was read from, and says on pointing at it
how to trace it. [What tracing, verifying and comparing do](../../trust.md)."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages of runs that mkdocs.yml does not name: those of further experiments."""
    section = next(section for section in config.nav or [] if TITLE in section)
    named = [uri for entry in section[TITLE] for uri in (entry.values() if isinstance(entry, dict) else [entry])]
    for home in kept():
        if (uri := f"results/{home.name}/runs.md") not in named:
            section[TITLE].append(uri)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for home in kept():
        files.append(File.generated(config, f"results/{home.name}/runs.md", content="\n".join(runs_page(home)) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    home = next((home for home in kept() if page.file.src_uri == f"results/{home.name}/README.md"), None)
    return markdown if home is None else "\n".join(results_page(home, markdown)) + "\n"


def kept() -> list[Path]:
    """Folders of ``docs/results/``, one for each experiment."""
    return sorted(path.parent for path in KEPT.glob("*/experiment.yaml"))


def results_page(home: Path, markdown: str) -> Iterator[str]:
    """The page as the repository has it, with the same tables, linked."""
    head, mark, _ = markdown.partition("\n## ")
    assert mark, f"{home}/README.md has no tables"
    yield from (head, "", INTRODUCTION)
    context = paper_context(load_experiment(home / "experiment.yaml"), KEPT)
    for name in context.all_tables:
        table = json.loads((home / "paper" / f"{name}.json").read_text(encoding="utf-8"))
        yield ""
        yield from markdown_table(table, lambda row, column, table=table: _link(home, table, row, column))  # type: ignore[misc]


def runs_page(home: Path) -> Iterator[str]:
    """Each metric file: when, where and by which code and data it was made."""
    yield from (
        f"# Runs behind `{home.name}`",
        "",
        "Where the numbers of [the tables](README.md) were read, one metric file each.",
    )
    digests = _digests(home)
    for path in sorted(home.glob("metrics/*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        made, name = content["provenance"], path.relative_to(home).as_posix()
        yield from ("", f"## {plain(content['run'])}, seed {content['seed']} {{ #{_anchor(name)} }}")
        yield from ("", "| what | value |", "|---|---|")
        facts = {
            "file": f"`docs/results/{home.name}/{name}`",
            "SHA-256": code(digests[name]) if name in digests else "no table names it",
            "evaluated by": f"{code(made['commit'])}{' with uncommitted changes' if made['dirty'] else ''}",
            "configuration": code(made["config_digest"]),
            "data": ", ".join(f"{plain(name)} {code(digest)}" for name, digest in made["data_digests"].items()),
            "machine": plain(content["metrics"].get("efficiency", {}).get("device", made["host"])),
            "evaluated at": f"{plain(made['started'])}, {made['wall_seconds']:g} s",
            "command": code(made["command"]),
            "versions": ", ".join(plain(f"{package} {version}") for package, version in made["versions"].items()),
        }
        yield from (f"| {key} | {value} |" for key, value in facts.items())
        yield from ("", "| trained in | what | commit | began | seconds |", "|---|---|---|---|---|")
        for stage in made["stages"]:
            cells = (code(stage["address"]), plain(stage["label"]), code(str(stage.get("commit"))[:12]))
            yield f"| {' | '.join(cells)} | {plain(stage.get('started', '–'))} | {stage.get('wall_seconds', '–')} |"


def _digests(home: Path) -> dict[str, str]:
    """Digests of metric files as the tables name them."""
    found = {}
    for path in sorted((home / "paper").glob("*.json")):
        for cells in json.loads(path.read_text(encoding="utf-8")).get("cells", {}).values():
            for cell in cells.values():
                found.update({parent["file"]: parent["sha256"] for parent in cell["parents"]})
    return found


def _link(home: Path, table: Mapping[str, Any], row: str, column: str) -> str:
    parents = table["cells"][row][column]["parents"]
    file = next((p["file"] for p in parents if p["run"] == row), parents[0]["file"])
    target = f"runs.md#{_anchor(file)}" if file.startswith("metrics/") else "experiment.yaml"
    command = shlex.join(["cmapkd", "trace", table["table"], row, column])
    return f'{target} "{command}"'.replace("|", "\\|")


def _anchor(file: str) -> str:
    return file.removeprefix("metrics/").removesuffix(".json").removesuffix(".npz").replace("/", "-")
