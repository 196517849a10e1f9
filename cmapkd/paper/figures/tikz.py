r"""How drawings look: LNCS width, Helvetica, Okabe-Ito colours; text of 6 pt or more, also in indices.

A drawing is a template with ``<<name>>`` where a value goes, so that TikZ's braces stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

WIDTH = 122  # [mm] LNCS text width
PREAMBLE = r"""\pdfinfoomitdate=1
\pdftrailerid{}
\pdfsuppressptexinfo=-1
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{lmodern}
\usepackage[scaled=0.95]{helvet}
\usepackage{amsmath,amssymb}
\usepackage{tikz}
\usetikzlibrary{arrows.meta}
\DeclareMathSizes{7}{7}{6}{6}
\DeclareMathSizes{6.4}{6.4}{6}{6}
\hoffset=0pt\voffset=0pt\pdfhorigin=0pt\pdfvorigin=0pt
\begin{document}
"""
STYLE = r"""\definecolor{vision}{HTML}{0072B2}
\definecolor{language}{HTML}{E69F00}
\definecolor{selection}{HTML}{009E73}
\definecolor{loss}{HTML}{D55E00}
\newcommand{\mainsize}{\fontfamily{phv}\fontsize{7}{8.2}\selectfont}
\newcommand{\smallsize}{\fontfamily{phv}\fontsize{6.4}{7.4}\selectfont}
\newcommand{\snowflake}{\tikz[baseline=-0.6mm,x=1mm,y=1mm,line width=0.35pt,line cap=round]{\foreach \a in {0,60,...,300}
  {\draw (0,0) -- (\a:1.05); \draw (\a:0.6) -- ++(\a+50:0.38); \draw (\a:0.6) -- ++(\a-50:0.38);}}}
\tikzset{
  every node/.style={inner sep=0.6mm, outer sep=0mm, font=\mainsize, align=center},
  flow/.style={-{Stealth[length=1.5mm,width=1.3mm]}, line width=0.55pt},
  both/.style={{Stealth[length=1.5mm,width=1.3mm]}-{Stealth[length=1.5mm,width=1.3mm]}, line width=0.55pt},
  stopped/.style={flow, densely dotted, line width=0.7pt},
  box/.style={draw, line width=0.5pt, rounded corners=0.6mm, fill=white},
  small/.style={font=\smallsize},
}
"""


def standalone(picture: str) -> str:
    """A document whose one page is exactly as large as the drawing."""
    ship = (
        f"{STYLE}\\setbox0\\hbox{{%\n{picture.rstrip()}%\n}}\n"
        "\\pdfpagewidth=\\wd0\\pdfpageheight=\\dimexpr\\ht0+\\dp0\\relax\n\\shipout\\box0\n\\end{document}\n"
    )
    return PREAMBLE + ship


def fill(template: str, values: Mapping[str, str]) -> str:
    """``template`` with every ``<<name>>`` replaced; values are LaTeX.

    Raises:
        ValueError: a name without a value, or a value that the template does not show.
    """
    names = set(re.findall(r"<<(\w+)>>", template))
    if names != set(values):
        raise ValueError(f"template and values differ in {sorted(names ^ set(values))}")
    return re.sub(r"<<(\w+)>>", lambda match: values[match[1]], template)
