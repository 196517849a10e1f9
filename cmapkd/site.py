"""`cmapkd site`: what a SLURM site says of itself, and the site's part of the profile that follows from it.

Asked are `sinfo` (partitions, limits, GPUs), `scontrol show config` (accounting, how long finished jobs stay visible),
`sacctmgr` (accounts) and the container program. What a tool does not tell is said, and left for a person to fill in.
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmapkd.errors import UserError, nearest
from cmapkd.files import write_atomic
from cmapkd.site_text import Choice, site_part

PROFILE = Path("workflow/profiles/slurm/profile.v9+.yaml")
BEGIN, END = "# >>> site", "# <<< site"
SINFO = ("sinfo", "-h", "-o", "%P|%a|%l|%D|%c|%m|%G")
CONFIG = ("scontrol", "show", "config")
# Snakemake's executor asks every 180 seconds at least, and needs to see a job once after its end.
SAFE_AGE = 300

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


@dataclass
class Findings:
    """What could be found out, and what could not."""

    partitions: list[Partition] = field(default_factory=list)
    accounting: bool | None = None
    min_job_age: int | None = None
    accounts: list[str] = field(default_factory=list)
    account_needed: bool = False
    container: str = ""
    missing: list[str] = field(default_factory=list)


def ask(command: Sequence[str]) -> str | None:
    """Standard output of a program; None if it is not there, fails or does not answer within 30 seconds."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
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
    for program in ("apptainer", "singularity"):
        version = asking((program, "--version"))
        if version:
            found.container = version.strip()
            break
    else:
        found.missing.append(
            "apptainer: neither it nor singularity is on this machine; nodes may still have it (`module avail`), "
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
    return int(text.rstrip("+") or 0)


def parse_gres(text: str) -> tuple[int, str]:
    """Number and type of GPUs: ``gpu:a100:4(S:0-1),nvme:1`` is (4, "a100"); of several types, the one with most."""
    types: dict[str, int] = {}
    for one in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = one.strip().split(":")
        if name == "gpu":
            count = int(rest[-1]) if rest and rest[-1].isdigit() else 1
            kind = rest[0] if rest and not rest[0].isdigit() else ""
            types[kind] = types.get(kind, 0) + count
    if not types:
        return 0, ""
    kind = max(types, key=lambda name: types[name])
    return types[kind], kind


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
    text = asking(("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=account"))
    found.accounts = list(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))
    if not found.accounts and found.accounting is not False:
        found.missing.append("account: sacctmgr tells of none; give one with --account if the site charges jobs to one")


def choose(found: Findings, account: str = "", partition: str = "", gpu_partition: str = "") -> Choice:
    """The site's part from what was found; what is given is taken, if the site has it.

    Raises:
        UserError: a partition or account that the site does not have.
    """
    names = list(dict.fromkeys(one.name for one in found.partitions))
    for key, value, known in (
        ("--partition", partition, names),
        ("--gpu-partition", gpu_partition, names),
        ("--account", account, found.accounts),
    ):
        if value and known and value not in known:
            raise UserError(key=key, value=value, reason="is not one of this site's", fix=nearest(value, known))
    usable = [one for one in found.partitions if one.up]
    gpu = _largest([one for one in usable if one.gpus and gpu_partition in ("", one.name)])
    if gpu is None and gpu_partition:
        found.missing.append(f"GPUs: the nodes of {gpu_partition} have none")
    elif gpu is None:
        found.missing.append("GPUs: no partition has any (sinfo, column GRES), so trainings ask for none")
    cpu = _largest([one for one in usable if partition == one.name]) or _largest(
        [one for one in usable if not one.gpus and one.default]
    )
    cpu = cpu or _largest([one for one in usable if not one.gpus]) or _largest(usable)
    if found.account_needed and not account and len(found.accounts) > 1:
        found.missing.append(f"which account: you have {', '.join(found.accounts)}, the first is taken; --account says another")
    training = gpu or cpu
    request = ""
    if gpu is not None:
        kinds = {one.gpu_type for one in usable if one.gpus and one.name == gpu.name}
        request = f"gres=gpu:{gpu.gpu_type}:{{n}}" if len(kinds) > 1 and gpu.gpu_type else "gres=gpu:{n}"
    return Choice(
        status="sacct" if found.accounting else "squeue",
        seconds=max(5, min(30, (found.min_job_age or SAFE_AGE) // 3)),
        account=account or next(iter(found.accounts), ""),
        partition=cpu.name if cpu else "",
        gpu_partition=training.name if training else "",
        ranks_per_node=gpu.gpus if gpu else 0,
        gpu_request=request,
        minutes=cpu.minutes if cpu else None,
        memory_mb=cpu.memory_mb if cpu else None,
        cpus=cpu.cpus if cpu else None,
        training_minutes=training.minutes if training else None,
        training_memory_mb=training.memory_mb if training else None,
        training_cpus=training.cpus if training else None,
    )


def _largest(partitions: Sequence[Partition]) -> Partition | None:
    """Most GPUs, or most cores; of equals the site's default, then the longest limit, then the first name."""
    return max(
        partitions,
        key=lambda one: (one.nodes * (one.gpus or one.cpus), one.default, one.minutes or 10**9, [-ord(c) for c in one.name]),
        default=None,
    )


def tell(found: Findings, choice: Choice) -> str:
    """What was found and what was not, for people."""
    lines = ["Found:"]
    for one in found.partitions:
        limit = "no time limit" if one.minutes is None else f"{one.minutes} min"
        gpus = f", {one.gpus} GPU{'s' if one.gpus > 1 else ''} {one.gpu_type}".rstrip() if one.gpus else ""
        marks = "".join([" (default)" if one.default else "", "" if one.up else " (not up)"])
        size = f"{one.nodes} nodes of {one.cpus} cores, {one.memory_mb} MB{gpus}"
        lines.append(f"  partition {one.name}{marks}: {size}; {limit}")
    lines.append(f"  jobs' states from {choice.status}" + (f", accounts {', '.join(found.accounts)}" if found.accounts else ""))
    lines += [f"  {found.container}"] if found.container else []
    lines += ["Not found:", *(f"  {text}" for text in found.missing)] if found.missing else ["Nothing is missing."]
    return "\n".join(lines)


def write(choice: Choice, profile: Path = PROFILE) -> None:
    """Put the site's part between its marks in the profile; the rest of it stays.

    Raises:
        UserError: no such profile, or none with the marks.
    """
    if not profile.is_file():
        raise UserError(
            key="profile", value=str(profile), reason="does not exist", fix="run it from the root of the repository"
        )
    text = profile.read_text()
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end:
        raise UserError(
            key="profile", value=str(profile), reason=f"has no part between {BEGIN!r} and {END!r}", fix="put the marks back"
        )
    write_atomic(profile, f"{before}{begin}{site_part(choice)}{end}{after}")
