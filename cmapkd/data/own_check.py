"""What a folder of images with captions holds, before anything is built, and the lines of YAML that read it (torch-free).

Of images only the headers are read, and of those with equal sizes the bytes, to find duplicates. The reading is that of the
source `own`, so what is counted here is what a build meets.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from PIL import Image

from cmapkd.config.sources import OwnConfig
from cmapkd.data.pixels import has_alpha, is_deep
from cmapkd.data.sources.own import FORMS, Own
from cmapkd.data.sources.public import parquet
from cmapkd.data.sources.public.annotations import clean, is_blank
from cmapkd.data.sources.public.base import Report
from cmapkd.data.sources.public.folder import count_lonely_texts, find_images, read_captions
from cmapkd.data.sources.public.ignored import is_ignored
from cmapkd.data.sources.public.tables import read_head
from cmapkd.errors import UserError
from cmapkd.files import sha256_of
from cmapkd.paths import ResolvedPath, portable, resolve

SHARE = 0.1  # proposed for each split that is not there
HEADERS = 20_000  # images whose header is read; of more, evenly spaced ones
SHOWN = 3  # names in a line
SPLITS = OwnConfig.split_names
_OTHER_NAMES = {
    "val": ("validation", "valid", "dev", "eval"),
    "test": ("testing", "tests"),
    "train": ("training",),
}
_IMAGE = ("image", "image_path", "img", "img_path", "picture", "photo", "file_name", "filename", "filepath", "file", "path")
_CAPTION = ("caption", "captions", "text", "texts", "description", "sentence", "sentences", "alt", "alt_text", "title")


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        lines: for people, a fact each.
        options: keys of the data set that reads the folder.
        splits: splits that there are or that `split_shares` makes, training first.
        captioned: whether there are captions.
        labelled: whether there are classes.
    """

    lines: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ("train",)
    captioned: bool = True
    labelled: bool = False

    def yaml(self, name: str) -> str:
        """The lines of an experiment that read the folder."""
        content: dict[str, Any] = {"datasets": {name: self.options}}
        content |= {"distillation": [f"{name}/train"]} if self.captioned and "train" in self.splits else {}
        evaluation = {"retrieval": [f"{name}/test"]} if self.captioned and "test" in self.splits else {}
        evaluation |= {"validation": [f"{name}/val"]} if self.captioned and "val" in self.splits else {}
        evaluation |= {"zeroshot": [f"{name}/test"]} if self.labelled and "test" in self.splits else {}
        content |= {"evaluation": evaluation} if evaluation else {}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def check_folder(folder: str, table: str | None = None) -> Found:
    """Look at a folder of images with texts, or with a table.

    Args:
        folder: as a user writes it.
        table: the table's name in the folder; None: the one that there is, if any.

    Raises:
        UserError: no such folder, nothing to read in it, or a table that a build would refuse.
    """
    root = resolve(folder, "FOLDER")
    if not root.is_dir():
        fix = "name the folder with the images"
        raise UserError(key="FOLDER", value=folder, reason=f"is not a folder (here {root})", fix=fix)
    found = Found()
    found.options = {"source": "own", "root": portable(ResolvedPath(root, folder))}
    try:
        next(root.iterdir(), None)
    except OSError as problem:
        raise _error(root, f"cannot be read: {problem.strerror}", "check its permissions") from None
    images = find_images(root)
    tables = sorted(path.name for path in root.iterdir() if path.suffix in FORMS and not is_ignored(path.name))
    if table is None and tables and not any(path.with_suffix(".txt").is_file() for path in images):
        table = tables[0]
    if not images and table is None:
        reason = "has no images that can be read, and no table (.csv, .tsv, .parquet)"
        raise UserError(key="FOLDER", value=folder, reason=reason, fix="put PNG or JPEG files into it or into its train/")
    if images:
        found.lines += _headers(root, images)
        found.lines += _duplicates(root, images)
    if table is None:
        _texts(root, images, found)
    else:
        others = [name for name in tables if name != table]
        found.lines += [f"further tables, not read: {_named(others)} (choose with --table)"] if others else []
        _table(root, table, len(images), found)
    ignored = [path for path in root.rglob("*") if path.is_file() and is_ignored(path.relative_to(root).as_posix())]
    if ignored:
        found.lines.append(f"ignored files of systems and editors: {len(ignored)}, e.g. {_names(root, ignored[:1])}")
    return found


def data_name(folder: str) -> str:
    """A name for the data set, from that of its folder."""
    return re.sub(r"[^A-Za-z0-9_\-]+", "_", resolve(folder, "FOLDER").name).strip("_-") or "mine"


