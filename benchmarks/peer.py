"""KD as open_clip's own trainer does it (`--distill-model`), on the same pictures, models, batch, precision and threads.

The trainer of open_clip 3.3.0 needs `webdataset==0.2.86`, so it has an environment of its own: a venv with these two packages
and a path to everything else of ours. Its shards are ours with a member more, `.txt`, the first caption; its augmentation and
its optimiser are set as ours. Both read in the process that trains.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, rows
from benchmarks.setting import Setting, make, run

PACKAGES = ("webdataset==0.2.86", f"open_clip_torch=={version('open_clip_torch')}")
WAIT = "<= 0.03"


def peer(config: Path, folder: Path, setting: Setting, turns: int, threads: int) -> list[Row]:
    """(a) Samples a second over all steps of a KD training, from the logs; what of its time ours waits for data."""
    uncached = make(config, folder, like=setting, cache=False, name="bench-live")
    environment = folder / "peer"
    python = prepare(environment, setting)
    actions: dict[str, Callable[[], list[float]]] = {
        "open_clip": lambda: theirs(python, environment, setting, threads),
        "cmapkd, live teacher": lambda: ours(uncached, threads)[0],
        "cmapkd, cached teacher": lambda: ours(setting, threads)[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(max(2, turns // 3)):
        for name, action in actions.items():
            seconds[name].append(sum(action()))
    batch = setting.stage("KD").settings["training"]["global_batch"]
    samples = steps(setting) * batch
    bounds = {"cmapkd, live teacher": ">= 1.3", "cmapkd, cached teacher": ">= 2.0"}
    found = rows("a. KD against open_clip's trainer", seconds, "open_clip", bounds, amount=samples, unit="samples/s")
    for name, chosen in (("live", uncached), ("cached", setting)):
        share = ours(chosen, threads)[1]
        label = f"data wait of KD, {name} teacher, share of a step"
        found.append(Row("a. KD against open_clip's trainer", label, share, share, share, "share", share, "its training", WAIT))
    return found


def steps(setting: Setting) -> int:
    """Steps of a KD training."""
    settings = setting.stage("KD").settings
    samples = sum(source["train"] for source in settings["distillation"].values())
    return max(1, round(settings["stage"]["epochs"] * samples / settings["training"]["global_batch"]))


def ours(setting: Setting, threads: int) -> tuple[list[float], float]:
    """Seconds of every step of a KD training of ours, and the share of them that it waited for data."""
    stage = setting.stage("KD")
    directory = setting.home / "stages" / stage.address
    shutil.rmtree(directory, ignore_errors=True)
    run(setting, "train", stage.address, "--threads", str(threads))
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    seconds = [stage.settings["training"]["global_batch"] / line["samples_per_second"] for line in lines]
    return seconds, sum(line["data_seconds"] for line in lines) / sum(seconds)


def theirs(python: Path, folder: Path, setting: Setting, threads: int) -> list[float]:
    """Seconds of the steps of open_clip's trainer, a mean for each line of its log.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    settings = setting.stage("KD").settings
    training, stage = settings["training"], settings["stage"]
    shutil.rmtree(folder / "logs", ignore_errors=True)
    shards = sorted((folder / "shards").glob("*.tar"))
    count = sum(source["train"] for source in settings["distillation"].values())
    options: dict[str, Any] = {
        "train-data": "::".join(str(shard) for shard in shards),
        "train-num-samples": count,
        "dataset-type": "webdataset",
        "model": settings["model"]["name"],
        "distill-model": setting.plan.experiment.teacher.model,
        "distill-pretrained": folder / "teacher.safetensors",
        "batch-size": training["global_batch"],
        "epochs": round(stage["epochs"]),
        "lr": stage["lr"],
        "beta1": training["betas"][0],
        "beta2": training["betas"][1],
        "eps": training["eps"],
        "wd": training["weight_decay"],
        "warmup": round(training["warmup"] * steps(setting)),
        "grad-clip-norm": settings["deepspeed"]["gradient_clipping"],
        "precision": "fp32",
        "device": "cpu",
        "workers": 0,
        "save-frequency": 0,
        "log-every-n-steps": 10,
        "logs": folder / "logs",
        "name": "kd",
    }
    words = [str(python), "-m", "open_clip_train.main"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    # Of its two augmentations timm's, which leaves a picture alone that is not cropped, as ours does.
    words += ["--aug-cfg", "use_timm=True", *(f"{name}={tuple(training['augmentation'][name])}" for name in ("scale", "ratio"))]
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WORLD_SIZE", "RANK")}
    ended = subprocess.run(
        words, env={**outside, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False, cwd=folder
    )
    log = folder / "logs" / "kd" / "out.log"
    if ended.returncode or not log.is_file():
        raise SystemExit(f"{' '.join(words)}\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}")
    return step_seconds(log.read_text(), training["global_batch"])


def step_seconds(log: str, batch: int) -> list[float]:
    """Seconds of each step, by the means that `open_clip_train` logs: each line is of the steps since the line before."""
    found: list[float] = []
    last = (-1, 0)
    for epoch, samples, mean in re.findall(r"Train Epoch: (\d+) \[\s*(\d+)/.*?Batch \(t\): ([\d.]+)", log):
        before = last[1] if int(epoch) == last[0] else 0
        found += [float(mean)] * ((int(samples) - before) // batch)
        last = int(epoch), int(samples)
    return found


def prepare(folder: Path, setting: Setting) -> Path:
    """The environment, its models, the teacher's weights and its shards; what is there is kept. Returns its Python."""
    python = folder / "environment" / "bin" / "python"
    marker = folder / "environment" / ".complete"
    if not marker.is_file():
        venv.create(folder / "environment", clear=True, symlinks=True)
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", *PACKAGES]
        subprocess.run(install, check=True)
        (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind its own packages
        models: Mapping[str, Mapping[str, Any] | None] = {
            stage.settings["model"]["name"]: stage.settings["model"]["config"]
            for stage in setting.plan.stages.values()
            if stage.settings.get("model")
        }
        for name, config in models.items():
            if config is not None:
                (packages / "open_clip" / "model_configs" / f"{name}.json").write_text(json.dumps(config))
        marker.touch()
    weights = setting.home / "stages" / str(setting.stage("KD").settings["teacher"]) / "model" / "open_clip_model.safetensors"
    shutil.copyfile(weights, folder / "teacher.safetensors")
    if not (folder / "shards").is_dir():
        partial = folder / "shards.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for shard in sorted((setting.home / "data").rglob("train/*.tar")):
            with_texts(shard, partial / shard.name)
        partial.rename(folder / "shards")
    return python.absolute()


def with_texts(shard: Path, to: Path) -> None:
    """A shard with the first caption of each sample beside it, as open_clip reads it."""
    with tarfile.open(shard) as source, tarfile.open(to, "w") as target:
        for member in source:
            content = source.extractfile(member)
            assert content is not None
            data = content.read()
            target.addfile(member, io.BytesIO(data))
            stem, _, kind = member.name.rpartition(".")
            if kind == "json":
                text = json.loads(data)["captions"][0].encode()
                info = tarfile.TarInfo(f"{stem}.txt")
                info.size = len(text)
                target.addfile(info, io.BytesIO(text))
