r"""From a number in the paper back to what made it: value, files, runs, seeds, code, configuration, data, machine, commands.

``chain`` finds it out, as a dictionary for machines; ``tell`` says it in lines. A number whose chain is broken (a parent that
is missing or changed, a value that its parents do not give) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError, nearest
from cmapkd.files import read_json, sha256_of
from cmapkd.paper.build import read_part
from cmapkd.paper.cells import Cell, Parent, Text
from cmapkd.paper.context import EXPERIMENT_FILE, PaperContext
from cmapkd.paper.latex import macro_key
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.tables import TABLES, compute_table

UNKNOWN = "unknown"


def parse_macro(text: str) -> tuple[str, str, str]:
    r"""``\cmapkd{table2}{CMAPKD}{i2t_r1}`` as (table, row, column)."""
    match = re.fullmatch(r"\\?cmapkd(?:std)?\{([^{}]+)\}\{([^{}]+)\}\{([^{}]+)\}", text.strip())
    if match is None:
        raise UserError(
            key="macro",
            value=text,
            reason="is not of the form \\cmapkd{table}{row}{column}",
            fix="quote it for the shell, '\\cmapkd{table2}{CMAPKD}{i2t_r1}', or give table, row and column as three words",
        )
    return match[1], match[2], match[3]


def address_of(words: list[str]) -> tuple[str, str, str]:
    """The arguments of ``cmapkd trace`` as (table, row, column): three words, or one macro.

    Raises:
        UserError: neither.
    """
    if len(words) == 3:
        return words[0], words[1], words[2]
    if len(words) == 1:
        return parse_macro(words[0])
    raise UserError(
        key="trace",
        value=" ".join(words),
        reason="takes a table, a row and a column, or one macro",
        fix="quote names with spaces: cmapkd trace table4 'w/o relation' i2t_r1",
    )


def trace(context: PaperContext, table: str, row: str, column: str) -> str:
    """The chain behind one cell of a table (or one number of a figure), or one of words, as text; see ``chain``."""
    return tell(chain(context, table, row, column))


def chain(context: PaperContext, table: str, row: str, column: str) -> dict[str, Any]:
    """Everything behind one cell, JSON-able.

    Returns:
        ``table``, ``row``, ``column``, ``macro``; ``value``, ``std``, ``n`` of a number or ``text`` of words; ``recipe``,
        ``planned``; ``parents`` (file, keys, value there, sha256, and of measured ones run, seed, provenance and commands);
        ``recomputed``; ``commands``, which make the table or figure again: with and without Snakemake.

    Raises:
        UserError: unknown table, row or column; a parent that is missing or changed since the table was built; or a value that
            its parents do not give.
    """
    content, row, column = _find(context, table, row, column)
    name = f"{table} / {row} / {column}"
    found: dict[str, Any] = {"table": table, "row": row, "column": column}
    cell: Cell | Text
    if column in content["cells"].get(row, {}):
        cell = Cell.from_json(content["cells"][row][column])
        macro = f"\\cmapkd{{{table}}}{{{macro_key(row)}}}{{{macro_key(column)}}}"
        found |= {"macro": macro, "value": cell.value, "std": cell.std, "n": cell.n, "planned": cell.planned}
    else:
        cell = Text.from_json(content["texts"][row][column])
        found |= {"text": cell.text, "planned": False}
    found["recipe"] = cell.recipe
    found["parents"] = [_parent(context, table, parent, name) for parent in cell.parents]
    found["recomputed"] = _recomputed(context, table, row, column, cell)
    kind = "table" if table in TABLES else "figure"
    path = context.paper / f"{table}.json"
    found["commands"] = {"snakemake": context.recompute(path), "cmapkd": [context.command("paper", kind, table)]}
    return found


def tell(found: Mapping[str, Any]) -> str:
    """A chain in lines. What a file tells is said once, at its first mention."""
    name = f"{found['table']} / {found['row']} / {found['column']}"
    if "text" in found:
        lines = [f"{name} = {found['text']}".replace("\n", "; "), f"  how: {found['recipe']}"]
    else:
        deviation = f" ± {found['std']:.6g}" if found["std"] is not None else ""
        lines = [f"{name} = {found['value']:.6g}{deviation}", f"  how: {found['recipe']} (n = {found['n']})"]
        lines.append(f"  macro: {found['macro']}")
    if found["planned"]:
        lines.append("  PLANNED before any experiment: this is not a result")
    shown: set[str] = set()
    for parent in found["parents"]:
        lines += _tell_parent(parent, repeated=parent["file"] in shown)
        shown.add(parent["file"])
    if found["recomputed"]:
        lines.append(f"  {found['recomputed']}")
    lines.append(f"  {found['table']} is made by: {found['commands']['snakemake']}")
    return "\n".join([*lines, *(f"    without Snakemake: {command}" for command in found["commands"]["cmapkd"])])


def _recomputed(context: PaperContext, table: str, row: str, column: str, cell: Cell | Text) -> str:
    """Make the table again in memory: a value that was edited in its file is found, even when its parents are untouched.

    Raises:
        UserError: the value differs from what the parents give.
    """
    if table not in TABLES:
        return ""
    try:
        computed = compute_table(table, context, Metrics(context))
    except UserError as error:  # some other cell's parent is at fault: this number's own parents were verified above
        return f"not recomputed: {error.key}: {error.reason}"
    made = computed.cell(row, column) if isinstance(cell, Cell) else computed.text(row, column)
    if made != cell:
        path = context.paper / f"{table}.json"
        given = f" ({_shown(made)})" if made else ""
        reason = f"{row} / {column} = {_shown(cell)} is not what its parents give{given}"
        raise UserError(key=str(path), reason=reason, fix=f"build it again: {context.recompute(path)}")
    return "recomputed from its parents now: the same"


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


def _parent(context: PaperContext, table: str, parent: Parent, cell: str) -> dict[str, Any]:
    again = f"build it again: {context.recompute(context.paper / f'{table}.json')}"
    found: dict[str, Any] = {"keys": list(parent.keys), "sha256": parent.sha256, "run": parent.run, "seed": parent.seed}
    if parent.file == EXPERIMENT_FILE:
        return {"file": str(_experiment(context, table, parent, cell, again)), "kind": "configured", **found}
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
    found = {"file": str(path), "kind": "read", **found}
    if path.suffix == ".json":
        found["value"] = _value(path, parent)
    if parent.run is None or parent.seed is None:
        return found
    found["kind"] = "measured"
    metric_file = context.metric_file(parent.run, parent.seed)
    if metric_file.is_file():
        found["provenance"] = read_json(metric_file, dict).get("provenance", {})
        found["commands"] = _commands(context, metric_file, found["provenance"])
    return found


def _commands(context: PaperContext, metric_file: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What measures a run again. Without Snakemake: each stage (one that is done is left alone), the run, its evaluation."""
    directory = f"{metric_file.parent.name}/{metric_file.stem}"
    stages = [stage["address"] if isinstance(stage, Mapping) else str(stage) for stage in provenance.get("stages", [])]
    words = [*(("train", address) for address in stages), ("collect", directory), ("evaluate", directory)]
    return {"snakemake": context.recompute(metric_file), "cmapkd": [context.command(*command) for command in words]}


