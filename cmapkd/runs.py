"""A run's result on disk. Torch-free.

results/<experiment>/runs/<run>/<seed>/student/   the distilled student, a plain open_clip directory
results/<experiment>/runs/<run>/<seed>/run.json   the chain of stages that made it, with digests

and, where inference needs more than the student (PromptKD), what it needs: ``objective.safetensors`` (the student's modules),
``teacher/`` (an open_clip directory) and ``teacher_prompts.safetensors``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.files import atomic_path, read_json, sha256_of, write_json
from cmapkd.plan import TEACHER, Plan, Run

STUDENT, DEPLOYED_TEACHER = "student", "teacher"
RUN = "run.json"


def teacher_seed(experiment: ExperimentConfig) -> int:
    """Seed under which the teacher's metrics are kept: that of its training, 0 for pretrained weights."""
    return experiment.teacher.train.seed if experiment.teacher.train is not None else 0


def find_run(plan: Plan, directory: str) -> Run:
    """A run by `<name>/<seed>`; `Teacher/<seed>` is the teacher, whose only stage is its own."""
    if directory == f"{TEACHER}/{teacher_seed(plan.experiment)}":
        return Run(TEACHER, teacher_seed(plan.experiment), (plan.teacher,))
    return plan.run(directory)


def collect_run(plan: Plan, directory: str, results: Path) -> Path:
    """Gather the model of a run's last stage (by hard link where possible) and the history of all its stages.

    Raises:
        UserError: a stage's files are missing or not those that its ``stage.json`` names.
    """
    run = find_run(plan, directory)
    home = results / plan.experiment.name
    target = home / "runs" / run.directory
    deployed = plan.deployed_teacher(run)
    stages, above = ([_remembered(home / "stages" / address) for address in part] for part in (run.stages, deployed.values()))
    last = home / "stages" / run.stages[-1]
    _link_all(last / "model", target / STUDENT)
    if "teacher" in deployed:
        _link(last / "objective.safetensors", target / "objective.safetensors")
        _link_all(home / "stages" / deployed["teacher"] / "model", target / DEPLOYED_TEACHER)
    if "teacher_prompts" in deployed:
        source = home / "stages" / deployed["teacher_prompts"] / "objective.safetensors"
        _link(source, target / "teacher_prompts.safetensors")
    write_json(target / RUN, {"run": run.name, "seed": run.seed, "stages": stages, "deployed_teacher": above})
    return target / RUN


def _link_all(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        _link(file, target / file.name)


def stage_record(directory: Path) -> dict[str, Any]:
    """Read ``stage.json`` of a finished stage and compare every file with the digest that was written when it was made.

    Raises:
        UserError: the stage is not finished, or a file is missing or another one.
    """
    if not (directory / "stage.json").is_file():
        fix = f"train it: cmapkd train {directory.name}, with the same --experiment and --results"
        raise UserError(key=str(directory), reason="this stage is not finished: it has no stage.json", fix=fix)
    record: dict[str, Any] = read_json(directory / "stage.json", files=dict)
    for name, expected in record["files"].items():
        path = directory / name
        if not path.is_file() or sha256_of(path) != expected:
            raise UserError(
                key=str(path),
                reason="is missing or not the file this stage wrote",
                fix=f"delete {directory} and run the workflow again",
            )
    return record


def check_student(source: Path, record: Mapping[str, Any]) -> None:
    """Compare the model of a run's folder with the digests in its ``run.json``.

    Raises:
        UserError: a file is missing or another one.
    """
    for name, expected in record["stages"][-1]["files"].items():
        folder, _, file = name.partition("/")
        path = source / STUDENT / file
        if folder == "model" and not (path.is_file() and sha256_of(path) == expected):
            fix = f"delete {source} and run the workflow again"
            raise UserError(key=str(path), reason=f"is missing or not the file that {RUN} names", fix=fix)


def _remembered(directory: Path) -> dict[str, Any]:
    """What a run remembers of a stage."""
    record = stage_record(directory)
    kept = ("address", "label", "code", "files", "rests_on", "summary", "bad_samples")
    return {**{key: record.get(key) for key in kept}, "seed": record["settings"]["seed"], "provenance": record["provenance"]}


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".link-{target.name}"
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # another file system
        with atomic_path(target) as copy:
            shutil.copyfile(source, copy)
        return
    temporary.replace(target)
