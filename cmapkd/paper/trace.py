"""From a number in the paper back to what made it: value, files, runs, seeds, code, configuration, data, machine, command."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cmapkd.errors import UserError, nearest
from cmapkd.files import sha256_of
from cmapkd.paper.build import read_part
from cmapkd.paper.cells import Cell, Parent, Text
from cmapkd.paper.context import EXPERIMENT_FILE, PaperContext
from cmapkd.paper.latex import macro_key
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import TABLES, compute_table


def parse_macro(text: str) -> tuple[str, str, str]:
    r"""``\cmapkd{table2}{CMAPKD}{i2t_r1}`` as (table, row, column)."""
    match = re.fullmatch(r"\\?cmapkd(?:std)?\{([^{}]+)\}\{([^{}]+)\}\{([^{}]+)\}", text.strip())
    if match is None:
        raise UserError(key="macro", value=text, reason="is not of the form \\cmapkd{table}{row}{column}")
    return match[1], match[2], match[3]


def trace(context: PaperContext, table: str, row: str, column: str) -> str:
    """The chain behind one cell of a table (or one number of a figure), or one of words, as text.

    Raises:
        UserError: unknown table, row or column; or a parent is missing or changed since the table was built.
    """
    content, row, column = _find(context, table, row, column)
    cell: Cell | Text
    if column in content["cells"].get(row, {}):
        cell = Cell.from_json(content["cells"][row][column])
        deviation = f" ± {cell.std:.6g}" if cell.std is not None else ""
        lines = [f"{table} / {row} / {column} = {cell.value:.6g}{deviation}", f"  how: {cell.recipe} (n = {cell.n})"]
    else:
        cell = Text.from_json(content["texts"][row][column])
        shown_text = cell.text.replace("\n", "; ")
        lines = [f"{table} / {row} / {column} = {shown_text}", f"  how: {cell.recipe}"]
    if isinstance(cell, Cell) and cell.planned:
        lines.append("  PLANNED before any experiment: this is not a result")
    shown: set[str] = set()
    for parent in cell.parents:
        lines += _parent(context, table, parent, f"{table} / {row} / {column}", repeated=parent.file in shown)
        shown.add(parent.file)
    lines += _recomputed(context, table, row, column, cell)
    lines.append(f"  {table} is made by: {context.recompute(context.paper / f'{table}.json')}")
    return "\n".join(lines)


def _recomputed(context: PaperContext, table: str, row: str, column: str, cell: Cell | Text) -> list[str]:
    """Make the table again in memory: a value that was edited in its file is found, even when its parents are untouched.

    Raises:
        UserError: the value differs from what the parents give.
    """
    if table not in TABLES:
        return []
    try:
        computed = compute_table(table, context, Metrics(context))
    except UserError as error:  # some other cell's parent is at fault: this number's own parents were verified above
        return [f"  not recomputed: {error.key}: {error.reason}"]
    made = computed.cell(row, column) if isinstance(cell, Cell) else computed.text(row, column)
    if made != cell:
        path = context.paper / f"{table}.json"
        given = f" ({_shown(made)})" if made else ""
        reason = f"{row} / {column} = {_shown(cell)} is not what its parents give{given}"
        raise UserError(key=str(path), reason=reason, fix=f"build it again: {context.recompute(path)}")
    return ["  recomputed from its parents now: the same"]


def _shown(cell: Cell | Text) -> str:
    return f"{cell.value:g}" if isinstance(cell, Cell) else repr(cell.text)


def _find(context: PaperContext, table: str, row: str, column: str) -> tuple[dict[str, Any], str, str]:
    names = list(context.all_parts)
    if table not in names:
        raise UserError(key="table", value=table, reason="is not in this paper", fix=nearest(table, names))
    content = read_part(context, table)
    cells, texts = content["cells"], content.get("texts", {})
    cells = {key: {**cells.get(key, {}), **texts.get(key, {})} for key in [*cells, *(key for key in texts if key not in cells)]}
    labels = {entry["label"]: entry["row"] for entry in content.get("rows", [])}
    macros = {macro_key(key): key for key in cells}
    found_row = row if row in cells else labels.get(row) or macros.get(row)
    if found_row is None:
        raise UserError(key="row", value=row, reason=f"is not in {table}", fix=nearest(row, list(cells)))
    columns = {macro_key(key): key for key in cells[found_row]} | {key: key for key in cells[found_row]}
    if column not in columns:
        raise UserError(
            key="column", value=column, reason=f"is not in {table} / {found_row}", fix=nearest(column, list(cells[found_row]))
        )
    return content, found_row, columns[column]


def _parent(context: PaperContext, table: str, parent: Parent, cell: str, *, repeated: bool) -> list[str]:
    again = f"build it again: {context.recompute(context.paper / f'{table}.json')}"
    if parent.file == EXPERIMENT_FILE:
        return _experiment(context, table, parent, cell, again, repeated=repeated)
    path = context.resolve(parent.file)
    if not path.is_file():
        raise UserError(key=str(path), reason=f"is missing; {cell} was made from it", fix=again)
    actual = sha256_of(path)
    if actual != parent.sha256:
        reason = (
            f"changed since {table} was built: its SHA-256 was {parent.sha256}, now it is {actual}; "
            f"{cell} does not come from this file"
        )
        raise UserError(key=str(path), reason=reason, fix=again)
    lines = [f"  from {path}", f"    keys: {' / '.join(parent.keys)}{_value(path.suffix, path.read_bytes, parent)}"]
    if repeated:
        return lines
    lines.append(f"    sha256: {parent.sha256} (verified now)")
    if parent.run is None or parent.seed is None:
        return lines
    lines.append(f"    run: {parent.run}, seed {parent.seed}")
    metric_file = context.metric_file(parent.run, parent.seed)
    if metric_file.is_file():
        provenance = json.loads(metric_file.read_bytes()).get("provenance", {})
        lines += _provenance(provenance)
        lines.append(f"    recomputed by: {context.recompute(metric_file)}")
    return lines


def _experiment(context: PaperContext, table: str, parent: Parent, cell: str, again: str, *, repeated: bool) -> list[str]:
    """The experiment's file as it is read now. What counts is what the paper tells of it: other keys may have changed."""
    path = context.config_file or context.resolve(parent.file)
    if parent.sha256 != context.experiment_digest:
        reason = f"its runs or schedules changed since {table} was built; {cell} does not come from this configuration"
        raise UserError(key=str(path), reason=reason, fix=again)
    lines = [f"  from {path} (configured, not measured)", f"    keys: {' / '.join(parent.keys)}"]
    return lines if repeated else [*lines, f"    sha256 of its runs and schedules: {parent.sha256} (verified now)"]


