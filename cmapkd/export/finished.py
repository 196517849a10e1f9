"""A run that may be exported: collected, evaluated, and every file still the one that its records name. Torch-free.

What is checked: ``run.json`` holds the stages of the plan, the student is the file that its last stage wrote, the metric file
rests on the same stages, and the per-query arrays are those that it names. So a card speaks of the weights beside it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmapkd.data.shards import read_manifest
from cmapkd.errors import UserError
from cmapkd.files import digest, read_json, sha256_of
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.metrics import MetricFile, Metrics
from cmapkd.plan import TEACHER, Plan, Run
from cmapkd.runs import DEPLOYED_TEACHER, RUN, STUDENT, find_run, teacher_seed

if TYPE_CHECKING:
    import numpy as np

# Names under which `cmapkd.models.towers` keeps a model; repeated here because that module imports torch.
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


@dataclass(frozen=True)
class Finished:
    """A finished run and what is known of it.

    Attributes:
        plan, run: the experiment and the run.
        directory: ``runs/<run>/<seed>``, with ``student/`` and, where inference needs it, the teacher.
        history: content of ``run.json``.
        metrics: its metric file; ``arrays`` are the per-query results beside it.
        manifests: of the data sets trained on and evaluated on, by name.
    """

    plan: Plan
    run: Run
    directory: Path
    history: Mapping[str, Any]
    metrics: MetricFile
    arrays: Mapping[str, np.ndarray]
    manifests: Mapping[str, Mapping[str, Any]]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the last stage."""
        return self.plan.stages[self.run.stages[-1]].settings

    @property
    def config(self) -> Mapping[str, Any]:
        """open_clip's configuration of the student: ``model_cfg`` and ``preprocess_cfg``."""
        content: Mapping[str, Any] = read_json(self.directory / STUDENT / CONFIG, model_cfg=dict, preprocess_cfg=dict)
        return content

    @property
    def deploys_teacher(self) -> bool:
        """Whether inference with this run needs more than its student."""
        return bool(self.plan.deployed_teacher(self.run))

    @property
    def embed_dim(self) -> int:
        """Size of the embeddings: the student's, or the teacher's where it is used with the teacher's text tower."""
        content = read_json(self.directory / (DEPLOYED_TEACHER if self.deploys_teacher else STUDENT) / CONFIG, dict)
        return int(content["model_cfg"]["embed_dim"])

    @property
    def method(self) -> str:
        """Name of the method; the teacher has none of its own."""
        return TEACHER.lower() if self.run.name == TEACHER else self.plan.experiment.runs[self.run.name].method

    @property
    def address(self) -> str:
        """Digest of everything that was configured for this run: its stages' addresses."""
        return digest(list(self.run.stages), length=16)


def resolve(plan: Plan, name: str) -> Run:
    """A run by ``<run>/<seed>``, with its name or that of its folder, or by either alone where there is one seed.

    Raises:
        UserError: no such run, or a name of several seeds.
    """
    if name == TEACHER:
        name = f"{TEACHER}/{teacher_seed(plan.experiment)}"
    found = [run for run in plan.runs if name in (run.name, run.directory.rpartition("/")[0])]  # a name may hold a slash
    if len(found) > 1:
        known = ", ".join(run.directory for run in found)
        raise UserError(
            key="run", value=name, reason="has several seeds, and each is a model of its own", fix=f"name one: {known}"
        )
    found = found or [run for run in plan.runs if name == f"{run.name}/{run.seed}"]
    return found[0] if found else find_run(plan, name)


def finished(plan: Plan, name: str, results: Path, experiment: Path | None = None) -> Finished:
    """Everything an export needs, checked.

    Args:
        name: ``<run>/<seed>``, or ``<run>``.
        results: folder that holds all experiments.
        experiment: its file, for commands in messages, where none lies with the results.

    Raises:
        UserError: the run is unknown, unfinished, not evaluated, or its files are not those that were made.
    """
    run = resolve(plan, name)
    home = results / plan.experiment.name
    directory = home / "runs" / run.directory
    effective = home / "experiment.yaml"  # what the workflow keeps with its results
    context = paper_context(plan.experiment, results, effective if effective.is_file() else experiment)
    make = f"make it: {context.recompute(home / 'metrics' / f'{run.directory}.json')}"
    done = sum((home / "stages" / address / "stage.json").is_file() for address in run.stages)
    if not (directory / RUN).is_file():
        reason = f"is not finished: {done} of its {len(run.stages)} stages are trained, and {directory / RUN} is missing"
        raise UserError(key="run", value=run.directory, reason=reason, fix=make)
    history = read_json(directory / RUN, stages=list)
    trained = [stage["address"] for stage in history["stages"]]
    if trained != list(run.stages):
        reason = f"was made with other settings: its stages are {', '.join(trained)}, the experiment's {', '.join(run.stages)}"
        fix = f"name its experiment: --experiment {shlex.quote(str(effective))}"
        raise UserError(key="run", value=run.directory, reason=reason, fix=fix)
    _check_files(directory, history, make)
    if not (home / "metrics" / f"{run.directory}.json").is_file():
        reason = "is trained but not evaluated, so nothing is known of what it can do"
        raise UserError(key="run", value=run.directory, reason=reason, fix=make)
    reader = Metrics(context)
    metrics = reader.file(run.name, run.seed, "the model card")
    measured = [stage.get("address") for stage in metrics.provenance.get("stages", ())]
    if measured[: len(trained)] != trained:
        reason = f"was measured on other stages ({', '.join(map(str, measured))}) than the run has ({', '.join(trained)})"
        raise UserError(key=str(metrics.path), reason=reason, fix=f"delete it and {make}")
    arrays = reader.arrays(run.name, run.seed, "the model card")
    return Finished(plan, run, directory, history, metrics, arrays, _manifests(plan, home))


def _check_files(directory: Path, history: Mapping[str, Any], make: str) -> None:
    """The student, and what of its teacher inference may need, are what the stages wrote."""
    last = history["stages"][-1]["files"]
    expected = {f"{STUDENT}/{WEIGHTS}": last.get(f"model/{WEIGHTS}")}
    if history.get("deployed_teacher"):
        expected["objective.safetensors"] = last.get("objective.safetensors")
        teacher, *prompts = (stage["files"] for stage in history["deployed_teacher"])
        expected[f"{DEPLOYED_TEACHER}/{WEIGHTS}"] = teacher.get(f"model/{WEIGHTS}")
        if prompts:
            expected["teacher_prompts.safetensors"] = prompts[0].get("objective.safetensors")
    for name, sha256 in expected.items():
        path = directory / name
        missing = [file for file in (path, path.parent / CONFIG) if not file.is_file() and (file == path or name.count("/"))]
        if missing:
            raise UserError(key=str(missing[0]), reason="is missing", fix=f"delete {directory} and {make}")
        if sha256_of(path) != sha256:
            reason = f"is not the file that a stage of the run wrote (SHA-256 {str(sha256)[:12]})"
            raise UserError(key=str(path), reason=reason, fix=f"delete {directory} and {make}")


def _manifests(plan: Plan, home: Path) -> dict[str, Mapping[str, Any]]:
    references = (*plan.experiment.distillation, *plan.experiment.evaluation.references())
    return {name: read_manifest(home / "data" / name) for name in dict.fromkeys(r.partition("/")[0] for r in references)}
