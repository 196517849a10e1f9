"""Weights that an experiment names by path, as inputs of the workflow: by their content. Torch-free.

The path alone is in a stage's address, so a file that was replaced keeps its address. Its digest is a parameter of the rule
that imports it, and stands in the stage's ``stage.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.models.places import cached_digest
from cmapkd.plan import Plan

RESULT = "stage.json"


def path_of(plan: Plan, address: str) -> tuple[Path, str] | None:
    """The path of the weights that a stage imports, with its key in the experiment; None where no path is there."""
    teacher = address.startswith("teacher-")
    named = plan.experiment.teacher.pretrained if teacher else plan.experiment.student.init
    path = Path(str(named))
    try:
        return (path, "teacher.pretrained" if teacher else "student.init") if path.exists() else None
    except OSError:  # a folder above it that this user may not enter
        return None


def weights_params(plan: Plan, home: str | Path, address: str) -> dict[str, str]:
    """What the import of weights depends on besides code: the content of what the experiment names by path.

    Weights that are gone since they were imported rerun nothing: the stage has a copy of them.
    """
    if (found := path_of(plan, address)) is not None:
        try:
            return {"weights": cached_digest(*found)}
        except (UserError, OSError):
            return {"weights": "not readable"}  # the import itself says why
    recorded = recorded_digest(Path(home) / "stages" / address)
    return {"weights": recorded} if recorded else {}


def recorded_digest(directory: Path) -> str:
    """The digest of the path that a stage was imported from; empty if it was of a tag, or is not there."""
    if not (directory / RESULT).is_file():
        return ""
    source: Any = read_json(directory / RESULT).get("source") or {}
    return str(source.get("digest", ""))


def replaced(plan: Plan, home: str | Path) -> Iterator[tuple[Path, str]]:
    """Records of imported stages whose path holds other weights now, each with what differs."""
    for address, stage in plan.stages.items():
        recorded = recorded_digest(Path(home) / "stages" / address) if stage.method == "pretrained" else ""
        found = path_of(plan, address) if recorded else None
        if found is not None and (now := cached_digest(*found)) != recorded:
            reason = (
                f"was imported from {found[0]} with digest {recorded[:12]}, which now has {now[:12]}: it was replaced since"
            )
            yield Path(home) / "stages" / address / RESULT, reason


def is_current(plan: Plan, home: str | Path, address: str) -> bool:
    """Whether an imported stage is there and is of the weights that its path holds now."""
    directory = Path(home) / "stages" / address
    if not (directory / RESULT).is_file():
        return False
    found = path_of(plan, address)
    return found is None or cached_digest(*found) == recorded_digest(directory)
