"""Which of a site's partitions and accounts jobs use, and why: the site's part of the profile from what was found.

The executor plugin has a choice of its own (`generate-slurm-partition-config`, `--slurm-partition-config`), which is not used
here: its file holds sums over a partition and neither the GPUs of a node nor their type, it takes what is drained, preemptible
or a queue for tests as any other, and it chooses for each job when that is submitted, where nobody sees the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmapkd.errors import UserError, nearest
from cmapkd.site_facts import SAFE_AGE, Findings, Partition
from cmapkd.site_text import Choice

# Jobs at a time, where SLURM does not limit them further.
JOBS = 100
# Queues for tests and for work at a terminal, by name or by a limit below an hour; and those whose jobs others may end.
TESTS = re.compile(
    r"(?<![a-z])(debug\w*|dbg|test|tests|testing|interactive|inter|interact|devel|develop|development|dev)(?![a-z])"
)
BORROWED = re.compile(
    r"(?<![a-z])(owners?|preempt\w*|scaveng\w*|spot|requeue\w*|killable|interruptible|besteffort|low|lowprio\w*|backfill\w*|"
    r"windfall|guest\w*|ckpt\w*|opportun\w*|idle)(?![a-z])"
)
HOUR = 60


@dataclass(frozen=True)
class Queue:
    """A partition as a candidate: its nodes of one kind, or of several with the one that counts first."""

    nodes: tuple[Partition, ...]

    @property
    def name(self) -> str:
        return self.nodes[0].name

    @property
    def first(self) -> Partition:
        return self.nodes[0]

    @property
    def size(self) -> int:
        """GPUs, or cores where there are none."""
        return sum(one.nodes * (one.gpus or one.cpus) for one in self.nodes)

    @property
    def tests(self) -> str:
        """Why it is a queue for tests; empty: it is not."""
        minutes = self.first.minutes
        if minutes is not None and minutes < HOUR:
            return f"jobs end after {minutes} min"
        return "by its name a queue for tests" if TESTS.search(self.name.lower()) else ""

    @property
    def borrowed(self) -> str:
        """Why its jobs may be preempted; empty: nothing says that they are."""
        if self.first.preempted:
            return "its jobs may be preempted (PreemptMode)"
        return "by its name, its jobs may be preempted" if BORROWED.search(self.name.lower()) else ""


def choose(found: Findings, account: str = "", partition: str = "", gpu_partition: str = "") -> Choice:
    """The site's part from what was found; what is given is taken, if the site has it.

    Raises:
        UserError: a partition or account that the site does not have.
    """
    names = list(dict.fromkeys(one.name for one in found.partitions))
    accounts = [*found.accounts, *dict.fromkeys(stem for one in found.accounts if (stem := _stem(one)) != one)]
    for key, value, known in (
        ("--partition", partition, names),
        ("--gpu-partition", gpu_partition, names),
        ("--account", account, accounts),
    ):
        if value and known and value not in known:
            raise UserError(key=key, value=value, reason="is not one of this site's", fix=nearest(value, known))
    reasons: list[str] = []
    gpu = _with_gpus(found, gpu_partition, account, reasons)
    cpu = _without_gpus(found, partition, account, reasons) or gpu
    # Named, but without GPUs that SLURM knows of: trainings go there nevertheless.
    named = _queue([one for one in found.partitions if one.name == gpu_partition], False) if gpu_partition else None
    training = gpu or named or cpu
    if training is not None and training is cpu and not gpu:
        reasons.append(f"trainings: partition {training.name} too, without GPUs")
    with_gpus = "gpu" if gpu or named else "cpu"
    kinds = [("cpu", cpu)] if with_gpus == "cpu" else [("cpu", cpu), ("gpu", training)]
    charged = {kind: _account(found, account, queue, kind, reasons) for kind, queue in kinds}
    if found.account_needed and not account and len({_stem(one) for one in found.accounts}) > 1:
        taken = " and ".join(dict.fromkeys(value for value in charged.values() if value))
        found.missing.append(f"which account: you have {', '.join(found.accounts)}, chosen: {taken}; --account names another")
    ranks, request = _request(gpu)
    return Choice(
        status="sacct" if found.accounting else "squeue",
        seconds=max(5, min(30, (found.min_job_age or SAFE_AGE) // 3)),
        jobs=_jobs(found, charged.values(), [queue for queue in (cpu, training) if queue], reasons),
        account=charged["cpu"],
        gpu_account=charged[with_gpus] if charged[with_gpus] != charged["cpu"] else "",
        partition=cpu.name if cpu else "",
        gpu_partition=training.name if training else "",
        ranks_per_node=ranks,
        gpu_request=request,
        minutes=cpu.first.minutes if cpu else None,
        memory_mb=cpu.first.memory_mb if cpu else None,
        cpus=cpu.first.cpus if cpu else None,
        training_minutes=training.first.minutes if training else None,
        training_memory_mb=training.first.memory_mb if training else None,
        training_cpus=training.first.cpus if training else None,
        reasons=tuple(reasons),
    )


def _with_gpus(found: Findings, asked: str, account: str, reasons: list[str]) -> Queue | None:
    """Where trainings run; None: nowhere are GPUs that they could ask for."""
    own = [one for one in found.partitions if one.gpus]
    if asked:
        queue = _queue([one for one in own if one.name == asked], True)
        if queue is None:
            found.missing.append(
                f"GPUs: sinfo (column GRES) lists none in {asked}, so trainings there ask for none; where its jobs see the "
                "GPUs of their node without asking, set ranks_per_node in the profile"
            )
        elif not queue.first.up:
            found.missing.append(f"GPUs: {asked} is not up now: {queue.first.state}")
        reasons.append(f"trainings: partition {asked}, as --gpu-partition says")
        return queue
    queues = _queues([one for one in own if one.up and not one.sliced], found, account, True)
    if not queues:
        found.missing.append(_no_gpus(own))
        return None
    reasons.append(_why("trainings", queues, "--gpu-partition", "most GPUs"))
    slices = sorted({one.name for one in own if one.sliced} - {queue.name for queue in queues})
    if slices:
        reasons.append(
            f"  left out: {', '.join(slices)}, with slices of GPUs (MIG), between which the ranks of a training cannot meet"
        )
    away = sorted({f"{one.name} (not up: {one.state})" for one in own if not one.up})
    reasons.extend([f"  left out: {', '.join(away)}"] if away else [])
    return queues[0]


def _no_gpus(own: Sequence[Partition]) -> str:
    """Why trainings ask for no GPUs."""
    away = sorted({f"{one.name} is not up: {one.state}" for one in own if not one.up})
    if away:
        return (
            f"GPUs: {'; '.join(away)}. Trainings ask for none; run `cmapkd site` again when it is, or name it: --gpu-partition"
        )
    if slices := sorted({one.name for one in own if one.sliced}):
        return (
            f"GPUs: {', '.join(slices)} has slices of GPUs (MIG) alone, so trainings ask for none; "
            f"--gpu-partition {slices[0]} gives each training one slice"
        )
    if own:
        return f"GPUs: your accounts may not use {', '.join(sorted({one.name for one in own}))} (AllowAccounts)"
    return "GPUs: no partition has any (sinfo, column GRES), so trainings ask for none"


def _without_gpus(found: Findings, asked: str, account: str, reasons: list[str]) -> Queue | None:
    """Where jobs without GPU run; None: no partition is for them alone."""
    if asked:
        queue = _queue([one for one in found.partitions if one.name == asked], False)
        if queue and not queue.first.up:
            found.missing.append(f"partition: {asked} is not up now: {queue.first.state}")
        reasons.append(f"jobs without GPU: partition {asked}, as --partition says")
        return queue
    up = [one for one in found.partitions if one.up]
    with_gpus = {one.name for one in found.partitions if one.gpus}
    queues = _queues([one for one in up if one.name not in with_gpus], found, account, False)
    if not queues or queues[0].tests or queues[0].borrowed:
        # Better on nodes with GPUs than where jobs end too early, or are preempted.
        others = _queues(up, found, account, False)
        queues = others if others and (not queues or not (others[0].tests or others[0].borrowed)) else queues
    if not queues:
        away = sorted({f"{one.name}: {one.state}" for one in found.partitions if not one.up})
        found.missing.extend([f"partitions: none is up ({', '.join(away)})"] if away else [])
        return None
    reasons.append(_why("jobs without GPU", queues, "--partition", "most cores"))
    away = sorted({f"{one.name} (not up: {one.state})" for one in found.partitions if not one.up and not one.gpus})
    reasons.extend([f"  left out: {', '.join(away)}"] if away else [])
    return queues[0]


def _queues(partitions: Sequence[Partition], found: Findings, account: str, gpus: bool) -> list[Queue]:
    """Candidates, the best first: neither for tests nor preempted, the site's default (without GPUs), the largest."""
    mine = {account} if account in found.accounts else set(found.accounts)
    usable = [one for one in partitions if one.accounts is None or not mine or mine & one.accounts]
    names = dict.fromkeys(one.name for one in usable)
    queues = [queue for name in names if (queue := _queue([one for one in usable if one.name == name], gpus))]

    def rank(queue: Queue) -> tuple[object, ...]:
        one = queue.first
        preferred = one.default and not gpus
        return (
            bool(queue.tests),
            bool(queue.borrowed),
            not preferred,
            -queue.size,
            not one.default,
            -(one.minutes or 10**9),
            one.name,
        )

    return sorted(queues, key=rank)


