"""``paper.tex``: title, what was run, tables, figures, and where the numbers come from.

Packages are those that `scripts/setup-latex.sh` installs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmapkd.paper.context import TEACHER, PaperContext, table_numbers
from cmapkd.paper.latex import escape
from cmapkd.paper.metrics import MetricFile, Metrics

PREAMBLE = r"""% paper.tex: made by cmapkd from metric files.
\pdfinfoomitdate=1
\pdftrailerid{}
\pdfsuppressptexinfo=-1
\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{lmodern}
\usepackage[a4paper,textwidth=122mm,textheight=193mm]{geometry}  % text area of LNCS
\usepackage{amsmath,amssymb}
\usepackage{booktabs}
\usepackage{longtable}
\usepackage{graphicx}
\usepackage{microtype}
\usepackage[ruled,vlined,linesnumbered]{algorithm2e}
\usepackage[font=small,labelfont=bf,labelsep=period]{caption}
\captionsetup[table]{position=above,skip=5pt}
\usepackage[hidelinks]{hyperref}
\setlength{\parindent}{0pt}\setlength{\parskip}{4pt}
\renewcommand{\topfraction}{0.95}\renewcommand{\bottomfraction}{0.9}\renewcommand{\textfraction}{0.05}
\renewcommand{\floatpagefraction}{0.6}
% Pages of floats are filled from the top.
\makeatletter\setlength{\@fptop}{0pt}\setlength{\@fpsep}{24pt}\setlength{\@fpbot}{0pt plus 1fil}\makeatother
"""


def render_document(context: PaperContext, metrics: Metrics, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole document. ``parts`` holds the JSON of each table and figure."""
    files = [metrics.file(TEACHER, context.teacher_seed, "paper.tex")]
    files += [metrics.file(run.name, seed, "paper.tex") for run in context.runs for seed in context.seeds]
    title = escape(context.title)
    lines = [
        PREAMBLE,
        f"\\hypersetup{{pdftitle={{{title}}}}}",
        r"\input{numbers}",
        f"\\title{{{title}}}\n\\author{{}}\n\\date{{}}",
        r"\begin{document}",
        r"\maketitle\suppressfloats[t]",
        r"\vspace{-3em}",
        statement(context, files),
        r"\section*{Results}",
        _pointers(context, parts),
    ]
    numbers = table_numbers(context.tables)
    lines += [f"\\setcounter{{table}}{{{numbers[name] - 1}}}\\input{{{name}}}" for name in context.tables]
    lines += [_numbered(name) + _figure(name, parts[name]) for name in context.figures]
    lines += [f"{_numbered(name)}\\input{{{name}}}" for name in context.algorithms]
    lines += [r"\clearpage", r"\section*{Where the numbers come from}", _origins(files)]
    if context.appendix or context.appendix_figures:
        # Tables and figures A1, A2, ...; hyperref tells them from those of the text by \theHtable and \theHfigure.
        lines += [r"\clearpage\appendix\setcounter{table}{0}\setcounter{figure}{0}"]
        lines += [r"\renewcommand{\thetable}{A\arabic{table}}\renewcommand{\theHtable}{A\arabic{table}}"]
        lines += [r"\renewcommand{\thefigure}{A\arabic{figure}}\renewcommand{\theHfigure}{A\arabic{figure}}"]
        lines += [f"{_numbered(name)}\\input{{{name}}}" for name in context.appendix]
        lines += [_figure(name, parts[name]) for name in context.appendix_figures]
    lines += [r"\end{document}", ""]
    return "\n".join(lines)


