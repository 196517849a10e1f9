"""What a SLURM site answers about itself: partitions, limits, GPUs, accounting, accounts and limits on submitted jobs.

Asked are `sinfo`, `scontrol show config`, `scontrol show partition`, `sacctmgr` and the container program. What a tool does not
answer is listed in ``Findings.missing``, for a person to fill in.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cmapkd.errors import UserError

SINFO = ("sinfo", "-h", "-o", "%P|%a|%l|%D|%c|%m|%G")
STATES = ("sinfo", "-h", "-o", "%P|%T|%D")
CONFIG = ("scontrol", "show", "config")
PARTITIONS = ("scontrol", "show", "partition", "--oneliner")
LIMITS = "account,maxjobs,maxsubmit,grpsubmit,defaultqos,qos"
# Snakemake's executor asks every 180 seconds at least, and needs to see a job once after its end.
SAFE_AGE = 300
# A slice of a GPU (NVIDIA's MIG) by the name of its type: `a100_1g.5gb`, `1g.10gb`.
SLICE = re.compile(r"\dg\.\d+gb|(?<![a-z])mig(?![a-z])", re.IGNORECASE)
# States of nodes (`sinfo`, %T) in which they take no job now.
_AWAY = ("down", "drain", "fail", "maint", "unk", "inval", "no_respond")

Ask = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class Partition:
    """Nodes of one kind in a partition; a partition with several kinds of nodes is several of these."""

    name: str
    default: bool
    up: bool
    minutes: int | None  # longest job; None: unlimited
    nodes: int
    cpus: int  # of each node, the fewest if they differ
    memory_mb: int
    gpus: int = 0  # of each node
    gpu_type: str = ""
    state: str = "up"  # `up`, or why it takes no jobs: `down`, `drain`, `inact`, `no node is up`
    preempted: bool = False  # by what `scontrol` answers
    accounts: frozenset[str] | None = None  # that may use it; None: all, or not known
    qos: str = ""

    @property
    def sliced(self) -> bool:
        """Whether its GPUs are slices of GPUs."""
        return bool(self.gpus and SLICE.search(self.gpu_type))


@dataclass
class Findings:
    """What could be found out, and what could not."""

    partitions: list[Partition] = field(default_factory=list)
    accounting: bool | None = None
    min_job_age: int | None = None
    accounts: list[str] = field(default_factory=list)
    account_needed: bool = False
    # The most jobs that may be submitted at a time: of each account, and of each QOS; and the QOS of jobs that name none.
    submit_limits: dict[str, int] = field(default_factory=dict)
    qos_limits: dict[str, int] = field(default_factory=dict)
    qos: dict[str, str] = field(default_factory=dict)
    container: str = ""
    missing: list[str] = field(default_factory=list)


def user_name() -> str:
    """Name of this user; the number where the system has no name for it, as in a container or with a directory that is away."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid())


def ask(command: Sequence[str]) -> str | None:
    """Standard output of a program; None if it is not there, fails or does not answer within 30 seconds."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def find(asking: Ask = ask) -> Findings:
    """Ask the site.

    Raises:
        UserError: there is no SLURM to ask.
    """
    listed = asking(SINFO)
    if listed is None:
        raise UserError(
            key="sinfo", reason="does not answer: no SLURM here", fix="run `cmapkd site` on a login node of the cluster"
        )
    found = Findings(parse_sinfo(listed))
    if not found.partitions:
        found.missing.append("partitions: sinfo lists none that you may use")
    _read_config(found, asking(CONFIG))
    _read_accounts(found, asking)
    found.partitions = with_states(found.partitions, asking(STATES))
    found.partitions = with_rules(found.partitions, asking(PARTITIONS))
    for program in ("apptainer", "singularity"):
        version = asking((program, "--version"))
        if version:
            found.container = version.strip()
            break
    else:
        found.missing.append(
            "apptainer: neither it nor singularity is on the path of this machine, where Snakemake itself needs it. Where "
            "there is a module of it (`module avail apptainer`), `module load apptainer` (or singularity) before `snakemake`; "
            "otherwise use --workflow-profile workflow/profiles/slurm-bare"
        )
    return found


def parse_sinfo(text: str) -> list[Partition]:
    """Lines of ``sinfo -h -o "%P|%a|%l|%D|%c|%m|%G"``; a ``+`` says that it is the least of several nodes."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 7:
            continue
        name, up, limit, nodes, cpus, memory, gres = parts
        gpus, kind = parse_gres(gres)
        found.append(
            Partition(
                name=name.rstrip("*"),
                default=name.endswith("*"),
                up=up == "up",
                state=up,
                minutes=parse_limit(limit),
                nodes=_least(nodes),
                cpus=_least(cpus),
                memory_mb=_least(memory),
                gpus=gpus,
                gpu_type=kind,
            )
        )
    return found


