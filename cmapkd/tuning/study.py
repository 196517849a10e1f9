"""A search that can be killed at any time, and that several processes may work on: its trials in a journal.

A trial has an index, 0 to N - 1. What a killed process left behind is marked as lost, and its index is tried again with
the same values. Optuna keeps the journal; which values come next is decided by ``space.propose``.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cmapkd.errors import UserError
from cmapkd.tuning.space import Space, Values, propose

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

JOURNAL, LOCK = "journal.log", "lock"
DIVERGED, LOST = "diverged", "lost"


class Diverged(Exception):  # noqa: N818 - a result of a trial, like a score
    """The training of a trial met a number that is not finite."""


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Attributes:
        score: mean of ``scores``; the higher the better.
        scores: by validation split.
        loss: of the last training step; None if nothing was trained.
    """

    score: float
    scores: dict[str, float] = field(default_factory=dict)
    loss: float | None = None


@dataclass(frozen=True)
class Task:
    """The search of one run's settings.

    Attributes:
        experiment: name of the experiment.
        run: name of the run.
        space: ranges by dotted key.
        start: configured values, tried first.
        trials: how many are finished at the end, diverged ones among them.
        seed: of the search.
        sampler: ``tpe``, ``gp`` or ``random``.
        depends: all that a score depends on beside the values tried; digest.
        about: JSON-able facts that go into the record.
    """

    experiment: str
    run: str
    space: Space
    start: Values
    trials: int
    seed: int
    sampler: str
    depends: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def study(self) -> str:
        return f"{self.experiment}/{self.run}"


def tune(task: Task, folder: Path, run_trial: Callable[[int, Values], Outcome], *, restart: bool = False) -> None:
    """Run trials until the task has all of them, or until those it lacks are all being run by other processes.

    Args:
        task: what to search.
        folder: of the journal.
        run_trial: index and values -> outcome.
        restart: forget what the journal has of this task.

    Raises:
        UserError: the journal's trials were made under other conditions.
    """
    storage = open_storage(folder)
    with locked(folder / LOCK):
        study = _open(task, storage, restart)
    while True:
        with locked(folder / LOCK):
            trial = _claim(study, task)
        if trial is None:
            break
        index, values, began = int(trial.user_attrs["index"]), dict(trial.params), time.monotonic()
        try:
            outcome = run_trial(index, values)
            if not math.isfinite(outcome.score):
                raise Diverged(f"the score is {outcome.score}")
        except Diverged as reason:
            trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
            trial.set_user_attr("outcome", DIVERGED)
            study.tell(trial, state=TrialState.FAIL)
            log.info("%s: trial %d of %d diverged: %s (%s)", task.study, index + 1, task.trials, reason, shown(values))
        except BaseException:
            with locked(folder / LOCK):
                _lose(study, trial.number)
            raise
        else:
            trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
            trial.set_user_attr("scores", outcome.scores)
            trial.set_user_attr("loss", outcome.loss if outcome.loss is not None and math.isfinite(outcome.loss) else None)
            study.tell(trial, outcome.score)
            best = max(t.value for t in finished(study, task.trials) if t.value is not None)
            done = (task.study, index + 1, task.trials, outcome.score, best, shown(values))
            log.info("%s: trial %d of %d: %.2f (best %.2f) with %s", *done)


def open_storage(folder: Path) -> JournalStorage:
    """The journal of an experiment's searches, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def finished(study: optuna.Study, trials: int) -> list[FrozenTrial]:
    """Trials with a score or diverged, by index, of the first ``trials`` indices."""
    found: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        complete = trial.state == TrialState.COMPLETE
        if complete or (trial.state == TrialState.FAIL and trial.user_attrs.get("outcome") == DIVERGED):
            found.setdefault(trial.user_attrs["index"], trial)
    return [found[index] for index in sorted(found) if index < trials]


def shown(values: Mapping[str, float]) -> str:
    """Values for people."""
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


def _open(task: Task, storage: JournalStorage, restart: bool) -> optuna.Study:
    if restart and task.study in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=task.study, storage=storage)
    study = optuna.create_study(
        storage=storage,
        study_name=task.study,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=task.seed),  # decides nothing: every trial's values are given
        load_if_exists=True,
    )
    known = study.user_attrs.get("depends")
    if known is not None and known != task.depends:
        raise UserError(
            key=f"tuning of {task.run}",
            reason="earlier trials were made with other settings, ranges, data, teacher or code; new ones would not compare",
            fix=f"start anew with `cmapkd tune {task.run!r} --restart`, or go back to what they were made with",
        )
    if known is None:
        for key, value in task.about.items():
            study.set_user_attr(key, value)
        study.set_user_attr("depends", task.depends)
    if study.user_attrs.get("trials") != task.trials:
        study.set_user_attr("trials", task.trials)
    return study


def _claim(study: optuna.Study, task: Task) -> optuna.Trial | None:
    """A trial for this process, or None if all are finished or in work elsewhere. Call it under the lock."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if not _alive(trial.user_attrs.get("owner")):
            _lose(study, trial.number)
    done = finished(study, task.trials)
    running = study.get_trials(states=(TrialState.RUNNING,))
    if not study.get_trials(states=(TrialState.WAITING,)):
        taken = {trial.user_attrs["index"] for trial in (*done, *running)}
        index = next((index for index in range(task.trials) if index not in taken), None)
        if index is None:
            for trial in running:
                owner = trial.user_attrs["owner"]
                where = (task.study, trial.user_attrs["index"] + 1, owner["pid"], owner["host"])
                log.info("%s: trial %d is left to process %s on %s, which has it in work", *where)
            return None
        lost = [trial for trial in study.get_trials(states=(TrialState.FAIL,)) if trial.user_attrs.get("index") == index]
        values = lost[-1].params if lost else _next(task, done, running, index)
        study.enqueue_trial(values, user_attrs={"index": index, "owner": _self()})
    trial_of_queue = study.ask(
        {key: optuna.distributions.FloatDistribution(s.low, s.high, log=s.log) for key, s in task.space.items()}
    )
    trial_of_queue.set_user_attr("owner", _self())
    return trial_of_queue


def _next(task: Task, done: list[FrozenTrial], running: list[FrozenTrial], index: int) -> Values:
    history = [(dict(trial.params), trial.value) for trial in done]
    pending = [dict(trial.params) for trial in running if set(trial.params) == set(task.space)]
    return propose(task.space, task.start, history, pending, index=index, seed=task.seed, sampler=task.sampler)


def _lose(study: optuna.Study, number: int) -> None:
    """Close a trial that nobody runs any more; its index is free again."""
    trial = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
    study._storage.set_trial_user_attr(trial._trial_id, "outcome", LOST)
    study.tell(number, state=TrialState.FAIL)


def _self() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid())}


def _alive(owner: Mapping[str, Any] | None) -> bool:
    """Whether a trial's process runs. One trial at a time: what this very process has open was left behind by it."""
    if owner is None or owner == _self():
        return False
    if owner["host"] != platform.node():
        return True  # no way to know
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return bool(_born(owner["pid"]) == owner["born"])  # else the number was given to another process


def _born(pid: int) -> str | None:
    """When a process began, in ticks since the machine's start; None where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
