"""Characters that LaTeX typesets, and what becomes of the others. Torch-free.

The documents use pdflatex with T1 fonts (Latin Modern, Helvetica): ASCII and the Latin alphabets. Greek letters and signs
are set in mathematics. The list was measured: each character was typeset with the preambles of the paper and of the
drawings, and a test repeats that. Names and labels with other characters are refused when an experiment is checked
(`cmapkd.config.names`); elsewhere, as in a path, their code points are printed.
"""

from __future__ import annotations

import unicodedata

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "–": "--", "—": "---", "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}", "’": "'", "\n": " ", "\t": " ",
    "\u00a0": "~",
}  # fmt: skip
_SIGNS = {
    "→": r"\rightarrow", "↔": r"\leftrightarrow", "↑": r"\uparrow", "↓": r"\downarrow", "←": r"\leftarrow", "⇒": r"\Rightarrow",
    "×": r"\times", "±": r"\pm", "−": "-", "≥": r"\geq", "≤": r"\leq", "≠": r"\neq", "≈": r"\approx", "∞": r"\infty",
    "·": r"\cdot", "∈": r"\in", "⊕": r"\oplus", "⊗": r"\otimes", "∩": r"\cap", "∪": r"\cup", "∅": r"\emptyset",
    "∑": r"\sum", "∏": r"\prod", "√": r"\surd", "∆": r"\Delta", "∇": r"\nabla", "∂": r"\partial", "ℓ": r"\ell",
    **{c: f"^{{{d}}}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True)},
    **{c: f"_{{{d}}}" for c, d in zip("₀₁₂₃₄₅₆₇₈₉₋₊", "0123456789-+", strict=True)},
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "ς": "varsigma",
    "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon",
    "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_ROMAN = dict(zip("οΑΒΕΖΗΙΚΜΝΟΡΤΧ", "oABEZHIKMNOPTX", strict=True))  # Greek letters that look like Latin ones
# Typeset as they are with T1 fonts. Not among them: ĦħŦŧĸŉſ and other letters that the fonts lack.
LATIN = (
    "¡¢£¤¥¦§¨©ª«¬®¯°´µ¶¸º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ"
    "ĀāĂăĄąĆćĈĉĊċČčĎďĐđĒēĔĕĖėĘęĚěĜĝĞğĠġĢģĤĥĨĩĪīĬĭĮįİıĴĵĶķĹĺĻļĽľŁłŃńŅņŇňŊŋŌōŎŏŐőŒœŔŕŖŗŘřŚśŜŝŞşŠšŢţŤťŨũŪūŬŭŮůŰűŲųŴŵŶŷŸŹźŻżŽž"
    "ƒǍǎǏǐǑǒǓǔǦǧǨǩǪǫǴǵȘșȚțḂḃẎẏẐẑẞỲỳ‘‚„†‡•…‰‹›€№™"
)
LATEX = {
    **_SPECIAL,
    **{character: f"${math}$" for character, math in _SIGNS.items()},
    **{character: f"$\\{name}$" for character, name in _GREEK.items()},
    **_ROMAN,
}
_NAMES = frozenset({*map(chr, range(0x20, 0x7F)), *LATIN, *LATEX} - {"\n", "\t", "\u00a0"})  # those of a name or a title


def latex_of(character: str) -> str:
    """One character of plain text as LaTeX; its code point where the fonts lack it."""
    found = LATEX.get(character)
    if found is not None:
        return found
    return character if " " <= character <= "~" or character in LATIN else f"[U+{ord(character):04X}]"


def unprintable(text: str) -> str | None:
    """Why the paper cannot show a text, with the character; None if it can."""
    for character in text:
        if character not in _NAMES:
            code = f"U+{ord(character):04X}"
            name = unicodedata.name(character, "without a name")
            if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Zs"):
                return f"holds the invisible character {code} ({name.lower()})"
            if unicodedata.combining(character) and unicodedata.normalize("NFC", text) != text:
                return f"holds {code} ({name.lower()}) apart from its letter: write the composed letter (normal form NFC)"
            return f"holds {character!r} ({code}, {name.lower()}), which pdflatex cannot typeset"
    return None
