"""Small data sets in their publishers' exact formats, made with real JPEG and PNG encoders."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmapkd.data.shards import write_dataset
from cmapkd.data.sources import build_source
from cmapkd.data.split import Split

CAPTIONS = ["A dog runs.", "Un café à Zürich ✓", "two people ", "  on a\tbench", "犬が走る"]


def pixels(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(height, width, 3) uint8: a smooth picture with structure, as photographs have."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(seed: int, width: int = 64, height: int = 48, mode: str = "RGB", quality: int = 90, orientation: int = 0) -> bytes:
    image, buffer = Image.fromarray(pixels(seed, width, height)).convert(mode), io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(buffer, "JPEG", quality=quality, exif=exif)
    return buffer.getvalue()


def png(seed: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, data: bytes | str | Any) -> None:
    """Bytes, text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


def archive(folder: Path, path: Path, prefix: str = "") -> None:
    """The files of a folder as the zip that a publisher makes of them (stored, with directories)."""
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(zipfile.ZipInfo(f"{prefix or folder.name}/"), b"")
        for file in sorted(folder.iterdir()):
            out.write(file, f"{prefix or folder.name}/{file.name}")


def coco(root: Path, split: str = "train", year: str = "2017", ids: range = range(1, 21)) -> Path:
    """``captions_<split><year>.json`` and the folder of pictures; picture 3 has seven captions."""
    images, annotations = [], []
    for number in ids:
        name = f"{number:012d}.jpg" if year == "2017" else f"COCO_{split}{year}_{number:012d}.jpg"
        write(root / f"{split}{year}" / name, jpeg(number))
        images.append(
            {
                "license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/{split}{year}/{name}",
                "height": 48, "width": 64, "date_captured": "2013-11-14 17:02:52", "id": number,
                "flickr_url": f"http://farm7.staticflickr.com/6116/{number + 600}_02ac7d605d_z.jpg",
            }
        )  # fmt: skip
        for place in range(7 if number == 3 else 5):
            caption = f"{CAPTIONS[place % 5]} {number}"
            annotations.append({"image_id": number, "id": number * 10 + place, "caption": caption})
    annotations = annotations[::-1]  # the publisher's are in no order of pictures
    content = {"info": {"description": "COCO 2017 Dataset"}, "licenses": [], "images": images, "annotations": annotations}
    write(root / "annotations" / f"captions_{split}{year}.json", content)
    return root


