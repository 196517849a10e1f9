"""Steps of every method against the bare step of the student; cached against live teachers; what the pyramid costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row, in_turns, most_memory, rows
from benchmarks.setting import METHODS, Setting, live, make
from cmapkd.config.training import TrainingConfig
from cmapkd.costs import flops
from cmapkd.data.stream import batches
from cmapkd.objectives.terms.contrastive import info_nce
from cmapkd.plan import deepspeed_settings
from cmapkd.training.engine import Engine, start_process_group
from cmapkd.training.loop import _stream
from cmapkd.training.stages import prepare
from cmapkd.training.texts import TrainingTexts

STEPS = 3  # in a turn
BOUNDS = {"Scratch": "<= 1.08", "KD": "<= 1.15", "CMAPKD": "<= 1.6"}


class Trained:
    """One stage, ready to step on batches that lie in memory."""

    def __init__(self, settings: Mapping[str, Any], setting: Setting, count: int = 4) -> None:
        options = TrainingConfig(workers=0)
        # From random weights, where the stages before would have to be trained first.
        prepared = prepare({"init": "random", **settings, "parent": None}, setting.home / "stages")
        stream = _stream(settings, prepared, setting.home, options)
        batch = settings["training"]["global_batch"]
        self.batches = list(batches(stream, global_batch=batch, steps=count))
        if prepared.teacher is not None:
            prepared.module.objective.start(prepared.teacher, TrainingTexts(stream))
        deepspeed = deepspeed_settings("fp32")
        device = torch.device("cpu")
        self.engine = Engine(prepared.module, prepared.teacher, prepared.stage, settings["training"], deepspeed, 1000, device)
        self.step = 0

    def __call__(self) -> None:
        """Some steps."""
        for _ in range(STEPS):
            self.engine.step(self.batches[self.step % len(self.batches)], self.step)
            self.step += 1


def bare(setting: Setting) -> Callable[[], None]:
    """Forward, contrastive loss, backward and AdamW of the student alone, in plain torch, on tensors in memory."""
    trained = Trained(setting.stage("Scratch").settings, setting)
    model = trained.engine.module.model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.1, fused=True)

    def action() -> None:
        for batch in trained.batches[:STEPS]:
            said = model(batch["image"], batch["text"], taps=False)
            loss = info_nce(said.image, said.text, said.logit_scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return action


def methods(setting: Setting, turns: int, runs: Sequence[str] = METHODS) -> list[Row]:
    """(b), (c) and (e): every method's step from the cache and with the teacher itself; operations a second."""
    start_process_group()
    actions: dict[str, Callable[[], object]] = {"bare student": bare(setting)}
    for run in runs:
        settings = setting.stage(run).settings
        actions[run] = Trained(settings, setting)
        if settings.get("teacher_cache"):
            actions[f"{run}, live teacher"] = Trained(live(settings), setting)
    actions["matrix product"] = _product()
    seconds = in_turns(actions, turns)
    products = seconds.pop("matrix product")
    found = rows("b. step of each method", seconds, "bare student", BOUNDS, amount=STEPS)
    for run in runs:
        if f"{run}, live teacher" in seconds:
            both = {"live teacher": seconds[f"{run}, live teacher"], "cached": seconds[run]}
            found += [row for row in rows(f"c. cached teacher: {run}", both, "live teacher", amount=STEPS) if row.ratio]
    model = setting.stage("Scratch").settings["model"]
    shapes = flops.shapes_of(model["name"], model["config"])
    batch = setting.plan.experiment.training.global_batch
    work = 3 * STEPS * batch * (flops.image_tower(shapes) + flops.text_tower(shapes))
    rates = [work / step / (PRODUCT / product) for step, product in zip(seconds["bare student"], products, strict=True)]
    rates.sort()
    median = rates[len(rates) // 2]
    name = f"operations a second of the student's step, as a share of a {SIDE} x {SIDE} product's"
    row = Row("e. arithmetic", name, median, rates[0], rates[-1], "share", median, "matrix product", ">= 0.6")
    return [*found, row]


SIDE = 1024
PRODUCT = 2.0 * SIDE**3 * 4


def _product() -> Callable[[], None]:
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)

    def action() -> None:
        for _ in range(4):
            a @ b

    return action


def pyramid(config: Path, folder: Path, setting: Setting, turns: int) -> list[Row]:
    """(g) What a step of CMAPKD costs by levels, channels, smoothing and batch, with the teacher's pyramid from the cache."""
    start_process_group()
    settings = dict(setting.stage("CMAPKD").settings)
    visual, language = ["P2", "P3", "P4", "P5"], ["L1", "L2", "L3", "L4"]
    actions: dict[str, Callable[[], object]] = {"as configured": Trained(settings, setting)}
    for count in (1, 2, 3):
        stage = {**settings["stage"], "visual_levels": visual[-count:], "language_levels": language[-count:]}
        actions[f"{visual[-count]} to P5, {language[-count]} to L4"] = Trained({**settings, "stage": stage}, setting)
    for batch in (64, 256):
        training = {**settings["training"], "global_batch": batch}
        actions[f"batch {batch}"] = Trained({**settings, "training": training}, setting)
    own = setting.plan.experiment.pyramid.model_dump()
    changes = {f"{channels} channels": {"channels": channels, "text_channels": channels} for channels in (32, 128)}
    changes |= {f"{kind} smoothing": {"smoothing": kind} for kind in ("dense", "low-rank", "separable")}
    for label, change in changes.items():
        runs = {"CMAPKD": {"method": "cmapkd", "schedule": "progressive", "teacher_pyramid": "random"}}
        paper = {"tables": [], "figures": []}
        name = f"bench-{label.replace(' ', '-')}"
        other = make(config, folder, like=setting, name=name, pyramid={**own, **change}, runs=runs, paper=paper)
        actions[label] = Trained(other.stage("CMAPKD").settings, other)
    return rows("g. pyramid", in_turns(actions, turns), "as configured", amount=STEPS)


def memory(setting: Setting) -> list[Row]:
    """(h) Peak memory of each method's process, beyond that of one that has imported everything and trains nothing."""
    found = []
    for run in METHODS:
        words = [sys.executable, "-m", "benchmarks.steps", str(setting.file), str(setting.results), run]
        peak = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        found.append(Row("h. peak memory", run, peak, peak, peak, "MB"))
    return found


def _one(file: str, results: str, run: str) -> None:
    from cmapkd.config.load import load_experiment
    from cmapkd.plan import make_plan

    start_process_group()
    torch.set_num_threads(1)
    before = most_memory()
    setting = Setting(Path(file), make_plan(load_experiment(Path(file))), Path(results))
    Trained(setting.stage(run).settings, setting)()
    sys.stdout.write(str(round((most_memory() - before) / 1e6, 1)))


if __name__ == "__main__":
    _one(*sys.argv[1:])
