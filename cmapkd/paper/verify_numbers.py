"""The numbers of a metric file against its per-query arrays: all splits and strata, also those that no table tests.

Retrieval, zero-shot classification and VQA are computed again. Numbers of efficiency and levels have no per-query arrays: the
first are measurements, the second come from features that are not kept. Versions of packages behind the files are compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmapkd.errors import UserError
from cmapkd.paper import paired
from cmapkd.paper.context import PaperContext
from cmapkd.paper.findings import Findings
from cmapkd.paper.metrics import Metrics
from cmapkd.paper.verify_chain import Chain

TASKS = ("retrieval", "zeroshot", "vqa")
QUESTION_ONLY = "question_only"  # the reference without images, next to the strata of a VQA split
SIZES = {
    "retrieval": {"images": "i2t_ranks", "captions": "t2i_ranks"},
    "zeroshot": {"images": "ranks"},
    "vqa": {"questions": "type"},
}
TOLERANCE = 1e-6  # [percentage points] sums in another order
DECIDING = ("torch", "torchvision", "open_clip_torch", "transformers", "numpy", "pillow")  # packages that can change a number


def check_numbers(context: PaperContext, findings: Findings, chain: Chain) -> None:
    """Compare every metric file of the chain with its arrays, and the versions that they were made with."""
    metrics = Metrics(context)
    for run, seed in chain.metrics:
        path = context.metric_file(run, seed)
        if not path.with_suffix(".npz").is_file():
            continue  # a problem already, or kept results, which have none
        fix = f"evaluate the run again: {context.recompute(path)}"
        try:
            arrays = metrics.arrays(run, seed, "verify")
        except UserError as error:  # damaged, or not of this file
            findings.refused(error)
            continue
        with findings.reading(path, fix):
            for key, stated, made in _numbers(chain.metrics[run, seed]["metrics"], arrays):
                findings.counts["numbers"] += 1
                if not _same(stated, made):
                    findings.problem(path, f"{key} is {stated!r}, but the queries in {path.stem}.npz give {made!r}", fix)
    _check_versions(context, findings, chain)


def _numbers(metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any, Any]]:
    """Every number that the arrays give: its keys, the value in the file, the value computed again."""
    for task in TASKS:
        for split, strata in metrics.get(task, {}).items():
            above = f"{task}/{split}/"
            own = {name.removeprefix(above): array for name, array in arrays.items() if name.startswith(above)}
            for stratum, stated in strata.items():
                part = _part(task, own, stratum)
                made: dict[str, Any] = {name: len(part[array]) for name, array in SIZES[task].items()}
                made |= {name: paired.value(parts) for name, parts in paired.parts_of(task, part).items() if _asked(parts)}
                for name, value in stated.items():
                    if name in made:
                        yield f"{task}.{split}.{stratum}.{name}", value, made[name]


def _part(task: str, arrays: Mapping[str, np.ndarray], stratum: str) -> dict[str, np.ndarray]:
    """The arrays of one stratum, its images numbered again."""
    if stratum == QUESTION_ONLY:
        return {**arrays, "accuracy": arrays[QUESTION_ONLY]}
    if stratum == "all":
        return dict(arrays)
    chosen = arrays["stratum"] == stratum
    if task != "retrieval":
        return {name: array[chosen] for name, array in arrays.items()}
    captions = chosen[arrays["owner"]]
    owner = (np.cumsum(chosen) - 1)[arrays["owner"][captions]]
    return {"i2t_ranks": arrays["i2t_ranks"][chosen], "t2i_ranks": arrays["t2i_ranks"][captions], "owner": owner}


def _asked(parts: list[paired.Part]) -> bool:
    return all(queries.sum() > 0 for _, queries in parts)


def _same(stated: Any, made: Any) -> bool:
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return False
    return math.isclose(stated, made, rel_tol=0, abs_tol=TOLERANCE)


def _check_versions(context: PaperContext, findings: Findings, chain: Chain) -> None:
    """A remark where files of one paper were made with different versions of a package that can change a number."""
    found: dict[str, dict[str, set[Path]]] = defaultdict(lambda: defaultdict(set))
    files = {context.metric_file(*cell): content for cell, content in chain.metrics.items()}
    files |= {context.results / "stages" / address / "stage.json": record for address, record in chain.stages.items()}
    for path, content in files.items():
        provenance = content.get("provenance")
        versions = provenance.get("versions") if isinstance(provenance, Mapping) else None
        if not isinstance(versions, Mapping):
            continue
        for package in DECIDING:
            if package in versions:
                found[package][str(versions[package])].add(path)
    for package, versions_of in found.items():
        if len(versions_of) > 1:
            shown = ", ".join(f"{version} ({len(paths)} files)" for version, paths in sorted(versions_of.items()))
            findings.note(f"different versions of {package} made the numbers of one paper: {shown}")
