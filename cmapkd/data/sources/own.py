"""One's own pictures, from a folder with texts beside them or from a table (docs/data/own.md).

Folder: every picture below ``<root>/<split>/`` (or below ``<root>``, then all of it is ``train``) with a ``.txt`` of the same
name, a caption a line. Table: CSV, TSV or parquet with a column of pictures (paths below ``root``; in parquet also their
bytes), and columns of captions, splits, classes, questions and answers as far as there are any; rows about one picture are
joined.
"""

from __future__ import annotations

import csv
import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cmapkd.config.sources import OwnConfig
from cmapkd.data.sample import AnswerType, Question
from cmapkd.data.sources import register_source
from cmapkd.data.sources.public import parquet
from cmapkd.data.sources.public.annotations import clean
from cmapkd.data.sources.public.base import Entry, PublicSource, Report
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.pictures import MAXIMUM_BYTES
from cmapkd.errors import UserError, nearest
from cmapkd.files import digest, sha256_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMS = (".csv", ".tsv", ".parquet")
CLASSES, TEMPLATES = "classes.txt", "templates.txt"
MAXIMUM_TEXT = 2**20  # bytes of a file of captions


@register_source("own")
class Own(PublicSource):
    """The source."""

    name = "own"
    config: OwnConfig

    def __init__(self, config: OwnConfig, cache: Path) -> None:
        super().__init__(config, cache)
        if config.root is None:
            raise UserError(key="root", reason="one's own data has no usual place", fix="name the folder with the pictures")
        self.licence, self.attribution = config.licence, config.attribution  # type: ignore[misc]
        self.names = self._lines(CLASSES)

    def files(self) -> list[PublicFile]:
        """Nothing is fetched; the table has to be there."""
        return []

    def raw(self, split: str, report: Report) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Samples in the order of the table, or of the sorted paths."""
        table = self._table()
        if table is not None and table.suffix == ".parquet" and self._holds_bytes(table):
            yield from self._embedded(table, split)
            return
        entries = self._listed(table, split, report) if table is not None else self._found(split)
        empty = True
        for entry in entries:
            empty = False
            yield entry, _encoded(self.root / entry.picture)
        if empty:
            where = f"rows of {table.name} with {split!r} as {self.config.split_column}" if table else f"pictures in {split}/"
            raise self._error(self.root, f"has no {where}", "take the split out of `splits`, or add them")

    def classes(self) -> tuple[list[str], list[str]] | None:
        """``classes.txt`` and ``templates.txt`` of the folder, a name and a template (with ``{}``) a line."""
        if not self.names:
            return None
        templates = self._lines(TEMPLATES) or ["a photo of a {}."]
        for template in templates:
            if template.count("{}") != 1:
                raise self._error(self.root / TEMPLATES, f"the template {template!r} has not one {{}}", "mend the line")
        return self.names, templates

    def inputs(self) -> list[tuple[str, str]]:
        """The table and the classes by content; the pictures by the list of names and sizes."""
        found = [(path.name, sha256_of(path)) for path in (self._table(), self.root / CLASSES) if path and path.is_file()]
        if not self.root.is_dir():
            raise self._error(self.root, "is no folder", "name the folder with the pictures")
        listed = [(str(path.relative_to(self.root)), path.stat().st_size) for path in _pictures(self.root)]
        captions = hashlib.sha256()
        if self.config.table is None:
            for name, _ in listed:
                text = (self.root / name).with_suffix(".txt")
                captions.update(f"{name}\0".encode() + (text.read_bytes() if text.is_file() else b""))
        return [*found, ("files (list)", digest([listed, captions.hexdigest()]))]

    def _found(self, split: str) -> Iterator[Entry]:
        """Pictures of a folder with their texts."""
        if not self.root.is_dir():
            raise self._error(self.root, "is no folder", "name the folder with the pictures")
        divided = any((self.root / name).is_dir() for name in self.config.split_names)
        if not divided and split != "train":
            return
        base = self.root / split if divided else self.root
        for path in _pictures(base) if base.is_dir() else []:
            text = path.with_suffix(".txt")
            if not text.is_file():
                raise self._error(path, f"has no {text.name} beside it", "write one with a caption a line, or use a table")
            name = str(path.relative_to(self.root))
            yield Entry(name, name, self._captions_of(text))

    def _captions_of(self, path: Path) -> list[str]:
        if path.stat().st_size > MAXIMUM_TEXT:
            raise self._error(path, f"has more than {MAXIMUM_TEXT} bytes", "write a caption a line")
        try:
            return path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise self._error(path, f"is not UTF-8: {error}", "save it as UTF-8") from None

    def _listed(self, table: Path, split: str, report: Report) -> Iterator[Entry]:
        """Rows of a split, joined by picture, in the order of first mention."""
        found: dict[str, Entry] = {}
        for number, row in self._rows(table):
            if self._split_of(row, table, number) != split:
                continue
            name = row.get(self.config.image_column)
            if not isinstance(name, str) or not name.strip():
                raise self._error(table, f"row {number} names no picture", f"fill the column {self.config.image_column}")
            name = self._inside(name.strip(), table, number)
            self._fill(found.setdefault(name, Entry(name, name)), row, table, number)
        report.counts["rows_of_the_table"] = sum(len(entry.captions) or 1 for entry in found.values())
        return iter(found.values())

    def _embedded(self, table: Path, split: str) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Rows of a parquet file with pictures in them: each is a sample."""
        for number, row in self._rows(table):
            if self._split_of(row, table, number) != split:
                continue
            entry = Entry(f"{split}_{number:08d}", f"{table.name} row {number}")
            self._fill(entry, row, table, number)
            data = parquet.picture_bytes(row[self.config.image_column])
            yield entry, data if data is not None else ValueError("missing")

    def _fill(self, entry: Entry, row: dict[str, Any], table: Path, number: int) -> None:
        config = self.config
        for column in config.caption_columns:
            texts = row.get(column)
            entry.captions += [str(text) for text in (texts if isinstance(texts, list) else [texts]) if text not in (None, "")]
        if (label := row.get(config.label_column)) not in (None, ""):
            entry.label = self._label(label, table, number)
        if question := row.get(config.question_column):
            answers = [clean(answer) for answer in str(row.get(config.answer_column) or "").split("|") if answer.strip()]
            if not answers:
                reason = f"row {number} has a question and no answer"
                raise self._error(table, reason, f"fill the column {config.answer_column}")
            entry.questions.append(Question(clean(str(question)), answers, _type(answers), number))

    def _label(self, value: Any, table: Path, number: int) -> int:
        text = str(value).strip()
        if not self.names:
            raise self._error(table, f"row {number} has a class, but {CLASSES} is missing", f"put it into {self.root}")
        if text in self.names:
            return self.names.index(text)
        if text.isdigit() and int(text) < len(self.names):
            return int(text)
        raise self._error(table, f"row {number} has the class {text!r}, which {CLASSES} lacks", nearest(text, self.names))

    def _split_of(self, row: dict[str, Any], table: Path, number: int) -> str:
        value = row.get(self.config.split_column)
        split = "train" if value in (None, "") else str(value).strip()
        if split not in self.config.split_names:
            reason = f"row {number} has the split {split!r}"
            raise self._error(table, reason, f"use {', '.join(self.config.split_names)}")
        return split

    def _rows(self, table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows by number from 1, as far as their columns are configured."""
        config = self.config
        if table.suffix == ".parquet":
            has = parquet.columns(table, f"{self.name}: table")
            self._check_columns(table, has)
            used = [config.split_column, config.label_column, config.question_column, config.answer_column]
            wanted = [name for name in (config.image_column, *config.caption_columns, *used) if name in has]
            yield from enumerate(parquet.rows(table, f"{self.name}: table", wanted), 1)
            return
        try:
            with table.open(encoding="utf-8-sig", newline="") as file:
                if table.suffix == ".csv":
                    reader = csv.DictReader(file, strict=True)
                else:  # quotation marks mean nothing in a TSV
                    reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
                self._check_columns(table, list(reader.fieldnames or []))
                for number, row in enumerate(reader, 1):
                    if None in row:
                        raise self._error(table, f"row {number} has more cells than the head has columns", "quote commas in it")
                    yield number, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._error(table, f"is no {table.suffix[1:].upper()} in UTF-8: {error}", "save it anew") from None

    def _check_columns(self, table: Path, has: list[str]) -> None:
        if self.config.image_column not in has:
            hint = nearest(self.config.image_column, has) if has else "it is empty"
            raise self._error(table, f"has no column {self.config.image_column!r}", f"set `image_column`; {hint}")

    def _holds_bytes(self, table: Path) -> bool:
        self._check_columns(table, parquet.columns(table, f"{self.name}: table"))
        first = next(parquet.rows(table, f"{self.name}: table", [self.config.image_column]), None)
        return first is not None and not isinstance(first[self.config.image_column], str)

    def _table(self) -> Path | None:
        if self.config.table is None:
            return None
        path = self.root / self.config.table
        if path.suffix not in FORMS:
            raise self._error(path, "is no table of a known form", "use .csv, .tsv or .parquet")
        if not path.is_file():
            raise self._error(path, "does not exist", "name the table relative to `root`")
        return path

    def _inside(self, name: str, table: Path, number: int) -> str:
        """A table may come from elsewhere: its pictures lie below ``root`` and nowhere else."""
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and "\0" not in name
        if not inside or not (self.root / path).resolve().is_relative_to(self.root.resolve()):
            reason = f"row {number} names {name!r}, which is not below {self.root}"
            raise self._error(table, reason, "use paths relative to `root`")
        return str(path)

    def _lines(self, name: str) -> list[str]:
        path = self.root / name
        return [line.strip() for line in self._captions_of(path) if line.strip()] if path.is_file() else []

    def _error(self, path: Path, reason: str, fix: str) -> UserError:
        return UserError(key=f"{self.name}: root", value=str(path), reason=reason, fix=fix)


def _encoded(path: Path) -> bytes | ValueError:
    """The bytes of a file, or why there are none; a pipe would never end, and a file may be larger than memory."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            return ValueError("is no file")
        if about.st_size > MAXIMUM_BYTES:
            return ValueError(f"{about.st_size} bytes, more than the limit of {MAXIMUM_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        return ValueError("missing")
    except OSError as error:
        return ValueError(f"cannot be read: {error.strerror}")


def _pictures(folder: Path) -> list[Path]:
    """Pictures of a folder and those below it, sorted by path."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _type(answers: list[str]) -> AnswerType:
    """VQAv2's types by what the first answer looks like."""
    first = answers[0].lower()
    return "yes/no" if first in ("yes", "no") else "number" if first.isdigit() else "other"
