"""The common part of sources that read a publisher's files: entries and pictures become samples, and what was odd is counted.

A source says what its entries are and where their pictures lie; this class reads one picture at a time, checks it
(``pictures.examine``), leaves out what is missing or damaged up to a limit, and reports what it saw. Pictures that an
evaluation holds too are left out by their keys (``cmapkd.data.overlap``). What a use of the split needs, captions above all, is
checked here: a training would meet it hours later.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cmapkd.config.sources import PublicConfig
from cmapkd.data.answers import accuracy_name
from cmapkd.data.sample import Question, Sample
from cmapkd.data.sources.fetched import FetchedFile
from cmapkd.data.sources.public.annotations import clean, is_blank
from cmapkd.data.sources.public.download import PublicFile, describe, fetch_files
from cmapkd.data.sources.public.pictures import Picture, UnusableError, examine
from cmapkd.data.sources.public.stores import Store
from cmapkd.errors import UserError, nearest
from cmapkd.files import digest

log = logging.getLogger(__name__)

SHOWN = 20  # bad pictures that a report names


@dataclass(slots=True)
class Entry:
    """A sample without its picture.

    Attributes:
        key: unique within the split.
        picture: name of its picture in the split's store.
        identity: what the same picture is known by in other data sets (``coco:391895``, ``flickr:2970773875``).
    """

    key: str
    picture: str
    captions: list[str] = field(default_factory=list)
    identity: tuple[str, ...] = ()
    label: int | None = None
    questions: list[Question] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """What was found while a split was read.

    Attributes:
        samples: samples that were given out.
        notes: pictures by what is odd about them.
        bad: pictures by what is wrong with them.
        examples: the first bad ones, ``picture: reason``.
        fixes: what helps, by what is wrong.
        removed: samples left out because an evaluation split holds their picture.
        without_caption: samples that were given out and have no caption that shows anything.
        captionless: the first of them.
        repeated_captions: captions that a sample has twice or more; they are kept.
        answers: questions by the number of their answers.
        labelled: samples with a class.
        counts: whatever else the source counts (dead links, duplicated ids).
    """

    samples: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    fixes: dict[str, str] = field(default_factory=dict)
    removed: int = 0
    without_caption: int = 0
    captionless: list[str] = field(default_factory=list)
    repeated_captions: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    labelled: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """For the manifest."""
        about: dict[str, Any] = {"samples": self.samples, "removed_for_overlap": self.removed}
        about |= {"pictures": dict(sorted(self.notes.items())), "left_out": dict(sorted(self.bad.items()))}
        about |= {"left_out_examples": self.examples}
        about |= {"without_caption": self.without_caption, "without_caption_examples": self.captionless}
        return about | {"repeated_captions": self.repeated_captions} | dict(sorted(self.counts.items()))


class PublicSource(ABC):
    """A source whose files lie below ``root``.

    Args:
        config: its options.
        cache: folder of downloads, below which the files lie unless ``config.root`` says otherwise.
    """

    name: ClassVar[str]
    licence: ClassVar[str]
    attribution: ClassVar[str]
    version: ClassVar[str] = ""

    def __init__(self, config: Any, cache: Path) -> None:
        self.config: PublicConfig = config
        self.root = Path(config.root) if config.root is not None else Path(cache) / self.name
        self.reports: dict[str, Report] = {}
        self.removed: Mapping[str, frozenset[str]] = {}  # keys of samples to leave out, by split
        self.uses: Mapping[str, frozenset[str]] | None = None  # what each split is for; None: unknown
        self.may_download = False  # `cmapkd data fetch` alone downloads: what is built reads what is there

    @abstractmethod
    def files(self) -> list[PublicFile]:
        """Files of the publisher that the configured splits need."""

    @abstractmethod
    def raw(self, split: str, report: Report) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Every sample of a split with its encoded picture, or with what is wrong with it."""

    @abstractmethod
    def inputs(self) -> list[tuple[str, str]]:
        """Name and SHA-256 of everything that is read, for the manifest and the digest of a build."""

    def fetch(self) -> list[FetchedFile]:
        """With ``may_download``, download what may be downloaded and verify what is there."""
        return self._fetch(self.files(), self.root, self.config.root)

    def _fetch(self, files: list[PublicFile], root: Path, configured: str | None) -> list[FetchedFile]:
        """Fetch to ``root``; a folder of one's own that holds something else altogether is rather a wrong path."""
        if not self.may_download:
            return []
        if configured is not None and files:
            here = [path.name for path in root.iterdir()] if root.is_dir() else []
            known = any(file.present(root) or (root / f"{file.name}.part").is_file() for file in files)
            if not root.is_dir() or (here and not known):
                reason = f"holds none of {', '.join(file.name for file in files)}" if here else "is no folder"
                fix = "correct the path, or name an empty folder to download to"
                raise UserError(key=f"{self.name}: root", value=str(root), reason=reason, fix=fix)
        return fetch_files(files, root, source=self.name)

    def splits(self) -> list[str]:
        """The configured splits."""
        return list(self.config.built())

    def samples(self, split: str) -> Iterator[Sample]:
        """Every sample of a split in the publisher's order, one picture in memory at a time.

        Raises:
            UserError: no such split, files are missing, too many pictures are missing or damaged, no sample is left, or
                captions are missing that a use of the split needs.
        """
        if split not in self.splits():
            raise UserError(
                key="split", value=split, reason=f"{self.name} has no such split", fix=nearest(split, self.splits())
            )
        report = self.reports[split] = Report()
        removed = self.removed.get(split, frozenset())
        for entry, data in self.raw(split, report):
            if entry.key in removed:
                report.removed += 1
                continue
            sample = self._sample(split, entry, data, report)
            if sample is not None:
                report.samples += 1
                yield sample
        self._judge(split, report, report.samples + report.removed + report.bad.total())
        self._judge_tasks(split, report)
        self.judge_captions(split, report.samples, report.without_caption, report.captionless)

    def examined(self, data: bytes | ValueError, full: bool | None = None) -> Picture:
        """The image as shards hold it; ``full`` decodes it, by default as the key `check` says.

        Raises:
            ValueError: ``data`` is one, or the image is not usable.
        """
        if isinstance(data, ValueError):
            raise data
        config = self.config
        return examine(
            data,
            max_pixels=config.max_pixels,
            full=config.check == "full" if full is None else full,
            upright=config.upright,
            shorter_side=config.shorter_side,
            background=config.background,
        )

    def _sample(self, split: str, entry: Entry, data: bytes | ValueError, report: Report) -> Sample | None:
        config = self.config
        try:
            picture = self.examined(data)
        except ValueError as error:
            kind = "missing" if str(error) == "missing" else "damaged"
            if isinstance(error, UnusableError):
                kind = error.kind
                report.fixes[kind] = error.fix
            report.bad[kind] += 1
            if len(report.examples) < SHOWN:
                report.examples.append(f"{entry.picture}: {error}")
            log.warning("%s/%s: %s is left out: %s", self.name, split, entry.picture, error)
            return None
        report.notes.update(picture.notes)
        captions = [text for text in map(clean, entry.captions) if not is_blank(text)][: config.captions_per_image]
        if not captions:
            report.without_caption += 1
            report.captionless += [entry.picture] if len(report.captionless) < 5 else []
        report.repeated_captions += len(captions) - len(set(captions))
        report.labelled += entry.label is not None
        for question in entry.questions:
            report.answers[len(question.answers)] += 1
        meta = dict(entry.meta)
        if entry.identity:
            meta["identity"] = list(entry.identity)
        return Sample(
            key=entry.key,
            image=picture.data,
            extension=picture.extension,
            captions=captions,
            label=entry.label,
            questions=entry.questions,
            meta=meta,
        )

    def _judge(self, split: str, report: Report, total: int) -> None:
        """Too many bad pictures are an error of the data, not an oddity."""
        bad = report.bad.total()
        if bad > self.config.bad_pictures * total:
            causes = "missing or damaged"
            if set(report.bad) - {"missing", "damaged"}:
                causes = "left out (" + ", ".join(f"{count} {cause}" for cause, count in report.bad.most_common()) + ")"
            fix = report.fixes.get(report.bad.most_common(1)[0][0], "fetch or repair those files")
            raise UserError(
                key="bad_pictures",
                value=self.config.bad_pictures,
                reason=f"{bad} of {total} pictures of {self.name}/{split} are {causes}: {'; '.join(report.examples[:5])}",
                fix=f"{fix}, or raise `bad_pictures` to leave them out",
            )
        if total and not report.samples:
            reason = f"no sample of {self.name}/{split} is left: {report.removed} of {total} were removed for overlap"
            raise UserError(key="split", value=split, reason=reason, fix="use other splits, or `overlap: report`")

    def _judge_tasks(self, split: str, report: Report) -> None:
        """Refuse a split that lacks the classes or questions of its tasks, or has questions that no accuracy is defined for."""
        if report.answers:
            report.counts |= {f"questions_with_{n}_answers": count for n, count in sorted(report.answers.items())}
        uses = self.uses.get(split, frozenset()) if self.uses is not None else frozenset()
        have = {"zeroshot": ("class", report.labelled), "vqa": ("question", report.answers.total())}
        for task, (what, count) in have.items():
            if task in uses and not count:
                reason = f"evaluation.{task} names this split, and no image of it has a {what}"
                fix = f"add them to the data set's source, or take the split out of evaluation.{task}"
                raise UserError(key=f"{self.name}/{split}", reason=reason, fix=fix)
        if "vqa" in uses:
            accuracy_name(report.answers, key=f"{self.name}/{split}")

    def judge_captions(self, split: str, samples: int, missing: int, examples: Sequence[str]) -> None:
        """Refuse a split that lacks captions which its uses need.

        Args:
            split: the split.
            samples: its samples.
            missing: how many of them have no caption.
            examples: the first of these.

        Raises:
            UserError: a split that is searched in has an image without a caption, one that is distilled on has more of them
                than ``without_caption`` tolerates, or the use is unknown and a source of captions has none at all.
        """
        uses = None if self.uses is None else self.uses.get(split, frozenset())
        if uses is None:
            refused, use = missing == samples and self.captioned(), "it is a data set of captions"
        elif "retrieval" in uses:
            refused, use = missing > 0, "images and captions are searched in this split"
        elif "distillation" in uses:
            refused, use = missing > self.config.without_caption * samples, "this split is distilled on"
        else:
            return
        if refused and missing:
            share = "or raise `without_caption` of the data set to tolerate them; "
            tolerated = share if uses is not None and "retrieval" not in uses else ""
            raise UserError(
                key="without_caption",
                value=self.config.without_caption if tolerated else None,
                reason=f"{missing} of {samples} images of {self.name}/{split} have no caption, and {use}: "
                f"{', '.join(examples)}",
                fix=f"give these images captions or take them out of the data set's source; {tolerated}"
                "to build again without a change does not help",
            )

    def captioned(self) -> bool:
        """Whether captions are what this data set is for."""
        return True

    def classes(self) -> tuple[list[str], list[str]] | None:
        """None, unless a source has classes."""
        return None

    def provenance(self) -> list[dict[str, Any]]:
        """Every input with its digest, and what was left out for overlap."""
        records = [
            {
                "name": name,
                "version": self.version,
                "sha256": sha256,
                "licence": self.licence,
                "attribution": self.attribution,
            }
            for name, sha256 in self.inputs()
        ]
        if any(self.removed.values()):
            left_out = {split: sorted(keys) for split, keys in self.removed.items() if keys}
            count = sum(map(len, left_out.values()))
            records.append({"name": "left out for overlap", "version": f"{count} samples", "sha256": digest(left_out)})
        return records

    def leakage(self) -> dict[str, Any]:
        """What was read, odd, left out; the overlap with other data sets is in ``overlap.json`` of the experiment."""
        return {split: report.content() for split, report in self.reports.items()}


