"""``manuscript.pdf``: the article of the key `paper.manuscript`, typeset with the tables, figures and numbers of an experiment.

The article is written by people and holds for any experiment: it takes every number from ``numbers.tex`` and leaves out
what an experiment does not have.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from cmapkd.errors import UserError
from cmapkd.paper.build import PACKAGES, compile_pdf, existing, missing_latex, part_files
from cmapkd.paper.context import PaperContext

# What a manuscript may need beyond the LaTeX of paper.tex: LNCS with its bibliography style, from texlive-publishers.
FILES = ("llncs.cls", "splncs04.bst")
BESIDE = (".bib", ".bst", ".cls", ".sty", ".tex", ".pdf", ".png", ".jpg")
COMPLAINTS = r"(?:Reference|Citation) .* undefined|multiply defined|Float too large"


def build_manuscript(context: PaperContext) -> bool:
    """Typeset ``paper/manuscript.pdf``.

    Returns:
        Whether it was made. If not (no manuscript is configured, or LaTeX lacks something), an older one is removed.

    Raises:
        UserError: the manuscript or a part is missing; LaTeX or BibTeX reports an error; a reference leads nowhere.
    """
    pdf = context.paper / "manuscript.pdf"
    if context.manuscript is None or missing_for_manuscript():
        pdf.unlink(missing_ok=True)
        return False
    inputs = [*sources(context), *existing(context, ["numbers.tex", *part_files(context)])]
    names = [path.name for path in inputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            key="paper.manuscript",
            value=str(context.manuscript),
            reason=f"{', '.join(twice)} beside it has the name of a generated file",
            fix="rename it",
        )
    log = compile_pdf(inputs, pdf)
    complaints = list(dict.fromkeys(re.findall(f"(?m)^.*(?:{COMPLAINTS}).*$", log)))
    if complaints:
        pdf.unlink()
        listed = "\n".join(f"    {line}" for line in complaints)
        raise UserError(key=str(context.manuscript), reason=f"LaTeX warns:\n{listed}", fix="mend it there")
    return True


def sources(context: PaperContext) -> list[Path]:
    """The manuscript and the files beside it that it may use.

    Raises:
        UserError: there is none.
    """
    main = context.manuscript
    if main is None or not main.is_file():
        raise UserError(
            key="paper.manuscript", value=str(main or ""), reason="there is no such file", fix='name one, or set it to ""'
        )
    beside = sorted(path for path in main.parent.iterdir() if path.suffix in BESIDE and path != main and path.is_file())
    return [main, *beside]


def missing_for_manuscript() -> list[str]:
    """Programs and files that typesetting the manuscript lacks here."""
    programs = [] if shutil.which("bibtex") else ["bibtex"]
    return [*missing_latex(*PACKAGES, *FILES), *programs]
