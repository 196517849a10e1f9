"""Results to keep in a repository: metric files with their provenance, and the tables as a page of Markdown.

Everything is copied or rendered from what an experiment made; nothing is computed anew. A reader sees the numbers without
running anything, and the digests in the tables' JSON are those of the metric files kept beside them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmapkd.config.load import effective_text, load_experiment
from cmapkd.config.paths import paths_of
from cmapkd.errors import UserError
from cmapkd.files import atomic_path, sha256_of, write_atomic, write_json
from cmapkd.paper.build import read_part
from cmapkd.paper.cells import number_of
from cmapkd.paper.context import KEPT_BY, KEPT_FILE, TEACHER, PaperContext
from cmapkd.paper.metrics import Metrics

_ESCAPES = str.maketrans(
    {
        **{character: f"&#{ord(character)};" for character in "&<>`$"},
        **{character: f"\\{character}" for character in "\\*_[]{}#|"},
    }
)
ARROWS = {"up": " ↑", "down": " ↓", "": ""}
WEIGHTS = ("teacher.pretrained", "student.init")  # paths that addresses of stages depend on
LARGEST = 2_000_000  # [bytes] of one file that is kept


def keep_results(context: PaperContext, directory: Path) -> list[Path]:
    """Copy the metric files and the JSON of tables, figures and algorithms to ``directory``; write digests and ``README.md``.

    Returns:
        The files, relative to ``directory``.

    Raises:
        UserError: a metric file, a table or a figure is missing or damaged.
    """
    metrics = Metrics(context)
    names = context.all_parts
    parts = {name: read_part(context, name) for name in names}
    files = [metrics.file(TEACHER, context.teacher_seed, "results to keep").path]
    files += [metrics.file(run.name, seed, "results to keep").path for run in context.runs for seed in context.seeds]
    files += [context.paper / f"{name}.json" for name in names]
    files += [path for path in (context.results / "experiment.yaml", context.paper / "numbers.tex") if path.is_file()]
    kept = []
    for path in files:
        relative = path.relative_to(context.results)
        if path.stat().st_size > LARGEST:
            raise UserError(
                key=str(path), reason=f"is larger than {LARGEST // 1_000_000} MB", fix="do not keep it in a repository"
            )
        if path.name == "experiment.yaml":
            kept += _keep_experiment(path, directory)
            continue
        with atomic_path(directory / relative) as target:
            shutil.copyfile(path, target)
        kept.append(relative)
    digests = {name.as_posix(): sha256_of(directory / name) for name in kept if name.parts[0] in ("metrics", "paper")}
    write_json(directory / KEPT_FILE, {"experiment": context.name, "files": digests})
    page = render_page(context, metrics, [parts[name] for name in context.all_tables])
    write_atomic(directory / "README.md", page)
    return [*kept, Path(KEPT_FILE), Path("README.md")]


def _keep_experiment(path: Path, directory: Path) -> list[Path]:
    """Copy an experiment without folders of this machine; a file of tuned values that is not in the repository is copied, too.

    Data lie elsewhere on every machine, and nothing that is kept depends on where. The path of weights stays, because
    addresses of stages depend on it.
    """
    experiment = load_experiment(path)
    content = experiment.model_dump(mode="json")
    kept = [Path(path.name)]
    for key, file in paths_of(experiment):
        *above, last = key.split(".")
        section = content
        for name in above:
            section = section[name]
        # The home folder is everywhere, a variable is not; the file is read wherever the experiment is.
        if key in WEIGHTS or not section[last].startswith(("/", "$", "~") if key == "tuned" else ("/", "$")):
            continue
        section[last] = Path(file).name
        if key == "tuned" and Path(file).is_file():
            with atomic_path(directory / section[last]) as target:
                shutil.copyfile(file, target)
            kept.append(Path(section[last]))
    write_atomic(directory / path.name, effective_text(content))
    return kept


def render_page(context: PaperContext, metrics: Metrics, tables: Sequence[Mapping[str, Any]]) -> str:
    """The page: what was run, with which code and data, and every table."""
    files = [metrics.file(TEACHER, context.teacher_seed, "README.md")]
    files += [metrics.file(run.name, seed, "README.md") for run in context.runs for seed in context.seeds]
    commits = sorted({f"{code(str(f.provenance.get('commit'))[:12])}{_dirty(f.provenance)}" for f in files})
    data = sorted(
        {f"{plain(name)} {code(str(value)[:12])}" for f in files for name, value in f.provenance["data_digests"].items()}
    )
    stages = {stage["address"]: stage for f in files for stage in f.provenance["stages"] if isinstance(stage, Mapping)}
    trained = sorted({f"{code(str(stage.get('commit'))[:12])}{_dirty(stage)}" for stage in stages.values()})
    hours = sum(float(stage.get("wall_seconds", 0)) for stage in stages.values()) / 3600
    lines = [
        f"# Results of `{context.name}`",
        "",
        f"{KEPT_BY}; do not edit. Seeds {', '.join(map(str, context.seeds))}. "
        f"Evaluated by {', '.join(commits)}; trained by {', '.join(trained)}: {len(stages)} trainings, {hours:.1f} "
        "hours in all. "
        f"Data: {', '.join(data)}.",
        "",
        "`metrics/<run>/<seed>.json` holds everything that was measured on a run, with its provenance; `paper/<table>.json` "
        "holds each table at full precision, every cell with the metric files (by SHA-256) that it comes from. "
        "Per-query arrays and weights are not kept.",
    ]
    for table in tables:
        lines += ["", *markdown_table(table)]
    return "\n".join(lines) + "\n"


def markdown_table(table: Mapping[str, Any], link: Callable[[str, str], str] | None = None) -> list[str]:
    """A table's JSON as lines of Markdown, one pipe table for each panel; ``link(row, column)`` is what a number leads to."""
    name = str(table["table"])
    heading = (
        f"Table {name.removeprefix('table')}: {table['title']}" if name.removeprefix("table").isdigit() else table["title"]
    )
    lines = [f"## {plain(heading)}", "", plain(table["caption"])]
    panels = list(dict.fromkeys(column["panel"] for column in table["columns"]))
    for panel in panels:
        columns = [column for column in table["columns"] if column["panel"] == panel]
        if panel:
            lines += ["", f"**{plain(panel)}**"]
        heads = [plain(" ".join(filter(None, (c["group"], c["header"])))) + ARROWS[c["direction"]] for c in columns]
        lines += ["", "| " + " | ".join(["", *heads]) + " |", "|" + "---|" * (len(columns) + 1)]
        shown = columns[0].get("rows") or [row["row"] for row in table["rows"]]
        for row in (row for row in table["rows"] if row["row"] in shown):
            cells = [_cell(table, row["row"], column, link) for column in columns]
            lines.append("| " + " | ".join([plain(row["label"]), *cells]) + " |")
    return lines