class StoredSource(PublicSource):
    """A source whose annotations lie in files and whose pictures lie in a store of their own."""

    @abstractmethod
    def entries(self, split: str, report: Report) -> list[Entry]:
        """Every sample of a split without its picture."""

    @abstractmethod
    def store(self, split: str) -> Store:
        """Where the pictures of a split lie."""

    def raw(self, split: str, report: Report) -> Iterator[tuple[Entry, bytes | ValueError]]:
        """Entries with their pictures from the store.

        Raises:
            UserError: no entry, or too many pictures are missing.
        """
        entries, store = self.entries(split, report), self.store(split)
        if not entries:
            raise UserError(key="split", value=split, reason=f"no sample of {self.name} belongs to it", fix="check `root`")
        missing = [entry.picture for entry in entries if entry.picture not in store]
        if folders := [name for name in missing if "/" in name and name.rpartition("/")[2] in store]:
            raise UserError(
                key="root",
                value=str(self.root),
                reason=f"{len(folders)} of the {len(entries)} names of pictures of {self.name}/{split} contain a folder, for "
                f"example {folders[0]!r}; {store.path} has {folders[0].rpartition('/')[2]!r}",
                fix="take the folder out of the names in the annotations: a name is that of a file of this folder",
            )
        if len(missing) > self.config.bad_pictures * len(entries):
            raise UserError(
                key="root",
                value=str(self.root),
                reason=f"{len(missing)} of the {len(entries)} pictures of {self.name}/{split} are missing, for example "
                f"{', '.join(missing[:3])}; {store.path} has {len(store)} files",
                fix="unpack or fetch the pictures again, check that they belong to this split, or raise `bad_pictures` of "
                f"{self.config.bad_pictures:g}",
            )
        for entry in entries:
            if entry.picture not in store:
                yield entry, ValueError("missing")
                continue
            try:
                yield entry, store.read(entry.picture)
            except ValueError as error:
                yield entry, error


