r"""Names for prose, as macros beside the numbers: what the experiment's models, runs and splits are called, words, captions.

A manuscript that uses them holds for any experiment: it asks which parts and numbers there are, and prints those.
"""

from __future__ import annotations

from collections.abc import Mapping

from cmapkd.paper.cells import Text
from cmapkd.paper.context import TEACHER, PaperContext
from cmapkd.paper.latex import escape, macro_key

MACROS = r"""% names.
%   \cmapkdname{full_run}                          a name: experiment, teacher, student, initialisation, seeds, full_run, ...
%   \cmapkdlabel{KD}                               what a run is called
%   \cmapkdmethods, \cmapkdablations               keys of the runs of each group, separated by commas
%   \cmapkdappendix                                names of the tables of the appendix, separated by commas
%   \cmapkdtext{figure1}{teacher}{model}           words of a table, figure or algorithm
%   \cmapkdcaption{figure3}                        a figure's caption
%   \cmapkdif{table2}{CMAPKD}{i2t_r1}{yes}{no}     whether there is such a number
\makeatletter
\newcommand{\cmapkdname}[1]{\cmapkd@get{name}{names}{names}{#1}}
\newcommand{\cmapkdlabel}[1]{\cmapkd@get{label}{runs}{#1}{label}}
\newcommand{\cmapkdtext}[3]{\cmapkd@get{text}{#1}{#2}{#3}}
\newcommand{\cmapkdcaption}[1]{\cmapkd@get{caption}{#1}{caption}{caption}}
\newcommand{\cmapkdif}[3]{\ifcsname cmapkd@value@#1@#2@#3\endcsname\expandafter\@firstoftwo\else\expandafter\@secondoftwo\fi}
"""


def render_names(
    context: PaperContext, texts: Mapping[str, Mapping[str, Mapping[str, Text]]], captions: Mapping[str, str]
) -> str:
    """The macros as LaTeX.

    Args:
        texts: part -> row -> column -> text.
        captions: figure -> caption, LaTeX.
    """
    lines = [MACROS]
    for key, name in names(context).items():
        lines.append(_set("name", "names", "names", key, name))
    for run in (TEACHER, *(run.name for run in context.runs)):
        label = TEACHER if run == TEACHER else next(found.shown for found in context.runs if found.name == run)
        lines.append(_set("label", "runs", macro_key(run), "label", escape(label)))
    for group, macro in (("method", "cmapkdmethods"), ("ablation", "cmapkdablations")):
        keys = ",".join(macro_key(run.name) for run in context.students(group))
        lines.append(f"\\def\\{macro}{{{keys}}}\n")  # not \\newcommand: \\ifx must see that it is empty
    lines.append(f"\\def\\cmapkdappendix{{{','.join(context.appendix)}}}\n")
    for part, rows in texts.items():
        for row, columns in rows.items():
            for column, text in columns.items():
                lines.append(_set("text", part, macro_key(row), macro_key(column), escape(text.text)))
    for figure, caption in captions.items():
        lines.append(_set("caption", figure, "caption", "caption", caption))
    return "".join([*lines, "\\makeatother\n"])


def names(context: PaperContext) -> dict[str, str]:
    """Names of the experiment as LaTeX; those that name a row of a table as that row's macro key."""
    full = next((run for run in context.runs if run.name == context.full_run), None)
    design = context.design
    found = {
        "experiment": escape(context.name),
        "title": escape(context.title),
        "teacher": escape(design.teacher.name if design else context.teacher_label),
        "student": escape(design.student.name if design else "the student"),
        "initialisation": escape("random" if context.student_initialisation == "random" else context.student_initialisation),
        "seeds": ", ".join(str(seed) for seed in context.seeds),
        "seed_count": str(len(context.seeds)),
        "others": escape(_listed([run.shown for run in context.students() if run is not full])),
        "full_run": macro_key(full.name) if full else macro_key(context.full_run),
        "full_label": escape(full.shown if full else context.full_run),
    }
    for task, splits in (("retrieval", context.retrieval), ("zeroshot", context.zeroshot), ("vqa", context.vqa)):
        if splits:
            found[task] = escape(context.label(splits[0], task))  # type: ignore[arg-type]
    return found


def _listed(names: list[str]) -> str:
    """``A, B and C``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names) or "no other method"


def _set(kind: str, part: str, row: str, column: str, value: str) -> str:
    return f"\\cmapkd@set{{{kind}}}{{{part}}}{{{row}}}{{{column}}}{{{value}}}\n"
