"""Time, jobs, disk and network of an experiment: per stage, per table and figure, and of what an edit would train anew.

The time of a step is a sum of its parts: forward and backward passes of the student, forward passes of the teacher, both
pyramids, and a constant. How long each takes is fitted (non-negative least squares on relative errors) to the stages that
are done, of this experiment on this machine; with none, it is arithmetic over a device's peak rate at an assumed utilisation.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from cmapkd.config.schema import ExperimentConfig, TeacherCacheConfig
from cmapkd.costs import flops
from cmapkd.errors import UserError, nearest
from cmapkd.files import read_json
from cmapkd.plan import Plan, Stage, make_plan

# Peak operations a second, dense: of tensor cores in half precision, and in fp32. From the makers' data sheets.
DEVICES = {
    "V100": (125e12, 15.7e12),
    "A100": (312e12, 19.5e12),
    "H100": (989e12, 67e12),
    "RTX3090": (71e12, 35.6e12),
    "L40S": (362e12, 91.6e12),
}
UTILISATION = 0.3  # share of the peak that a training reaches, where nothing was measured
START = 15.0  # [s] to start a stage's process, where nothing was measured
CAPTIONS = 5  # of a picture, as in most sets of captions: for the size of a teacher's cache before it is made
ADAM = 3  # a checkpoint holds the weights and two moments of each
PARTS = ("student", "teacher", "pyramids", "step")


@dataclass(frozen=True)
class StageCost:
    """What one stage does and how long it takes.

    Attributes:
        steps: of the whole stage.
        work: operations of one step (``PARTS``; the last is the number of steps itself, 1).
        measured: [s] its training took, if it is done.
        predicted: [s] for one machine of the plan's ranks.
        disk: [bytes] that stay.
    """

    stage: Stage
    steps: int
    work: tuple[float, ...]
    disk: float
    checkpoints: float
    measured: float | None = None
    predicted: float = 0.0

    @property
    def seconds(self) -> float:
        return self.measured if self.measured is not None else self.predicted


@dataclass(frozen=True)
class Estimate:
    """Costs of an experiment. ``basis`` says what the times rest on."""

    stages: Mapping[str, StageCost]
    basis: str
    parts: Mapping[str, list[str]] = field(default_factory=dict)  # table or figure -> addresses
    network: float = 0.0  # [bytes]
    data: float = 0.0  # [bytes]
    cache: str = ""  # what keeping the teacher's outputs takes and saves
    error: float | None = None  # largest relative error of a measured stage's total, predicted from the others


def estimate(plan: Plan, results: Path, device: str | None = None, utilisation: float = UTILISATION) -> Estimate:
    """The costs of all stages of a plan.

    Args:
        results: folder that holds all experiments.
        device: a GPU of ``DEVICES`` that will be used; None: this machine, from its own measurements.

    Raises:
        UserError: an unknown device; no device and nothing measured; a data set whose size is not known yet.
    """
    home = results / plan.experiment.name
    costs = {address: _cost(plan, stage, home) for address, stage in plan.stages.items()}
    measured = [cost for cost in costs.values() if cost.measured and cost.steps >= 20]
    if device is not None:
        seconds, basis = _from_device(plan, device, utilisation)
    elif measured:
        seconds, basis = _fit(measured), f"{len(measured)} stages that were trained here"
    else:
        raise UserError(
            key="device", reason="nothing was trained yet that times could be taken from",
            fix=f"name one with --device: {', '.join(DEVICES)}",
        )  # fmt: skip
    found = {address: StageCost(**{**vars(cost), "predicted": seconds(cost)}) for address, cost in costs.items()}
    data = sum(_data_bytes(home / "data" / name / "manifest.json") for name in plan.experiment.datasets)
    weights = [c for c in costs.values() if c.stage.settings["kind"] == "pretrained"]
    download = sum(cost.disk for cost in weights)
    return Estimate(found, basis, _parts(plan), download, data, cache_effect(plan, home), _left_out(measured))


def cache_effect(plan: Plan, home: Path) -> str:
    """What keeping the teacher's outputs takes and saves, in operations of all trainings; empty if it serves no training."""
    teacher, training = plan.experiment.teacher, plan.experiment.training
    cache = teacher.cache or TeacherCacheConfig(precision="int8")
    augmentation = training.augmentation
    if not augmentation.repeatable:
        augmentation = augmentation.model_copy(update={"views": 1})
    training = training.model_copy(update={"augmentation": augmentation})

    def total(kept: TeacherCacheConfig | None) -> tuple[float, float, int]:
        changed = teacher.model_copy(update={"cache": kept})
        other = make_plan(plan.experiment.model_copy(update={"teacher": changed, "training": training}))
        costs = [_cost(other, stage, home) for stage in other.stages.values()]
        caches = [cost for cost in costs if cost.stage.settings["kind"] == "cache"]
        return sum(c.steps * sum(c.work[:3]) for c in costs), sum(c.disk for c in caches), len(caches)

    (with_it, disk, count), without = total(cache), total(None)[0]
    if not count or not without:
        return ""
    views = augmentation.views or 1
    state = "kept" if teacher.cache is not None else "not kept; as `teacher.cache` they would be"
    return (
        f"the teacher's outputs: {state} {_size(disk)} in {cache.precision} ({views} view{'s' if views > 1 else ''}) and save "
        f"{1 - with_it / without:.0%} of all operations"
    )