def statement(context: PaperContext, files: list[MetricFile]) -> str:
    """What was run, in sentences: experiment, runs, seeds, code, data, image."""
    seeds = ", ".join(str(seed) for seed in context.seeds)
    runs = ", ".join(escape(run.shown) for run in context.runs)
    sentences = [
        f"Experiment \\textbf{{{escape(context.name)}}}. Models: {escape(context.teacher_label)}; students {runs}. "
        f"Student initialisation: {escape(context.student_initialisation)}. "
        f"{'Seeds' if len(context.seeds) > 1 else 'One seed'}: {seeds}.",
        f"Code: {_code(files)}.",
        f"Data: {_data(files)}.",
    ]
    images = sorted({str(file.provenance["image_digest"]) for file in files if file.provenance.get("image_digest")})
    if images:
        sentences.append(f"Container image: {', '.join(_hash(image) for image in images)}.")
    if context.planned:
        sentences.append(
            "Columns headed \\emph{planned} of Table~\\ref{tab:planned} hold numbers that were written down before any "
            "experiment. They are not results, and no other table shows them."
        )
    sentences.append(
        "This document was generated; each number in it is also a macro in \\texttt{numbers.tex}, and "
        "\\texttt{cmapkd trace} leads from a number to the run that made it."
    )
    return "\n".join(sentences)


def _code(files: list[MetricFile]) -> str:
    states = sorted(
        {(str(file.provenance.get("commit", "unknown")), str(file.provenance.get("dirty", "unknown"))) for file in files}
    )
    words = {"True": " with uncommitted changes", "False": "", "unknown": " (unknown whether changed)"}
    return ", ".join(f"commit {_hash(commit)}{words.get(dirty, '')}" for commit, dirty in states)


def _data(files: list[MetricFile]) -> str:
    digests = sorted({(dataset, str(value)) for file in files for dataset, value in file.provenance["data_digests"].items()})
    return ", ".join(f"{escape(dataset)}, manifest {_hash(value)}" for dataset, value in digests) or "not recorded"


def _pointers(context: PaperContext, parts: Mapping[str, Mapping[str, Any]]) -> str:
    names = [f"Table~\\ref{{tab:{name}}} ({_lower(parts[name]['title'])})" for name in context.all_tables]
    names += [f"Figure~\\ref{{fig:{name}}} ({_lower(parts[name]['title'])})" for name in context.all_figures]
    names += [f"Algorithm~\\ref{{alg:{name}}} ({_lower(parts[name]['title'])})" for name in context.algorithms]
    return f"{'; '.join(names)}." if names else "No table and no figure is configured."


def _lower(title: str) -> str:
    return escape(title[:1].lower() + title[1:])


def _numbered(name: str) -> str:
    """Table 2 keeps its number when table 1 is not in the paper: ``table2`` in files and commands is Table 2 on paper."""
    kind = name.rstrip("0123456789")
    digits = name[len(kind) :]
    counter = {"table": "table", "figure": "figure", "algorithm": "algocf"}.get(kind)
    return f"\\setcounter{{{counter}}}{{{int(digits) - 1}}}" if counter and digits else ""


def _figure(name: str, part: Mapping[str, Any]) -> str:
    return (
        "\\begin{figure}[tb]\n\\centering\n"
        f"\\includegraphics[width=\\linewidth]{{{name}.pdf}}\n"
        f"\\caption{{\\textbf{{{escape(part['title'])}.}} {escape(part['caption'])}}}\n\\label{{fig:{name}}}\n\\end{{figure}}"
    )


def _origins(files: list[MetricFile]) -> str:
    head = "run & seed & metric file & configuration & commit \\\\\n\\midrule"
    rows = []
    for file in files:
        config, commit = (str(file.provenance.get(key, "unknown")) for key in ("config_digest", "commit"))
        rows.append(f"{escape(file.run)} & {file.seed} & {_hash(file.sha256)} & {_hash(config)} & {_hash(commit)} \\\\")
    return "\n".join(
        [
            "The first digits of the SHA-256 digests of metric files and of the configuration behind them, and of commits.",
            "{\\footnotesize\\setlength{\\LTleft}{0pt}",
            "\\begin{longtable}{@{}lrlll@{}}",
            f"\\toprule\n{head}\n\\endhead",
            "\\bottomrule\n\\endfoot",
            *rows,
            "\\end{longtable}}",
        ]
    )


def _hash(text: str) -> str:
    digits = text.removeprefix("sha256:")
    return f"\\texttt{{{escape(digits[:12])}}}"
