"""The splits of Karpathy and Fei-Fei ("Deep visual-semantic alignments", CVPR 2015).

Of ``dataset_coco.json`` and ``dataset_flickr30k.json``: each picture has ``filename``, ``split``, ``sentences`` with the
``raw`` text, and in COCO ``filepath`` (``val2014``) and ``cocoid``.
"""

from __future__ import annotations

from pathlib import Path

from cmapkd.data.sources.public.annotations import Annotations
from cmapkd.data.sources.public.base import Entry, Report, unique
from cmapkd.data.sources.public.coco import identities
from cmapkd.data.sources.public.download import PublicFile

ARCHIVE = "caption_datasets.zip"
# The folders of 2014 that the splits draw from.
FOLDERS = {"train": ("train2014",), "restval": ("val2014",), "val": ("val2014",), "test": ("val2014",)}


def karpathy_file(dataset: str) -> PublicFile:
    """The zip with the files of COCO, Flickr30K and Flickr8K, or one of them unpacked."""
    url = f"https://cs.stanford.edu/people/karpathy/deepimagesent/{ARCHIVE}"
    unpacked = f"dataset_{dataset}.json"
    return PublicFile(ARCHIVE, url, instead=(unpacked, f"annotations/{unpacked}"))


def open_karpathy(root: Path, dataset: str) -> Annotations:
    """The file of ``coco`` or ``flickr30k``, unpacked or not."""
    name = f"dataset_{dataset}.json"
    return Annotations(root, (name, f"annotations/{name}", f"{ARCHIVE}!{name}"), key=f"{dataset}: root")


def karpathy_entries(file: Annotations, dataset: str, split: str, report: Report) -> list[Entry]:
    """The pictures of a split in the order of the file.

    Raises:
        UserError: the file is that of another data set, or not of this form.
    """
    content = file.load({"images": list, "dataset": str}, f"Karpathy's dataset_{dataset}.json")
    if content["dataset"] != dataset:
        raise file.error(f"is of the data set {content['dataset']!r}, expected {dataset!r}")
    keys: dict[str, type] = {"filename": str, "split": str, "sentences": list}
    if dataset == "coco":
        keys["cocoid"] = int
    entries = []
    for number, image in enumerate(file.records(content["images"], keys, "images")):
        if image["split"] != split:
            continue
        sentences = file.records(image["sentences"], {"raw": str}, f"images[{number}].sentences")
        captions = [sentence["raw"] for sentence in sentences]
        stem = Path(image["filename"]).stem
        if dataset == "coco":
            key, identity, meta = f"{image['cocoid']:012d}", identities(image["cocoid"]), {"image_id": image["cocoid"]}
        else:
            key, identity, meta = stem, (f"flickr:{stem}",), {}
        entries.append(Entry(key, image["filename"], captions, identity, meta=meta))
    return unique(entries, report, file.error)