def unique(entries: Iterable[Entry], report: Report, error: Any) -> list[Entry]:
    """Entries without those that occur again, which are counted; the captions of both are joined.

    Args:
        entries: in the publisher's order.
        report: where duplicates are counted as ``duplicated_ids``.
        error: makes the error for a key whose entries name two pictures.
    """
    known: dict[str, Entry] = {}
    for entry in entries:
        first = known.setdefault(entry.key, entry)
        if first is entry:
            continue
        if first.picture != entry.picture:
            raise error(f"the id {entry.key} belongs to two pictures, {first.picture} and {entry.picture}")
        report.counts["duplicated_ids"] = report.counts.get("duplicated_ids", 0) + 1
        first.captions += [caption for caption in entry.captions if caption not in first.captions]
    return list(known.values())


def tell_files(source: Any) -> str:
    """What a source is made from, for people: each file with its size, whether it is here, and where it comes from."""
    if not isinstance(source, PublicSource):
        return "\n".join(f"{record['name']} {record['version']} ({record['licence']})" for record in source.provenance())
    lines = [f"{source.name}: {source.licence}; {source.attribution}", f"folder: {source.root}"]
    lines += [f"{here:8}{size:>14}  {name}  {origin}" for name, size, here, origin in describe(source.files(), source.root)]
    return "\n".join(lines)
