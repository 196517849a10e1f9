"""What the public data sets ask for, at their size: shards from 5,000 files as COCO has them, and the ranks of its 5K test set.

    python -m benchmarks.scale [shards] [retrieval] [--folder FOLDER] [--files 5000] [--turns 5]

Shards are compared with `tar` of the same folder, to the same disk: both are on the disk when the clock stops. In the turns
called cold, the system's copy of the pictures is dropped before. Seconds of the clock and of processors are told apart: `tar`
uses one processor, the writer of shards reads and writes in two threads. Each thing runs in a process of its own, so that its
largest memory is its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Row, most_memory, rows
from cmapkd.files import write_json

DISTINCT = 64  # pictures; the files are these in turns
WIDTH, HEIGHT, QUALITY = 640, 480, 89  # about 160 KB, COCO's mean
IMAGES, TEXTS, WIDTH_OF_EMBEDDINGS = 5_000, 25_010, 768  # Karpathy's test split of COCO, ViT-L/14
ACTIONS = ("tar", "shards", "tar cold", "shards cold")


def main(arguments: Sequence[str] | None = None) -> None:
    """What was asked for, or both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("groups", nargs="*", default=["shards", "retrieval"])
    parser.add_argument("--folder", type=Path, default=Path("results/bench/scale"), help="pictures and shards; kept")
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args(arguments)
    for group in chosen.groups:
        if group == "one-build":
            sys.stdout.write(json.dumps(build(chosen.folder)) + "\n")
        elif group == "one-ranking":
            sys.stdout.write(json.dumps(rank()) + "\n")
        elif group == "shards":
            sys.stdout.write(shards(chosen.folder, chosen.files, chosen.turns))
        elif group == "retrieval":
            sys.stdout.write(retrieval(chosen.turns))
        else:
            parser.error(f"{group!r} is neither shards nor retrieval")


def shards(folder: Path, files: int, turns: int) -> str:
    """The table of shards and tar."""
    from benchmarks.__main__ import table  # imports torch

    pictures = simulate(folder, files)
    megabytes = sum(path.stat().st_size for path in pictures) / 1e6
    clock, processor = ({name: list[float]() for name in ACTIONS} for _ in range(2))
    memory = 0.0
    for turn in range(turns + 1):
        for name in ACTIONS:
            found = prepared(name, folder, pictures)
            memory = max(memory, found.get("megabytes", 0.0))
            if turn:  # the first is warming up
                clock[name].append(found["seconds"])
                processor[name].append(found["processor"])
    lines: list[Row] = []
    for kind in ("", " cold"):
        pair = (f"tar{kind}", f"shards{kind}")
        bounds = {pair[1]: ">= 0.8"}
        for what, found in (("by the clock", clock), ("by seconds of a processor", processor)):
            group = f"{files} files, {megabytes:.0f} MB, {what}"
            lines += rows(group, {name: found[name] for name in pair}, pair[0], bounds, amount=megabytes, unit="MB/s")
    return table(lines) + f"\nMemory while shards were written: {memory:.0f} MB more than before.\n"


def prepared(name: str, folder: Path, pictures: Sequence[Path]) -> dict[str, float]:
    """One turn of an action after what was written before it is gone: seconds of the clock and of processors."""
    for path in (folder / "shards").rglob("*"):
        if path.is_file():
            path.unlink()
    (folder / "all.tar").unlink(missing_ok=True)
    os.sync()
    for path in pictures:
        use_cached(path, keep=not name.endswith("cold"))
    if name.startswith("shards"):
        return child("one-build", "--folder", str(folder))
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    archive = folder / "all.tar"
    subprocess.run(["tar", "-C", str(folder / "coco"), "-cf", str(archive), "train2017"], check=True)
    spent = processor_seconds(resource.getrusage(resource.RUSAGE_CHILDREN)) - processor_seconds(before)
    before_sync = time.process_time()
    with archive.open("rb+") as file:
        os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - started, "processor": spent + time.process_time() - before_sync}


def simulate(folder: Path, files: int) -> list[Path]:
    """COCO's training split with ``files`` photographs (noise on a smooth picture) of five captions each."""
    root = folder / "coco"
    names = [f"{number:012d}.jpg" for number in range(1, files + 1)]
    paths = [root / "train2017" / name for name in names]
    if not all(path.is_file() for path in (paths[0], paths[-1])):
        (root / "train2017").mkdir(parents=True, exist_ok=True)
        encoded = [photograph(seed) for seed in range(DISTINCT)]
        for place, path in enumerate(paths):
            path.write_bytes(encoded[place % DISTINCT])
    images = [{"id": place + 1, "file_name": name, "height": HEIGHT, "width": WIDTH} for place, name in enumerate(names)]
    captions = [
        {"image_id": image["id"], "id": 5 * place + number, "caption": f"A picture that was made up, described {number} times."}
        for place, image in enumerate(images)
        for number in range(5)
    ]
    write_json(root / "annotations" / "captions_train2017.json", {"images": images, "annotations": captions})
    return paths


def photograph(seed: int) -> bytes:
    """An encoded picture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (smooth + rng.integers(-25, 26, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def use_cached(path: Path, keep: bool) -> None:
    """Have the system hold a file in memory, or drop it."""
    if keep:
        path.read_bytes()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def build(folder: Path) -> dict[str, float]:
    """Write the shards, as `cmapkd data build` does."""
    from cmapkd.config.sources import CocoCaptionsConfig
    from cmapkd.data.shards import write_dataset
    from cmapkd.data.sources import build_source

    source = build_source(CocoCaptionsConfig(root=str(folder / "coco"), splits=("train",)), folder)
    memory = most_memory()
    started, spent = time.perf_counter(), time.process_time()
    write_dataset(source, folder / "shards", dataset="coco")
    found = {"seconds": time.perf_counter() - started, "processor": time.process_time() - spent}
    return found | {"megabytes": (most_memory() - memory) / 1e6}


def retrieval(turns: int) -> str:
    """What ranking costs; each turn in a process of its own."""
    found = [child("one-ranking") for _ in range(turns)]
    seconds = sorted(turn["seconds"] for turn in found)
    return (
        f"\nRanks of {IMAGES} images and {TEXTS} texts of {WIDTH_OF_EMBEDDINGS} numbers, both ways, {os.cpu_count()} cores: "
        f"{seconds[len(seconds) // 2]:.2f} s by the clock (median of {turns}), "
        f"{sorted(turn['processor'] for turn in found)[turns // 2]:.2f} s of processors, "
        f"{max(turn['gibibytes'] for turn in found):.2f} GiB at most with torch and the embeddings.\n"
    )


def rank() -> dict[str, float]:
    """Rank random embeddings once."""
    import torch

    from cmapkd.evaluation.retrieval import ranks

    torch.manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(IMAGES, WIDTH_OF_EMBEDDINGS), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(TEXTS, WIDTH_OF_EMBEDDINGS), dim=1)
    owner = torch.cat([torch.arange(IMAGES).repeat_interleave(TEXTS // IMAGES), torch.arange(TEXTS % IMAGES)])
    started, spent = time.perf_counter(), time.process_time()
    ranks(images, texts, owner)
    found = {"seconds": time.perf_counter() - started, "processor": time.process_time() - spent}
    return found | {"gibibytes": most_memory() / 2**30}


def child(*words: str) -> dict[str, Any]:
    """What a part of this module found in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", *words]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def processor_seconds(usage: resource.struct_rusage) -> float:
    """In user and system mode."""
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
