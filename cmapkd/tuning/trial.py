"""One trial: train a run with other values in a folder of its own, and measure retrieval on the validation splits."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmapkd.config.evaluation import EvaluationConfig, LatencyConfig
from cmapkd.config.schema import ExperimentConfig
from cmapkd.data.shards import MANIFEST, read_manifest
from cmapkd.errors import UserError
from cmapkd.files import digest, read_json, slug
from cmapkd.fingerprint import fingerprint
from cmapkd.plan import Plan, make_plan
from cmapkd.provenance import code_version
from cmapkd.tuning.space import Values, configured, search_space, with_values
from cmapkd.tuning.study import Diverged, Outcome, Task, locked

log = logging.getLogger(__name__)

METRIC = "mean_recall"


def tuned_runs(experiment: ExperimentConfig) -> list[str]:
    """Runs that are tuned unless others are named."""
    return list(experiment.tuning.runs) or [
        name for name, method in experiment.runs.items() if getattr(method, "group", "method") != "ablation"
    ]


def search_settings(experiment: ExperimentConfig) -> dict[str, Any]:
    """What all searches of an experiment have in common, for the record."""
    tuning = experiment.tuning.model_dump(mode="json", exclude={"runs"})
    return {**tuning, "metric": METRIC, "splits": list(experiment.evaluation.validation)}


def trial_plan(experiment: ExperimentConfig, run: str, values: Mapping[str, float], name: str = "trial") -> Plan:
    """Plan of one run with the given values, at the tuning's seed and length, of an experiment called ``name``."""
    method = with_values(experiment.runs[run], values)
    schedule = tuple(
        stage.model_copy(update={"epochs": stage.epochs * experiment.tuning.length})
        for stage in experiment.schedules[method.schedule]
    )
    update = {
        "name": name,
        "runs": {run: method},
        "seeds": (experiment.tuning.seed,),
        "schedules": {**experiment.schedules, method.schedule: schedule},
    }
    return make_plan(experiment.model_copy(update=update))


def teacher_stages(plan: Plan) -> list[str]:
    """Addresses of the stages that a trial's run is built on but that are no part of it, in order of training."""
    run = plan.runs[0]
    needed: set[str] = set()
    waiting = [*run.stages, *plan.deployed_teacher(run).values()]
    while waiting:
        address = waiting.pop()
        if address not in needed:
            needed.add(address)
            waiting.extend(plan.stages[address].parents)
    return [address for address in plan.stages if address in needed - set(run.stages)]


def make_task(experiment: ExperimentConfig, run: str, results: Path) -> Task:
    """The search of a run's settings; what it builds on must be there already (see `prepare`)."""
    method, home = experiment.runs[run], results / experiment.name
    space = search_space(method)
    start = configured(method, space)
    plan = trial_plan(experiment, run, start)
    names = {stage.partition("/")[0] for stage in (*experiment.distillation, *experiment.evaluation.validation)}
    data = {name: read_manifest(home / "data" / name)["digest"] for name in sorted(names)}
    teacher = teacher_stages(plan)
    methods = {plan.stages[address].method for address in plan.runs[0].stages}
    code = fingerprint(
        "cmapkd.training.loop", "cmapkd.evaluation.evaluate", *(f"cmapkd.objectives.{name}" for name in sorted(methods))
    )
    # Trial 0 stands for the run's configuration: its stages hold the method's options, schedule, length, seed and teacher.
    conditions = {
        "stages": [plan.stages[address].settings for address in plan.runs[0].stages],
        "teacher": {address: read_json(home / "stages" / address / "stage.json", files=dict)["files"] for address in teacher},
        "space": {key: [search.low, search.high, search.log] for key, search in space.items()},
        "search": {key: value for key, value in search_settings(experiment).items() if key != "trials"},
        "data": data,
        "code": code,
    }
    commit, dirty = code_version()
    about = {
        "method": getattr(method, "method"),  # noqa: B009 - every member of the union has it, their base has not
        "search": search_settings(experiment),
        "code": code,
        "data": data,
        "commit": commit,
        "dirty": dirty,
    }
    return Task(
        experiment.name, run, space, start, experiment.tuning.trials, experiment.tuning.seed, experiment.tuning.sampler,
        digest(conditions, 16), about,
    )  # fmt: skip


