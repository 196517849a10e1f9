"""COCO Captions (Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015).

Reads ``captions_{train,val}{2014,2017}.json`` with the pictures as folders or zips, or ``dataset_coco.json`` of Karpathy and
Fei-Fei (CVPR 2015), whose pictures lie in ``train2014`` and ``val2014`` (the 5K test set wholly in the latter). All captions
of a picture are kept, also beyond five: the 5K test set has 25,010 in all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmapkd.config.sources import CocoCaptionsConfig
from cmapkd.data.sources import register_source
from cmapkd.data.sources.public import coco
from cmapkd.data.sources.public.annotations import Annotations
from cmapkd.data.sources.public.base import Entry, Report, StoredSource, unique
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.karpathy import FOLDERS, karpathy_entries, karpathy_file, open_karpathy
from cmapkd.data.sources.public.stores import Several, Store, find_store
from cmapkd.files import sha256_of

CAPTIONS = "COCO's captions (captions_train2017.json and the like)"


@register_source("coco_captions")
class CocoCaptions(StoredSource):
    """The source."""

    name = "coco_captions"
    licence, attribution = coco.LICENCE, coco.ATTRIBUTION
    config: CocoCaptionsConfig

    def __init__(self, config: CocoCaptionsConfig, cache: Path) -> None:
        super().__init__(config, cache)
        self.karpathy = config.partition == "karpathy"

    def provenance(self) -> list[dict[str, Any]]:
        """Every input, with the partition as its version."""
        return [{**record, "version": record["version"] or self.config.partition} for record in super().provenance()]

    def files(self) -> list[PublicFile]:
        """Annotations and pictures of the configured splits."""
        if self.karpathy:
            return [karpathy_file("coco"), *(coco.pictures(name) for name in self._folders())]
        year = self.config.partition
        captions = {file.instead: file for file in (coco.captions(split, year) for split in self.splits())}
        return [*captions.values(), *(coco.pictures(name) for name in self._folders())]

    def entries(self, split: str, report: Report) -> list[Entry]:
        """Pictures in the order of the file, each with all of its captions."""
        if self.karpathy:
            return karpathy_entries(open_karpathy(self.root, "coco"), "coco", split, report)
        file = self._annotations(split)
        content = file.load({"images": list, "annotations": list}, CAPTIONS)
        images = file.records(content["images"], {"id": int, "file_name": str}, "images")
        found = [
            Entry(
                key=f"{image['id']:012d}",
                picture=image["file_name"],
                identity=coco.identities(image["id"], image.get("flickr_url")),
                meta={"image_id": image["id"]},
            )
            for image in images
        ]
        entries = unique(found, report, file.error)
        by_id = {entry.meta["image_id"]: entry for entry in entries}
        keys: dict[str, type] = {"image_id": int, "id": int, "caption": str}
        seen: set[int] = set()
        for record in file.records(content["annotations"], keys, "annotations"):
            if record["image_id"] not in by_id:
                raise file.error(f"caption {record['id']} is about picture {record['image_id']}, which the file lacks")
            if record["id"] in seen:
                report.counts["duplicated_ids"] = report.counts.get("duplicated_ids", 0) + 1
                continue
            seen.add(record["id"])
            by_id[record["image_id"]].captions.append(record["caption"])
        return entries

    def store(self, split: str) -> Store:
        """The folder or zip of the split; with Karpathy's, those of 2014 that it draws from."""
        stores = [
            find_store(self.root, (name, f"images/{name}"), key=f"{self.name}: root")
            for name in (FOLDERS[split] if self.karpathy else self._folders((split,)))
        ]
        return stores[0] if len(stores) == 1 else Several(stores)

    def inputs(self) -> list[tuple[str, str]]:
        """Annotations by their content, pictures by the list of them."""
        files = [open_karpathy(self.root, "coco")] if self.karpathy else [self._annotations(split) for split in self.splits()]
        about = [(Path(file.name).name, sha256_of(file.path)) for file in files]
        return about + [(f"pictures of {split} (list)", self.store(split).digest()) for split in self.splits()]

    def _annotations(self, split: str) -> Annotations:
        file = f"captions_{split}{self.config.partition}.json"
        names = (f"annotations/{file}", file, f"annotations_trainval{self.config.partition}.zip!{file}")
        return Annotations(self.root, names, key=f"{self.name}: root")

    def _folders(self, splits: Any = None) -> list[str]:
        """Names of the picture folders of some splits, all by default."""
        wanted = self.splits() if splits is None else list(splits)
        if self.karpathy:
            return list(dict.fromkeys(name for split in wanted for name in FOLDERS[split]))
        return [f"{split}{self.config.partition}" for split in wanted]