def _queue(nodes: Sequence[Partition], gpus: bool) -> Queue | None:
    """A partition of several kinds of nodes, the kind with most GPUs or cores first; undivided GPUs before slices."""
    kinds = [one for one in nodes if one.gpus] if gpus else list(nodes)
    ordered = sorted(kinds, key=lambda one: (one.sliced, -one.nodes * (one.gpus if gpus else one.cpus)))
    return Queue(tuple(ordered)) if ordered else None


def _why(jobs: str, queues: Sequence[Queue], option: str, largest: str) -> str:
    """One line: the partition, the reason, and others that would do."""
    first, *others = queues
    one = first.first
    if flaw := first.tests or first.borrowed:
        why = f"no better one is there, though {flaw}"
    elif not others:
        why = "the only one"
    elif one.default and not one.gpus:
        why = "the site's default"
    elif all(queue.tests or queue.borrowed for queue in others):
        why = "the only one that is neither for tests nor preempted"
    else:
        why = largest
    line = f"{jobs}: partition {first.name}, {why}"
    if others:
        described = [f"{queue.name} ({flaw})" if (flaw := queue.tests or queue.borrowed) else queue.name for queue in others]
        line += f"; others: {', '.join(described)} ({option} names one)"
    return line


def _request(queue: Queue | None) -> tuple[int, str]:
    """Ranks on a node, and how a job asks for GPUs; the type is named wherever SLURM names it, as some sites want."""
    if queue is None:
        return 0, ""
    one = queue.first
    if not one.gpu_type:
        return one.gpus, "gres=gpu:{n}"
    # The executor accepts no other characters in a type.
    form = "gres=gpu:{}:{{n}}" if re.fullmatch(r"[a-zA-Z0-9_.]+", one.gpu_type) else "--gpus-per-node={}:{{n}}"
    # Between slices there is no communication by CUDA: a training has one.
    return 1 if one.sliced else one.gpus, form.format(one.gpu_type)


