"""What is checked where the workflow starts: that SLURM has the partitions and accounts that the profile names."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmapkd import site
from cmapkd.errors import UserError, nearest

PARTITION, ACCOUNT, RUNTIME = "slurm_partition", "slurm_account", "runtime"
_CLUSTERS = ("cluster", "clusters", "slurm_cluster")
# All partitions, hidden ones too; a partition may be on several lines.
_PARTITIONS = ("sinfo", "-h", "-a", "-o", "%P|%l")


def check_site(settings: Any, repository: Path, main: bool = True, asking: site.Ask = site.ask) -> None:
    """Check the profile against SLURM before anything is submitted, and note on stderr what is doubtful.

    Where SLURM does not answer (a dry run elsewhere), or for another cluster of several, nothing is checked.

    Args:
        settings: Snakemake's resource settings.
        main: whether this Snakemake is not one that runs a single job of another.

    Raises:
        UserError: a partition or an account that SLURM does not have.
    """
    if not main:
        return
    folder = repository / site.FOLDER
    if site.in_use(folder) and (note := site.outdated(folder)):
        sys.stderr.write(f"Note: {note}.\n")
    names = [(*one, name) for one in _entries(settings) if one[1] in (PARTITION, ACCOUNT) for name in _names(one[3])]
    if not names or any(name in _CLUSTERS for _, name, _, _ in _entries(settings)):
        return
    answer = asking(_PARTITIONS)
    if answer is None:
        return
    limits = {
        name.strip().rstrip("*"): site.parse_limit(limit) for name, _, limit in (x.partition("|") for x in answer.splitlines())
    }
    wanted = [(key, name) for key, kind, _, _, name in names if kind == PARTITION]
    _refuse_unknown(wanted, [name for name in limits if name], "is not a partition of this SLURM")
    if wanted_accounts := [(key, name.lower()) for key, kind, _, _, name in names if kind == ACCOUNT]:
        accounts = asking(("sacctmgr", "-n", "-P", "show", "assoc", f"user={site.user_name()}", "format=account"))
        known = list(dict.fromkeys(line.partition("|")[0].strip().lower() for line in (accounts or "").splitlines()))
        _refuse_unknown(wanted_accounts, [name for name in known if name], "is not an account of yours (sacctmgr show assoc)")
    for note in _too_long(settings, limits):
        sys.stderr.write(f"Note: {note}.\n")


def _refuse_unknown(wanted: list[tuple[str, str]], known: list[str], reason: str) -> None:
    for key, name in wanted:
        if known and name not in known:
            fix = f"{nearest(name, known)}; `cmapkd site` writes the facts of this site"
            raise UserError(key=key, value=name, reason=reason, fix=fix)


def _too_long(settings: Any, limits: dict[str, int | None]) -> Iterator[str]:
    """Notes on rules whose first attempt asks for more time than their partition gives: SLURM refuses it or never starts it."""
    defaults = settings.default_resources or {}
    for rule, given in {"": {}, **(settings.overwrite_resources or {})}.items():
        own = {name: given[name] if name in given else defaults.get(name) for name in (PARTITION, RUNTIME)}
        minutes, allowed = _minutes(own[RUNTIME]), [limits.get(name) for name in _names(_text(own[PARTITION]))]
        if minutes is None or not allowed or None in allowed:
            continue
        longest = max(limit for limit in allowed if limit is not None)
        if minutes > longest and (not rule or {PARTITION, RUNTIME} & set(given)):
            key = f"set-resources: {rule}: {RUNTIME}" if rule else f"default-resources: {RUNTIME}"
            yield (
                f"{key} is {minutes} minutes, and partition {_text(own[PARTITION])} ends jobs after {longest}: "
                "lower it, or such a job will wait for ever (`cmapkd site` writes the limit)"
            )


def _entries(settings: Any) -> Iterator[tuple[str, str, Any, str]]:
    """Key for people, name, value and text of all resources that the profile and the command line give."""
    for name in settings.default_resources or {}:
        entry = settings.default_resources[name]
        yield f"default-resources: {name}", name, entry, _text(entry)
    for rule, given in (settings.overwrite_resources or {}).items():
        for name in given:
            yield f"set-resources: {rule}: {name}", name, given[name], _text(given[name])


def _names(text: str) -> list[str]:
    """Names in a list with commas; none where the text is an expression."""
    return text.split(",") if re.fullmatch(r"[\w.+-]+(,[\w.+-]+)*", text) else []


def _minutes(entry: Any) -> int | None:
    """Minutes at the first attempt; None where that depends on more than the attempt."""
    try:
        if hasattr(entry, "evaluate"):
            entry = entry.evaluate(None, attempt=1, threads=1, input=[], rulename="", async_run=asyncio.run).value
        return int(entry)
    except Exception:  # an expression of the user's, which Snakemake evaluates for each job
        return None


def _text(entry: Any) -> str:
    raw = getattr(entry, "raw", entry)
    return str(raw if raw is not None else "").strip("'\" ")