def _least(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def parse_gres(text: str) -> tuple[int, str]:
    """Number and type of GPUs: ``gpu:a100:4(S:0-1),nvme:1`` is (4, "a100"); of several types, the one with most.

    Slices of GPUs count where there are no undivided ones. ``shard`` (a share of a GPU) is not a GPU.
    """
    types: dict[str, int] = {}
    for one in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = one.strip().split(":")
        if name == "gpu":
            count = int(rest[-1]) if rest and rest[-1].isdigit() else 1
            kind = rest[0] if rest and not rest[0].isdigit() else ""
            types[kind] = types.get(kind, 0) + count
    undivided = {kind: count for kind, count in types.items() if not SLICE.search(kind)}
    types = undivided or types
    if not types:
        return 0, ""
    kind = max(types, key=lambda name: types[name])
    return types[kind], kind


def with_states(partitions: Sequence[Partition], text: str | None) -> list[Partition]:
    """Partitions, with those marked as not up that have no node that is; lines of ``sinfo -h -o "%P|%T|%D"``."""
    states: dict[str, set[str]] = {}
    for line in (text or "").splitlines():
        name, *rest = (part.strip() for part in line.split("|"))
        if len(rest) == 2 and re.fullmatch(r"[a-z_]+[*~#!%$@^+-]*", rest[0]):
            # A mark follows the state; `*`: the node does not answer.
            states.setdefault(name.rstrip("*"), set()).add(
                "no_respond" if rest[0].endswith("*") else rest[0].rstrip("~#!%$@^+-")
            )
    return [
        replace(one, up=False, state=f"all nodes are {', '.join(sorted(states[one.name]))}")
        if one.up and one.name in states and all(state.startswith(_AWAY) for state in states[one.name])
        else one
        for one in partitions
    ]


def with_rules(partitions: Sequence[Partition], text: str | None) -> list[Partition]:
    """Partitions, with what ``scontrol show partition`` answers: preemption, accounts that may use them, their QOS."""
    rules = [dict(re.findall(r"(\w+)=(\S+)", block)) for block in re.split(r"(?=\bPartitionName=)", text or "")]
    named = {rule["PartitionName"]: rule for rule in rules if "PartitionName" in rule}
    tiers = {name: int(rule["PriorityTier"]) for name, rule in named.items() if rule.get("PriorityTier", "").isdigit()}

    def marked(one: Partition) -> Partition:
        rule = named.get(one.name, {})
        modes = set(rule.get("PreemptMode", "OFF").upper().split(","))
        # Jobs are preempted by those of a higher tier: those of the highest one, above others, are not.
        highest = one.name in tiers and tiers[one.name] == max(tiers.values()) and len(set(tiers.values())) > 1
        allowed = rule.get("AllowAccounts", "ALL")
        return replace(
            one,
            preempted=bool(modes - {"OFF", "GANG", "WITHIN", "N/A"}) and not highest,
            accounts=None if allowed.upper() in ("ALL", "(NULL)") else frozenset(allowed.split(",")),
            qos="" if rule.get("QoS", "N/A") == "N/A" else rule["QoS"],
        )

    return [marked(one) for one in partitions]


def parse_limit(text: str) -> int | None:
    """Minutes of a time limit: ``days-hours:minutes:seconds``, any of them from the left left out; ``infinite`` is None."""
    matched = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if matched is None:
        return None
    days, hours, minutes, seconds = (int(value or 0) for value in matched.groups())
    return days * 1440 + hours * 60 + minutes + (seconds > 0)


def _read_config(found: Findings, text: str | None) -> None:
    if text is None:
        found.missing.append("scontrol show config: no answer; whether there is accounting is not known, so squeue is asked")
        return
    settings = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", text, flags=re.MULTILINE))
    found.accounting = settings.get("AccountingStorageType", "").endswith("slurmdbd")
    age = re.match(r"\d+", settings.get("MinJobAge", ""))
    found.min_job_age = int(age[0]) if age else None
    found.account_needed = "associations" in settings.get("AccountingStorageEnforce", "")
    if not found.accounting and (found.min_job_age or 0) < SAFE_AGE:
        found.missing.append(
            f"a sure way to see that jobs ended: there is no slurmdbd, and squeue forgets them after {found.min_job_age} s "
            f"(MinJobAge); ask for {SAFE_AGE} or more"
        )


def _read_accounts(found: Findings, asking: Ask) -> None:
    text = asking(("sacctmgr", "-n", "-P", "show", "assoc", f"user={user_name()}", f"format={LIMITS}"))
    rows = [[part.strip() for part in line.split("|")] for line in (text or "").splitlines()]
    found.accounts = list(dict.fromkeys(row[0] for row in rows if row[0]))
    if not found.accounts and found.accounting is not False:
        found.missing.append("account: sacctmgr lists none of yours; give one with --account if the site charges jobs to one")
    for account, *numbers in rows:
        if len(numbers) != 5:
            continue
        if limit := _smallest(numbers[1:3]):
            found.submit_limits[account] = min(limit, found.submit_limits.get(account, limit))
        given = [name for name in numbers[4].split(",") if name]
        found.qos[account] = numbers[3] or (given[0] if len(given) == 1 else "normal")
    if not found.accounts:
        return
    for line in (
        asking(("sacctmgr", "-n", "-P", "show", "qos", "format=name,maxsubmitpu,maxsubmitpa,grpsubmit")) or ""
    ).splitlines():
        name, *numbers = (part.strip() for part in line.split("|"))
        if len(numbers) == 3 and (limit := _smallest(numbers)):
            found.qos_limits[name] = limit


def _smallest(numbers: Sequence[str]) -> int | None:
    return min((int(number) for number in numbers if number.isdigit()), default=None)
