"""What the workflow prints of its own: refusals of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmapkd import commands
from cmapkd.errors import UserError


def refusal(error: UserError, files: Sequence[str | Path], results: Any) -> str:
    """A refusal of the experiment, its commands for the file and the folder of results that Snakemake was given."""
    given = {"--experiment": commands.in_shell(Path(files[-1]))} if files else {}
    if isinstance(results, str | Path):
        given["--results"] = commands.in_shell(Path(results))
    return commands.completed(str(error), given)
