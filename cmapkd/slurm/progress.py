"""How far the trainings of a job are, read from their checkpoints: what makes a stop progress and not a failure. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmapkd.files import read_json
from cmapkd.training.failures import RUNNING, STOPPED

RESULT = "stage.json"  # the last file that a stage writes
_FINISHED = 2**62


@dataclass(frozen=True)
class Stop:
    """A training that ended early.

    Args:
        stage: its label.
        step: of its newest checkpoint.
        steps: of the whole training; None: unknown.
        reason: by which it stopped itself; empty: it was ended from outside.
    """

    stage: str
    step: int
    steps: int | None
    reason: str


def stages_of(outputs: Iterable[Any]) -> list[Path]:
    """Directories of the stages among the outputs of a job or of a group of jobs."""
    return [Path(str(output)).parent for output in outputs if Path(str(output)).name == RESULT]


def reached(directory: Path) -> int:
    """Finished steps that a stage has saved; of a cache, its finished shards."""
    if (directory / RESULT).is_file():
        return _FINISHED
    saved = directory / "checkpoints"
    steps = [path.parent.name.removeprefix("step-") for path in saved.glob("step-*/checkpoint.json")]
    if steps:
        return max(int(step) for step in steps if step.isdigit())
    return sum(saved not in path.parents and not path.name.startswith(".") for path in directory.rglob("*.safetensors"))


def marks(stages: Iterable[Path]) -> dict[Path, int]:
    """What each stage has reached."""
    return {directory: reached(directory) for directory in stages}


def stopped_since(before: dict[Path, int], from_outside: bool) -> Stop | None:
    """The first training that saved more than ``before`` and then stopped.

    Args:
        before: ``marks`` at the job's previous stop, or at its first start.
        from_outside: SLURM ended the job. Otherwise only a training that stopped by itself, as a time limit has it do, counts.

    Returns:
        None: no training got on, or the job failed by itself.
    """
    for directory, step in before.items():
        now = reached(directory)
        stopped, running = (_read(directory / "checkpoints" / name) for name in (STOPPED, RUNNING))
        if not step < now < _FINISHED:
            continue
        if from_outside or stopped:
            about = stopped or running
            steps = about.get("steps")
            return Stop(
                str(about.get("label") or directory.name), now, steps if isinstance(steps, int) else None, _reason(stopped)
            )
    return None


def has_failed(stages: Iterable[Path]) -> bool:
    """Whether a training has reported a failure of its own."""
    return any(next(iter((directory / "checkpoints").glob("failed-*.json")), None) for directory in stages)


def _reason(stopped: dict[str, Any]) -> str:
    text = str(stopped.get("reason", ""))
    if not text:
        return ""
    return "by its time limit" if "time limit" in text else "when it was asked to"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
