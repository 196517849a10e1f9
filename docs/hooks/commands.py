"""The page of the command line, from the commands themselves: arguments, options, defaults and exit codes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from cmapkd.cli import app

EXIT_CODES = """Exit codes: 0 done; 1 `cmapkd verify` found something; 2 a mistake that the message explains (key, value,
reason, fix); 75 a training stopped with a checkpoint before it was done: [run it again](interruptions.md)."""
_WORDS = {Path: "path", str: "text", int: "whole number", float: "number"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "commands.md", content=render()))
    return files


def render() -> str:
    """The page as Markdown."""
    root = typer.main.get_command(app)
    lines = ["# Commands", "", _text(root.help or ""), "", EXIT_CODES, "", "| command | what it does |", "|---|---|"]
    every = list(_commands(root, "cmapkd"))
    for name, command in every:
        summary = " ".join(_text(command.help or "").split("\n\n")[0].split())
        lines.append(f"| [`{name}`](#{_anchor(name)}) | {_cell(summary)} |")
    for name, command in every:
        lines += ["", f"## `{name}` {{ #{_anchor(name)} }}", "", _text(command.help or ""), ""]
        lines += ["```text", f"{name} {' '.join(_usage(command))}".rstrip(), "```", ""]
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| argument or option | value | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, in the order of the help."""
    inner = getattr(command, "commands", {})
    if not inner or (getattr(command, "invoke_without_command", False) and name != "cmapkd"):
        yield name, command
    for own, child in inner.items():
        yield from _commands(child, f"{name} {own}")


def _usage(command: Any) -> Iterator[str]:
    if any(_is_option(parameter) for parameter in command.params):
        yield "[OPTIONS]"
    for parameter in command.params:
        if not _is_option(parameter):
            shown = _shown(parameter)
            yield shown if parameter.required else f"[{shown}]"


def _row(parameter: Any) -> str:
    names = [f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts)] if _is_option(parameter) else []
    flag = getattr(parameter, "is_flag", False)
    annotation = parameter.type_descriptor.annotation
    one = get_args(annotation)[0] if _many(parameter) else annotation
    word = _WORDS.get(one, getattr(one, "__name__", str(one)))
    value = "–" if flag else f"{word}, repeatable" if _many(parameter) else word
    default = parameter.default() if callable(parameter.default) else parameter.default
    empty = default is None or default == "" or default == () or (flag and default is False)
    given = "**required**" if parameter.required else "–" if empty else f"`{default}`"
    help_text = _cell(getattr(parameter, "help", None) or "")
    return f"| {', '.join(names) or f'`{_shown(parameter)}`'} | {value} | {given} | {help_text} |"


def _shown(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    return f"{name}..." if _many(parameter) and not name.endswith("...") else name


def _many(parameter: Any) -> bool:
    return bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1


def _is_option(parameter: Any) -> bool:
    return str(parameter.param_type_name) == "option"


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _text(help_text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(help_text))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