def check(experiment: ExperimentConfig, results: Path) -> None:
    """What a search needs before it starts.

    Raises:
        UserError: no validation split, or a data set that has not been built.
    """
    if not experiment.evaluation.validation:
        reason = "is empty: there is nothing to choose settings on"
        raise UserError(key="evaluation.validation", reason=reason, fix="name a split that no table shows")
    for reference in (*experiment.distillation, *experiment.evaluation.validation):
        name = reference.partition("/")[0]
        if not (results / experiment.name / "data" / name / MANIFEST).is_file():
            raise UserError(
                key="dataset",
                value=name,
                reason=f"has not been built in {results / experiment.name / 'data'}",
                fix=f"run `cmapkd data fetch {name}` and `cmapkd data build {name}` with this experiment",
            )


def prepare(experiment: ExperimentConfig, run: str, results: Path) -> None:
    """Train the stages of the teacher that a run needs and that are not there yet, one process at a time."""
    from cmapkd.training.loop import train_stage

    home = results / experiment.name
    plan = trial_plan(experiment, run, {})
    for address in teacher_stages(plan):
        with locked(home / "tuning" / "teacher.lock"):
            if not (home / "stages" / address / "stage.json").is_file():
                train_stage(plan.stages[address], home, experiment.training)


def run_trial(experiment: ExperimentConfig, run: str, results: Path, index: int, values: Values) -> Outcome:
    """Train and measure. An interrupted trial is resumed from its checkpoints; nothing of a finished one is kept.

    Raises:
        Diverged: a loss, gradient or embedding that is not finite.
    """
    from cmapkd.training.loop import train_stage

    home = (results / experiment.name).resolve()
    plan = trial_plan(experiment, run, values, name=str(index))
    work = home / "tuning" / "work" / slug(run)
    own = work / str(index)
    (own / "stages").mkdir(parents=True, exist_ok=True)
    _link(own / "data", home / "data")
    for address in teacher_stages(plan):
        _link(own / "stages" / address, home / "stages" / address)
    try:
        for address in plan.runs[0].stages:
            if not (own / "stages" / address / "stage.json").is_file():
                train_stage(plan.stages[address], own, experiment.training)
        scores = _validate(plan, work)
    except UserError as error:
        # The loop words a number that is not finite as a user's error, and so does the evaluation of embeddings.
        if isinstance(error.__context__, FloatingPointError) or error.key.endswith(" embeddings"):
            shutil.rmtree(own)
            raise Diverged(f"{error.key}: {error.reason}") from error
        raise
    last = read_json(own / "stages" / plan.runs[0].stages[-1] / "stage.json", summary=dict)["summary"].get("last", {})
    shutil.rmtree(own)
    return Outcome(sum(scores.values()) / len(scores), scores, last.get("loss"))


def clear_work(experiment: ExperimentConfig, run: str, results: Path) -> None:
    """Forget what interrupted trials of a run left."""
    shutil.rmtree(results / experiment.name / "tuning" / "work" / slug(run), ignore_errors=True)


def _validate(plan: Plan, work: Path) -> dict[str, float]:
    """Mean recall of the run's last model by validation split, in percent."""
    import torch

    from cmapkd.data.split import Split
    from cmapkd.data.transforms import EvaluationTransform
    from cmapkd.evaluation.evaluate import evaluate_model
    from cmapkd.models import towers
    from cmapkd.runs import STUDENT, collect_run
    from cmapkd.training.stages import load_inference

    run = plan.runs[0]
    source = collect_run(plan, run.directory, work).parent
    settings = plan.stages[run.stages[-1]].settings
    name = settings["model"]["name"]
    student = towers.load(source / STUDENT)
    towers.create(name, settings["model"]["config"], "random")  # makes a name of config/models known to the tokenizer
    evaluation = plan.experiment.evaluation
    # Nothing but retrieval; the evaluation always takes latencies as well, here as few as it can.
    tasks = EvaluationConfig(
        validation=evaluation.validation,
        batch_size=evaluation.batch_size,
        latency=LatencyConfig(warmup=0, repeats=1, batch_sizes=(1,)),
    )
    data = work / plan.experiment.name / "data"
    found = evaluate_model(
        load_inference(settings, source) if plan.deployed_teacher(run) else student,
        towers.tokenizer_of(name),
        EvaluationTransform(towers.preprocess_of(student)),
        splits={ref: Split(data / ref.partition("/")[0], ref.partition("/")[2]) for ref in tasks.references()},
        tasks=tasks,
        seed=run.seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    return {ref: float(found.metrics["retrieval"][ref]["all"][METRIC]) for ref in tasks.validation}


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target)
