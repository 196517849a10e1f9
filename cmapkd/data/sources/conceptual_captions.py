"""Conceptual Captions 3M (Sharma et al., ACL 2018): alt-texts of the web, cleaned, with addresses of the pictures.

The publisher gives captions and addresses (TSV); `img2dataset` fetches the pictures into webdataset tars (``00000.tar`` with
``.jpg``, ``.txt`` and ``.json`` for each sample, and ``00000_stats.json`` with their number). The tars are read in order and in
place. A key is the file name, preceded by folder and tar where an earlier sample has the same one. A share of the addresses is
dead at any time: what was asked for and what came is counted from the TSV and the statistics.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmapkd.config.sources import ConceptualCaptionsConfig
from cmapkd.data.sources import register_source
from cmapkd.data.sources.public.annotations import valid
from cmapkd.data.sources.public.base import Entry, PublicSource, Report
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.ignored import own_files
from cmapkd.data.sources.public.pictures import MAXIMUM_BYTES, UnusableError
from cmapkd.data.sources.public.stores import tail_digest
from cmapkd.data.sources.public.tars import TarSample, read_tar
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of

TABLES = {  # the publisher's tables; rows of the first edition
    "train": ("Train_GCC-training.tsv", "Train-GCC-training.tsv"),
    "val": ("Validation_GCC-1.1.0-Validation.tsv", "Validation-GCC-1.1.0-Validation.tsv"),
}
MAXIMUM_TEXT = 2**20  # bytes of a caption or a record
PICTURES = ("jpg", "jpeg", "png", "webp")
LIMITS = {**dict.fromkeys(PICTURES, MAXIMUM_BYTES), "txt": MAXIMUM_TEXT, "json": MAXIMUM_TEXT}  # bytes of a member
HOW = """get {table} from https://ai.google.com/research/ConceptualCaptions/download, then
    sed '1i caption\\turl' {table} > with-header.tsv
    img2dataset --url_list with-header.tsv --input_format tsv --url_col url --caption_col caption \\
      --output_format webdataset --output_folder {split} --image_size 256 --resize_mode keep_ratio"""


@register_source("conceptual_captions")
class ConceptualCaptions(PublicSource):
    """The source."""

    name = "conceptual_captions"
    licence = (
        "free for any purpose with acknowledgement of Google LLC (publisher's licence); pictures under their own conditions"
    )
    attribution = "Conceptual Captions, Google LLC, https://ai.google.com/research/ConceptualCaptions"
    config: ConceptualCaptionsConfig

    def files(self) -> list[PublicFile]:
        """Tables and tars; both are got by hand."""
        wanted = []
        for split in self.splits():
            table = TABLES[split][0]
            how = HOW.format(table=table, split=split)
            wanted += [PublicFile(f"{split}/00000.tar", instead=(f"{split}/*.tar",), how=how)]
        return wanted

    def raw(self, split: str, report: Report) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Samples in the order of the tars; an error names the tar that is broken."""
        report.counts |= self._downloads(split)
        known: set[str] = set()
        for path in self._tars(split):
            found = 0
            for sample in read_tar(path, LIMITS, _error):
                entry = _entry(path, sample, _key(path, sample.path, known))
                known.add(entry.key)
                found += 1
                yield entry, _picture(sample)
            self._compare(path, found)
        rows = report.counts.get("addresses")
        if rows:
            report.counts["dead_links"] = rows - len(known)

    def _compare(self, path: Path, found: int) -> None:
        """A tar that lost samples can look well-formed: its statistics file knows how many it held."""
        statistics = path.with_name(f"{path.stem}_stats.json")
        if statistics.is_file() and (expected := _statistics(statistics)["fetched"]) > found:
            raise _error(path, f"has {found} samples, but {statistics.name} says that {expected} were written to it")

    def inputs(self) -> list[tuple[str, str]]:
        """Tars by name, size and end; their statistics and the tables by content."""
        found = []
        for split in self.splits():
            found += [(f"{split}/{path.name} (end)", tail_digest(path)) for path in self._tars(split)]
            if (table := self._table(split)) is not None:
                found.append((table.name, sha256_of(table)))
        return found

    def _tars(self, split: str) -> list[Path]:
        tars = own_files((self.root / split).glob("*.tar"))
        if packed := [path for ending in ("*.tar.*", "*.tgz") for path in own_files((self.root / split).glob(ending))]:
            reason = f"is compressed: it would be left out beside {len(tars)} tars that are read"
            raise UserError(
                key=f"{self.name}: root", value=str(packed[0]), reason=reason, fix="decompress it, or move it elsewhere"
            )
        if not tars:
            here = sorted(path.name for path in self.root.iterdir())[:8] if self.root.is_dir() else []
            raise UserError(
                key=f"{self.name}: root",
                value=str(self.root),
                reason=f"expected {split}/00000.tar and so on (webdataset output of img2dataset) in it, "
                f"found {', '.join(here) or 'nothing'}",
                fix=HOW.format(table=TABLES[split][0], split=split),
            )
        return tars

    def _table(self, split: str) -> Path | None:
        return next((self.root / name for name in TABLES[split] if (self.root / name).is_file()), None)

    def _downloads(self, split: str) -> dict[str, int]:
        """What img2dataset reports: addresses asked for, pictures that came, and failures by kind."""
        counts: dict[str, int] = {}
        for path in own_files((self.root / split).glob("*_stats.json")):
            tar, found = path.with_name(f"{path.stem.removesuffix('_stats')}.tar"), _statistics(path)
            if found["fetched"] and not tar.is_file():
                raise _error(tar, f"is missing, and {path.name} says that {found['fetched']} samples were written to it")
            for name, value in found.items():
                counts[name] = counts.get(name, 0) + value
        if (table := self._table(split)) is not None:
            counts["addresses"] = _rows(table)
        return counts


