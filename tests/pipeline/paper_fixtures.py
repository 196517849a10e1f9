"""config/paper.yaml on small data sets in their publishers' formats, with small models: the same rows and rules, no downloads.

What is left out: the size of everything. Of the run (`short`) further all but one seed, the baselines between `Scratch` and
`CMAPKD` but for PromptKD, all ablations but one, and ImageNet's 1,000 classes with 80 templates each (80,000 texts to encode
for each run): its shards are built, and pictures of one's own with four classes are classified in its place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cmapkd.config.schedules import DEFAULT_SCHEDULES
from tests.unit import public_fixtures as make

TEST = range(101, 125)  # pictures that only evaluation holds
LEFT_OUT = (
    "KD", "FitNet", "C2KD", "LLaVA-KD", "CLIP-KD", "CMAPKD-E", "w/o visual pyramid", "w/o language hierarchy",
    "w/o ALSN (manual)", "w/o cross-modal alignment", "w/o relation", "one-stage",
)  # fmt: skip


def data(root: Path) -> Path:
    """A folder for `data_root`; pictures 17 to 20 of COCO are in an evaluation split, too."""
    coco = make.coco(root / "coco", ids=range(1, 21))
    make.karpathy_coco(coco, {"val": range(95, 101), "test": TEST})
    for split, ids in (("train", range(1, 13)), ("val", [*range(17, 21), *TEST])):
        make.vqa(coco, split, ids)
    for file in coco.glob("v2_*.json"):
        content = json.loads(file.read_text())
        for record in content.get("annotations", ()):
            if record["answer_type"] == "number" and record["image_id"] % 2:  # the paper's table has all three types
                record["answer_type"] = "other"
        make.write(root / "vqa" / file.name, content)
        file.unlink()
    make.karpathy_flickr(root / "flickr30k", {"test": range(301, 325)})
    make.conceptual(root / "cc3m", "train")
    make.imagenet(root / "imagenet")
    for place in range(8):
        make.write(root / "classes" / "val" / f"{place}.png", make.png(500 + place))
    rows = "".join(f"val/{place}.png,a picture,val,{['dog', 'cat', 'bus', 'cup'][place % 4]}\n" for place in range(8))
    make.write(root / "classes" / "table.csv", f"image,caption,split,label\n{rows}")
    make.write(root / "classes" / "classes.txt", "dog\ncat\nbus\ncup\n")
    return root


def derived(root: Path, weights: Path, paper: Path) -> dict[str, Any]:
    """The experiment of the paper with small models and few steps.

    Args:
        root: of the data.
        weights: folder with ``teacher.safetensors`` and ``student.safetensors``.
        paper: the file config/paper.yaml.
    """
    schedules = {
        name: [{**stage.model_dump(mode="json"), "epochs": 0.2} for stage in stages]
        for name, stages in DEFAULT_SCHEDULES.items()
    }
    return {
        "extends": str(paper),
        "name": "paper-fixtures",
        "data_root": str(root),
        "teacher": {
            "model": "mini-teacher", "pretrained": str(weights / "teacher.safetensors"), "pyramid": {"epochs": 0.2},
        },
        "student": {"model": "mini-student", "init": str(weights / "student.safetensors")},
        "pyramid": {"channels": 16, "text_channels": 16, "heads": 2, "smoothing": "depthwise"},
        "training": {"global_batch": 8, "ranks": 1, "deepspeed": "fp32", "workers": 0, "activation_checkpointing": True},
        "schedules": schedules,
        "runs": {"PromptKD": {"bank": 16, "student_prompts": 2, "teacher_prompts": {"epochs": 0.2, "tokens": 2}}},
        "evaluation": {"vqa": {"min_count": 3, "epochs": 1}, "latency": {"warmup": 1, "repeats": 2}},
    }  # fmt: skip


def short(content: dict[str, Any], expected: float) -> dict[str, Any]:
    """The same for a run of minutes; see the module header."""
    runs = {**content["runs"], **dict.fromkeys(LEFT_OUT)}
    classes = {"source": "own", "root": "classes", "table": "table.csv", "splits": ["val"]}
    labels = {"zeroshot:imagenet/val": None, "zeroshot:classes/val": "Four classes (in place of ImageNet)"}
    never = {"retrieval:flickr30k/test": None, "zeroshot:imagenet/val": None}
    return {
        **content,
        "seeds": [0],
        "datasets": {"classes": classes},
        "runs": runs,
        "teacher": {**content["teacher"], "expected": {"retrieval:coco5k/test": {"i2t_r1": expected, "t2i_r1": None}, **never}},
        "evaluation": {**content["evaluation"], "zeroshot": ["classes/val"]},
        "paper": {"labels": labels, "bootstrap": {"samples": 2000}},
    }
