"""What jobs run in, and what of it is missing here."""

# Where there is no LaTeX, everything but the PDF is made, and the workflow says so at its end.
LATEX = parts.has_latex()


onsuccess:
    parts.say_what_was_made(HOME, LATEX)
