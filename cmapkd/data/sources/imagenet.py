"""ImageNet-1K (Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015).

Reads the folders of the publisher or of Kaggle (``train/n01440764/*.JPEG``, ``val/n01440764/*.JPEG`` or a flat ``val`` with
``LOC_val_solution.csv``), or Hugging Face's parquet files (``data/validation-00000-of-00014.parquet``).
A class's number is the place of its synset among the sorted 1,000, which is the order of open_clip's curated names; those and
the 80 templates of Radford et al. (2021) come from open_clip, which is imported when the classes are asked for.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from cmapkd.config.sources import ImagenetConfig
from cmapkd.data.sources import register_source
from cmapkd.data.sources.public import parquet
from cmapkd.data.sources.public.base import Entry, PublicSource, Report
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.ignored import own_files
from cmapkd.data.sources.public.stores import Folder, Store, tail_digest
from cmapkd.errors import UserError
from cmapkd.files import digest, sha256_of

CLASSES = 1000
MAPPING = "LOC_synset_mapping.txt"
KAGGLE = "ILSVRC/Data/CLS-LOC"
ROWS = {"train": ("train",), "val": ("validation", "val")}  # first parts of parquet files' names


@register_source("imagenet")
class Imagenet(PublicSource):
    """The source."""

    name = "imagenet"
    licence = "non-commercial research and education only (terms of access of image-net.org)"
    attribution = "ImageNet, Stanford Vision Lab and Princeton University, https://image-net.org"
    version = "ILSVRC2012"
    config: ImagenetConfig

    def files(self) -> list[PublicFile]:
        """Nothing may be fetched automatically: the terms are accepted in person."""
        how = {
            "val": "ILSVRC2012_img_val.tar (6,744,924,160 bytes, MD5 29b22e2961454d5413ddabcf34fc5622), sorted into "
            "val/<synset>/",
            "train": "ILSVRC2012_img_train.tar (147,897,477,120 bytes, MD5 1d675b47d978889d74fa0da5fadfb00e), unpacked to "
            "train/<synset>/",
        }
        return [
            PublicFile(
                split,
                instead=(f"{KAGGLE}/{split}", *(f"data/{name}-*.parquet" for name in ROWS[split])),
                how=f"accept the terms at https://image-net.org/download.php and get {how[split]}; or the parquet files of "
                "huggingface.co/datasets/ILSVRC/imagenet-1k into data/",
            )
            for split in self.splits()
        ]

    def raw(self, split: str, report: Report) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Pictures by class and name; rows of parquet files in their order."""
        if files := self._parquet(split):
            yield from self._rows(files, split)
            return
        labels = {synset: number for number, synset in enumerate(self._synsets())}
        known: set[str] = set()
        folder = self._folder(split)
        inside = [path.name for path in own_files(folder.iterdir()) if path.is_dir()]
        if inside:
            for synset in inside:
                if synset not in labels:
                    reason = "is not one of the 1,000 synsets of the challenge"
                    raise self._error(folder / synset, reason, "move it out of this folder")
                store = Folder(folder / synset)
                for name in sorted(store.names()):
                    entry = _entry(name, labels[synset], synset)
                    if entry.key in known:  # a name is unique within its folder, no further
                        entry.key = f"{synset}/{entry.key}"
                    known.add(entry.key)
                    yield entry, _read(store, name)
            return
        store = Folder(folder)
        for name, synset in self._solution(split):
            if synset not in labels:
                raise self._error(folder / name, f"has the class {synset!r}, which is none of the 1,000", "get the table again")
            yield _entry(name, labels[synset], synset), _read(store, name) if name in store else ValueError("missing")

    def classes(self) -> tuple[list[str], list[str]]:
        """The 1,000 curated names and 80 templates that open_clip ships."""
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES  # imports torch

        return list(IMAGENET_CLASSNAMES), [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]

    def captioned(self) -> bool:
        """It has none."""
        return False

    def inputs(self) -> list[tuple[str, str]]:
        """Parquet files by name, size and end; folders by the list of their files."""
        found = []
        for split in self.splits():
            if files := self._parquet(split):
                found += [(f"{path.name} (end)", tail_digest(path)) for path in files]
                continue
            folder = self._folder(split)
            inside = [path for path in own_files(folder.iterdir()) if path.is_dir()] or [folder]
            found.append((f"{split} (list)", digest([[path.name, Folder(path).digest()] for path in inside])))
        if (self.root / MAPPING).is_file():
            found.append((MAPPING, sha256_of(self.root / MAPPING)))
        return found

    def _rows(self, files: list[Path], split: str) -> Iterator[tuple[Entry, bytes | ValueError]]:
        number = 0
        for path in files:
            if missing := {"image", "label"} - set(parquet.columns(path, f"{self.name}: root")):
                raise self._error(path, f"has no column {', '.join(sorted(missing))}", "get the files of ILSVRC/imagenet-1k")
            for row in parquet.rows(path, f"{self.name}: root", ["image", "label"]):
                label = row["label"]
                if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < CLASSES:
                    raise self._error(
                        path, f"row {number} has the label {label!r}, expected 0 to {CLASSES - 1}", "use train or val"
                    )
                cell = parquet.picture(row["image"])
                data = parquet.NO_BYTES if isinstance(cell, str) else cell
                entry = Entry(f"{split}_{number:08d}", f"{path.name} row {number}", label=label)
                yield entry, data
                number += 1

    def _synsets(self) -> list[str]:
        """The 1,000 synsets, sorted: from the mapping, else from the folders of a split that has them all."""
        path = self.root / MAPPING
        if path.is_file():
            try:
                synsets = sorted(line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            except (OSError, UnicodeDecodeError) as error:
                raise self._error(path, f"cannot be read: {error}", "get it again") from None
            where = path
        else:
            where = next((folder for folder in map(self._perhaps, ("val", "train")) if folder), self.root)
            synsets = [folder.name for folder in own_files(where.iterdir()) if folder.is_dir()]
        if len(set(synsets)) != CLASSES:
            fix = f"put {MAPPING} of the challenge into {self.root}, or complete the folders"
            odd = [name for name in synsets if not re.fullmatch(r"n\d{8}", name)][:3]
            names = f"; {', '.join(odd)} is not the name of one" if odd else ""
            raise self._error(where, f"names {len(set(synsets))} synsets, expected {CLASSES}{names}", fix)
        return synsets

    def _solution(self, split: str) -> Iterator[tuple[str, str]]:
        """File name and synset of a flat folder's pictures, sorted by name."""
        path = self.root / f"LOC_{split}_solution.csv"
        if not path.is_file():
            reason = f"has no folder per synset, and {path.name} is not in {self.root}"
            raise self._error(self._folder(split), reason, "sort the pictures into <synset>/ folders, or add that file")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and not {"ImageId", "PredictionString"} <= set(rows[0]):
            raise self._error(path, "lacks the columns ImageId and PredictionString", "get it from Kaggle again")
        return iter(sorted((f"{row['ImageId']}.JPEG", (row["PredictionString"] or " ").split()[0]) for row in rows))

    def _parquet(self, split: str) -> list[Path]:
        return own_files(path for name in ROWS[split] for path in (self.root / "data").glob(f"{name}-*.parquet"))

    def _perhaps(self, split: str) -> Path | None:
        return next((self.root / name for name in (split, f"{KAGGLE}/{split}") if (self.root / name).is_dir()), None)

    def _folder(self, split: str) -> Path:
        if (folder := self._perhaps(split)) is None:
            here = sorted(path.name for path in self.root.iterdir())[:8] if self.root.is_dir() else []
            reason = (
                f"expected {split}/<synset>/ or data/{ROWS[split][0]}-*.parquet in it, found {', '.join(here) or 'nothing'}"
            )
            raise self._error(self.root, reason, "see docs/data/imagenet.md")
        return folder

    def _error(self, path: Path, reason: str, fix: str) -> UserError:
        return UserError(key=f"{self.name}: root", value=str(path), reason=reason, fix=fix)


def _entry(name: str, label: int, synset: str) -> Entry:
    stem = Path(name).stem
    return Entry(stem, f"{synset}/{name}", identity=(f"imagenet:{stem}",), label=label, meta={"synset": synset})


def _read(store: Store, name: str) -> bytes | ValueError:
    try:
        return store.read(name)
    except ValueError as error:
        return error