def _stem(account: str) -> str:
    return re.sub(r"[_-](cpu|gpu)$", "", account, flags=re.IGNORECASE)


def _account(found: Findings, given: str, queue: Queue | None, kind: str, reasons: list[str]) -> str:
    """Account of jobs without (``cpu``) or with GPU (``gpu``): sites name them ``project_cpu`` and ``project_gpu``."""
    usable = found.accounts
    if queue and queue.first.accounts is not None:
        usable = [one for one in usable if one in queue.first.accounts] or usable
    if given:
        usable = [given] if given in found.accounts or not found.accounts else usable
        stem = _stem(given)
        pairs = [one for one in found.accounts if _stem(one) == stem]
    else:
        stem = _stem(usable[0]) if usable else ""
        pairs = [one for one in usable if _stem(one) == stem]
    fitting = [one for one in pairs if one != stem and one.lower().endswith(kind)]
    chosen = next(iter([*fitting, *usable]), given)
    if fitting:
        reasons.append(f"account of jobs {'with' if kind == 'gpu' else 'without'} GPU: {chosen}, by its name")
    return chosen


def _jobs(found: Findings, accounts: Iterable[str], queues: Sequence[Queue], reasons: list[str]) -> int:
    """Jobs that may be submitted at a time: no more than SLURM takes, which would refuse the others."""
    charged = [one for one in accounts if one]
    limits = {f"account {one}": found.submit_limits[one] for one in charged if one in found.submit_limits}
    names = {found.qos.get(one, "") for one in charged} | {queue.first.qos for queue in queues}
    limits |= {f"QOS {name}": found.qos_limits[name] for name in sorted(names) if name in found.qos_limits}
    smallest = min(limits, key=lambda name: limits[name], default="")
    if not smallest or limits[smallest] >= JOBS:
        return JOBS
    reasons.append(f"jobs: {limits[smallest]} at a time, the most that {smallest} may submit")
    return limits[smallest]


def tell(found: Findings, choice: Choice) -> str:
    """What was found, what was chosen and why, and what was not found, for people."""
    lines = ["Found:"]
    for one in found.partitions:
        limit = "no time limit" if one.minutes is None else f"{one.minutes} min"
        gpus = f", {one.gpus} GPU{'s' if one.gpus > 1 else ''} {one.gpu_type}".rstrip() if one.gpus else ""
        gpus += " (slices)" if one.sliced else ""
        marks = "".join([" (default)" if one.default else "", "" if one.up else f" (not up: {one.state})"])
        size = f"{one.nodes} nodes of {one.cpus} cores, {one.memory_mb} MB{gpus}"
        lines.append(f"  partition {one.name}{marks}: {size}; {limit}")
    lines.append(f"  jobs' states from {choice.status}" + (f", accounts {', '.join(found.accounts)}" if found.accounts else ""))
    lines += [f"  {found.container}"] if found.container else []
    lines += ["Chosen:", *(f"  {text}" for text in choice.reasons)] if choice.reasons else []
    if choice.training_minutes is not None and choice.training_minutes < 1440:
        lines.append(
            f"  trainings end after {choice.training_minutes} min with a checkpoint and continue in a new job by themselves, "
            "as often as needed; that uses no retry"
        )
    if choice.minutes is not None and choice.minutes < 720:
        lines.append(f"  building a large data set must end within {choice.minutes} min, the limit of {choice.partition}")
    lines += ["Not found:", *(f"  {text}" for text in found.missing)] if found.missing else ["Nothing is missing."]
    return "\n".join(lines)
