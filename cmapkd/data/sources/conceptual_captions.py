"""Conceptual Captions 3M (Sharma et al., ACL 2018): alt-texts of the web, cleaned, with addresses of the pictures.

The publisher gives captions and addresses (TSV); `img2dataset` fetches the pictures into webdataset tars (``00000.tar`` with
``.jpg``, ``.txt`` and ``.json`` for each sample, and ``00000_stats.json`` beside). The tars are read in order and in place. A
share of the addresses is dead at any time: what was asked for and what came is counted from the TSV and the statistics.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmapkd.config.sources import ConceptualCaptionsConfig
from cmapkd.data.sources import register_source
from cmapkd.data.sources.public.base import Entry, PublicSource, Report
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.pictures import MAXIMUM_BYTES
from cmapkd.data.sources.public.stores import tail_digest
from cmapkd.errors import UserError
from cmapkd.files import parse_json, read_json, sha256_of

TABLES = {  # the publisher's tables; rows of the first edition
    "train": ("Train_GCC-training.tsv", "Train-GCC-training.tsv"),
    "val": ("Validation_GCC-1.1.0-Validation.tsv", "Validation-GCC-1.1.0-Validation.tsv"),
}
MAXIMUM_TEXT = 2**20  # bytes of a caption or a record
PICTURES = ("jpg", "jpeg", "png", "webp")
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
            for stem, members in _groups(path):
                entry = _entry(path, stem, members)
                data = next((members[extension] for extension in PICTURES if extension in members), None)
                if entry.key in known:
                    report.counts["duplicated_ids"] = report.counts.get("duplicated_ids", 0) + 1
                    continue
                known.add(entry.key)
                yield entry, data if data is not None else ValueError("missing")
        rows = report.counts.get("addresses")
        if rows:
            report.counts["dead_links"] = rows - len(known)

    def inputs(self) -> list[tuple[str, str]]:
        """Tars by name, size and end; their statistics and the tables by content."""
        found = []
        for split in self.splits():
            found += [(f"{split}/{path.name} (end)", tail_digest(path)) for path in self._tars(split)]
            if (table := self._table(split)) is not None:
                found.append((table.name, sha256_of(table)))
        return found

    def _tars(self, split: str) -> list[Path]:
        tars = sorted((self.root / split).glob("*.tar"))
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
        for path in sorted((self.root / split).glob("*_stats.json")):
            try:
                about: dict[str, Any] = read_json(path, dict)
                figures = {"addresses": "count", "fetched": "successes"} | {
                    name: name for name in ("failed_to_download", "failed_to_resize")
                }
                for name, key in figures.items():
                    counts[name] = counts.get(name, 0) + int(about[key])
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = f"is no statistics file of img2dataset: {type(error).__name__} {error}"
                fix = "delete it with the tar of the same number, and run img2dataset again"
                raise UserError(key=f"{self.name}: root", value=str(path), reason=reason, fix=fix) from None
        if (table := self._table(split)) is not None:
            with table.open("rb") as file:
                rows = sum(line.strip() not in (b"", b"caption\turl") for line in file)
            counts["addresses"] = rows
        return counts


def _groups(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members of a tar by sample (webdataset's rule: all up to the first dot), one sample in memory at a time.

    Raises:
        UserError: the tar is truncated or damaged, or a member declares an absurd size.
    """
    fix = "delete it with its _stats.json and run img2dataset again: it fetches that shard anew"
    stem, members = "", dict[str, bytes]()
    try:
        with path.open("rb") as file:  # tarfile takes a tar that breaks off between two blocks for a whole one
            file.seek(max(0, file.seek(0, 2) - 1024))
            if file.read() != bytes(1024):
                raise tarfile.ReadError("it lacks the end mark")
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                head, _, extension = member.name.rpartition("/")[2].partition(".")
                limit = MAXIMUM_BYTES if extension.lower() in PICTURES else MAXIMUM_TEXT
                if member.size > limit:
                    reason = f"{member.name} declares {member.size} bytes, more than the limit of {limit}"
                    raise UserError(key="conceptual_captions: root", value=str(path), reason=reason, fix=fix)
                if head != stem and members:
                    yield stem, members
                    members = {}
                stem = head
                stream = archive.extractfile(member)
                members[extension.lower()] = stream.read() if stream is not None else b""
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
            if members:
                yield stem, members
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"is no whole tar ({error}) after sample {stem or 'none'}"
        raise UserError(key="conceptual_captions: root", value=str(path), reason=reason, fix=fix) from None


def _entry(path: Path, stem: str, members: dict[str, bytes]) -> Entry:
    try:
        about = parse_json(members.get("json", b"{}"), "its JSON", dict)
        text = members["txt"].decode() if "txt" in members else str(about.get("caption") or "")
    except ValueError as error:
        reason = f"the record of sample {stem} is not one of img2dataset: {error}"
        raise UserError(key="conceptual_captions: root", value=str(path), reason=reason, fix="run img2dataset again") from None
    url = about.get("url")
    identity = (f"url:{url}",) if isinstance(url, str) else ()
    return Entry(stem, f"{path.name}/{stem}", [text], identity, meta={"url": url} if identity else {})
