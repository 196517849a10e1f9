"""Examples of the pages that people read: their shell blocks, what a test may do with each, and the commands in them.

A line before every ``sh`` block says what the tests do with it, in an HTML comment that no reader sees:

    <!-- test: run -->                  every command is run, on the finished smoke experiment
    <!-- test: skip: REASON -->         commands are only parsed: it takes long, needs a cluster or a network
    <!-- test: after the example -->    run once the code above it on the page was put into a copy of the repository
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main

from cmapkd.cli import app

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "results/README.md", "config/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if "results" not in path.parts[:-1])
BLOCK = re.compile(r"(?:^<!-- test: (?P<mark>.+?) -->\n)?^```sh\n(?P<text>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(cmapkd [^`\n]+)`")
MARKS = re.compile(r"run|after the example|skip: .{5,}")


@dataclass(frozen=True)
class Example:
    """A shell block of a page."""

    page: str
    line: int
    mark: str  # empty: none
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Its commands as argument lists, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        parts = [part for line in lines for part in re.split(r" && | \| ", line)]
        return [words for part in parts if (words := shlex.split(part, comments=True))]


def examples(page: str) -> list[Example]:
    """Every shell block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Example(page, text.count("\n", 0, match.start()) + 1, match["mark"] or "", match["text"])
        for match in BLOCK.finditer(text)
    ]


def inline_commands(page: str) -> list[list[str]]:
    """Commands of ours that sentences name."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(match[1].replace("…", "")) for match in INLINE.finditer(text)]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that ``cmapkd ...`` calls, and the arguments that are left for it.

    Raises:
        LookupError: there is no such command.
    """
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while inner := getattr(command, "commands", None):
        if not rest or rest[0].startswith("-"):
            break
        if rest[0] not in inner:
            if getattr(command, "invoke_without_command", False):
                break
            raise LookupError(f"cmapkd has no command {rest[0]!r}: {' '.join(words)}")
        command, rest = inner[rest[0]], rest[1:]
    return command, rest


def parse(words: list[str]) -> None:
    """Parse a command as the command line would, without running it.

    Raises:
        LookupError: no such command.
        Exception: typer's, for options or arguments that it does not take.
    """
    command, rest = command_of(words)
    command.make_context(words[0], list(rest))


def takes_experiment(words: list[str]) -> bool:
    command, _ = command_of(words)
    return any("--experiment" in parameter.opts for parameter in command.params)


def written(page: str) -> Iterator[tuple[str, str]]:
    """Code that a page gives to put into a file: (where, code)."""
    pattern = re.compile(r"^<!-- example: (.+?) -->\n```\w+\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    yield from pattern.findall((ROOT / page).read_text(encoding="utf-8"))