def changed(plan: Plan, experiment: ExperimentConfig) -> list[Stage]:
    """Stages of an edited experiment that the plan lacks: what the edit would train."""
    return [stage for address, stage in make_plan(experiment).stages.items() if address not in plan.stages]


def _cost(plan: Plan, stage: Stage, home: Path) -> StageCost:
    settings = stage.settings
    student = flops.shapes_of(settings["model"]["name"], settings["model"]["config"])
    weights = 4.0 * flops.parameters(student)  # [bytes] in fp32
    if settings["kind"] == "pretrained":
        return StageCost(stage, 0, (0.0, 0.0, 0.0, 0.0), weights, 0.0, measured=0.0 if _done(home, stage) else None)
    if settings["kind"] == "cache":
        return _cache_cost(plan, stage, home, student)
    batch = settings["training"]["global_batch"]
    samples = sum(_samples(plan, reference, home) for reference in settings["distillation"])
    steps = max(1, round(settings["stage"]["epochs"] * samples / batch))
    trains = settings["stage"]["trains"]
    own = flops.image_tower(student) + flops.text_tower(student)
    passes = 3 if "student" in trains or settings["method"]["method"] == "teacher_prompts" else 1  # forward, and twice backward
    passes += passes == 3 and plan.experiment.training.activation_checkpointing
    parts = [own * passes, 0.0, 0.0, 1.0]
    above = None
    if settings["teacher"]:
        model = plan.stages[settings["teacher"]].settings["model"]
        above = flops.shapes_of(model["name"], model["config"])
        if not settings.get("teacher_cache"):
            parts[1] = flops.image_tower(above) + flops.text_tower(above)
    if settings["pyramid"]:
        levels = settings["stage"].get("visual_levels", flops.VISUAL), settings["stage"].get("language_levels", ())
        learnt = 3 if {"student", "pyramid"} & set(trains) else 1
        parts[2] = learnt * flops.pyramid(student, settings["pyramid"], *levels)
        parts[2] += flops.pyramid(above, settings["pyramid"], *levels) if above is not None else 0.0
    work = (*(batch * value for value in parts[:3]), 1.0)
    kept = weights if settings["method"]["method"] not in ("teacher_pyramid", "teacher_prompts") else 0.0
    measured = None
    if _done(home, stage):
        summary = read_json(home / "stages" / stage.address / "stage.json", summary=dict)["summary"]
        if not summary.get("resumed_at"):  # of a resumed one only the last part was timed
            measured = float(summary.get("seconds", 0.0))
    return StageCost(stage, steps, work, kept, 2 * ADAM * weights, measured)


