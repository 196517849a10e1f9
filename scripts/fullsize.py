"""One optimiser step of every row of config/paper.yaml at full size, without weights: python scripts/fullsize.py [RUN ...]

ViT-L/14 teaches ViT-B/16 at 224 px, both with random weights, in fp32 on the CPU, on two pairs of noise and captions. What is
measured is that the configured objectives, pyramids and optimiser fit together at that size, and what a step costs here in
memory and seconds; nothing is learned. Each row runs in a process of its own, so that its largest memory is its own. The table
goes to docs/fullsize.md; rows that were named alone are printed.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
OUT = REPOSITORY / "docs" / "fullsize.md"
BATCH, BANK = 2, 8  # pairs; entries of PromptKD's bank, which a training fills with thousands of captions
CAPTIONS = ["A dog runs along a beach after a red ball.", "Two people sit on a bench in front of a café " * 12]
STAGES = {"CMAPKD": "fine", "FitNet": "hint", "LLaVA-KD": "dft"}  # the stage with most terms; of others the first


def step(name: str) -> dict[str, Any]:
    """One step of a row; returns what it cost."""
    import torch

    from cmapkd import objectives
    from cmapkd.config import load_experiment
    from cmapkd.config.schedules import StageConfig
    from cmapkd.models import towers
    from cmapkd.models.prompts import Prompts
    from cmapkd.models.pyramid import Pyramid
    from cmapkd.objectives.base import Surroundings
    from cmapkd.plan import deepspeed_settings, make_plan
    from cmapkd.training.engine import Engine, start_process_group
    from cmapkd.training.stages import Distillation, Teacher

    plan = make_plan(load_experiment(REPOSITORY / "config" / "paper.yaml"))
    run = next(run for run in plan.runs if run.name == name)
    chosen = [plan.stages[address].settings for address in run.stages]
    settings = next((one for one in chosen if one["stage"]["name"] == STAGES.get(name)), chosen[0])
    stage = StageConfig.model_validate(settings["stage"])
    torch.manual_seed(0)
    student = towers.Tapped(towers.create(settings["model"]["name"], None, "random"))
    above, theirs = None, None
    if settings["teacher"]:
        above = towers.Tapped(towers.create(plan.stages[settings["teacher"]].settings["model"]["name"], None, "random"))
        theirs = above.shapes()
    objective = objectives.build(
        settings["method"]["method"], Surroundings(stage, settings["method"], student.shapes(), theirs, settings["pyramid"])
    )
    module = Distillation(student, objective)
    module.freeze_all_but(stage.trains)
    teacher = None
    if above is not None and objective.needs_teacher:
        pyramid = Pyramid(above.shapes(), **settings["pyramid"]) if settings["teacher_pyramid"] else None
        prompts = Prompts(above.shapes(), 4, 9) if settings.get("teacher_prompts") else None
        needs = (objective.needs_taps, objective.needs_patches, prompts, objective.needs_text, objective.grid)
        teacher = Teacher(above, pyramid, stage, *needs)
    tokens = towers.tokenizer_of(settings["model"]["name"])(CAPTIONS)
    device = start_process_group()
    if teacher is not None:
        objective.start(teacher, _Texts(tokens))
    training = {**settings["training"], "global_batch": BATCH}
    engine = Engine(module, teacher, stage, training, deepspeed_settings("fp32"), 10, device)
    before = {key: value.detach().clone() for key, value in module.named_parameters() if value.requires_grad}
    started = time.perf_counter()
    terms = engine.step({"image": torch.randn(BATCH, 3, 224, 224), "text": tokens}, 5)
    seconds = time.perf_counter() - started
    changed = sum(not torch.equal(before[key], value) for key, value in module.named_parameters() if key in before)
    return {
        "run": name,
        "stage": stage.name,
        "loss": float(terms.total.detach()),
        "gradient": engine.grad_norm,
        "trained": sum(value.numel() for value in before.values()),
        "changed": f"{changed}/{len(before)}",
        "seconds": seconds,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


class _Texts:
    """The bank of PromptKD: the same two captions, repeated."""

    def __init__(self, tokens: Any) -> None:
        self.tokens = tokens

    def captions(self, count: int) -> Any:
        return self.tokens.repeat(BANK // len(self.tokens), 1)

    def classes(self) -> list[Any]:
        return []


def table(rows: list[dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# One step at full size",
        "",
        "Written by `make fullsize` (`scripts/fullsize.py`): one optimiser step of each row of `config/paper.yaml`, ViT-L/14",
        f"to ViT-B/16 at 224 px, random weights, batch {BATCH}, fp32, {platform.machine()} with {os.cpu_count()} cores and",
        f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads. Seconds are of this machine as busy as it was, not of a GPU;",
        "memory is the largest of the process: both models, gradients, AdamW's moments. `changed` counts the trained tensors",
        "that the step has changed.",
        "",
        "| run | stage | trained parameters (M) | changed tensors | loss | gradient norm | seconds | memory (GB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = f"{row['loss']:.3f} | {row['gradient']:.2f} | {row['seconds']:.1f} | {row['gigabytes']:.1f}"
        lines.append(f"| {row['run']} | {row['stage']} | {row['trained'] / 1e6:.2f} | {row['changed']} | {numbers} |")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    """Every row named (none: the methods, without ablations), each in a process of its own."""
    if names[:1] == ["--one"]:
        sys.stdout.write(json.dumps(step(names[1])) + "\n")
        return
    from cmapkd.config import load_experiment
    from cmapkd.files import write_atomic

    runs = load_experiment(REPOSITORY / "config" / "paper.yaml").runs
    wanted = names or [name for name, method in runs.items() if method.group == "method"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    rows = []
    for name in wanted:
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        sys.stderr.write(f"{rows[-1]}\n")
    if names:
        sys.stdout.write(table(rows))
    else:
        write_atomic(OUT, table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