def _cell(table: Mapping[str, Any], row: str, column: Mapping[str, Any], link: Callable[[str, str], str] | None = None) -> str:
    text = table.get("texts", {}).get(row, {}).get(column["column"])
    if text is not None:
        return plain(text["text"])
    cell = table["cells"].get(row, {}).get(column["column"])
    if cell is None:
        return "–"
    decimals = column["decimals"]
    value = number_of(cell["value"], decimals)
    shown = value if cell["std"] is None else f"{value} ± {number_of(cell['std'], decimals)}"
    if column.get("planned"):
        return f"planned {shown}"
    shown = shown if link is None else f"[{shown}]({link(row, column['column'])})"
    mark = next((m["mark"] for m in table.get("marks", ()) if (m["row"], m["column"]) == (row, column["column"])), "")
    return {"best": f"**{shown}**", "second": f"<u>{shown}</u>"}.get(mark, shown)


def plain(text: object) -> str:
    """A text as it is within a line of Markdown, whatever it holds: no HTML, link, formula, code or end of a table's cell.

    Python-Markdown, which makes the site, knows no backslash before `<`, `&` and `$`; entities are read by all.
    """
    lines = str(text).splitlines()
    return "; ".join(line.translate(_ESCAPES) for line in lines)


def code(text: object) -> str:
    """A text as code within a line, in a table as well."""
    return f"`{str(text).replace('`', chr(39)).replace('|', '/').replace(chr(10), ' ')}`"


def _dirty(record: Mapping[str, Any]) -> str:
    return " with uncommitted changes" if record.get("dirty") is True else ""
