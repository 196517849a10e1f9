"""What a successful run of the workflow says at its end: the files that were asked for, so far as they exist."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmapkd import commands


def say_what_was_made(home: str, latex: bool, dag: Any) -> None:
    """The last lines of a successful run: where to look. Only what was asked for and exists is named.

    Args:
        home: `results/<experiment>`.
        latex: whether PDFs can be typeset here.
        dag: Snakemake's graph of the jobs behind what was asked for.
    """
    wanted = {str(path) for job in dag.jobs for path in job.output}
    asked = [str(path) for job in dag.targetjobs for path in (job.output or job.input)]
    shown = [path for name in ("paper.pdf", "manuscript.pdf") if (path := f"{home}/paper/{name}") in wanted]
    if not shown and f"{home}/paper/paper.tex" in asked and not latex:
        missing = "LaTeX or some of its packages are missing here: tables and plots, but no PDF of drawings and paper"
        shown = [f"{home}/paper/"]
    else:
        missing = ""
        shown = shown or asked
    there = [path for path in dict.fromkeys(shown) if Path(path).exists()]
    lines = f"\nDone: {_listed(there)}{f' ({missing})' if missing else ''}\n" if there else ""
    if (table := f"{home}/paper/table2.json") in wanted and Path(table).is_file():
        file, results = (commands.in_shell(path) for path in (Path(home, "experiment.yaml"), Path(home).parent))
        command = commands.cmapkd(["trace", "table2", "Teacher", "i2t_r1"], file, results)
        lines += f"A number's origin: {command}\n"
    sys.stderr.write(lines)


def _listed(paths: Sequence[str], most: int = 3) -> str:
    """Paths for people: ``a``, ``a and b``, or the first few and how many more."""
    if len(paths) > most:
        return f"{', '.join(paths[:most])} and {len(paths) - most} more"
    return " and ".join(filter(None, [", ".join(paths[:-1]), paths[-1]]))
