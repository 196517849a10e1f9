"""Errors that a user can mend: each names the key (or file), the value, the reason and the fix."""

from __future__ import annotations

import errno
import os
import shutil
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
        return (_rebuild, (type(self), self.key, self.value, self.reason, self.fix))


class DamagedFileError(UserError, ValueError):
    """A file whose content cannot be what its name promises. A reader with a substitute for it catches `ValueError`."""


def _rebuild(kind: type[UserError], key: str, value: object, reason: str, fix: str) -> UserError:
    return kind(key=key, value=value, reason=reason, fix=fix)


_REFUSED = {  # number of an operating system's error -> words, fix
    errno.ENOSPC: ("no space is left", "make room"),
    errno.EDQUOT: ("the quota is used up", "make room, or ask for a larger quota"),
    errno.EROFS: ("the file system is read-only", "name a folder that can be written"),
    errno.EIO: ("the disk reports an error", "check the disk"),
    errno.ESTALE: ("the network file system has gone", "wait for the file system"),
    errno.EACCES: ("permission is denied", "change its permissions (ls -l), or name another"),
    errno.EPERM: ("the operation is not permitted", "change its permissions (ls -l), or name another"),
    errno.ENOENT: ("it does not exist", "make it with the command or rule that writes it, or name another"),
    errno.ENOTDIR: ("a part of its path is not a folder", "name another"),
    errno.EISDIR: ("it is a folder, and a file is expected", "name another, or move the folder away"),
    errno.EEXIST: ("it exists already", "name another, or move it away"),
    errno.ENOTEMPTY: ("the folder is not empty", "name another, or empty it"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "use shorter names"),
    errno.EINVAL: ("the file system refuses this name or operation", "name another"),
    errno.ELOOP: ("its links lead in a circle", "remove the links"),
    errno.EXDEV: ("it is on another file system", "name a folder on the same one"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.EFBIG: ("the file system or a limit (ulimit -f) allows no file of this size", "use another file system"),
    errno.ETXTBSY: ("a program runs from it", "end the program"),
    errno.EBUSY: ("it is in use", "end what uses it"),
    errno.ENODEV: ("it is a device that is not there", "name a file"),
    errno.ENXIO: ("it is a device that is not there", "name a file"),
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)


def told_by_system(error: OSError) -> UserError | None:
    """The user's error for a file that the operating system refuses; None if ``error`` is about something else."""
    if error.errno not in _REFUSED or (error.filename is None and error.errno not in _FULL):
        return None
    reason, fix = _REFUSED[error.errno]
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    room = f" ({free_space(names[0] if names else '.')})" if error.errno in _FULL else ""
    return UserError(
        key=" -> ".join(names) or "a file",
        reason=f"cannot be used: {reason}{room}",
        fix=f"{fix}, then run the same command again",
    )


def free_space(path: str | os.PathLike[str]) -> str:
    """How much room there is where a path is, or would be."""
    for place in (Path(path).absolute(), *Path(path).absolute().parents):
        try:
            usage = shutil.disk_usage(place)
        except OSError:
            continue
        return f"{usage.free / 1e6:,.1f} of {usage.total / 1e6:,.1f} MB are free there"
    return "free space unknown"


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
