"""One's own pictures, from a folder with texts beside them or from a table (docs/data/own.md).

Folder: every picture below ``<root>/<split>/`` (or below ``<root>``, then all of it is ``train``) with a ``.txt`` of the same
name, a caption a line. Table: CSV, TSV or parquet with a column of pictures (paths below ``root``; in parquet also their
bytes), and columns of captions, splits, classes, questions and answers as far as there are any; rows about one picture are
joined.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cmapkd.config.sources import OwnConfig
from cmapkd.data.sample import AnswerType, Question
from cmapkd.data.sources import register_source
from cmapkd.data.sources.fetched import FetchedFile
from cmapkd.data.sources.public import parquet
from cmapkd.data.sources.public.annotations import clean
from cmapkd.data.sources.public.base import Entry, PublicSource, Report
from cmapkd.data.sources.public.division import Division, divide
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.folder import CLASSES, TEMPLATES, count_lonely_texts, find_images, read_captions
from cmapkd.data.sources.public.pictures import MAXIMUM_BYTES
from cmapkd.data.sources.public.tables import is_absent, read_head, read_rows
from cmapkd.errors import UserError, nearest
from cmapkd.files import digest, sha256_of

FORMS = (".csv", ".tsv", ".parquet")


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
        self._division: Division | None = None

    def files(self) -> list[PublicFile]:
        """Nothing is fetched; the table has to be there."""
        return []

    def fetch(self) -> list[FetchedFile]:
        """Nothing is fetched; a table without the named columns is refused before anything is read."""
        if (table := self._table()) is not None:
            self._head(table)
        return []

    def captioned(self) -> bool:
        """A folder of images with texts, or a table with caption columns that has no classes and no questions."""
        if (table := self._table()) is None:
            return True
        has = self._head(table)
        other = {self.config.label_column, self.config.question_column} & set(has)
        return bool(self.config.caption_columns) and not other

    def raw(self, split: str, report: Report) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Samples in the order of the table, or of the sorted paths."""
        division = self._divided() if split in ("train", *(self.config.split_shares or ())) else None
        empty = True
        for entry, data in self._undivided(split, report, None) if division is None else self._part(division, split, report):
            empty = False
            yield entry, data
        if empty and division is not None:
            reason = f"has too few images for the split {split!r} of `split_shares`"
            raise self._error(self.root, f"{reason}: none of {len(division.splits)}", "raise its share, or add images")
        if empty:
            table = self._table()
            where = f"rows of {table.name} with {split!r} as {self.config.split_column}" if table else f"pictures in {split}/"
            raise self._error(self.root, f"has no {where}", "take the split out of `splits`, or add them")

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        """Samples of a folder, or of a table with paths, without their images; `split_shares` is not applied."""
        table = self._table()
        return self._listed(table, split, report) if table is not None else self._found(split, report)

    def embedded_table(self) -> Path | None:
        """The table if it holds the images themselves."""
        table = self._table()
        return table if table is not None and self._embeds(table) else None

    def _undivided(
        self, split: str, report: Report, wanted: Callable[[str], bool] | None
    ) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Samples of a split of the folder or table, or those of them whose key is ``wanted``."""
        if (table := self.embedded_table()) is not None:
            yield from (pair for pair in self._embedded(table, split) if wanted is None or wanted(pair[0].key))
            return
        for entry in self.entries(split, report):
            if wanted is None or wanted(entry.key):
                yield entry, _encoded(self.root / entry.picture)

    def _part(self, division: Division, split: str, report: Report) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Samples of ``train`` that the division puts into ``split``."""
        report.counts["near_duplicates_together"] = division.count_together(split)
        embedded = self.embedded_table() is not None
        for entry, data in self._undivided("train", report, lambda key: division.splits[key] == split):
            if embedded:  # the key of a row starts with its split
                entry.key = split + entry.key.removeprefix("train")
            yield entry, data

    def _divided(self) -> Division | None:
        """The splits of `split_shares`, by key; reads every image once."""
        shares = self.config.split_shares
        if shares and self._division is None:
            for name in shares if self.config.table is None else ():
                if (self.root / name).is_dir():
                    fix = f"take {name} out of `split_shares`, or move the images of {name}/ into train/"
                    raise self._error(self.root / name, f"is the split {name!r} already, which `split_shares` divides", fix)
            images = ((entry.key, self._usable(data)) for entry, data in self._undivided("train", Report(), None))
            named = {str(name): share for name, share in shares.items()}
            self._division = divide(images, named, self.config.seed, self.config.overlap_distance)
        return self._division

    def _usable(self, data: bytes | ValueError) -> bytes | None:
        try:
            return self.examined(data, full=False).data  # the key `check` does not change a split
        except ValueError:  # counted where the samples are read
            return None

    def classes(self) -> tuple[list[str], list[str]] | None:
        """``classes.txt`` and ``templates.txt`` of the folder, a name and a template (with ``{}``) a line."""
        if not self.names:
            return None
        templates = self._lines(TEMPLATES) or ["a photo of a {}."]
        for template in templates:
            if template.count("{}") != 1:
                raise self._error(self.root / TEMPLATES, f"the template {template!r} has not one {{}}", "correct the line")
        return self.names, templates

    def inputs(self) -> list[tuple[str, str]]:
        """The table and the classes by content; the pictures by the list of names and sizes."""
        found = [(path.name, sha256_of(path)) for path in (self._table(), self.root / CLASSES) if path and path.is_file()]
        if not self.root.is_dir():
            raise self._error(self.root, "is no folder", "name the folder with the pictures")
        listed = [(str(path.relative_to(self.root)), path.stat().st_size) for path in find_images(self.root)]
        captions = hashlib.sha256()
        if self.config.table is None:
            for name, _ in listed:
                text = (self.root / name).with_suffix(".txt")
                captions.update(f"{name}\0".encode() + (text.read_bytes() if text.is_file() else b""))
        return [*found, ("files (list)", digest([listed, captions.hexdigest()]))]

    def _found(self, split: str, report: Report) -> Iterator[Entry]:
        """Pictures of a folder with their texts."""
        if not self.root.is_dir():
            raise self._error(self.root, "is no folder", "name the folder with the pictures")
        divided = any((self.root / name).is_dir() for name in self.config.split_names)
        if not divided and split != "train":
            return
        base = self.root / split if divided else self.root
        paths = find_images(base) if base.is_dir() else []
        report.counts["texts_without_image"] = count_lonely_texts(base, paths)
        for path in paths:
            text = path.with_suffix(".txt")
            if not text.is_file():
                raise self._error(path, f"has no {text.name} beside it", "write one with a caption a line, or use a table")
            if not text.resolve().is_relative_to(self.root.resolve()):
                raise self._error(
                    text, f"is a link to {text.resolve()}, outside of `root`", "copy the file in place of the link"
                )
            name = str(path.relative_to(self.root))
            yield Entry(name, name, read_captions(text, self._error))

    def _listed(self, table: Path, split: str, report: Report) -> Iterator[Entry]:
        """Rows of a split, joined by picture, in the order of first mention."""
        found: dict[str, Entry] = {}
        for number, row in self._rows(table):
            if self._split_of(row, table, number) != split:
                continue
            name = self._text(row, self.config.image_column, table, number)
            if name is None:
                raise self._error(table, f"row {number} names no picture", f"fill the column {self.config.image_column}")
            name = self._inside(name.strip(), table, number)
            self._fill(found.setdefault(name, Entry(name, name)), row, table, number)
        report.counts["rows_of_the_table"] = sum(len(entry.captions) or 1 for entry in found.values())
        return iter(found.values())

    def _embedded(self, table: Path, split: str) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Rows of a parquet file with pictures, or Hugging Face's structs with their paths, in it: each is a sample."""
        for number, row in self._rows(table):
            if self._split_of(row, table, number) != split:
                continue
            entry = Entry(f"{split}_{number:08d}", f"{table.name} row {number}")
            self._fill(entry, row, table, number)
            cell = parquet.picture(row[self.config.image_column])
            yield entry, self._linked(cell, table, number) if isinstance(cell, str) else cell

    def _linked(self, name: str, table: Path, number: int) -> bytes | ValueError:
        data = _encoded(self.root / self._inside(name, table, number))
        if isinstance(data, ValueError) and str(data) == "missing":
            return parquet.without_bytes(name)
        return data

    def _fill(self, entry: Entry, row: dict[str, Any], table: Path, number: int) -> None:
        config = self.config
        for column in config.caption_columns:
            entry.captions += self._texts(row, column, table, number)
        if not is_absent(label := row.get(config.label_column)):
            found = self._label(label, table, number)
            if entry.label not in (None, found):
                reason = f"row {number} gives the class {label!r:.60} to {entry.picture}, which another row gives another class"
                raise self._error(table, reason, "an image has one class: correct the rows, or name another `label_column`")
            entry.label = found
        if question := self._text(row, config.question_column, table, number):
            given = self._texts(row, config.answer_column, table, number)
            answers = [clean(answer) for text in given for answer in text.split("|") if answer.strip()]
            if not answers:
                reason = f"row {number} has a question and no answer"
                raise self._error(table, reason, f"fill the column {config.answer_column}")
            entry.questions.append(Question(clean(question), answers, _type(answers), number))

    def _texts(self, row: dict[str, Any], column: str, table: Path, number: int) -> list[str]:
        """The texts of a cell that holds one or, in parquet, a list of them."""
        value = row.get(column)
        texts: list[str] = []
        for one in value if isinstance(value, list) else [value]:
            if is_absent(one):
                continue
            if not isinstance(one, str):
                raise self._error(
                    table,
                    f"row {number} has {one!r:.60} of the type {type(one).__name__} in the column {column!r}, expected text",
                    f"name another column, or save {column!r} as text",
                )
            texts.append(one)
        return texts

    def _text(self, row: dict[str, Any], column: str, table: Path, number: int) -> str | None:
        """The one text of a cell; None if there is none."""
        if isinstance(row.get(column), list):
            reason = f"row {number} has a list in the column {column!r}, expected one text"
            raise self._error(table, reason, "write a row for each")
        return next(iter(self._texts(row, column, table, number)), None)

    def _label(self, value: Any, table: Path, number: int) -> int:
        text = str(value).strip()
        if not self.names:
            raise self._error(table, f"row {number} has a class, but {CLASSES} is missing", f"put it into {self.root}")
        if isinstance(value, str) and self.names.count(text) > 1:
            reason = f"row {number} has the class {text!r}, which {CLASSES} has {self.names.count(text)} times"
            raise self._error(table, reason, "give the class by its number from 0, or give the classes different names")
        if isinstance(value, str) and text in self.names:
            return self.names.index(text)
        whole = re.sub(r"\.0+", "", text)  # pandas writes the classes of a column with gaps as 0.0, 1.0
        if not isinstance(value, bool) and whole.isdecimal() and int(whole) < len(self.names):
            return int(whole)
        hint = nearest(text, self.names) if isinstance(value, str) else f"use 0 to {len(self.names) - 1}, or a name"
        raise self._error(table, f"row {number} has the class {value!r:.60}, which {CLASSES} lacks", hint)

    def _split_of(self, row: dict[str, Any], table: Path, number: int) -> str:
        value = self._text(row, self.config.split_column, table, number)
        split = "train" if value is None else value.strip()
        if split not in self.config.split_names:
            reason = f"row {number} has the split {split!r}"
            raise self._error(table, reason, f"use {', '.join(self.config.split_names)}")
        if split in (self.config.split_shares or {}):
            reason = f"row {number} has the split {split!r}, which `split_shares` divides from `train`"
            raise self._error(table, reason, f"take {split} out of `split_shares`, or write train there")
        return split

    def _rows(self, table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows by number from 1, as far as their columns are configured."""
        has = self._head(table)
        if table.suffix == ".parquet":
            wanted = [name for name in self._wanted() if name in has]
            yield from enumerate(parquet.rows(table, f"{self.name}: table", wanted), 1)
        else:
            yield from read_rows(table, set(self._wanted()), self._error)

    def _wanted(self) -> list[str]:
        config = self.config
        used = [config.split_column, config.label_column, config.question_column, config.answer_column]
        return list(dict.fromkeys([config.image_column, *config.caption_columns, *used]))

    def _head(self, table: Path) -> list[str]:
        """The columns of the table.

        Raises:
            UserError: one that is named is not among them, or one of them is there twice.
        """
        if table.suffix == ".parquet":
            has = parquet.columns(table, f"{self.name}: table")
        else:
            has = read_head(table, set(self._wanted()), self._error)
        twice = [name for name in self._wanted() if has.count(name) > 1]
        if twice:
            raise self._error(table, f"has the column {twice[0]!r} {has.count(twice[0])} times", "rename one of them")
        columns = f"it has {', '.join(map(str.strip, has))}" if any(has) else "it is empty"
        self._named(table, "image_column", self.config.image_column, has, columns)
        other = {self.config.label_column, self.config.question_column} & set(has)
        by_default = "caption_columns" not in self._given() and other
        for column in () if by_default else self.config.caption_columns:  # a table of classes or questions needs no caption
            self._named(table, "caption_columns", column, has, columns)
        for key in ("split_column", "label_column", "question_column", "answer_column"):
            if key in self._given():
                self._named(table, key, getattr(self.config, key), has, columns)
        return has

    def _given(self) -> set[str]:
        """Keys whose value is not the default. (Jobs read the experiment with every default written out.)"""
        fields = type(self.config).model_fields
        return {
            key for key, field in fields.items() if getattr(self.config, key) != field.get_default(call_default_factory=True)
        }

    def _named(self, table: Path, key: str, column: str, has: list[str], columns: str) -> None:
        if column not in has:
            close = difflib.get_close_matches(column, has, n=1, cutoff=0.5)
            hint = f", perhaps to {close[0]!r}" if close else ""
            none = " (without captions: `caption_columns: []`)" if key == "caption_columns" else ""
            raise self._error(table, f"has no column {column!r}; {columns}", f"set `{key}`{hint}{none}")

    def _embeds(self, table: Path) -> bool:
        """Whether the images are in the table itself, by the type of the column and not by what some row holds."""
        if table.suffix != ".parquet":
            return False
        self._head(table)
        return not parquet.is_text(table, f"{self.name}: table", self.config.image_column)

    def _table(self) -> Path | None:
        if self.config.table is None:
            return None
        path = self.root / self.config.table
        if path.suffix not in FORMS:
            raise self._error(path, "is no table of a known form", "use .csv, .tsv or .parquet")
        if not path.is_file():
            several = any(mark in self.config.table for mark in "*?[") or path.is_dir()
            fix = "join the parts into one table" if several else "name the table relative to `root`"
            raise self._error(path, "names several files, and a table is one" if several else "does not exist", fix)
        return path

    def _inside(self, name: str, table: Path, number: int) -> str:
        """A table may come from elsewhere: its pictures lie below ``root`` and nowhere else."""
        path = PurePosixPath(name)
        if "\\" in name and not (self.root / path).exists():
            reason = f"row {number} names {name!r} with backslashes, which separate folders on Windows only"
            raise self._error(table, reason, "write the paths with /")
        inside = not path.is_absolute() and ".." not in path.parts and "\0" not in name
        if not inside or not (self.root / path).resolve().is_relative_to(self.root.resolve()):
            reason = f"row {number} names {name!r}, which is not below {self.root}"
            raise self._error(table, reason, "use paths relative to `root`")
        return str(path)

    def _lines(self, name: str) -> list[str]:
        path = self.root / name
        return [line.strip() for line in read_captions(path, self._error) if line.strip()] if path.is_file() else []

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


def _type(answers: list[str]) -> AnswerType:
    """VQAv2's types by what the first answer looks like."""
    first = answers[0].lower()
    return "yes/no" if first in ("yes", "no") else "number" if first.isdigit() else "other"
