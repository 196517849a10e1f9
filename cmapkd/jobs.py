"""What a job tells the commands in it: when it began, how long it may run, which attempt it is, on which node.

SLURM itself is asked (`scontrol show job`), from Snakemake's process in the job: that is outside of a container, and the
answer is the limit that holds, also where the site has cut it or the job was put back into the queue. It reaches commands as
environment variables in the shell's prefix, which is no part of a rule's command: nothing is made anew because of it.

And which nodes to keep away from, after failures that a node may be the cause of.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from cmapkd.files import read_json
from cmapkd.site import Ask, ask

STARTED, TIME_LIMIT, ATTEMPT, NODE = "CMAPKD_STARTED", "CMAPKD_TIME_LIMIT", "CMAPKD_ATTEMPT", "CMAPKD_NODE"
JOB = "CMAPKD_JOB"
FORWARDED = (STARTED, TIME_LIMIT, ATTEMPT, NODE, JOB)
_SILENT = 120.0  # seconds without a heart beat of a lock, of which there is one every 20
# Kinds of failures (`cmapkd.training.failures`) that another node may not have: killed from outside, a device that broke.
_OF_A_NODE = ("ended without a word", "error")


def variables(attempt: int, environment: Mapping[str, str] = os.environ, asking: Ask = ask) -> dict[str, str]:
    """Environment of the commands of this job; empty outside of SLURM.

    Args:
        attempt: Snakemake's number of this submission, from 1. A job that SLURM has put back itself counts on from there,
            for only a start by hand forgets earlier failures.
    """
    number = environment.get("SLURM_JOB_ID")
    if not number:
        return {}
    told = asking(("scontrol", "show", "job", "--oneliner", number)) or ""
    facts = dict(re.findall(r"(\w+)=(\S+)", told))
    restarts = facts.get("Restarts", "0")
    found = {ATTEMPT: str(attempt + (int(restarts) if restarts.isdigit() else 0)), JOB: number}
    start, end = _seconds(facts.get("StartTime", "")), _seconds(facts.get("EndTime", ""))
    if start is not None and end is not None and facts.get("TimeLimit") != "UNLIMITED" and end > start:
        found |= {STARTED: repr(start), TIME_LIMIT: f"{(end - start) / 60:g}"}
    if environment.get("SLURMD_NODENAME"):
        found[NODE] = environment["SLURMD_NODENAME"]
    return found


def outlive_signals() -> None:
    """Have this process, Snakemake's in a job, ignore SIGUSR1: SLURM sends it to all processes, and it is for the training."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def heed_signals() -> None:
    """Undo for a command that the shell in a job ignores SIGTERM and SIGUSR1, so that it and `tee` wait for the command."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def failed_nodes(home: Path, asking: Ask = ask) -> list[str]:
    """Nodes on which trainings of an experiment have failed in a way that the node may be the cause of."""
    found = set()
    for folder in sorted(home.glob("stages/*/checkpoints")):
        # What the attempt that has just ended left, and what was gathered of those before it.
        reports = [_read(path) for path in folder.glob("failed-*.json")]
        if not reports and (running := _read(folder / "running.json")) and not _held(folder.parent / "lock.json", asking):
            reports = [{**running, "kind": _OF_A_NODE[0]}]
        gathered = _read(folder / "failures.json").get("failures", [])
        for report in (*reports, *(gathered if isinstance(gathered, list) else [])):
            told = report.get("kind") in _OF_A_NODE and not str(report.get("reason", "")).startswith("UserError")
            if told and re.fullmatch(r"[\w.-]+", node := str(report.get("node") or "")):
                found.add(node)
    return sorted(found)


def exclusion(home: Path, needed: int, partition: str = "", asking: Ask = ask) -> Callable[[int], str]:
    """What a training's job asks for beside the rest at its n-th attempt: from the second on, none of the nodes that failed.

    They are not left out where too few others would remain, for then the job would wait for ever.

    Args:
        home: `results/<experiment>`.
        needed: nodes of the job.
        partition: that the job goes to; empty: the site's default.
    """

    def option(attempt: int) -> str:
        nodes = failed_nodes(home, asking) if attempt > 1 else []
        if not nodes:
            return ""
        # Of the partition, those that take jobs or soon will.
        listed = asking(("sinfo", "-h", "-N", "-r", "-o", "%N|%P|%T", *(("-p", partition) if partition else ()))) or ""
        lines = [line.split("|") for line in listed.splitlines() if line.count("|") == 2]
        usable = {
            name.strip()
            for name, of, state in lines
            if (partition or of.strip().endswith("*")) and not state.strip().startswith(("down", "drain", "fail"))
        }
        return f"--exclude={','.join(nodes)}" if len(usable - set(nodes)) >= needed else ""

    return option


def option(name: str, arguments: Sequence[str] | None = None) -> list[str]:
    """Values of an option of this process, by default; while it reads the rules, Snakemake does not know all of them yet."""
    words = list(sys.argv if arguments is None else arguments)
    given = words[words.index(name) + 1 :] if name in words else []
    return list(takewhile(lambda word: not word.startswith("--"), given))


def keep_logs(workflow: Any) -> None:
    """In a job, rename the logs that an attempt before has left, which Snakemake is about to remove.

    Args:
        workflow: Snakemake's, with all rules defined. It does not know its job yet, but by its command line.
    """
    if workflow.remote_exec:
        from snakemake.target_jobs import parse_target_jobs_cli_args

        with contextlib.suppress(ValueError):  # wildcards that the command line cannot express
            for rule, wildcards in parse_target_jobs_cli_args(option("--target-jobs")):
                rename_logs(Path(str(log.apply_wildcards(wildcards))) for log in workflow.get_rule(rule).log)


def rename_logs(logs: Iterable[Path]) -> None:
    """``a.log`` becomes ``a.attempt-1.log``, the next time ``a.attempt-2.log``."""
    for log in logs:
        if not log.is_file() or not log.stat().st_size:
            continue
        number = 1
        while (kept := log.with_name(f"{log.stem}.attempt-{number}{log.suffix}")).exists():
            number += 1
        with contextlib.suppress(OSError):  # a log is not worth a training
            log.rename(kept)


def _held(lock: Path, asking: Ask) -> bool:
    """Whether a training still runs: who was killed leaves its lock behind, whose heart beats no more."""
    try:
        silent = time.time() - lock.stat().st_mtime
    except OSError:
        return False
    job = _read(lock).get("slurm_job")
    state = asking(("squeue", "-h", "-j", str(job), "-o", "%T")) if job else None
    return state.strip() == "RUNNING" if state is not None else silent < _SILENT


def _seconds(text: str) -> float | None:
    """Seconds since the epoch of a local time as SLURM writes it; None for ``Unknown``."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _read(path: Path) -> dict[str, object]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
