"""Files that operating systems, editors and file servers put into folders and archives; no source reads them.

Every source asks ``is_ignored``, so that a name has the same meaning in a folder, a tar, a zip and a table of files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

# In lower case. Names that start with a dot (.DS_Store, ._x, .ipynb_checkpoints, .x.swp, .Trash-1000) are ignored as well.
_NAMES = frozenset(
    {
        "__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "$recycle.bin", "recycler",
        "system volume information", "lost+found", "@eadir", "@tmp", "#recycle", "#snapshot", "__pycache__",
        "network trash folder", "temporary items",
    }
)  # fmt: skip
_ENDINGS = ("~", ".swp", ".swo", ".swx", ".bak", ".part", ".crdownload", ".tmp")
_STARTS = (".", "~$")


def is_ignored(name: str | PurePosixPath) -> bool:
    """Whether a file name, or a folder in a path relative to the data set, is that of an operating system or an editor."""
    return any(_ignored(part) for part in PurePosixPath(name).parts if part not in ("/", ".", ".."))


def _ignored(part: str) -> bool:
    lower = part.lower()
    emacs = part.startswith("#") and part.endswith("#") and len(part) > 1
    return lower.startswith(_STARTS) or lower in _NAMES or lower.endswith(_ENDINGS) or emacs


def own_files(paths: Iterable[Path]) -> list[Path]:
    """``paths`` of one folder without those that are ignored, sorted."""
    return sorted(path for path in paths if not is_ignored(path.name))
