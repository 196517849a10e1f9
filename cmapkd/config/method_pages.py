"""Generated parts of the pages in ``docs/methods/``, one page for each method, so that nothing is written twice.

Between ``<!-- generated: NAME -->`` and ``<!-- end generated: NAME -->`` stand:

    header     what the header of ``cmapkd/objectives/<method>.py`` says: formula, paper, what was adapted
    options    keys of a run with this method, from the class in ``cmapkd/config/methods.py``
    stages     the stages of its default schedule, as the method goes through them
    cost       what its runs need at inference, from the experiment kept in ``docs/results/mini``
    overview   (``README.md`` alone) every method in one table

All else on a page is written by hand and kept. A method without a page gets one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cmapkd.config import document, load_experiment, methods
from cmapkd.config.schedules import DEFAULT_SCHEDULES
from cmapkd.errors import UserError
from cmapkd.files import read_json, slug, write_atomic

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
KEPT = Path("results") / "mini"  # within the folder of the pages
NEW_PAGE = """# {title}

Not described by hand yet.

## What it computes

{header}

## Options

Beside those of [every method](../../config/README.md#methods).

{options}

## Stages

{stages}

## Cost

{cost}
"""


def update(fix: bool, directory: Path = DOCS) -> list[str]:
    """Compare the generated parts with code and results; with ``fix``, write those that differ.

    Returns:
        Paths of the pages that did not agree.

    Raises:
        UserError: no such directory, or a page whose marks are damaged.
    """
    if not directory.is_dir():
        raise UserError(key=str(directory), reason="does not exist", fix="run from a clone of the repository")
    stale = []
    for path, parts in pages(directory).items():
        current = path.read_text(encoding="utf-8") if path.is_file() else ""
        text = _filled(path, current or _new(path, parts), parts)
        if text != current:
            stale.append(str(path))
            if fix:
                write_atomic(path, text)
    return stale


def pages(directory: Path = DOCS) -> dict[Path, dict[str, Callable[[], list[str]]]]:
    """Every page with its generated parts."""
    folder = directory / "methods"
    found: dict[Path, dict[str, Callable[[], list[str]]]] = {folder / "README.md": {"overview": lambda: list(_overview())}}
    for tag, method in document.every_method().items():
        found[folder / f"{tag}.md"] = {
            "header": lambda tag=tag: [_header(tag)],  # type: ignore[misc]
            "options": lambda method=method: document.method_options(method),  # type: ignore[misc]
            "stages": lambda method=method: list(_stages(method)),  # type: ignore[misc]
            "cost": lambda tag=tag: list(_cost(tag, directory / KEPT)),  # type: ignore[misc]
        }
    return found


def _overview() -> Iterator[str]:
    yield from ("| method | what it is | default schedule |", "|---|---|---|")
    for tag, method in document.every_method().items():
        what = " ".join((method.__doc__ or "").split("\n\n")[0].split())
        yield f"| [`{tag}`]({tag}.md) | {what} | `{method.model_fields['schedule'].default}` |"


def _header(tag: str) -> str:
    """The header of the module, as it is written there: Markdown in which a formula is an indented block."""
    source = (ROOT / "cmapkd" / "objectives" / f"{tag}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").strip()


def _stages(method: type[methods.MethodConfig]) -> Iterator[str]:
    run: Any = method()
    yield f"Default schedule `{run.schedule}`; an experiment may replace it. Rates are peak rates."
    yield from ("", "| stage | epochs | levels | learning rate | trains | weights |", "|---|---|---|---|---|---|")
    for stage in run.stages(DEFAULT_SCHEDULES[run.schedule]):
        levels = f"{', '.join(stage.visual_levels)}; {', '.join(stage.language_levels)}" if run.uses_pyramid else "–"
        groups = "".join(f"; {group} {document.number(rate)}" for group, rate in stage.group_lr.items())
        rates = f"{document.number(stage.lr)}{groups}"
        policy = stage.policy if run.uses_pyramid else "–"
        cells = (f"`{stage.name}`", document.number(stage.epochs), levels, rates, ", ".join(stage.trains), policy)
        yield f"| {' | '.join(cells)} |"


def _cost(tag: str, results: Path) -> Iterator[str]:
    """What the runs of this method need at inference, from their metric files.

    Times of trainings are there too, but trainings share their machine with others and may wait: a time is no cost.
    """
    rows = list(_measured(tag, results)) if (results / "experiment.yaml").is_file() else []
    if not rows:
        yield "Not measured in [the results kept here](../results/mini/README.md)."
        return
    yield "At inference, measured in [the results kept here](../results/mini/README.md):"
    head = "image tower (M) | deployed (M) | FLOPs of a pair (G) | ms/image"
    yield from ("", f"| run, seed | {head} |", "|---|---|---|---|---|", *rows)


def _measured(tag: str, results: Path) -> Iterator[str]:
    for name, run in load_experiment(results / "experiment.yaml").runs.items():
        if run.method != tag or run.group != "method":
            continue
        for path in sorted((results / "metrics" / slug(name)).glob("*.json")):
            content = read_json(path, dict)
            cost = content["metrics"]["efficiency"]
            sizes = f"{cost['image_parameters'] / 1e6:.3f} | {cost['total_parameters'] / 1e6:.2f}"
            speed = f"{cost['total_flops'] / 1e9:.4f} | {cost['latency_ms_batch1']:.2f}"
            yield f"| {name}, {content['seed']} | {sizes} | {speed} |"


def _new(path: Path, parts: dict[str, Callable[[], list[str]]]) -> str:
    marks = {name: "\n".join(_marks(name)) for name in parts}
    template = NEW_PAGE if "header" in parts else "# Methods\n\n{overview}\n"
    return template.format(title=f"`{path.stem}`", **marks)


def _filled(path: Path, text: str, parts: dict[str, Callable[[], list[str]]]) -> str:
    for name, lines in parts.items():
        start, end = _marks(name)
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise UserError(
                key=str(path),
                reason=f"has no single region between {start!r} and {end!r}",
                fix="put both marks back, once each",
            )
        before, _, rest = text.partition(start)
        text = "\n".join([f"{before}{start}", "", *lines(), "", f"{end}{rest.partition(end)[2]}"])
    return text


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- generated: {name} -->", f"<!-- end generated: {name} -->"
