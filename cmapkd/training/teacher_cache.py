"""Keep what the frozen teacher says of all training samples, once for all methods and seeds (see ``cmapkd/data/taught.py``).

Augmentation stays possible, in the manner of dataset reinforcement (Faghri et al., ICCV 2023): there are k views of a picture,
whose parameters follow from its number and that of the view alone, so that a training replays the view it draws. Of the pyramid
the laterals are kept, which have the size of the patch grid; its merged maps would take up to sixteen times as much, and are
rebuilt by a few convolutions. Of every caption all that is needed is kept: each epoch takes another of a picture's captions.

A shard's file is written when all of it is known, so an interrupted cache goes on at a shard; ranks take turns with shards.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cmapkd.config.schedules import StageConfig
from cmapkd.data.split import CorruptSample, Split
from cmapkd.data.stream import Stream
from cmapkd.data.taught import MAPS, SCALE, file_of, quantise
from cmapkd.data.transforms import TrainTransform
from cmapkd.files import atomic_path, digest, sha256_of, write_atomic, write_json
from cmapkd.fingerprint import training_code
from cmapkd.models import towers
from cmapkd.plan import Stage
from cmapkd.provenance import Start, collect
from cmapkd.training import distributed
from cmapkd.training.failures import Failures
from cmapkd.training.results import parents_files
from cmapkd.training.stages import MODEL, OBJECTIVE, RESULT, Teacher, load_prompts, load_pyramid
from cmapkd.training.stopping import Interrupted, Signals
from cmapkd.training.storage import writing

log = logging.getLogger(__name__)
BATCH = 128  # pictures, or captions, encoded at a time
_STORED = {"fp32": np.float32, "fp16": np.float16, "int8": np.float16}  # of what is not quantised


def build(stage: Stage, results: Path, device: torch.device, signals: Signals, started: Start) -> None:
    """Write the cache of a stage and, last, its ``stage.json``.

    Raises:
        Interrupted: by a signal; the shards that are done are kept.
        UserError: too many bad samples, or a disk that cannot be written.
    """
    settings, stages = stage.settings, results / "stages"
    directory = stages / stage.address
    teacher, stream = _teacher(settings, stages, device), _stream(settings, results)
    rests_on = parents_files(stage, stages)
    data = {split.name.partition("/")[0]: split.digest for split in stream.splits}
    origin = digest({"code": training_code(stage.method), "settings": settings, "data": data, "teacher": rests_on})
    shards, first = [], 0
    for split in stream.splits:
        for number, size in enumerate(split.shard_sizes):
            shards.append((file_of(split, number), range(first, first + size)))
            first += size
    for turn, (file, samples) in enumerate(shards):
        if turn % distributed.world_size() != distributed.rank() or _whole(directory / file, origin):
            continue
        try:
            arrays = _shard(stream, samples, teacher, settings, device, signals)
        except Interrupted as stop:
            Failures(directory / "checkpoints", origin, stage.label).stopped(turn, str(stop))
            raise
        with writing(directory / file, "shards before it are whole"):
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(directory / file) as temporary:
                save_file(arrays, temporary, metadata={"origin": origin})
                sha256 = sha256_of(temporary)
            write_atomic(_checksum(directory / file), f"{sha256}\n")
        log.info("%s: shard %d of %d", stage.label, turn + 1, len(shards))
    distributed.together(lambda: None, "keeping what the teacher says")
    distributed.barrier("the result is written")
    if distributed.rank():
        return
    content = {
        "address": stage.address,
        "label": stage.label,
        "settings": settings,
        "parents": list(stage.parents),
        "code": training_code(stage.method),
        "files": {file: _checksum(directory / file).read_text(encoding="utf-8").strip() for file, _ in shards},
        "bytes": {file: (directory / file).stat().st_size for file, _ in shards},
        "rests_on": rests_on,
        "data": data,
        "summary": {"steps": 0, "samples": len(stream)},
        "bad_samples": stream.bad.report(),
        "provenance": collect(started, config_digest=digest(settings), data_digests=data),
    }
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    write_json(directory / RESULT, content)


def _teacher(settings: Mapping[str, Any], stages: Path, device: torch.device) -> Teacher:
    model = towers.Tapped(towers.load(stages / settings["teacher"] / MODEL))
    pyramid = prompts = None
    if settings.get("teacher_pyramid"):
        pyramid = load_pyramid(stages / settings["teacher_pyramid"] / OBJECTIVE, model.shapes(), settings["pyramid"])
    if settings.get("teacher_prompts"):
        prompts = load_prompts(stages / settings["teacher_prompts"] / OBJECTIVE, model.shapes())
    adapter = towers.Adapter(_preprocess(settings, stages), towers.preprocess_of(model.model))
    # All levels, whichever a stage will use.
    stage = StageConfig(name="cache", epochs=1, lr=1)
    return Teacher(model, pyramid, stage, taps=False, prompts=prompts, adapter=adapter).to(device)


def _preprocess(settings: Mapping[str, Any], stages: Path) -> Any:
    """How the student's pictures are prepared: mean and deviation belong to its first weights."""
    if settings.get("student"):
        return towers.preprocess_of(towers.load(stages / settings["student"] / MODEL))
    model = settings["model"]
    stated = settings.get("preprocessing")
    made = towers.create(model["name"], model["config"], settings["init"], key="student.init", preprocessing=stated)
    return towers.preprocess_of(made)


