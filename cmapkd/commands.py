"""Commands that messages print, made in one place: they work when pasted into the shell in which the message appeared.

A command for Snakemake names the results folder where it is not the project's own (`--config results=`), and the Snakefile
where the working directory is not the project's. Paths inside of the project are relative to it, as Snakemake recorded them.
Torch-free; imports nothing that a result depends on.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SNAKEFILE = Path("workflow", "Snakefile")
RESULTS = Path("results")
EXPERIMENT = Path("config", "mini.yaml")  # the default of both the workflow and the command line
NAMED = re.compile(r"`(cmapkd [^`\n]+)`")  # how a message writes a command
# Commands that take `--experiment` and `--results`; a test compares them with the command line.
TAKE_OPTIONS = (
    "data fetch", "data build", "data overlap", "data contact", "data verify", "train", "weights", "gate", "collect",
    "evaluate", "tune", "plan", "status", "paper", "report run", "report data", "report logs", "trace", "compare", "export",
)  # fmt: skip
_given: dict[str, str] = {}  # options that the running command was given
_datasets: list[str] = []  # the data set that it is about


def project(start: Path | None = None) -> Path | None:
    """The nearest folder, from `start` (the working directory) upwards, that has `workflow/Snakefile` and `config/`."""
    here = Path.cwd() if start is None else start.absolute()
    places = (here, *here.parents)
    return next((place for place in places if (place / SNAKEFILE).is_file() and (place / "config").is_dir()), None)


def absolute(path: Path) -> Path:
    """A path from the root, without ``..``. Links are not followed: `results` may be one, to a larger disk."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - `Path.resolve` follows links


def checkout() -> Path | None:
    """The project, or outside of any the one that this package is part of; None if it is part of none."""
    return project() or project(Path(__file__).parent)


def shown(path: Path) -> Path:
    """A path as it is named in the working directory: relative where the file is inside of it or of a folder above."""
    here, path = Path.cwd(), absolute(path)
    above = checkout()
    near = path.is_relative_to(here) or (above is not None and here.is_relative_to(above) and path.is_relative_to(above))
    return Path(os.path.relpath(path, here)) if near else path


def in_shell(path: Path) -> Path:
    """A path as it is named in the shell that started this process, whose folder `--directory` does not change."""
    shell = os.environ.get("PWD")
    return path if shell is None or Path(shell).resolve() == Path.cwd().resolve() else absolute(path)


def default_results() -> Path:
    """The project's results, as named in the working directory."""
    root = checkout()
    return shown(root / RESULTS) if root is not None else RESULTS


def snakemake(
    targets: Sequence[str], experiment: Path | None, results: Path, *, force: bool = True, in_project: bool = False
) -> str:
    """The command that makes files of an experiment.

    Args:
        targets: below the folder of all results: `mini/metrics/KD/0.json`. Without any, everything is made.
        experiment: the experiment's file; None: the workflow's default.
        results: folder of all results, relative to the working directory or absolute.
        force: also if they are there and up to date.
        in_project: the command is for a reader's clone, in its root, not for the working directory.
    """
    here = Path.cwd()
    root = here if in_project else checkout()
    words = ["snakemake"]
    if root is not None and root != here:
        words += ["--snakefile", str(shown(root / SNAKEFILE)), "--directory", str(shown(root))]
    words += ["--cores", "all", *(["--force"] if force and targets else [])]
    if experiment is not None:
        words += ["--configfile", str(experiment)]
    folder = absolute(results)
    if root is not None and folder.is_relative_to(root):
        folder = folder.relative_to(root)
    if folder != RESULTS:
        words += ["--config", f"results={_value(str(folder))}"]
    # `--configfile` and `--config` take several values: the separator keeps them from swallowing the targets.
    return shlex.join([*words, *(["--", *(str(folder / target) for target in targets)] if targets else [])])


def cmapkd(words: Sequence[str], experiment: Path | None, results: Path) -> str:
    """A command of the command line, for an experiment and the folder of its results."""
    named = ["--experiment", str(experiment)] if experiment is not None else []
    return shlex.join(["cmapkd", *words, *named, "--results", str(results)])


def _value(text: str) -> str:
    """A text as the value of Snakemake's `--config`, which strips quotes, and reads numbers, truth values and YAML."""
    try:
        plain = yaml.load(text, Loader=yaml.BaseLoader) == text == text.strip("'\"")
    except yaml.YAMLError:
        plain = False
    if plain and not _is_number(text) and text.lower() not in ("true", "false"):
        return text
    return f" {json.dumps(text, ensure_ascii=False)} "  # spaces keep the quotes


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---- messages that know only part of a command ----------------------------------------------------------------------------


def remember(option: str, value: Path) -> None:
    """Note an option that the running command was given, for the commands in its messages."""
    _given[option] = str(value)


def given(option: str) -> Path | None:
    """What the running command was given."""
    return Path(_given[option]) if option in _given else None


def forget() -> None:
    """Forget what an earlier command of this process was given."""
    _given.clear()
    _datasets.clear()


def remember_dataset(name: str) -> None:
    """Note the data set that the running command is about."""
    _datasets[:] = [name]


def remembered_dataset() -> str | None:
    """The data set that the running command is about."""
    return _datasets[0] if _datasets else None


def completed(text: str, given: Mapping[str, Any] | None = None, dataset: str | None = None) -> str:
    """A message whose commands get the options that the running command was given, as far as they take and lack them.

    Code that reads a data set or weights does not know of the experiment's file; the command line does. A command of one data
    set that does not name it gets the name.

    Args:
        given: option -> value; None: those of the running command.
        dataset: that the message is about.
    """
    options = _given if given is None else given

    def complete(match: re.Match[str]) -> str:
        try:
            words = shlex.split(match[1])
        except ValueError:
            return match[0]
        if not any(words[1:3][: name.count(" ") + 1] == name.split() for name in TAKE_OPTIONS):
            return match[0]
        added = [dataset] if dataset and words[1] == "data" and words[2] != "overlap" and len(words) == 3 else []
        added += [word for name, value in options.items() if name not in words for word in (name, str(value))]
        return f"`{match[1]} {shlex.join(added)}`" if added else match[0]

    return NAMED.sub(complete, text)
