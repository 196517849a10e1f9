"""`cmapkd status`: what of an experiment is done, running, waiting or failed, and how far each training is.

Read are only the experiment's files (results, logs, ``log.jsonl`` of unfinished stages), this machine's processes and, where
there is a SLURM, the queue. It changes nothing and imports no torch, so it may be asked at any time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cmapkd.drivers import look, told
from cmapkd.files import parse_json, read_json
from cmapkd.plan import TEACHER, Plan, Stage
from cmapkd.runs import teacher_seed
from cmapkd.site import Ask, ask, user_name
from cmapkd.slurm import waiting

# Job, state, comment (rule and wildcards, as Snakemake's executor sets it), time used, reason or nodes, working directory.
SQUEUE = ("squeue", "-h", "-o", "%i|%T|%k|%M|%R|%Z")
TAIL = 4
_STOPPED = "the same command goes on from there"  # the last line of a training that was asked to stop
_FROM_SLURM = ("slurmstepd: error", "srun: error", "CANCELLED", "oom", "Killed")


@dataclass(frozen=True)
class Job:
    """One job in SLURM's queue."""

    number: str
    state: str
    elapsed: str
    where: str  # nodes, or in parentheses the reason for waiting


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    step: int  # finished
    steps: int | None  # None: its data are not there yet
    samples_per_second: float
    seconds_left: float | None
    silent: float  # seconds since the last line of its log


@dataclass(frozen=True)
class Item:
    """One training or evaluation with its state: done, running, queued, stopped, failed or waiting."""

    name: str
    label: str
    state: str
    progress: Progress | None = None
    job: Job | None = None
    tail: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()


@dataclass
class Status:
    """Of a whole experiment."""

    experiment: str
    trainings: list[Item] = field(default_factory=list)
    evaluations: list[Item] = field(default_factory=list)
    paper: bool = False
    locked: str = ""  # by whom, where the workflow has locked the folder
    others: list[tuple[str, Job]] = field(default_factory=list)  # further jobs of this folder, by what they are
    slurm: list[str] = field(default_factory=list)  # what keeps the workflow waiting for SLURM


def status(plan: Plan, results: Path, asking: Ask = ask, processes: list[tuple[str, ...]] | None = None) -> Status:
    """Look at an experiment.

    Args:
        results: folder that holds all experiments.
        asking: runs a program and returns what it says, or None.
        processes: arguments of this machine's processes; by default those of `/proc`, where there is one.
    """
    home = results / plan.experiment.name
    jobs = queue(asking, Path.cwd())
    alive = own_processes(results) if processes is None else processes
    found = Status(plan.experiment.name, paper=(home / "paper" / "paper.tex").is_file())
    found.locked = locked_by(Path.cwd())
    found.slurm = _slurm(asking)
    for stage in plan.stages.values():
        found.trainings.append(_training(plan, stage, home, jobs, alive))
    teacher = (f"{TEACHER}/{teacher_seed(plan.experiment)}", (plan.teacher,))
    for directory, stages in (teacher, *((run.directory, run.stages) for run in plan.runs)):
        found.evaluations.append(_evaluation(directory, stages, home, jobs, alive))
    told = {item.job for item in (*found.trainings, *found.evaluations)}
    found.others = [(comment, job) for comment, job in jobs.items() if job not in told]
    return found


def _training(plan: Plan, stage: Stage, home: Path, jobs: Mapping[str, Job], alive: list[tuple[str, ...]]) -> Item:
    directory = home / "stages" / stage.address
    if (directory / "stage.json").is_file():
        return Item(stage.address, stage.label, "done")
    log = home / "logs" / "train" / f"{stage.address}.log"
    job = jobs.get(f"rule_train_wildcards_{stage.address}") or jobs.get(f"rule_teacher_wildcards_{stage.address}")
    tail = _tail(log, stage.address)
    state = _state(job, ("train", stage.address), alive, log)
    if state == "failed" and any(_STOPPED in line for line in tail):
        state = "stopped"
    waits = tuple(parent for parent in stage.parents if not (home / "stages" / parent / "stage.json").is_file())
    progress = _progress(plan, stage, home) if state in ("running", "stopped", "failed", "queued") else None
    shown = tail if state in ("failed", "stopped") else ()
    return Item(stage.address, stage.label, state, progress, job, shown, waits if state == "waiting" else ())


