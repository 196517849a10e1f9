"""Flickr30K (Young et al., "From image descriptions to visual denotations", TACL 2014).

Reads Karpathy's ``dataset_flickr30k.json`` (29,000 / 1,014 / 1,000 pictures), or all pictures from the publisher's
``results_20130124.token`` (``1000092795.jpg#0<TAB>caption``) or the ``results.csv`` of the same texts that is passed around
(``image_name| comment_number| comment``). A picture's name is the number of its photograph on Flickr.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cmapkd.config.sources import Flickr30kConfig
from cmapkd.data.sources import register_source
from cmapkd.data.sources.public.annotations import Annotations
from cmapkd.data.sources.public.base import Entry, Report, StoredSource
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.karpathy import karpathy_entries, karpathy_file, open_karpathy
from cmapkd.data.sources.public.stores import Store, find_store
from cmapkd.files import sha256_of

PICTURES = ("flickr30k-images", "flickr30k_images", "images")
TEXTS = ("results_20130124.token", "results.csv", "flickr30k_images/results.csv")


@register_source("flickr30k")
class Flickr30k(StoredSource):
    """The source."""

    name = "flickr30k"
    licence = "research and education only (form of the publisher); pictures under the terms of Flickr"
    attribution = "Young, Lai, Hodosh, Hockenmaier, University of Illinois, https://shannon.cs.illinois.edu/DenotationGraph/"
    version = "20130124"
    config: Flickr30kConfig

    def files(self) -> list[PublicFile]:
        """Karpathy's splits can be fetched; pictures and the publisher's texts need its form."""
        form = "fill in the form at https://shannon.cs.illinois.edu/DenotationGraph/"
        pictures = PublicFile(
            "flickr30k-images",
            instead=(*PICTURES[1:], *(f"{name}.zip" for name in PICTURES)),
            how=f"{form} and unpack flickr30k-images.tar.gz (4.4 GB) there",
        )
        if self.config.partition == "karpathy":
            return [karpathy_file("flickr30k"), pictures]
        texts = PublicFile(TEXTS[0], instead=TEXTS[1:], how=f"{form} and unpack flickr30k.tar.gz there")
        return [texts, pictures]

    def entries(self, split: str, report: Report) -> list[Entry]:
        """Pictures in the order of the file."""
        if self.config.partition == "karpathy":
            return karpathy_entries(open_karpathy(self.root, "flickr30k"), "flickr30k", split, report)
        file, found = self._texts(), dict[str, Entry]()
        seen: set[tuple[str, str]] = set()
        for name, number, text in _captions(file):
            if (name, number) in seen:
                report.counts["duplicated_ids"] = report.counts.get("duplicated_ids", 0) + 1
                continue
            seen.add((name, number))
            stem = Path(name).stem
            found.setdefault(name, Entry(stem, name, identity=(f"flickr:{stem}",))).captions.append(text)
        return list(found.values())

    def store(self, split: str) -> Store:
        """The one folder or zip of pictures."""
        return find_store(self.root, PICTURES, key=f"{self.name}: root")

    def inputs(self) -> list[tuple[str, str]]:
        """The texts by their content, the pictures by the list of them."""
        karpathy = self.config.partition == "karpathy"
        texts = open_karpathy(self.root, "flickr30k") if karpathy else self._texts()
        return [(Path(texts.name).name, sha256_of(texts.path)), ("pictures (list)", self.store("").digest())]

    def _texts(self) -> Annotations:
        return Annotations(self.root, TEXTS, key=f"{self.name}: root")


def _captions(file: Annotations) -> Iterator[tuple[str, str, str]]:
    """Picture, number and text of each caption.

    Raises:
        UserError: a line has another form.
    """
    expected = "picture.jpg#0<TAB>caption, or picture.jpg| 0| caption"
    with file.open() as stream:
        for line_number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            if file.path.suffix == ".csv":
                name, number, text = (*(part.strip() for part in line.rstrip("\n").split("|", 2)), "", "")[:3]
                if line_number == 1 and name == "image_name":
                    continue
                # The one line of the file that is passed around that lacks a separator: `2199200615.jpg| 4   A dog runs ...`
                if not text and number[:1].isdigit():
                    number, _, text = number.partition(" ")
            else:
                head, _, text = line.rstrip("\n").partition("\t")
                name, _, number = head.rpartition("#")
            if not name or not number.isdigit():
                raise file.error(f"is not of the form {expected}", f"line {line_number}")
            yield name, number, text
