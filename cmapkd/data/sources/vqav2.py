"""VQAv2 (Goyal et al., "Making the V in VQA Matter", CVPR 2017): questions about COCO 2014, each with ten answers.

A sample is a picture with all of its questions and no caption. The labels of the test set are not public, so ``train`` is for
the head and ``val`` (214,354 questions) is what is reported. Which answers the head knows follows from
``evaluation.vqa.min_count`` (9 gives the usual 3,129); see ``cmapkd/evaluation/vqa.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmapkd.config.sources import Vqav2Config
from cmapkd.data.sample import Question
from cmapkd.data.sources import register_source
from cmapkd.data.sources.fetched import FetchedFile
from cmapkd.data.sources.public import coco
from cmapkd.data.sources.public.annotations import Annotations, clean
from cmapkd.data.sources.public.base import Entry, Report, StoredSource
from cmapkd.data.sources.public.download import PublicFile
from cmapkd.data.sources.public.stores import Store, find_store
from cmapkd.files import sha256_of

TYPES = ("yes/no", "number", "other")
ANSWERS = 10
_URL = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
_SIZES = {  # bytes, as others have recorded them; the publisher gives no checksums
    "v2_Questions_Train_mscoco.zip": 7239401,
    "v2_Questions_Val_mscoco.zip": 3494929,
    "v2_Annotations_Train_mscoco.zip": 21708861,
    "v2_Annotations_Val_mscoco.zip": 10518930,
}


@register_source("vqav2")
class Vqav2(StoredSource):
    """The source."""

    name = "vqav2"
    licence, attribution = "CC-BY-4.0; pictures as in COCO", "VQA Team, https://visualqa.org; " + coco.ATTRIBUTION
    version = "2.0"
    config: Vqav2Config

    def __init__(self, config: Vqav2Config, cache: Path) -> None:
        super().__init__(config, cache)
        self.images = Path(config.images) if config.images is not None else self.root

    def fetch(self) -> list[FetchedFile]:
        """Questions and answers to ``root``, pictures to ``images``."""
        pictures = [coco.pictures(f"{split}2014") for split in self.splits()]
        if self.config.images is None:
            return self._fetch(self.files(), self.root, self.config.root)
        texts = self._fetch(self._texts(), self.root, self.config.root)
        return texts + self._fetch(pictures, self.images, self.config.images)

    def files(self) -> list[PublicFile]:
        """Questions, answers and pictures of the configured splits."""
        return [*self._texts(), *(coco.pictures(f"{split}2014") for split in self.splits())]

    def entries(self, split: str, report: Report) -> list[Entry]:
        """Pictures in the order of their first question."""
        asked, answered = self._open(split)
        questions = asked.load({"questions": list}, "VQAv2's questions")
        answers = answered.load({"annotations": list}, "VQAv2's annotations")
        for file, content in ((asked, questions), (answered, answers)):
            if (subset := content.get("data_subtype")) not in (None, f"{split}2014"):
                raise file.error(f"is of {subset!r}, expected {split}2014")
        keys: dict[str, type] = {"question_id": int, "image_id": int, "answer_type": str, "answers": list}
        known: dict[int, dict[str, Any]] = {}
        for record in answered.records(answers["annotations"], keys, "annotations"):
            if record["answer_type"] not in TYPES:
                raise answered.error(f"question {record['question_id']} has the answer type {record['answer_type']!r}")
            if known.setdefault(record["question_id"], record) != record:
                raise answered.error(f"question {record['question_id']} has two records of answers that differ")
        found: dict[int, Entry] = {}
        seen: set[int] = set()
        unanswered: list[int] = []
        for record in asked.records(
            questions["questions"], {"question_id": int, "image_id": int, "question": str}, "questions"
        ):
            number, image = record["question_id"], record["image_id"]
            if number in seen:
                report.counts["duplicated_ids"] = report.counts.get("duplicated_ids", 0) + 1
                continue
            seen.add(number)
            if number not in known or known[number]["image_id"] != image:
                raise asked.error(f"question {number} about picture {image} has no answers in {answered.name}")
            given = [clean(one["answer"]) for one in answered.records(known[number]["answers"], {"answer": str}, "answers")]
            if not given:
                unanswered.append(number)
            elif len(given) != ANSWERS:
                report.counts["questions_without_ten_answers"] = report.counts.get("questions_without_ten_answers", 0) + 1
            entry = found.get(image)
            if entry is None:
                name = f"COCO_{split}2014_{image:012d}"
                entry = found[image] = Entry(name, f"{name}.jpg", identity=coco.identities(image), meta={"image_id": image})
            entry.questions.append(Question(clean(record["question"]), given, known[number]["answer_type"], number))
        if unanswered:
            shown = ", ".join(map(str, unanswered[:5]))
            raise answered.error(f"{len(unanswered)} of {len(seen)} questions have no answer, for example {shown}")
        report.counts["questions"] = len(seen)
        return list(found.values())

    def store(self, split: str) -> Store:
        """COCO's pictures of 2014."""
        name = f"{split}2014"
        return find_store(self.images, (name, f"images/{name}"), key=f"{self.name}: images")

    def captioned(self) -> bool:
        """It has none."""
        return False

    def inputs(self) -> list[tuple[str, str]]:
        """Questions and answers by their content, pictures by the list of them."""
        files = [file for split in self.splits() for file in self._open(split)]
        about = [(Path(file.name).name, sha256_of(file.path)) for file in files]
        return about + [(f"pictures of {split} (list)", self.store(split).digest()) for split in self.splits()]

    def _texts(self) -> list[PublicFile]:
        return [
            PublicFile(name, _URL + name, _SIZES[name], instead=(unpacked, f"annotations/{unpacked}"))
            for split in self.splits()
            for name, unpacked in _names(split)
        ]

    def _open(self, split: str) -> tuple[Annotations, Annotations]:
        asked, answered = (
            Annotations(self.root, (unpacked, f"annotations/{unpacked}", f"{name}!{unpacked}"), key=f"{self.name}: root")
            for name, unpacked in _names(split)
        )
        return asked, answered


def _names(split: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Zip and member of a split's questions and of its annotations."""
    return (
        (f"v2_Questions_{split.title()}_mscoco.zip", f"v2_OpenEnded_mscoco_{split}2014_questions.json"),
        (f"v2_Annotations_{split.title()}_mscoco.zip", f"v2_mscoco_{split}2014_annotations.json"),
    )
