"""Errors that a user can mend: each names the key (or file), the value, the reason and the fix."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in configuration, data or environment. The command line prints it without a traceback and exits with 2."""

    def __init__(self, *, key: str, reason: str, value: object = None, fix: str = "") -> None:
        self.key, self.value, self.reason, self.fix = key, value, reason, fix
        shown = f" = {value!r}" if value is not None else ""
        super().__init__(f"{key}{shown}: {reason}" + (f"\n  fix: {fix}" if fix else ""))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive pickling by default, and data-loader workers pickle their errors.
        return (_rebuild, (type(self), self.key, self.value, self.reason, self.fix))


class DamagedFileError(UserError, ValueError):
    """A file whose content cannot be what its name promises. A reader with a substitute for it catches `ValueError`."""


def _rebuild(kind: type[UserError], key: str, value: object, reason: str, fix: str) -> UserError:
    return kind(key=key, value=value, reason=reason, fix=fix)


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """The known spelling nearest to ``word`` as a hint (``did you mean 'x'?``), or the list of what is known."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
