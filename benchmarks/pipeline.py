"""The stream of samples against plain webdataset doing the same work, and trainings on one and two ranks."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from benchmarks.measure import Row, in_turns, rows
from benchmarks.setting import Setting, run
from cmapkd.config.training import TrainingConfig
from cmapkd.data.stream import batches
from cmapkd.training.loop import _stream
from cmapkd.training.stages import prepare

BATCHES = 12


def data(setting: Setting, turns: int) -> list[Row]:
    """(d) Samples a second, single-threaded: decoded, one caption chosen and tokenised, normalised, in batches."""
    settings = setting.stage("Scratch").settings
    prepared = prepare(settings, setting.home / "stages")
    stream = _stream(settings, prepared, setting.home, TrainingConfig(workers=0))
    batch = settings["training"]["global_batch"]
    seen = [0]

    def ours() -> None:
        for _ in batches(stream, global_batch=batch, start_step=seen[0], steps=BATCHES):
            pass
        seen[0] += BATCHES

    theirs = _webdataset(setting, stream, batch)
    actions: dict[str, Callable[[], object]] = {"webdataset": theirs, "cmapkd": ours}
    return rows(
        "d. data", in_turns(actions, turns), "webdataset", {"cmapkd": ">= 1.0"}, amount=BATCHES * batch, unit="samples/s"
    )


def _webdataset(setting: Setting, stream: Any, batch: int) -> Callable[[], None]:
    shards = sorted(str(path) for path in (setting.home / "data").rglob("train/*.tar"))
    rng = np.random.default_rng(0)
    mean, std = stream.transform.mean, stream.transform.std

    def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(sample["png"])).convert("RGB")
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).float().div_(255).sub_(mean).div_(std)
        captions = json.loads(sample["json"])["captions"]
        return pixels, stream.tokenizer([captions[int(rng.integers(len(captions)))]])[0]

    def endless() -> Iterator[Any]:
        pipeline = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(1000).map(decode)
        while True:
            yield from pipeline.batched(batch, partial=False)

    iterator = endless()

    def action() -> None:
        for _ in range(BATCHES):
            next(iterator)

    return action


def ranks(setting: Setting, turns: int) -> list[Row]:
    """(f) Samples a second of KD on one and on two ranks of a thread each, from their logs, without the first steps."""
    stage = setting.stage("KD")
    directory = setting.home / "stages" / stage.address
    found: dict[str, list[float]] = {"1 rank": [], "2 ranks": []}
    for _ in range(max(2, turns // 3)):
        for count, name in ((1, "1 rank"), (2, "2 ranks")):
            shutil.rmtree(directory, ignore_errors=True)
            run(setting, "train", stage.address, "--ranks", str(count), "--threads", str(count))
            lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
            late = [1 / line["samples_per_second"] for line in lines[len(lines) // 3 :] if line.get("samples_per_second")]
            found[name].append(float(np.median(late)))
    return rows("f. ranks", found, "1 rank", unit="samples/s")
