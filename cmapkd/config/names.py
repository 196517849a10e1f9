"""Which names an experiment may give: they become rows of tables, LaTeX, HTML, file names and macros. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cmapkd.files import slug
from cmapkd.paper.characters import unprintable

LONGEST = 100  # characters of a run's name; a file's name holds 255 bytes, and others are put around it
LONGEST_TEXT = 500  # characters of a title or label
# Windows, and what is synchronized with it, gives no file such a name, with an extension or without.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
FIX = "use Latin or Greek letters, digits and common signs"


def is_device(name: str) -> bool:
    """Whether Windows takes a file of that name for a device."""
    return name.partition(".")[0].lower() in _DEVICES


def check_names(runs: Iterable[str], datasets: Iterable[str], schedules: Iterable[str]) -> None:
    """Check what becomes the name of a directory.

    Raises:
        ValueError: a name that cannot be printed or stored, or two that are one on a file system that ignores case.
    """
    runs = list(runs)
    for name in runs:
        key = f"runs.{name if name.isprintable() and len(name) <= LONGEST else ascii(name[:LONGEST])}"
        if not name or name != name.strip():
            raise ValueError(f"{key}: the name is empty, or begins or ends with a space; take the space out")
        if len(name) > LONGEST:
            raise ValueError(f"{key}...: the name has {len(name)} characters, at most {LONGEST} are allowed; shorten it")
        if flaw := unprintable(name):
            raise ValueError(f"{key}: the name {flaw}; {FIX}")
        if is_device(slug(name)):
            raise ValueError(f"{key}: a file of this name is a device on Windows; use another name")
    for section, names in (("datasets", datasets), ("schedules", schedules)):
        seen: dict[str, str] = {}
        for name in names:
            if (other := seen.setdefault(name.lower(), name)) != name:
                raise ValueError(f"{section}.{name}: differs from {section}.{other} in case alone; rename one of them")


def check_texts(texts: Mapping[str, Any]) -> None:
    """Check what is printed in the paper, by key.

    Raises:
        ValueError: a text that the paper cannot show.
    """
    for key, text in texts.items():
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"{key} has {len(text)} characters, at most {LONGEST_TEXT} are allowed; shorten it")
        if not text.strip():
            raise ValueError(f"{key} is empty; write a text, or leave the key out")
        if flaw := unprintable(text):
            raise ValueError(f"{key} = {text!r} {flaw}; {FIX}")
