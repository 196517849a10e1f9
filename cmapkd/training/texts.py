"""Texts of the training data, for an objective that computes something from them before its first step."""

from __future__ import annotations

import torch
from torch import Tensor

from cmapkd.data.philox import generator
from cmapkd.data.split import CorruptSample
from cmapkd.data.stream import Stream
from cmapkd.files import read_json


class TrainingTexts:
    """Captions and class names of the data sets of a stream; nothing is read before it is asked for."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def captions(self, count: int) -> Tensor:
        """The first ``count`` distinct captions of the stream's first epoch (fewer, if there are no more), (n, context)."""
        found: dict[str, None] = {}
        for index in map(int, self.stream.epoch_order(0)):
            if len(found) == count:
                break
            split, i = self.stream.locate(index)
            try:
                captions = split.read_raw(i)[0].get("captions") or []
            except CorruptSample:  # the stream counts it when its turn comes
                continue
            if captions:
                choice = generator(self.stream.seed, 0, index).random()  # as the stream chooses
                found[captions[int(choice * len(captions))]] = None
        return self.stream.tokenizer(list(found))

    def classes(self) -> list[Tensor]:
        """For every class of the data sets' ``classes.json``, its name in all templates, (templates, context)."""
        result = []
        for directory in dict.fromkeys(split.directory for split in self.stream.splits):
            path = directory / "classes.json"
            content = read_json(path, classes=list, templates=list) if path.is_file() else {"classes": [], "templates": []}
            for name in content["classes"]:
                result.append(torch.as_tensor(self.stream.tokenizer([t.replace("{}", name) for t in content["templates"]])))
        return result