def _evaluation(
    directory: str, stages: tuple[str, ...], home: Path, jobs: Mapping[str, Job], alive: list[tuple[str, ...]]
) -> Item:
    if (home / "metrics" / f"{directory}.json").is_file():
        return Item(directory, directory, "done")
    name = directory.replace("/", "-")
    log = home / "logs" / "evaluate" / f"{name}.log"
    job = jobs.get(f"rule_evaluate_wildcards_{directory.replace('/', '_')}")
    state = _state(job, ("evaluate", directory), alive, log)
    waits = tuple(address for address in stages if not (home / "stages" / address / "stage.json").is_file())
    if state == "failed" and waits:
        state = "waiting"  # its log is of an earlier time, and what it measures is being made anew
    tail = _tail(log, directory.replace("/", "_")) if state == "failed" else ()
    return Item(directory, directory, state, None, job, tail, waits if state == "waiting" else ())


def _slurm(asking: Ask) -> list[str]:
    """What the workflow of this folder waits for, where SLURM refuses its jobs or does not know them."""
    if (waits := waiting.read()) is None:
        return []
    # Ended jobs are listed too: the workflow may not have asked for them since.
    listed = asking(("squeue", "-h", "-t", "all", "-o", "%i", "-u", user_name()))
    return waiting.told(waits, None if listed is None else set(listed.split()))


def _state(job: Job | None, command: tuple[str, str], alive: list[tuple[str, ...]], log: Path) -> str:
    """State of something without a result: it runs, is in the queue, came to an end without one, or never began."""
    if job is not None:
        return "queued" if job.state in ("PENDING", "CONFIGURING", "REQUEUED") else "running"
    if any(command[0] in process and command[1] in process for process in alive):
        return "running"
    return "failed" if log.is_file() else "waiting"


def _progress(plan: Plan, stage: Stage, home: Path) -> Progress | None:
    path = home / "stages" / stage.address / "log.jsonl"
    last = _last_step(path)
    if last is None or stage.settings["kind"] != "train":
        return None
    batch = stage.settings["training"]["global_batch"]
    done, rate = int(last["step"]) + 1, float(last.get("samples_per_second", 0.0))
    steps = _steps(stage, home)
    left = (steps - done) * batch / rate if steps is not None and rate > 0 else None
    return Progress(done, steps, rate, left, max(0.0, time.time() - path.stat().st_mtime))


def _steps(stage: Stage, home: Path) -> int | None:
    """Optimiser steps of a stage, as the training loop counts them."""
    samples = 0
    for reference in stage.settings["distillation"]:
        dataset, _, split = reference.partition("/")
        try:
            samples += read_json(home / "data" / dataset / "manifest.json")["splits"][split]["samples"]
        except (OSError, KeyError, ValueError):
            return None
    per_epoch = samples / stage.settings["training"]["global_batch"]
    return max(1, round(stage.settings["stage"]["epochs"] * per_epoch))


def _last_step(path: Path) -> dict[str, float] | None:
    """The last whole line of a training's log; one that is being written, or was cut short by a kill, does not count."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            found = parse_json(line, str(path), dict)
        except ValueError:
            continue
        if isinstance(found, dict) and "step" in found:
            return found
    return None


def _tail(log: Path, wildcards: str) -> tuple[str, ...]:
    """The last lines of a command's log, and what SLURM said if it ended the job (its log is kept by Snakemake)."""
    lines = _lines(log)[-TAIL:]
    kept = list(Path(".snakemake/slurm_logs").glob(f"rule_*/{wildcards}/*.log"))
    if kept:
        newest = max(kept, key=lambda path: path.stat().st_mtime)
        lines += [line for line in _lines(newest) if any(word in line for word in _FROM_SLURM)][-TAIL:]
    return tuple(lines)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.rpartition("\r")[2].rstrip() for line in text.splitlines() if line.strip()]


