"""Errors that a user can mend: each names the key (or file), the value, the reason and the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

LONG = 12  # a message lists at most so many names


class UserError(Exception):
    """A mistake in configuration, data or environment. The command line prints it without a traceback and exits with 2."""

    def __init__(self, *, key: str, reason: str, value: object = None, fix: str = "") -> None:
        self.key, self.value, self.reason, self.fix = key, value, reason, fix
        shown = f" = {value!r}" if value is not None else ""
        super().__init__(f"{key}{shown}: {reason}" + (f"\n  fix: {fix}" if fix else ""))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive pickling by default, and data-loader workers pickle their errors.
        return (_rebuild, (self.key, self.value, self.reason, self.fix))


def _rebuild(key: str, value: object, reason: str, fix: str) -> UserError:
    return UserError(key=key, value=value, reason=reason, fix=fix)


def nearest(word: str, known: Sequence[str], *, listing: str = "") -> str:
    """The known spelling nearest to ``word`` as a hint (``did you mean 'x'?``), or the list of what is known.

    Args:
        listing: a command that lists what is known; then the three nearest stand for a long list.
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if listing and len(known) > LONG:
        some = difflib.get_close_matches(word, known, n=3, cutoff=0.0)
        return f"the nearest of {len(known)} are {', '.join(some)}; {listing} lists all"
    return f"known: {', '.join(sorted(known))}"


def nearest_path(path: Path, fits: Callable[[Path], bool], others: Iterable[Path] = ()) -> str:
    """The existing path that is spelled most like ``path``, as a hint; without one the names of ``others``; else nothing.

    Args:
        fits: whether a path is of the wanted kind.
        others: paths elsewhere that may be meant.
    """
    here = Path(path.anchor)
    parts = path.parts[1:] if path.anchor else path.parts
    for place, name in enumerate(parts):
        last = place == len(parts) - 1
        if name != ".." and (last or not (here / name).is_dir()):
            try:
                inside = [entry for entry in sorted(here.iterdir()) if (fits(entry) if last else entry.is_dir())]
            except OSError:
                break
            close = _closest(name, inside)
            if close is None:
                break
            name = close.name
        here /= name
    else:
        if fits(here) and here != path:
            return f"did you mean '{here}'?"
    known = list(dict.fromkeys(entry for entry in others if fits(entry)))
    if (close := _closest(path.name, known)) is not None:
        return f"did you mean '{close}'?"
    return f"name one of {', '.join(str(entry) for entry in known[:LONG])}" if known else ""


def _closest(name: str, entries: Sequence[Path]) -> Path | None:
    """The entry whose name is most like ``name``; the ending of YAML files, which all of them have, does not count."""
    import difflib

    names = [entry.name.removesuffix(".yaml") for entry in entries]
    close = difflib.get_close_matches(name.removesuffix(".yaml"), names, n=1, cutoff=0.6)
    return entries[names.index(close[0])] if close else None
