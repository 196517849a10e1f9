"""The teacher's gate: nothing is trained before the teacher measures what others have published of the same weights.

Weights that were fetched, prepared or evaluated wrongly do not fail, they only give other numbers; a training of days would
rest on them. The evaluation is that of every run (``metrics/Teacher/<seed>.json``), so what passes is also that the splits are
read and scored as the published results were. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of, write_json
from cmapkd.plan import TEACHER
from cmapkd.runs import teacher_seed

GATE = "teacher/gate.json"
_CAUSES = {
    "all": "the activation (a model without `-quickgelu` for weights trained with it), other weights than the tag says, or "
    "pictures prepared otherwise (mean, deviation, interpolation)",
    "retrieval": "the split (COCO 5K is Karpathy's `test` with all captions: no `captions_per_image`), pictures that were "
    "reduced (`shorter_side`), turned (`upright`) or left out as bad",
    "zeroshot": "labels in another order than open_clip's class names (sorted synsets), or not all 50,000 pictures",
    "vqa": "answers cut by another `min_count`, or fewer training questions",
}


def compare(experiment: ExperimentConfig, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every expected number with what was measured, in percent.

    Returns:
        Of each: ``task``, ``split``, ``metric``, ``expected``, ``measured``, ``difference`` and ``passed``.

    Raises:
        UserError: a number that the evaluation does not have.
    """
    found = []
    for where, values in experiment.teacher.expected.items():
        task, _, split = where.partition(":")
        for metric, expected in values.items():
            measured = metrics.get(task, {}).get(split, {}).get("all", {}).get(metric)
            if measured is None:
                known = ", ".join(metrics.get(task, {}).get(split, {}).get("all", {}))
                raise UserError(
                    key=f"teacher.expected.{where}",
                    value=metric,
                    reason="was not measured",
                    fix=f"there are: {known or 'none'}",
                )
            difference = float(measured) - expected
            found.append(
                {
                    "task": task, "split": split, "metric": metric, "expected": expected, "measured": float(measured),
                    "difference": difference, "passed": abs(difference) <= experiment.teacher.tolerance,
                }
            )  # fmt: skip
    return found


def pass_gate(experiment: ExperimentConfig, results: Path) -> list[str]:
    """Compare the teacher's metrics with the experiment's expectations and write ``teacher/gate.json`` if all are met.

    Returns:
        A line for each number.

    Raises:
        UserError: a number is off by more than ``teacher.tolerance``; says which and what usually causes it.
    """
    home = results / experiment.name
    file = home / "metrics" / TEACHER / f"{teacher_seed(experiment)}.json"
    if not file.is_file():
        raise UserError(key=str(file), reason="is not there", fix="evaluate the teacher first: the workflow does")
    found = compare(experiment, read_json(file, metrics=dict)["metrics"])
    lines = [tell(one) for one in found]
    if failed := [one for one in found if not one["passed"]]:
        tasks = [task for task in _CAUSES if task != "all" and any(one["task"] == task for one in failed)]
        others = [one for one in found if one["passed"]]
        hint = f" ({len(others)} of {len(found)} are as expected: then rather the data)" if others else ""
        raise UserError(
            key="teacher.expected",
            reason=f"the teacher does not measure what is known of it, within {experiment.teacher.tolerance:g} points, so "
            f"nothing is trained{hint}:\n  " + "\n  ".join(map(tell, failed)),
            fix=f"usual causes: {_CAUSES['all']}; " + "; ".join(f"{task}: {_CAUSES[task]}" for task in tasks)
            + ". Or correct the expectation, or take it out",
        )  # fmt: skip
    parent = {"file": str(file.relative_to(home)), "sha256": sha256_of(file)}
    write_json(home / GATE, {"tolerance": experiment.teacher.tolerance, "numbers": found, "parent": parent})
    return lines


def tell(number: Mapping[str, Any]) -> str:
    """One number in words."""
    about = f"{number['task']}:{number['split']} {number['metric']}"
    return f"{about}: measured {number['measured']:.2f}, expected {number['expected']:.2f} ({number['difference']:+.2f})"
