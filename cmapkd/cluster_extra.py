"""A user's own options of sbatch (``slurm_extra``), joined with those that trainings and evaluations need.

Snakemake puts the value of ``set-resources`` in the place of a rule's own: a training with ``slurm_extra: --exclusive`` would
lose its GPUs, its signal before the time limit and the nodes it keeps away from. So the user's value is taken out of
Snakemake's settings where the rules are made, and joined with the rule's own for each job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmapkd.errors import UserError

EXTRA = "slurm_extra"
TRAININGS = ("teacher", "train")
RULES = (*TRAININGS, "evaluate")  # whose own options would be replaced
_EXCLUDED = re.compile(r"(?:--exclude[=\s]\s*|(?<!\S)-x\s*)(\S+)")
_GPUS = re.compile(r"(?<!\S)(--gpus-per-(?:node|task|socket)|-G)(?![\w-])")
# What the product sets itself, by the reason.
_OWN = (
    (re.compile(r"(?<!\S)(--signal)(?![\w-])"), "is set for trainings, which stop with a checkpoint before their time limit"),
    (re.compile(r"(?<!\S)(--ntasks-per-node)(?![\w-])"), "follows from training.ranks and ranks_per_node"),
)
# Keys of the profile for what the executor does not accept among the options.
_KEYS = {
    "account": "slurm_account",
    "partition": "slurm_partition",
    "memory": "mem_mb",
    "memory per CPU": "mem_mb_per_cpu",
    "runtime/time limit": "runtime",
    "node constraints": "constraint",
    "quality of service": "qos",
    "cluster specification": "clusters",
    "number of nodes": "nodes",
    "number of tasks": "tasks",
}


@dataclass(frozen=True)
class Extra:
    """The user's options of sbatch: of each rule, and of all that have none of their own."""

    rules: Mapping[str, Any] = field(default_factory=dict)
    default: Any = None

    def __bool__(self) -> bool:
        return bool(self.rules) or self.default is not None

    def of(self, rule: str, wildcards: Any, **given: Any) -> str:
        """The user's options for a job, evaluated as Snakemake does."""
        entry = self.rules.get(rule, self.default)
        if hasattr(entry, "evaluate"):
            entry = entry.evaluate(wildcards, **given).value
        return str(entry).strip() if entry is not None else ""


def take_extra(settings: Any, gpus: bool) -> Extra:
    """Take the user's options for the rules that have own ones out of Snakemake's settings, which would replace these.

    Args:
        settings: Snakemake's resource settings, changed here. Jobs get what is left in them, and need no more.
        gpus: whether the site's ``gpu_request`` asks for GPUs.

    Raises:
        UserError: an option that the executor refuses when it submits a job, or that is not the user's to set.
    """
    for key, rule, text in _texts(settings):
        refuse_options(key, text)
        _refuse_own(key, text, rule, gpus)
    overwritten = settings.overwrite_resources or {}
    taken = {rule: overwritten[rule][EXTRA] for rule in RULES if EXTRA in overwritten.get(rule, {})}
    if taken:
        settings.overwrite_resources = {
            rule: type(given)({name: value for name, value in given.items() if name != EXTRA}) if rule in taken else given
            for rule, given in overwritten.items()
            if rule not in taken or len(given) > 1  # an option without values would be no command line for a job
        }
        settings.__dict__.pop("_parsed_overwrite_resources", None)  # a cached property
    defaults = settings.default_resources or {}
    return Extra(taken, defaults.get(EXTRA))


def join(*options: str) -> str:
    """Options of sbatch in one line, those that exclude nodes as one, of which sbatch would take the last alone."""
    excluded = [nodes.strip("'\"") for text in options for nodes in _EXCLUDED.findall(text)]
    if len(excluded) > 1:
        options = (*(_EXCLUDED.sub("", text) for text in options), f"--exclude={','.join(excluded)}")
    return " ".join(" ".join(options).split())


def refuse_options(key: str, text: str) -> None:
    """Refuse what the executor would refuse hours later, when a job is submitted.

    Raises:
        UserError: an option of sbatch that the executor sets itself.
    """
    from snakemake_executor_plugin_slurm.validation import get_forbidden_slurm_options

    for pattern, what in get_forbidden_slurm_options().items():
        if not re.search(pattern, f"{text} "):
            continue
        if what in ("generic resources (GRES)", "GPU allocation"):
            fix = "ask for GPUs by the key gpu_request: 'gres=gpu:{n}' or '--gpus-per-node={n}'"
        elif what in _KEYS:
            fix = f"use the key {_KEYS[what]} of set-resources or default-resources"
        else:
            fix = "leave it out"
        raise UserError(key=key, value=text, reason=f"holds an option that the SLURM executor sets itself ({what})", fix=fix)


def _texts(settings: Any) -> Iterator[tuple[str, str, str]]:
    """Key, rule and text of each ``slurm_extra`` in the settings."""
    for rule, given in (settings.overwrite_resources or {}).items():
        if EXTRA in given:
            yield f"set-resources: {rule}: {EXTRA}", rule, _raw(given[EXTRA])
    if EXTRA in (settings.default_resources or {}):
        yield f"default-resources: {EXTRA}", "", _raw(settings.default_resources[EXTRA])


def _refuse_own(key: str, text: str, rule: str, gpus: bool) -> None:
    found = [(pattern.search(text), reason) for pattern, reason in _OWN] if rule in ("", *TRAININGS) else []
    if gpus and rule in ("", *RULES):
        found.append((_GPUS.search(text), "asks for GPUs, as the key gpu_request does already"))
    for matched, reason in found:
        if matched:
            fix = "change gpu_request instead" if "gpu_request" in reason else f"leave {matched[1]} out"
            raise UserError(key=key, value=text, reason=f"{matched[1]} {reason}", fix=fix)


def _raw(entry: Any) -> str:
    raw = getattr(entry, "raw", entry)
    return str(raw if raw is not None else "").strip("'\" ")