def _value(suffix: str, read: Any, parent: Parent) -> str:
    """The number now at the parent's keys, as text."""
    if suffix != ".json":
        return ""
    value: Any = json.loads(read())
    for key in parent.keys:
        if not isinstance(value, dict) or key not in value:
            raise UserError(key=parent.file, value=key, reason="no longer holds this key", fix="build the table again")
        value = value[key]
    return f" = {value}" if isinstance(value, int | float | str) else ""


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    data = ", ".join(f"{name} {digest}" for name, digest in provenance.get("data_digests", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    entries = {
        "commit": f"{provenance.get('commit', 'unknown')} ({_dirty(provenance)})",
        "configuration": provenance.get("config_digest", "unknown"),
        "data": data or "unknown",
        "image": provenance.get("image_digest") or "none",
        "host": provenance.get("host", "unknown"),
        "started": f"{provenance.get('started', 'unknown')} (took {provenance.get('wall_seconds', 'unknown')} s)",
        "versions": versions or "unknown",
        "command": provenance.get("command", "unknown"),
    }
    lines = [f"    {name}: {value}" for name, value in entries.items()]
    return lines + [f"    trained in: {_stage(stage)}" for stage in provenance.get("stages", [])]


def _dirty(record: Mapping[str, Any]) -> str:
    return {"True": "with uncommitted changes", "False": "clean"}.get(str(record.get("dirty")), "unknown whether changed")


def _stage(stage: Any) -> str:
    """One training stage in a line: address, then when, where and with which code, as far as it is recorded."""
    if not isinstance(stage, Mapping):
        return str(stage)
    parts = [str(stage.get("address", "stage without address"))]
    if "label" in stage:
        parts.append(f"({stage['label']})")
    if "commit" in stage:
        parts.append(f"commit {stage['commit']} ({_dirty(stage)})")
    for key, word in (("host", "on"), ("started", "from"), ("wall_seconds", "seconds")):
        if key in stage:
            parts.append(f"{word} {stage[key]}")
    for retry in stage.get("nan_retries", []):
        parts.append(
            f"(step {retry['step']} was not finite: again from step {retry['restarted_at']} at {retry['lr_factor']:g} x lr)"
        )
    return " ".join(parts)