def queue(asking: Ask, directory: Path) -> dict[str, Job]:
    """This user's jobs that Snakemake submitted from ``directory``, by their comment; none where there is no SLURM."""
    found = {}
    for line in (asking((*SQUEUE, "-u", user_name())) or "").splitlines():
        parts = line.split("|")
        if len(parts) != 6:
            continue
        number, state, comment, elapsed, where, workdir = (part.strip() for part in parts)
        if comment.startswith(("rule_", "group_")) and Path(workdir) == directory:
            found[comment] = Job(number, state, elapsed, where)
    return found


def locked_by(folder: Path) -> str:
    """Who drives the workflow in this folder, or that nobody does though it is locked; empty where it is free."""
    found = look(folder)
    if found.locked and found.processes:
        return f"snakemake works in this folder: process {', '.join(map(str, found.processes))}"
    return told(found)


def own_processes(results: Path) -> list[tuple[str, ...]]:
    """Arguments of the processes of this machine that work on ``results``; none where there is no `/proc`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = tuple((entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1])
            if "cmapkd" not in arguments:
                continue
            given = arguments[arguments.index("--results") + 1] if "--results" in arguments else "results"
            if ((entry / "cwd").readlink() / given).resolve() == results.resolve():
                found.append(arguments)
        except (OSError, IndexError):
            continue  # it ended meanwhile, or belongs to somebody else
    return found


def tell(found: Status) -> str:
    """The status as lines for people."""
    states = [item.state for item in found.trainings]
    counts = ", ".join(f"{states.count(state)} {state}" for state in _ORDER if state in states)
    measured = sum(item.state == "done" for item in found.evaluations)
    lines = [f"{found.experiment}: {len(states)} trainings: {counts}"]
    lines += [line for item in _sorted(found.trainings) for line in _told(item)]
    lines.append(f"{measured} of {len(found.evaluations)} runs measured")
    lines += [line for item in _sorted(found.evaluations) for line in _told(item)]
    lines += [f"  {_job_told(job)}: {comment.removeprefix('rule_')}" for comment, job in found.others]
    lines += found.slurm
    lines += [found.locked] if found.locked else []
    lines.append("the paper is written" if found.paper else "no paper yet")
    return "\n".join(lines)


_ORDER = ("done", "running", "queued", "stopped", "failed", "waiting")


def _sorted(items: list[Item]) -> list[Item]:
    """What is not done, in the order of ``_ORDER``."""
    return sorted((item for item in items if item.state != "done"), key=lambda item: _ORDER.index(item.state))


def _told(item: Item) -> list[str]:
    parts = [f"  {item.state:8}{item.label}" + (f" ({item.name})" if item.name != item.label else "")]
    if item.progress is not None:
        parts.append(_progress_told(item.progress, item.state == "running"))
    if item.job is not None:
        parts.append(_job_told(item.job))
    if item.waits_for:
        parts.append(f"after {', '.join(item.waits_for)}")
    return [": ".join([parts[0], "; ".join(parts[1:])]) if parts[1:] else parts[0], *(f"      {line}" for line in item.tail)]


def _job_told(job: Job) -> str:
    return f"SLURM job {job.number}, {job.state.lower()}, {job.elapsed}, {job.where}"


def _progress_told(progress: Progress, running: bool) -> str:
    if progress.steps is None:
        return f"step {progress.step}"
    share = 100 * progress.step // progress.steps
    text = f"step {progress.step} of {progress.steps} ({share} %)"
    if running:
        text += f", {progress.samples_per_second:.0f} samples/s"
        text += f", {clock(progress.seconds_left)} left" if progress.seconds_left is not None else ""
        text += f", silent for {clock(progress.silent)}" if progress.silent > 600 else ""
    return text


def clock(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
