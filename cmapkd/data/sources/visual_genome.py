"""Visual Genome (Krishna et al., IJCV 2017): captions of a picture are the descriptions of its largest regions.

Reads ``region_descriptions.json`` and ``image_data.json``, one picture's at a time, with the pictures in ``VG_100K`` and
``VG_100K_2``. Region descriptions are about parts of a picture; those of the largest regions come nearest to a caption. Half of
the pictures are COCO's (``coco_id``), so the overlap with COCO's evaluation sets is known by id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmapkd.config.sources import VisualGenomeConfig
from cmapkd.data.sources import register_source
from cmapkd.data.sources.public.annotations import Annotations, clean
from cmapkd.data.sources.public.base import Entry, Report, StoredSource, unique
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.stores import Folder, Several, Store, Zip
from cmapkd.errors import UserError
from cmapkd.files import sha256_of

_TEXTS = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset/"
_PICTURES = "https://cs.stanford.edu/people/rak248/VG_100K_2/"


@register_source("visual_genome")
class VisualGenome(StoredSource):
    """The source."""

    name = "visual_genome"
    licence = "CC-BY-4.0; pictures under the licences and terms of Flickr"
    attribution = "Visual Genome, Stanford University, https://homes.cs.washington.edu/~ranjay/visualgenome/"
    version = "1.2"
    config: VisualGenomeConfig

    def files(self) -> list[PublicFile]:
        """Texts and the two archives of pictures; sizes as others have recorded them, the publisher gives no checksums."""
        return [
            PublicFile("image_data.json.zip", f"{_TEXTS}image_data.json.zip", instead=("image_data.json",)),
            PublicFile(
                "region_descriptions.json.zip",
                f"{_TEXTS}region_descriptions.json.zip",
                127377968,
                instead=("region_descriptions.json",),
            ),
            PublicFile("images.zip", f"{_PICTURES}images.zip", 9731705982, instead=("VG_100K",)),
            PublicFile("images2.zip", f"{_PICTURES}images2.zip", 5471658058, instead=("VG_100K_2",)),
        ]

    def entries(self, split: str, report: Report) -> list[Entry]:
        """Pictures in the order of ``image_data.json``; those without a description are counted and left out."""
        images = self._open("image_data")
        about = images.records(images.elements("Visual Genome's image_data.json"), {"image_id": int}, "images")
        entries = unique((_entry(image) for image in about), report, images.error)
        by_id = {entry.meta["image_id"]: entry for entry in entries}
        regions = self._open("region_descriptions")
        of = "Visual Genome's region_descriptions.json"
        seen: set[Any] = set()
        for number, image in enumerate(regions.records(regions.elements(of), {"regions": list}, "pictures")):
            number_of = image.get("id", image.get("image_id"))
            if number_of not in by_id:
                raise regions.error(f"is about picture {number_of!r}, which image_data.json lacks", f"pictures[{number}]")
            if number_of in seen:
                raise regions.error(f"is the second record of picture {number_of!r}", f"pictures[{number}]")
            seen.add(number_of)
            keys: dict[str, type] = {"phrase": str, "width": int, "height": int}
            kept = list(regions.records(image["regions"], keys, f"pictures[{number}].regions"))
            by_id[number_of].captions = self._largest(kept)
        described = [entry for entry in entries if entry.captions]
        report.counts["without_description"] = len(entries) - len(described)
        return described

    def store(self, split: str) -> Store:
        """Both parts of the pictures."""
        parts: list[Store] = []
        for folder, archive in (("VG_100K", "images.zip"), ("VG_100K_2", "images2.zip")):
            if (self.root / folder).is_dir():
                parts.append(Folder(self.root / folder))
            elif (self.root / archive).is_file():
                parts.append(Zip(self.root / archive))
        if not parts:
            reason = "expected VG_100K/ and VG_100K_2/, or images.zip and images2.zip in it"
            raise UserError(key=f"{self.name}: root", value=str(self.root), reason=reason, fix="run `cmapkd data fetch`")
        return Several(parts)

    def inputs(self) -> list[tuple[str, str]]:
        """Texts by their content, pictures by the list of them."""
        files = [self._open("image_data"), self._open("region_descriptions")]
        about = [(Path(file.name).name, sha256_of(file.path)) for file in files]
        return [*about, ("pictures (list)", self.store("train").digest())]

    def _open(self, name: str) -> Annotations:
        return Annotations(self.root, (f"{name}.json", f"{name}.json.zip!{name}.json"), key=f"{self.name}: root")

    def _largest(self, regions: list[dict[str, Any]]) -> list[str]:
        """Different descriptions of the largest regions; equal areas in the order of the file."""
        ordered = sorted(regions, key=lambda region: -region["width"] * region["height"])
        phrases = (clean(region["phrase"]) for region in ordered)
        return list(dict.fromkeys(phrase for phrase in phrases if phrase))[: self.config.regions]


def _entry(image: dict[str, Any]) -> Entry:
    number = image["image_id"]
    ids = (("visual_genome", number), ("coco", image.get("coco_id")), ("flickr", image.get("flickr_id")))
    identity = tuple(f"{name}:{value}" for name, value in ids if value is not None)
    return Entry(str(number), f"{number}.jpg", identity=identity, meta={"image_id": number})
