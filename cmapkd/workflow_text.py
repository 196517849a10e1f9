"""What the workflow prints of its own: refusals of an experiment, and where to look when all is made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmapkd import commands
from cmapkd.errors import UserError
from cmapkd.paper.context import EXPERIMENT_FILE, PaperContext


def refusal(error: UserError, files: Sequence[str | Path], results: Any) -> str:
    """A refusal of the experiment, its commands for the file and the folder of results that Snakemake was given."""
    given = {"--experiment": commands.in_shell(Path(files[-1]))} if files else {}
    if isinstance(results, str | Path):
        given["--results"] = commands.in_shell(Path(results))
    return commands.completed(str(error), given)


def say_what_was_made(context: PaperContext, latex: bool, manuscript: bool) -> None:
    """The last lines of a successful run: where to look."""
    home = context.results
    missing = "LaTeX or some of its packages are missing here: tables and plots, but no PDF of drawings and paper"
    what = f"{home}/paper/paper.pdf" if latex else f"{home}/paper/ ({missing})"
    what += f" and {home}/paper/manuscript.pdf" if manuscript else ""
    sys.stderr.write(f"\nDone: {what}\n")
    if "table2" in context.all_tables:
        file, results = (commands.in_shell(path) for path in (home / EXPERIMENT_FILE, home.parent))
        command = commands.cmapkd(["trace", "table2", "Teacher", "i2t_r1"], file, results)
        sys.stderr.write(f"A number's origin: {command}\n")
