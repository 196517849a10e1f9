"""Appendix: what the search of hyper-parameters found for each run, and how much it mattered. Validation data alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from cmapkd.errors import UserError
from cmapkd.paper.cells import CAPTION, Cell, Column, Panel, Parent, Row, Table, Text
from cmapkd.paper.context import PaperContext, PaperRun
from cmapkd.paper.metrics import Metrics
from cmapkd.plain_yaml import parse_yaml

NAME = "tuned"
INCOMPLETE = "The search was not complete."
SCORES = {  # column -> (heading that spans, heading, keys below the run)
    "default_score": ("chosen values", "default", ("default_score",)),
    "score": ("chosen values", "best", ("score",)),
    "min": ("all trials", "min", ("scores", "min")),
    "median": ("all trials", "median", ("scores", "median")),
    "max": ("all trials", "max", ("scores", "max")),
}


class TunedFile:
    """The file, read strictly: every number with the keys it was found at."""

    def __init__(self, context: PaperContext) -> None:
        if context.tuned_file is None:
            raise UserError(
                key="tuned",
                reason=f"no file of tuned values is configured, the table {NAME!r} shows one",
                fix="name it in the experiment, or leave the table out",
            )
        self.path = context.tuned_file
        self.file = context.tuned_name
        if not self.path.is_file():
            raise UserError(
                key="tuned", value=str(self.path), reason="is missing", fix="run the search, or leave the table out"
            )
        raw = self.path.read_bytes()
        self.sha256 = hashlib.sha256(raw).hexdigest()
        try:
            self.content = parse_yaml(raw.decode(), str(self.path))
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(key=str(self.path), reason=f"cannot be read: {error}", fix="run the search again") from error
        self.get(("runs",), Mapping)
        self.get(("search",), Mapping)

    def get(self, keys: tuple[str, ...], kind: type | tuple[type, ...]) -> Any:
        """What is at ``keys``, entries of a list by their place.

        Raises:
            UserError: nothing, or nothing of that type.
        """
        value: Any = self.content
        for depth, key in enumerate(keys):
            if isinstance(value, list):
                value = {str(index): entry for index, entry in enumerate(value)}
            if not isinstance(value, Mapping) or key not in value:
                raise self.error(f"{' / '.join(keys[: depth + 1])} is missing")
            value = value[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"{' / '.join(keys)} is {value!r}")
        return value

    def number(self, keys: tuple[str, ...]) -> float:
        value = self.get(keys, (int, float))
        if not math.isfinite(value):
            raise self.error(f"{' / '.join(keys)} is {value}, not a finite number")
        return float(value)

    def parent(self, *keys: str) -> Parent:
        return Parent(self.file, self.sha256, None, None, keys)

    def cell(self, value: float, *keys: str, recipe: str = "as written by the search") -> Cell:
        return Cell(value=value, n=1, parents=(self.parent(*keys),), recipe=recipe)

    def error(self, reason: str) -> UserError:
        return UserError(key=str(self.path), reason=f"{reason} (needed for {NAME})", fix="run the search again")


def build(context: PaperContext, metrics: Metrics) -> Table:
    """One row for each tuned run, in the experiment's order."""
    file = TunedFile(context)
    runs = [run for run in context.runs if run.name in file.content["runs"]]
    if not runs:
        raise file.error("runs names no run of this experiment")
    cells: dict[str, dict[str, Cell]] = {CAPTION: {}}
    texts: dict[str, dict[str, Text]] = {CAPTION: {}}
    rows = []
    for run in runs:
        where = ("runs", run.name)
        leaves = _leaves(file.get((*where, "values"), Mapping), (*where, "values"))
        lines = [f"{'.'.join(keys[len(where) + 1 :])} = {file.number(keys):.4g}" for keys in leaves]
        texts[run.name] = {"values": Text("\n".join(lines), (file.parent(*where, "values"),), "as written by the search")}
        trials = file.get((*where, "trials"), list)
        finished = [trial for trial in trials if isinstance(trial, Mapping) and trial.get("score") is not None]
        cells[run.name] = {"trials": file.cell(len(finished), *where, "trials", recipe="number of trials with a score")}
        for column, (_, _, keys) in SCORES.items():
            cells[run.name][column] = file.cell(file.number((*where, *keys)), *where, *keys)
        rows.append(_row(run, complete=file.get((*where, "complete"), bool)))
    columns = (
        Column("values", "chosen values", direction="", text=True, ranked=False),
        Column("trials", "trials", direction="", decimals=0, ranked=False),
        *(
            Column(
                key, header, group="validation score" if key in ("score", "default_score") else group, decimals=2, ranked=False
            )
            for key, (group, header, _) in SCORES.items()
        ),
    )
    caption = _caption(context, file, texts)
    return Table(NAME, "Tuned hyper-parameters", caption, tuple(rows), (Panel("", columns),), cells, texts)


def _leaves(value: Any, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Where the values in nested mappings and lists are."""
    if isinstance(value, list):
        value = {str(index): entry for index, entry in enumerate(value)}
    if not isinstance(value, Mapping):
        return [keys]
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*keys, str(key)))]


def _row(run: PaperRun, *, complete: bool) -> Row:
    return Row(run.name, run.shown, method=run.method, note="" if complete else INCOMPLETE)


def _caption(context: PaperContext, file: TunedFile, texts: dict[str, dict[str, Text]]) -> str:
    search = {
        "trials": f"{file.number(('search', 'trials')):g}",
        "length": f"{file.number(('search', 'length')):g}",
        "seed": f"{file.number(('search', 'seed')):g}",
        "sampler": str(file.get(("search", "sampler"), str)),
        "metric": str(file.get(("search", "metric"), str)),
        "splits": "; ".join(context.label(str(split), "retrieval") for split in file.get(("search", "splits"), list)),
    }
    for key, text in search.items():
        texts[CAPTION][key] = Text(text, (file.parent("search", key),), "as written by the search")
    return (
        f"Hyper-parameters searched on validation data ({search['splits']}); test data were not used. "
        f"Score: {search['metric']}. Sampler {search['sampler']}, seed {search['seed']}, {search['trials']} trials "
        f"for each run, each over {search['length']} of the run's schedule; “trials” counts those with a score. "
        "Default: the values before the search, trained as long as a trial."
    )