def karpathy_coco(root: Path, splits: dict[str, range]) -> Path:
    """``dataset_coco.json`` with pictures of 2014."""
    images = []
    for split, ids in splits.items():
        folder = "train2014" if split == "train" else "val2014"
        for number in ids:
            name = f"COCO_{folder}_{number:012d}.jpg"
            write(root / folder / name, jpeg(number))
            sentences = [{"tokens": [], "raw": f"{text} {number}", "imgid": 0, "sentid": 0} for text in CAPTIONS]
            image = {"filepath": folder, "sentids": [0], "filename": name, "imgid": 0, "split": split}
            images.append({**image, "sentences": sentences, "cocoid": number})
    write(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return root


def karpathy_flickr(root: Path, splits: dict[str, range]) -> Path:
    images = []
    for split, ids in splits.items():
        for number in ids:
            write(root / "flickr30k-images" / f"{number}.jpg", jpeg(number))
            sentences = [{"tokens": [], "raw": f"{text} {number}", "imgid": 0, "sentid": 0} for text in CAPTIONS]
            images.append({"sentids": [0], "imgid": 0, "sentences": sentences, "split": split, "filename": f"{number}.jpg"})
    write(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return root


def vqa(root: Path, split: str, ids: range) -> Path:
    """Two questions about each picture, and COCO's pictures of 2014."""
    questions, annotations = [], []
    for number in ids:
        write(root / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg", jpeg(number))
        for place, (text, answer, kind) in enumerate((("Is it red?", "yes", "yes/no"), ("How many?", "2", "number"))):
            identity = number * 1000 + place
            questions.append({"image_id": number, "question": text, "question_id": identity})
            answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
            head = {"question_type": "is", "multiple_choice_answer": answer, "answers": answers, "image_id": number}
            annotations.append({**head, "answer_type": kind, "question_id": identity})
    about = {"info": {}, "license": {}, "data_subtype": f"{split}2014", "data_type": "mscoco"}
    asked = {**about, "task_type": "Open-Ended", "questions": questions}
    write(root / f"v2_OpenEnded_mscoco_{split}2014_questions.json", asked)
    write(root / f"v2_mscoco_{split}2014_annotations.json", {**about, "annotations": annotations})
    return root


def genome(root: Path, ids: range) -> Path:
    images, regions = [], []
    for number in ids:
        write(root / ("VG_100K" if number % 2 else "VG_100K_2") / f"{number}.jpg", jpeg(number))
        url = f"https://cs.stanford.edu/people/rak248/VG_100K_2/{number}.jpg"
        shape = {"width": 64, "url": url, "height": 48, "image_id": number}
        images.append({**shape, "coco_id": number + 100 if number % 2 else None, "flickr_id": number + 600})
        own = [
            {"region_id": 10 * number + side, "width": side, "height": 2, "image_id": number, "phrase": phrase, "y": 0, "x": 0}
            for side, phrase in ((10, "small"), (60, "the whole scene"), (30, "half"), (20, "half"), (5, ""), (4, "tiny"))
        ]
        regions.append({"regions": own, "id": number})
    write(root / "image_data.json", images)
    write(root / "region_descriptions.json", regions)
    return root


def conceptual(root: Path, split: str, tars: int = 2, each: int = 6, dead: int = 2) -> Path:
    """What img2dataset leaves: tars, statistics, and the publisher's table with more rows than pictures came."""
    rows = []
    for shard in range(tars):
        path = root / split / f"{shard:05d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as out:
            for place in range(each):
                number = shard * (each + dead) + place
                key, url, caption = f"{shard:05d}{place:04d}", f"http://example.org/{number}.jpg", f"a thing {number} ✓"
                rows.append((caption, url))
                about = {"caption": caption, "url": url, "key": key, "status": "success", "error_message": None}
                for extension, data in (
                    ("jpg", jpeg(1000 + number)),
                    ("json", json.dumps({**about, "width": 64, "height": 48, "exif": "{}"}).encode()),
                    ("txt", caption.encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    out.addfile(member, io.BytesIO(data))
        rows += [("gone", f"http://example.org/gone{shard}{place}.jpg") for place in range(dead)]
        counts = {"count": each + dead, "successes": each, "failed_to_download": dead, "failed_to_resize": 0}
        write(root / split / f"{shard:05d}_stats.json", {**counts, "duration": 1.0, "status_dict": {"success": each}})
    write(root / "Train_GCC-training.tsv", "".join(f"{caption}\t{url}\n" for caption, url in rows))
    return root


SYNSETS = [f"n{1440764 + 13 * i:08d}" for i in range(1000)]


def imagenet(root: Path, classes: int = 4, each: int = 3) -> Path:
    write(root / "LOC_synset_mapping.txt", "".join(f"{synset} name, other\n" for synset in SYNSETS))
    for place in range(classes):
        for number in range(each):
            name = f"ILSVRC2012_val_{place * each + number:08d}.JPEG"
            write(root / "val" / SYNSETS[10 * place] / name, jpeg(10 * place + number))
    return root


def source(kind: type, root: Path, **keys: Any) -> Any:
    """The source of a kind's configuration, in ``root``."""
    return build_source(kind(root=str(root), **keys), root / "cache")


def build(kind: type, root: Path, out: Path, **keys: Any) -> dict[str, Any]:
    """Write the shards of a source; returns their manifest."""
    return write_dataset(source(kind, root, **keys), out, dataset="data")


def read(out: Path, split: str) -> list[Any]:
    """All samples of a split."""
    samples = Split(out, split)
    return [samples.read(index) for index in range(len(samples))]
