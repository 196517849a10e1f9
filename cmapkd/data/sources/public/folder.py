"""Images of a folder and the texts of the same name: what is listed, and how a file of captions is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cmapkd.data.sources.public.ignored import is_ignored
from cmapkd.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Images that are not read: they are listed, so that a build counts them as left out and does not pass them over.
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2")
CLASSES, TEMPLATES = "classes.txt", "templates.txt"
MAXIMUM_TEXT = 2**20  # bytes of a file of captions

Error = Callable[[Path, str, str], UserError]


def find_images(folder: Path) -> list[Path]:
    """Images of a folder and those below it, sorted by path."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in (*EXTENSIONS, *UNREAD) and path.is_file())
    kept = [path for path in found if not is_ignored(path.relative_to(folder).as_posix())]
    return sorted(kept, key=lambda path: path.relative_to(folder).as_posix())


def count_lonely_texts(folder: Path, images: list[Path]) -> int:
    """How many texts of a folder and those below it have no image of the same name."""
    known = {path.with_suffix(".txt") for path in images} | {folder / CLASSES, folder / TEMPLATES}
    return sum(path not in known and not is_ignored(path.relative_to(folder).as_posix()) for path in folder.rglob("*.txt"))


def read_captions(path: Path, error: Error) -> list[str]:
    """Lines of a text.

    Args:
        path: of the text.
        error: makes the error for a file, what is wrong with it, and what helps.

    Raises:
        UserError: too large for captions, not UTF-8, or not readable.
    """
    try:
        if path.stat().st_size > MAXIMUM_TEXT:
            raise error(path, f"has more than {MAXIMUM_TEXT} bytes", "write a caption a line")
        return re.split(r"\r\n|\n|\r", path.read_text(encoding="utf-8-sig"))  # other separators are a part of the text
    except UnicodeDecodeError as problem:
        raise error(path, f"is not UTF-8: {problem}", "save it as UTF-8") from None
    except OSError as problem:
        raise error(path, f"cannot be read: {problem.strerror}", "check its permissions") from None