def _stream(settings: Mapping[str, Any], results: Path) -> Stream:
    splits = [Split(results / "data" / name, split) for name, _, split in (r.partition("/") for r in settings["distillation"])]
    augmentation = settings["augmentation"]
    transform = TrainTransform(
        _preprocess(settings, results / "stages"),
        scale=augmentation["scale"],
        ratio=augmentation["ratio"],
        flip=augmentation["flip"],
    )
    return Stream(
        splits,
        0,
        towers.tokenizer_of(settings["model"]["name"]),
        transform,
        max_pixels=settings["max_pixels"],
        views=augmentation.get("views"),
    )


def _checksum(path: Path) -> Path:
    """The file that has the SHA-256 of a shard's file, written after it."""
    return path.with_name(f"{path.name}.sha256")


def _whole(path: Path, origin: str) -> bool:
    """Whether a shard's file is there, of this origin and what was written."""
    if not path.is_file() or not _checksum(path).is_file():
        return False
    if _checksum(path).read_text(encoding="utf-8").strip() != sha256_of(path):
        return False
    try:
        with safe_open(path, framework="np") as file:  # refuses a file that is too short for its header
            return bool((file.metadata() or {}).get("origin") == origin)
    except SafetensorError:
        return False


def _shard(
    stream: Stream, samples: range, teacher: Teacher, settings: Mapping[str, Any], device: torch.device, signals: Signals
) -> dict[str, np.ndarray]:
    """Arrays of one shard; a sample that cannot be read has zeros, and no captions."""
    part, precision = settings["part"], settings["precision"]
    views = stream.views or 1
    collected: dict[str, list[np.ndarray]] = {}
    valid, counts = np.zeros(len(samples), np.uint8), np.zeros(len(samples), np.int64)
    captions: list[str] = []
    for first in range(0, len(samples), BATCH):
        if signals.stop:
            raise Interrupted(f"stopped by {signals.name}; the same command goes on at this shard")
        pictures = []
        for row in range(first, min(first + BATCH, len(samples))):
            try:
                own, seen = stream.all_views(samples[row])
                captions += own
                valid[row], counts[row] = 1, len(own)
                stream.bad.add(1, [])
            except CorruptSample as error:
                stream.bad.add(1, [(samples[row], error)])
                seen = torch.zeros(views, 3, *stream.transform.size, dtype=torch.uint8)  # type: ignore[attr-defined]
            pictures.append(seen)
        for view in range(views):
            batch = stream.transform.batch(torch.stack([seen[view] for seen in pictures])).to(device)
            for name, value in teacher.of_images(batch, part).items():
                stored = _stored(name, value, precision)
                for key, array in stored.items():
                    collected.setdefault(f"{view}/{key}", []).append(array)
    arrays: dict[str, np.ndarray] = {"valid": valid, "captions": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)}
    for name in dict.fromkeys(key.partition("/")[2] for key in collected):
        arrays[name] = np.stack([np.concatenate(collected[f"{view}/{name}"]) for view in range(views)], axis=1)
    if teacher.prompts is None:
        arrays |= _texts(stream, captions, teacher, settings, device)
    return arrays


def _texts(
    stream: Stream, captions: list[str], teacher: Teacher, settings: Mapping[str, Any], device: torch.device
) -> dict[str, np.ndarray]:
    """What is said of the shard's captions; each different one is encoded once."""
    distinct = {text: number for number, text in enumerate(dict.fromkeys(captions))}
    places = np.asarray([distinct[text] for text in captions], np.int64)
    tokens = torch.as_tensor(stream.tokenizer(list(distinct)))
    collected: dict[str, list[np.ndarray]] = {}
    for rows in tokens.split(BATCH):
        for name, value in teacher.of_texts(rows.to(device), settings["part"]).items():
            for key, array in _stored(name, value, settings["precision"]).items():
                collected.setdefault(key, []).append(array)
    return {name: np.concatenate(parts)[places] for name, parts in collected.items()}


def _stored(name: str, value: torch.Tensor, precision: str) -> dict[str, np.ndarray]:
    if precision == "int8" and name in MAPS:
        values, scale = quantise(value)
        return {name: values, name + SCALE: scale}
    array: np.ndarray = value.float().cpu().numpy().astype(_STORED[precision])
    return {name: array}
