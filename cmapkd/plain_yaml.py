"""YAML of users, as plain values: no templates, no objects, each key once. Torch-free, and imports almost nothing.

Snakemake reads experiment files with YTE, a template engine with Python expressions that a file itself switches on
(`__use_yte__: true`), and lets the last of two equal keys win. This reader refuses both. `check_command_line` applies it to the
files that a `snakemake` command names before Snakemake reads them (`workflow/profiles/default`), and
`refuse_other_reading` compares what Snakemake has read with it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cmapkd.errors import UserError
from cmapkd.files import parse_json

LARGEST = 20_000_000  # [bytes] of a file; the largest experiment of the repository has 20 kB
TEMPLATE = ("__use_yte__", "__definitions__", "__variables__")  # keys by which YTE runs Python
# What PyYAML raises for text it cannot make sense of: its own errors, and Python's where it trusts a tag (`!!int x`).
_ERRORS = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
)


class _GivenTwiceError(yaml.constructor.ConstructorError):
    """A key of a mapping that is given twice."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice: the first of two runs of one name would vanish without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping whose keys differ as values and as text: `1` and `"1"` become the same name."""
        seen: set[Hashable] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                value = self.construct_object(key)
                names = {key.value, str(value), value}
                if names & seen:
                    raise _GivenTwiceError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
                seen |= names
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, fix: str = "check indentation and quotes there") -> Any:
    """Read a YAML or JSON file as plain values.

    Raises:
        UserError: the file is not a regular file of text, or not plain YAML.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        about = path.stat()
    except ValueError:  # a NUL character
        raise UserError(key=repr(str(path)), reason="is not a path", fix="name a file") from None
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "not a regular file"
        raise UserError(key=str(path), reason=f"is {kind}", fix="name a file with YAML")
    if about.st_size > LARGEST:
        reason = f"has {about.st_size / 1e6:,.0f} MB, and an experiment at most {LARGEST / 1e6:,.0f} MB"
        raise UserError(key=str(path), reason=reason, fix="name an experiment file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"is not valid YAML: byte {error.start + 1:,} is not UTF-8 text"
        raise UserError(key=str(path), reason=reason, fix="save it as UTF-8 in your editor") from None
    return parse_yaml(text, str(path), fix)


def parse_yaml(text: str, origin: str, fix: str = "check indentation and quotes there") -> Any:
    """Parse YAML or JSON as plain values.

    Args:
        text: the content.
        origin: what messages call it.
        fix: what a user can do about text that is not YAML.

    Raises:
        UserError: the text is not YAML, is a template, or has a key twice.
    """
    try:
        content = _as_json(text, origin) if text.lstrip().startswith("{") else None
        if content is None:
            content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except UserError:
        raise
    except _ERRORS as error:
        told = str(error) if isinstance(error, yaml.YAMLError | ValueError) else "a tag (`!!...`) does not fit its value"
        told = "nested too deep" if isinstance(error, RecursionError) else told.replace("<unicode string>", origin)
        raise UserError(key=origin, reason=f"is not valid YAML: {told}", fix=fix) from None
    if isinstance(content, dict):
        for key in TEMPLATE:
            if key in content:
                reason = "is a key of the template engine YTE, which runs Python code that the file holds"
                fix = "write the values out, and delete this key; run no file of others that has it"
                raise UserError(key=f"{origin}: {key}", reason=reason, fix=fix)
    return content


def _as_json(text: str, origin: str) -> Any:
    """The content of a JSON file, which Snakemake reads as JSON; None for YAML that begins with a brace."""
    import json

    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parse_json(text, origin, fix="write each key once, with numbers that are finite")


_guarding = False


def guard() -> None:
    """Check the command line of this process once, and end it where a file is refused. Called by the profile `default`."""
    global _guarding
    if _guarding:  # reading the command line reads the profile again
        return
    _guarding = True
    from cmapkd.site_facts import user_name

    os.environ.setdefault("LOGNAME", user_name())  # Snakemake fails where the system has no name for its user
    try:
        check_command_line(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None


def check_command_line(arguments: Sequence[str]) -> None:
    """Read the experiment files of a `snakemake` command before Snakemake does, as a template would run its code then.

    Snakemake itself says which files those are, from the command line and from profiles.

    Args:
        arguments: of the command, without its name.

    Raises:
        UserError: a file is not plain YAML.
    """
    import contextlib
    import io

    from snakemake.cli import parse_args

    with contextlib.redirect_stderr(io.StringIO()):  # it prints the profiles that are used, and will again
        _, options = parse_args(list(arguments))
    for path in options.configfile or ():
        try:
            read_yaml(path)
        except OSError:
            continue  # Snakemake names a file that cannot be read
    for entry in options.config or ():
        name, _, value = str(entry).partition("=")
        try:
            yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except _GivenTwiceError as error:
            raise UserError(key=f"--config {name}", value=value, reason=str(error.problem), fix="give it once") from None
        except _ERRORS:
            continue  # text that is not YAML is text


def refuse_other_reading(found: Mapping[str, Any], files: Sequence[str | Path], command_line: Any) -> None:
    """Compare a configuration that Snakemake read with what this module reads of the same files.

    Args:
        found: Snakemake's `config`.
        files: all files that it was read from.
        command_line: Snakemake's `ConfigSettings`: files and values of the command line, which win over the others.

    Raises:
        UserError: a file is not plain YAML, or was read in another way.
    """
    from snakemake.utils import update_config

    given = list(command_line.configfiles)
    own = {Path(path).absolute() for path in given}
    others = [] if command_line.replace_workflow_config else [path for path in files if Path(path).absolute() not in own]
    ordered = [*others, *given]
    expected: dict[str, Any] = {}
    for path in ordered:
        content = read_yaml(path)
        if isinstance(content, dict):
            update_config(expected, content)
    update_config(expected, dict(command_line.config))
    if (key := _difference(found, expected, ())) is not None:
        names = ", ".join(str(path) for path in ordered)
        reason = f"Snakemake read something else than is written in {names}"
        raise UserError(
            key=key, reason=reason, fix=f"`cmapkd config check {ordered[-1] if ordered else 'FILE'}` names the place"
        )


def _difference(found: Any, expected: Any, place: tuple[str, ...]) -> str | None:
    """The first key at which two readings differ."""
    if len(place) > 50:
        return None  # deeper than any key; refused where the experiment is checked
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in dict.fromkeys((*found, *expected)):
            if key not in found or key not in expected:
                return ".".join((*place, str(key)))
            if (inner := _difference(found[key], expected[key], (*place, str(key)))) is not None:
                return inner
        return None
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple) and len(found) == len(expected):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            if (inner := _difference(one, other, (*place, str(index)))) is not None:
                return inner
        return None
    same = type(found) is type(expected) and (found == expected or repr(found) == repr(expected))
    return None if same else ".".join(place)