def _headers(root: Path, images: list[Path]) -> list[str]:
    """Formats, sizes, transparency and depth, from the headers."""
    step = -(-len(images) // HEADERS)
    forms: Counter[str] = Counter()
    sides: list[tuple[int, int]] = []
    alpha, deep, damaged = [], [], []
    for path in images[::step]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a large image: its size is shown
                with Image.open(path) as image:
                    forms[str(image.format)] += 1
                    sides.append(image.size)
                    alpha += [path] if has_alpha(image) else []
                    deep += [path] if is_deep(image) else []
        except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, DecompressionBombError, ...
            damaged.append(path)
    kinds = ", ".join(f"{form} {count}" for form, count in forms.most_common())
    every = f" (of every {step}th)" if step > 1 else ""
    lines = [f"images: {len(images)}" + (f"; by format{every}: {kinds}" if kinds else "")]
    if sides:
        shorter = sorted(min(size) for size in sides)
        (small, large) = (min(sides, key=min), max(sides, key=max))
        lines.append(
            f"sizes: {small[0]} x {small[1]} to {large[0]} x {large[1]} px; "
            f"shorter side {shorter[0]} / {median(shorter):g} / {shorter[-1]} px (min / median / max)"
        )
    for what, paths in (
        ("with an alpha channel (transparent pixels are put on `background`, by default white)", alpha),
        ("with 16 bits or floats (16 bits are scaled to 8, floats are refused)", deep),
        ("that cannot be opened (left out; more than `bad_pictures` stop a build)", damaged),
    ):
        lines += [f"images {what}: {len(paths)}, e.g. {_names(root, paths[:1])}"] if paths else []
    return lines


def _duplicates(root: Path, images: list[Path]) -> list[str]:
    """Images of equal bytes, and those that share one text."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    stems: dict[Path, list[Path]] = defaultdict(list)
    for path in images:
        sizes[path.stat().st_size].append(path)
        stems[path.with_suffix("")].append(path)
    content: dict[str, list[Path]] = defaultdict(list)
    for path in (path for same in sizes.values() if len(same) > 1 for path in same):
        with contextlib.suppress(OSError):  # counted with those that cannot be opened
            content[sha256_of(path)].append(path)
    copies = [same for same in content.values() if len(same) > 1]
    shared = [same for same in stems.values() if len(same) > 1]
    lines = []
    if copies:
        count = sum(map(len, copies))
        apart = sum(len({path.relative_to(root).parts[0] for path in same} & set(SPLITS)) > 1 for same in copies)
        where = f" ({apart} groups are in several splits)" if apart else ""
        lines.append(f"images with equal content: {count} in groups of {_range(copies)}{where}, e.g. {_names(root, copies[0])}")
    if shared:
        count = sum(map(len, shared))
        lines.append(f"images that differ in the ending of their name only: {count}, e.g. {_names(root, shared[0])}")
        lines[-1] += "; they have the same text"
    return lines


def _range(groups: Sequence[Sequence[Path]]) -> str:
    sizes = sorted(map(len, groups))
    return f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"


def _texts(root: Path, images: list[Path], found: Found) -> None:
    """Captions in text files, and the splits by folder."""
    without, blank, unread = [], [], []
    counts: list[int] = []
    for path in images:
        text = path.with_suffix(".txt")
        if not text.is_file():
            without.append(path)
            continue
        try:
            captions = [line for line in map(clean, read_captions(text, _error)) if not is_blank(line)]
        except UserError:
            unread.append(text)
            continue
        counts.append(len(captions))
        blank += [] if captions else [text]
    usual = f", {min(counts)} / {median(counts):g} / {max(counts)} a text (min / median / max)" if counts else ""
    found.lines.append(f"captions: {sum(counts)} in {len(counts)} text files of the same name{usual}")
    if without:
        found.lines.append(f"images without a text, which stop a build: {len(without)}, e.g. {_names(root, without)}")
    if blank:
        found.lines.append(f"texts without a caption: {len(blank)}, e.g. {_names(root, blank)}")
    if unread:
        found.lines.append(
            f"texts that are not UTF-8 or too long, which stop a build: {len(unread)}, e.g. {_names(root, unread)}"
        )
    lonely = count_lonely_texts(root, images)
    found.lines += [f"texts without an image: {lonely} (not used)"] if lonely else []
    there = [name for name in SPLITS if (root / name).is_dir()]
    outside = [path for path in images if path.relative_to(root).parts[0] not in there] if there else []
    by_split = Counter(path.relative_to(root).parts[0] for path in images)
    _splits({name: by_split[name] for name in there} if there else {"train": len(images)}, bool(there), "folders", found)
    for name, others in _OTHER_NAMES.items():
        for other in others:
            if (root / other).is_dir() and name not in there:
                found.lines.append(f"folder {other}/: is not a split by this name; rename it to {name}/ if it is one")
    if outside:
        found.lines.append(f"images outside of {'/, '.join(there)}/: {len(outside)} (not used), e.g. {_names(root, outside)}")


def _table(root: Path, name: str, images: int, found: Found) -> None:
    """Captions in a table: which columns, how many images and captions, and the splits by its column."""
    path = root / name
    if not path.is_file() or path.suffix not in FORMS:
        fix = f"name a file that ends with {', '.join(FORMS)}"
        raise UserError(key="--table", value=name, reason=f"is not a table in {root}", fix=fix)
    is_parquet = path.suffix == ".parquet"
    head = parquet.columns(path, "own: table") if is_parquet else read_head(path, _IMAGE, _error)
    found.lines.append(f"table: {name} with the columns {', '.join(head)}")
    image = next((one for wanted in _IMAGE for one in head if one.lower() == wanted), None)
    captions = [one for one in head if one.lower() in _CAPTION or re.fullmatch(r"(caption|text|sentence)[_ ]?\d+", one.lower())]
    options = {"table": name}
    options |= {"image_column": image} if image not in (None, "image") else {}
    options |= {"caption_columns": captions} if captions not in ([], ["caption"]) else {}  # type: ignore[dict-item]
    column = next((one for one in head if one.lower() == "split"), None)
    options |= {"split_column": column} if column not in (None, "split") else {}
    found.options |= options
    source = Own(OwnConfig(**{**found.options, "splits": SPLITS, "root": str(root)}), root)
    source.fetch()  # refuses a table without these columns
    has_split = column is not None
    found.captioned, found.labelled = bool(captions), "label" in head and bool(source.names)
    if source.names:
        found.lines.append(f"classes: {len(source.names)} in classes.txt" + ("" if found.labelled else "; no column label"))
    if source.embedded_table() is not None:
        rows = sum(1 for _ in parquet.rows(path, "own: table", []))
        found.lines.append(f"images: {rows} rows with the images in the column {image!r}; a build looks at them")
        if not has_split:
            _splits({"train": rows}, False, "", found)
            return
        by_split = Counter(row[str(column)] or "train" for row in parquet.rows(path, "own: table", [str(column)]))
        _splits({name: by_split[name] for name in SPLITS if by_split[name]}, True, f"the column {column}", found)
        return
    counts: dict[str, int] = {}
    without, missing, texts = [], [], 0
    for split in SPLITS:
        entries = list(source.entries(split, Report()))
        counts |= {split: len(entries)} if entries else {}
        for entry in entries:
            kept = sum(not is_blank(text) for text in map(clean, entry.captions))
            texts += kept
            without += [] if kept else [entry.picture]
            missing += [] if (root / entry.picture).is_file() else [entry.picture]
    found.lines.append(f"captions: {texts} for the {sum(counts.values())} images that the table names")
    found.captioned = texts > 0
    found.lines += [f"images without a caption: {len(without)}, e.g. {_named(without)}"] if without else []
    found.lines += [f"images of the table that are missing: {len(missing)}, e.g. {_named(missing)}"] if missing else []
    unnamed = images - (sum(counts.values()) - len(missing))
    found.lines += [f"images that the table does not name: {unnamed} (not used)"] if unnamed > 0 else []
    _splits(counts, has_split, f"the column {column}", found)


def _splits(counts: dict[str, int], given: bool, where: str, found: Found) -> None:
    """Say what the splits are, and propose shares for those that are missing."""
    missing = {name: SHARE for name in ("val", "test") if name not in counts}
    if given:
        found.lines.append(f"splits by {where}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    else:
        found.lines.append("splits: none, all is `train`; `split_shares` below divides it")
    if missing and counts.get("train"):
        found.options["split_shares"] = missing
    found.splits = tuple(name for name in SPLITS if name in counts or name in found.options.get("split_shares", {}))
    found.options["splits"] = list(found.splits)


def _names(root: Path, paths: Sequence[Path]) -> str:
    return _named([str(path.relative_to(root)) for path in paths])


def _named(names: Iterable[str]) -> str:
    return ", ".join(name if name.isprintable() else ascii(name) for name in list(names)[:SHOWN])


def _error(path: Path, reason: str, fix: str) -> UserError:
    return UserError(key="FOLDER", value=str(path), reason=reason, fix=fix)