def _statistics(path: Path) -> dict[str, int]:
    """The counts of one statistics file.

    Raises:
        UserError: it is no statistics file of img2dataset.
    """
    names = {"addresses": "count", "fetched": "successes"}
    names |= {name: name for name in ("failed_to_download", "failed_to_resize")}
    try:
        if path.stat().st_size > MAXIMUM_TEXT:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        about: dict[str, Any] = read_json(path)
        counts = {name: about[key] for name, key in names.items()}
        if odd := [key for key in counts.values() if type(key) is not int or key < 0]:
            raise ValueError(f"{odd[0]!r} is not a count")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        about_it = getattr(error, "reason", f"{type(error).__name__} {error}")
        reason = f"is no statistics file of img2dataset: {about_it}"
        fix = "move it elsewhere: without it nothing is compared with the tar of the same number"
        raise UserError(key="conceptual_captions: root", value=str(path), reason=reason, fix=fix) from None
    return counts


def _rows(table: Path) -> int:
    """Rows of the publisher's table, a part of a line in memory at a time."""
    rows, start = 0, True
    with table.open("rb") as file:
        while line := file.readline(MAXIMUM_TEXT):
            rows += start and line.strip() not in (b"", b"caption\turl")
            start = line.endswith(b"\n")
    return rows


def _groups(path: Path) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Path and members of each sample of a tar."""
    for sample in read_tar(path, LIMITS, _error):
        yield sample.path, sample.members


def _error(path: Path, reason: str) -> UserError:
    fix = (
        "write this tar again from its source (img2dataset: move it and its _stats.json elsewhere and run it again; "
        "delete it only when the new one is there)"
    )
    return UserError(key="conceptual_captions: root", value=str(path), reason=reason, fix=fix)


def _key(path: Path, sample: str, known: set[str]) -> str:
    """A key that no sample before has: file names are unique within a folder and paths within a tar, no further."""
    short = sample.rpartition("/")[2]
    shard = f"{path.stem}/{sample}"
    numbered = (f"{shard}#{number}" for number in itertools.count(2))
    return next(key for key in itertools.chain((short, sample, shard), numbered) if key not in known)


def _picture(sample: TarSample) -> bytes | ValueError:
    data = next((sample.members[extension] for extension in PICTURES if extension in sample.members), None)
    if data is not None:
        return data
    inner = [extension for extension in sample.extensions if extension.rpartition(".")[2] in PICTURES]
    if inner:
        return UnusableError(
            f"its members are named {sample.path}.{inner[0]}: the key of webdataset ends at the first dot of the file name",
            kind="dots in names",
            fix="write the tars with names that have one dot, before the extension (22_05.jpg, not 22.05.jpg)",
        )
    has = ", ".join(f".{extension}" for extension in sample.extensions[:6])
    return UnusableError(
        f"the tar holds {has} of it, and none of {', '.join(PICTURES)}",
        kind="without an image",
        fix="write the tars again with the images",
    )


def _entry(path: Path, sample: TarSample, key: str) -> Entry:
    members = sample.members
    try:
        about = json.loads(members.get("json", b"{}"))  # not strict: what others wrote holds half characters and NaN
        if not isinstance(about, dict):
            raise ValueError("is not an object")
        text = members["txt"].decode() if "txt" in members else about.get("caption")
        if not isinstance(text, str | None):
            raise ValueError(f"its caption is {text!r}, not text")
    except (ValueError, RecursionError) as error:
        raise _error(path, f"the record of sample {sample.path} is not one of img2dataset: {error}") from None
    url = about.get("url")
    url = valid(url) if isinstance(url, str) else None
    identity = (f"url:{url}",) if url is not None else ()
    meta = {"url": url} if identity else {}
    return Entry(key, f"{path.name}/{sample.path}", [text] if text is not None else [], identity, meta=meta)
