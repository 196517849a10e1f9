"""Paths that a user configures: resolved once, where they are read, and written in a form that holds on other machines.

Jobs may run in a container with another ``HOME``, without the user's variables and with few folders of the host. So a path
becomes absolute where it is read, is bound into the container under the same name, and only a few variables are expanded,
which the workflow hands into the container. Torch-free, and without the rest of the package, because everything imports it.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from cmapkd.errors import UserError

# What a path may start from, apart from `~`: variables with which sites name their file systems.
VARIABLES = (
    "HOME", "USER", "SCRATCH", "PSCRATCH", "WORK", "WORKDIR", "PROJECT", "STORE", "DATA", "GROUP_HOME", "GROUP_SCRATCH",
    "HF_HOME", "CMAPKD_CACHE",
)  # fmt: skip
HOME = "CMAPKD_HOME"  # of the user who started the workflow: in a container, HOME is another folder
UNBOUND = ":,"  # characters that separate the folders that a container is to show
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".npy")  # of files with weights
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)


class ResolvedPath(str):
    """The text of an absolute path, which remembers how it was configured."""

    configured: str

    def __new__(cls, path: str | Path, configured: str = "") -> ResolvedPath:
        made = super().__new__(cls, path)
        made.configured = configured or str(path)
        return made


def home() -> Path:
    """The home folder of the user who started the workflow.

    Raises:
        UserError: nothing says where it is.
    """
    if given := os.environ.get(HOME) or os.environ.get("HOME"):
        return Path(given).absolute()
    try:
        return Path.home()
    except RuntimeError:  # a user without an entry in the user database
        raise UserError(key="HOME", reason="is not set", fix="export HOME=<your folder>, or write paths in full") from None


def resolve(text: str, key: str, base: Path | None = None) -> Path:
    """The absolute path that a user configured.

    Args:
        text: as configured; ``~`` and the variables of ``VARIABLES`` are expanded.
        key: where it is configured, for messages.
        base: what a relative path is relative to; the working directory by default.

    Raises:
        UserError: a variable that is unset, empty or not one of ``VARIABLES``; ``~user``; or a character that no folder of a
            container may have in its name. The message shows the text and never the value of a variable.
    """
    try:
        return resolved(text, base)
    except ValueError as error:
        reason, _, fix = str(error).partition("; ")
        raise UserError(key=key, value=str(text), reason=reason, fix=fix) from None


def resolved(text: str, base: Path | None = None) -> Path:
    """As ``resolve``.

    Raises:
        ValueError: with reason and fix, separated by a semicolon.
    """
    base = Path.cwd() if base is None else base.absolute()
    if not text.strip():
        raise ValueError("is empty; name a file or a folder")
    if found := re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(f"holds the control character {found[0]!r}; rename it, or correct the path")
    if text.startswith("~") and text[1:2] not in ("", "/"):
        raise ValueError("names the home folder of another user; write the path in full, or use `~/` for your own")
    expanded = _VARIABLE.sub(_value, text)
    path = base / (f"{_home()}{expanded[1:]}" if text.startswith("~") else expanded)
    if ".." in path.parts:  # the folder above a link is that of its target; a link further down keeps its name
        last = len(path.parts) - path.parts[::-1].index("..")
        path = Path(*path.parts[:last]).resolve().joinpath(*path.parts[last:])
    path = Path(os.path.normpath(path))
    # What is below the working directory is there with it; elsewhere the name itself is handed to the container.
    shown = path.relative_to(base) if path.is_relative_to(base) else path
    if found := re.search(f"[{UNBOUND}]", str(shown)):
        raise ValueError(f"holds {found[0]!r}, and such a path cannot be bound into a container; rename the folder or file")
    return path


def portable(path: str | Path, base: Path | None = None, *, variables: bool = False) -> str:
    """A path for files that are written: ``resolve`` makes the same of it here, and what it names elsewhere.

    Args:
        path: absolute, or relative to ``base``; of a `ResolvedPath` the configured text, unless that is absolute or goes up
            from a folder that may be a link, which a container need not have.
        base: what a relative result is relative to; the working directory by default.
        variables: whether a variable may stand for a folder. Not for what decides on results: there, a variable that happens
            to be set would change the text, and another one on the node of a job would change the path.
    """
    if isinstance(path, ResolvedPath) and not re.match(r"/|(?:\.\./)*(?!\.\./).*/\.\.(?:/|$)", path.configured):
        return path.configured
    base = Path.cwd() if base is None else base.absolute()
    path = Path(os.path.normpath(base / path))
    if path.is_relative_to(base):
        text = path.relative_to(base).as_posix()
        return f"./{text}" if text.startswith(("~", "$")) else text
    own = Path(_home())
    if own != Path("/") and path.is_relative_to(own):
        return f"~/{path.relative_to(own).as_posix()}".removesuffix("/.")
    for name in VARIABLES if variables else ():
        value = os.environ.get(name, "")
        if value.startswith("/") and value.strip("/") and path.is_relative_to(value):
            return f"${name}/{path.relative_to(value).as_posix()}".removesuffix("/.")
    return path.as_posix()


def portable_text(value: str) -> str:
    """A key's value for files that are written: as ``portable``, where it is a path that was resolved."""
    return portable(value) if isinstance(value, ResolvedPath) else value


def names_path(weights: str) -> bool:
    """Whether weights are named by a path, and not by a tag of open_clip or as `random`."""
    return "/" in weights or weights.startswith(("~", "$")) or Path(weights).suffix in SUFFIXES


def cache() -> Path:
    """Folder of downloads and fetched weights, shared by all experiments.

    Raises:
        UserError: the variable that names it does not name a folder.
    """
    if given := os.environ.get("CMAPKD_CACHE"):
        return resolve(given, "CMAPKD_CACHE")
    return user_cache() / "cmapkd"


def user_cache() -> Path:
    """Where programs keep what they can make again: ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    given = os.environ.get("XDG_CACHE_HOME")
    return resolve(given, "XDG_CACHE_HOME") if given else home() / ".cache"


def make_folder(path: Path) -> str:
    """Make a folder that files can be written to; returns why that is not possible, or nothing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _home() -> str:
    try:
        return str(home())
    except UserError:
        raise ValueError("needs HOME, which is not set; export HOME=<your folder>, or write the path in full") from None


def _value(found: re.Match[str]) -> str:
    name = found[1] if found[1] is not None else found[2]
    if name not in VARIABLES:
        known = ", ".join(VARIABLES)
        raise ValueError(f"names the variable {name!r}, which is not expanded; write the folder in full, or use one of {known}")
    value = _home() if name == "HOME" else os.environ.get(name, "")
    if not value:
        state = "empty" if name in os.environ else "not set"
        raise ValueError(f"names the variable {name}, which is {state}; export {name}=<folder>, or write the folder in full")
    return value