def _cache_cost(plan: Plan, stage: Stage, home: Path, student: flops.Shapes) -> StageCost:
    """Of a stage that keeps the teacher's outputs: one pass over all views and captions, in batches, and what is kept."""
    settings = stage.settings
    model = plan.stages[settings["teacher"]].settings["model"]
    teacher = flops.shapes_of(model["name"], model["config"])
    samples = sum(_samples(plan, reference, home) for reference in settings["distillation"])
    pictures, captions = samples * (settings["augmentation"].get("views") or 1), samples * CAPTIONS
    batch = plan.experiment.training.global_batch
    work = (pictures * flops.image_tower(teacher) + captions * flops.text_tower(teacher)) * batch / samples
    wide = {"fp32": 4, "fp16": 2, "int8": 2}[settings["precision"]]  # [bytes] of a number that is no map
    if settings["part"] == "embeddings":
        disk = wide * teacher.embedding * (pictures + (0 if settings.get("teacher_prompts") else captions))
    else:
        sizes, cells = settings["pyramid"], teacher.grid[0] * teacher.grid[1]
        row = cells + 4 if settings["precision"] == "int8" else wide * cells  # [bytes] of a channel
        disk = len(flops.VISUAL) * pictures * sizes["channels"] * row
        disk += wide * len(flops.VISUAL) * captions * sizes["text_channels"]
    measured = None
    if _done(home, stage):
        provenance = read_json(home / "stages" / stage.address / "stage.json", provenance=dict)["provenance"]
        measured = float(provenance.get("wall_seconds", 0))
    return StageCost(stage, max(1, samples // batch), (0.0, work, 0.0, 1.0), disk, 0.0, measured=measured)


def _done(home: Path, stage: Stage) -> bool:
    return (home / "stages" / stage.address / "stage.json").is_file()


def _samples(plan: Plan, reference: str, home: Path) -> int:
    dataset, _, split = reference.partition("/")
    manifest = home / "data" / dataset / "manifest.json"
    if manifest.is_file():
        return int(read_json(manifest, splits=dict)["splits"][split]["samples"])
    if (count := plan.experiment.datasets[dataset].published(split)) is not None:
        return count
    raise UserError(
        key=f"datasets.{dataset}", value=split, reason="its size is not known before it is built",
        fix=f"run `cmapkd data build {dataset}` first",
    )  # fmt: skip


def _data_bytes(manifest: Path) -> float:
    if not manifest.is_file():
        return 0.0
    splits = read_json(manifest, splits=dict)["splits"]
    return float(sum(shard["bytes"] for split in splits.values() for shard in split["shards"]))


def _fit(measured: Sequence[StageCost]) -> Any:
    """Seconds of each part by non-negative least squares, in units that make the parts alike."""
    table = np.asarray([[cost.steps * value for value in cost.work] for cost in measured])  # (n, parts)
    seconds = np.asarray([cost.measured for cost in measured])
    if len(measured) < len(PARTS):  # too few to tell the parts apart: one rate for all operations
        rate = float(table[:, :3].sum() / seconds.sum())
        return lambda cost: cost.steps * sum(cost.work[:3]) / rate
    scale = np.maximum(table.max(axis=0), 1e-30)
    rates, _ = nnls(table / scale / seconds[:, None], np.ones(len(seconds)))
    return lambda cost: float((np.asarray(cost.work) * cost.steps / scale) @ rates)


def _left_out(measured: Sequence[StageCost]) -> float | None:
    """Relative error of the total when each stage is predicted from all the others; None with fewer than six stages."""
    if len(measured) < 6:
        return None
    predicted = sum(_fit([*measured[:place], *measured[place + 1 :]])(cost) for place, cost in enumerate(measured))
    return float(predicted / sum(cost.measured or 0.0 for cost in measured) - 1)


def _from_device(plan: Plan, device: str, utilisation: float) -> Any:
    if device not in DEVICES:
        raise UserError(key="--device", value=device, reason="its rate is not known", fix=nearest(device, list(DEVICES)))
    ranks = plan.experiment.training.ranks

    def seconds(cost: StageCost) -> float:
        deepspeed = cost.stage.settings.get("deepspeed", {})
        half = any(deepspeed.get(kind, {}).get("enabled") for kind in ("fp16", "bf16"))
        rate = DEVICES[device][0 if half else 1] * utilisation * ranks
        return START + cost.steps * sum(cost.work[:3]) / rate

    return seconds, f"{ranks} x {device} at {utilisation:.0%} of its peak, an assumption"


def _parts(plan: Plan) -> dict[str, list[str]]:
    """Stages behind each table and figure: all that its rows rest on, shared ones in each."""
    experiment = plan.experiment
    full = experiment.paper.full_run
    rows = {run.name: experiment.runs[run.name] for run in plan.runs}
    group = {name: method.group for name, method in rows.items()}
    family = [name for name, method in rows.items() if method.method == "cmapkd"]
    chosen = {
        "table1": [],
        "table4": [name for name in rows if group[name] == "ablation" or name == full],
        "levels": family,
        "alsn": family,
        "figure3": [full],
        "figure4": [full],
        "figure5": [full],
        "figure6": [full],
    }
    methods = [name for name in rows if group[name] == "method"]
    found = {}
    for part in (*experiment.paper.tables, *experiment.paper.appendix, *experiment.paper.figures):
        names = chosen.get(part, methods)
        found[part] = _with_parents(plan, [run.stages[-1] for run in plan.runs if run.name in names])
    return found


def _with_parents(plan: Plan, addresses: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    waiting = list(addresses)
    while waiting:
        address = waiting.pop()
        if address not in found:
            found[address] = None
            waiting += plan.stages[address].parents
    return list(found)


def render(costs: Estimate, plan: Plan) -> str:
    """The estimate as text: a line for each table and figure, one for everything."""
    devices = plan.experiment.training.ranks
    unit = "GPU-hours" if "peak" in costs.basis else "core-hours"
    lines = [f"{'':12} {'jobs':>5} {'done':>5} {unit:>12} {'to go':>8} {'disk to go':>11}"]
    everything = list(costs.stages)
    for name, addresses in (*costs.parts.items(), ("everything", everything)):
        found = [costs.stages[address] for address in addresses]
        todo = [cost for cost in found if cost.measured is None]
        hours = devices * sum(cost.seconds for cost in found) / 3600
        left = devices * sum(cost.predicted for cost in todo) / 3600
        disk = sum(cost.disk for cost in todo)
        lines.append(f"{name:12} {len(found):5} {len(found) - len(todo):5} {hours:12.2f} {left:8.2f} {_size(disk):>11}")
    longest = max(costs.stages.values(), key=lambda cost: cost.predicted)
    checkpoints = max(cost.checkpoints for cost in costs.stages.values())
    lines += [
        f"times: from {costs.basis}"
        + (f"; each predicted from the others, their sum is off by {costs.error:+.0%}" if costs.error is not None else ""),
        f"longest training: {longest.stage.label}, {longest.predicted / 60:.1f} minutes; "
        f"checkpoints of one that runs: {_size(checkpoints)}",
        f"data on disk: {_size(costs.data) if costs.data else 'not built yet'}; weights to download: {_size(costs.network)}",
    ]
    if costs.cache:
        lines.append(costs.cache)
    pace = [cost.measured / cost.predicted for cost in costs.stages.values() if cost.measured and cost.predicted]
    if pace:
        lines.append(
            f"measured over predicted, by stage: median {statistics.median(pace):.2f}, {min(pace):.2f} to {max(pace):.2f}"
        )
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
