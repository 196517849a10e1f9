"""What COCO's files are called and how they are read; COCO Captions and VQAv2 both need it.

Addresses are the publisher's (cocodataset.org). Sizes and SHA-256 are those that TensorFlow Datasets recorded of them
(``tensorflow_datasets/url_checksums/coco.txt``); the publisher gives none.
"""

from __future__ import annotations

import re

from cmapkd.data.sources.public.download import PublicFile

LICENCE = "annotations CC-BY-4.0; pictures under the licences and terms of Flickr"
ATTRIBUTION = "COCO Consortium, https://cocodataset.org"
SPLITS = {"train": "train{year}", "val": "val{year}"}
_FILES = {  # size [bytes], SHA-256
    "train2014": (13510573713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
    "val2014": (6645013297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    "train2017": (19336861798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    "val2017": (815585330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    "annotations_trainval2014": (252872794, "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
    "annotations_trainval2017": (252907541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
}


def pictures(name: str) -> PublicFile:
    """The pictures ``train2014``, ``val2014``, ``train2017`` or ``val2017``: a zip, or the folder it was unpacked to."""
    size, sha256 = _FILES[name]
    url = f"http://images.cocodataset.org/zips/{name}.zip"
    return PublicFile(f"{name}.zip", url, size, (("sha256", sha256),), instead=(name, f"images/{name}", f"images/{name}.zip"))


def captions(split: str, year: str) -> PublicFile:
    """The captions of ``train`` or ``val``, within the zip of all annotations or unpacked."""
    name = f"annotations_trainval{year}"
    size, sha256 = _FILES[name]
    url = f"http://images.cocodataset.org/annotations/{name}.zip"
    unpacked = f"captions_{split}{year}.json"
    return PublicFile(f"{name}.zip", url, size, (("sha256", sha256),), instead=(f"annotations/{unpacked}", unpacked))


def identities(image_id: int, flickr_url: str | None = None) -> tuple[str, ...]:
    """What a picture of COCO is known by: its id, and that of the photograph on Flickr, which Flickr30K and others share."""
    photo = re.search(r"/(\d+)_[0-9a-f]+(?:_\w)?\.jpg$", flickr_url or "")
    return (f"coco:{image_id}", *((f"flickr:{photo[1]}",) if photo else ()))