def _experiment(context: PaperContext, table: str, parent: Parent, cell: str, again: str) -> Path:
    """The experiment's file as it is read now. What counts is what the paper tells of it: other keys may have changed."""
    path = context.config_file or context.resolve(parent.file)
    if parent.sha256 != context.experiment_digest:
        reason = f"its runs or schedules changed since {table} was built; {cell} does not come from this configuration"
        raise UserError(key=str(path), reason=reason, fix=again)
    return path


def _value(path: Path, parent: Parent) -> Any:
    """The number or text now at the parent's keys; None for anything larger."""
    value: Any = read_json(path)
    for key in parent.keys:
        if not isinstance(value, dict) or key not in value:
            raise UserError(key=parent.file, value=key, reason="no longer holds this key", fix="build the table again")
        value = value[key]
    return value if isinstance(value, int | float | str) else None


def _tell_parent(parent: Mapping[str, Any], *, repeated: bool) -> list[str]:
    configured = parent["kind"] == "configured"
    shown = f" = {parent['value']}" if parent.get("value") is not None else ""
    lines = [f"  from {parent['file']}{' (configured, not measured)' if configured else ''}"]
    lines.append(f"    keys: {' / '.join(parent['keys'])}{shown}")
    if repeated:
        return lines
    lines.append(f"    sha256{' of its runs and schedules' if configured else ''}: {parent['sha256']} (verified now)")
    if parent["run"] is not None:
        lines.append(f"    run: {parent['run']}, seed {parent['seed']}")
    if "provenance" in parent:
        lines += _provenance(parent["provenance"])
        lines.append(f"    recomputed by: {parent['commands']['snakemake']}")
        lines.append("    without Snakemake:")
        lines += [f"      {command}" for command in parent["commands"]["cmapkd"]]
    return lines


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    data = ", ".join(f"{name} {digest}" for name, digest in provenance.get("data_digests", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    stages = provenance.get("stages", [])
    times = [stage["wall_seconds"] for stage in stages if isinstance(stage, Mapping) and "wall_seconds" in stage]
    entries = {
        "commit": f"{provenance.get('commit', UNKNOWN)} ({_dirty(provenance)})",
        "evaluation code": provenance.get("evaluation_code", "not recorded, but for the commit"),
        "configuration": provenance.get("config_digest", UNKNOWN),
        "data": data or UNKNOWN,
        "image": provenance.get("image_digest") or "none",
        "host": provenance.get("host", UNKNOWN),
        "started": f"{provenance.get('started', UNKNOWN)} (took {provenance.get('wall_seconds', UNKNOWN)} s)",
        "versions": versions or UNKNOWN,
        "command": provenance.get("command", UNKNOWN),
    }
    lines = [f"    {name}: {value}" for name, value in entries.items()]
    lines += [f"    trained in: {_stage(stage)}" for stage in stages]
    if times:
        lines.append(f"    trained for: {sum(times):.1f} s in all, in {len(times)} stage{'s' if len(times) > 1 else ''}")
    return lines


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
    words = {"code": "code {}", "host": "on {}", "started": "from {}", "wall_seconds": "took {} s"}
    parts += [text.format(stage[key]) for key, text in words.items() if key in stage]
    for retry in stage.get("nan_retries", []):
        parts.append(
            f"(step {retry['step']} was not finite: again from step {retry['restarted_at']} at {retry['lr_factor']:g} x lr)"
        )
    return " ".join(parts)
