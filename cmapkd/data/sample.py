"""The record every data source yields and every shard holds: one image with its captions, stratum, class and questions.

The image is kept encoded (PNG or JPEG bytes) so that writing shards never re-encodes pictures; this module imports
neither torch nor PIL, for the workflow reads it as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

AnswerType = Literal["yes/no", "number", "other"]


@dataclass(slots=True)
class Question:
    """A visual question in VQAv2 form.

    Attributes:
        question: the text, e.g. ``"how many dogs are there?"``.
        answers: ten answers (one for each annotator), scored by VQAv2's accuracy, min(matches / 3, 1) averaged over subsets of
            nine; or one, scored by exact match.
        type: answer type by which accuracy is reported.
        id: unique within the split.
    """

    question: str
    answers: list[str]
    type: AnswerType
    id: int


@dataclass(slots=True)
class Sample:
    """One image and all that belongs to it.

    Attributes:
        key: unique within the split; letters, digits, ``_`` and ``-`` (it names the members of the tar).
        image: the encoded picture.
        extension: ``"png"`` or ``"jpg"``.
        captions: at least one for training and retrieval.
        stratum: the group by which results are broken down (``simple``, ``complex``, ...), if any.
        label: index into the data set's zero-shot classes; None when the image belongs to none.
        questions: VQA questions about the image.
        meta: JSON-able facts about how the sample was made.
    """

    key: str
    image: bytes
    extension: str
    captions: list[str]
    stratum: str | None = None
    label: int | None = None
    questions: list[Question] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
