"""What trainings and evaluations ask a cluster for: nodes, tasks and GPUs, from the experiment's ranks and the site's facts.

The experiment says how many ranks a training has; how many of them fit on a node, and how a GPU is asked for, the site's
profile says (``default-resources`` of ``workflow/profiles/slurm``). Without a profile a training stays on one machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cmapkd.cluster_extra import EXTRA, Extra, join, refuse_options
from cmapkd.errors import UserError

RANKS_PER_NODE = "ranks_per_node"
GPU_REQUEST = "gpu_request"
# A training stops by itself before its limit (`cmapkd.jobs`). Where that limit is not known, SLURM's signal has it stop: it is
# sent to the job's steps two to three minutes before the end.
SIGNAL = "--signal=USR1@120"


@dataclass(frozen=True)
class Site:
    """Facts of a cluster that rules need.

    Args:
        ranks_per_node: ranks of one training on one node, as many as it has GPUs; 0: all, whatever their number.
        gpu_request: how a job asks for ``{n}`` GPUs on each of its nodes: ``gres=gpu:{n}`` (``--gres=gpu:{n}`` is the same) or
            an option of sbatch such as ``--gpus-per-node={n}``; empty where there are none.
    """

    ranks_per_node: int = 0
    gpu_request: str = ""

    @classmethod
    def read(cls, resources: Mapping[str, Any] | None) -> Site:
        """From Snakemake's default resources (whose texts are expressions that have not been evaluated).

        Raises:
            UserError: a number of ranks that is not a number, or a request that the executor would refuse at submission.
        """
        given = {name: _text((resources or {}).get(name)) for name in (RANKS_PER_NODE, GPU_REQUEST)}
        ranks = given[RANKS_PER_NODE] or "0"
        if not ranks.isdigit():
            raise UserError(
                key=f"default-resources: {RANKS_PER_NODE}", value=ranks, reason="is no number", fix="give the GPUs of a node"
            )
        return cls(int(ranks), _checked_request(given[GPU_REQUEST]))


# What the executor accepts as `gres` (`set_gres_string` of snakemake-executor-plugin-slurm 2.8.0).
_GRES = re.compile(r"[a-zA-Z0-9_]+(:[a-zA-Z0-9_.]+)?(:\d+[TGM]?)?")


def _checked_request(text: str) -> str:
    """A request for GPUs in the form that this module uses.

    Raises:
        UserError: it is none, or the executor would refuse it.
    """
    key = f"default-resources: {GPU_REQUEST}"
    request = re.sub(r"^--gres[=\s]\s*", "gres=", text)
    if not request:
        return ""
    usual = "use 'gres=gpu:{n}', '--gpus-per-node={n}', or leave it out where there are no GPUs"
    if not request.startswith(("gres=", "--", "-G")):
        raise UserError(key=key, value=text, reason="is no way to ask for {n} GPUs on a node", fix=usual)
    # `-G` is `--gpus`, in a form that the executor lets pass: of the job, not of each node.
    if total := re.match(r"(?:--gpus|-G)(?:[=\s]\s*|(?=[\w{]))(.*)", request):
        fix = f"use '--gpus-per-node={_with_number(total[1])}'"
        raise UserError(key=key, value=text, reason="counts the GPUs of a job, and is refused by the SLURM executor", fix=fix)
    if "{n}" not in request:
        name, equals, amount = request.partition("=")
        fix = f"write '{name}={_with_number(amount)}'" if equals else usual
        raise UserError(key=key, value=text, reason="has no {n}, the number of GPUs on a node", fix=fix)
    if request.startswith("gres="):
        amount = request.removeprefix("gres=")
        if not _GRES.fullmatch(amount.replace("{n}", "1")):
            kind = amount.removeprefix("gpu:") if amount.startswith("gpu:") else "{n}"
            fix = f"use '--gpus-per-node={kind if re.fullmatch(r'[^,:]+:{n}', kind) else '{n}'}'"
            raise UserError(key=key, value=text, reason="is refused as `gres` by the SLURM executor", fix=fix)
    else:
        refuse_options(key, request)
    return request


def _with_number(amount: str) -> str:
    """An amount such as ``gpu:a100:4`` with ``{n}`` for its number."""
    kind = re.sub(r":?(\d+|\{n\})?$", "", amount)
    return f"{kind}:{{n}}" if kind else "{n}"


@dataclass(frozen=True)
class Layout:
    """How a training's ranks lie on nodes, as many on each."""

    nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def layout(ranks: int, ranks_per_node: int) -> Layout:
    """The fewest nodes that hold ``ranks``, with ``ranks_per_node`` on each; 0 puts all of them on one.

    Raises:
        UserError: they do not fill their nodes evenly.
    """
    if not ranks_per_node or ranks <= ranks_per_node:
        return Layout(1, ranks)
    if ranks % ranks_per_node:
        raise UserError(
            key="training.ranks",
            value=ranks,
            reason=f"does not fill nodes of {ranks_per_node} ranks",
            fix=f"use a multiple of {ranks_per_node}, or at most {ranks_per_node}",
        )
    return Layout(ranks // ranks_per_node, ranks_per_node)


def gpu_resources(site: Site, count: int, extra: Extra | None = None) -> dict[str, Any]:
    """Resources of a job with ``count`` GPUs on each of its nodes, without them where the site has none.

    Args:
        extra: the user's own options of sbatch, which are added.
    """
    resources = _gpus(site, count)
    if not extra:
        return resources
    return {**resources, EXTRA: _joined([resources[EXTRA]] if EXTRA in resources else [], extra)}


def _gpus(site: Site, count: int) -> dict[str, Any]:
    if not site.gpu_request:
        return {}
    request = site.gpu_request.replace("{n}", str(count))
    if request.startswith("gres="):
        # Without `tasks_per_gpu=0` the executor would bind as many tasks to each GPU as the job has.
        return {"gres": request.removeprefix("gres="), "tasks_per_gpu": 0}
    return {EXTRA: request}


def training_resources(
    of: Layout, site: Site, exclusion: Callable[[int], str] | None = None, extra: Extra | None = None
) -> dict[str, Any]:
    """Resources of a training: one task on each node, where `torchrun` starts that node's ranks.

    With several nodes the job is one of `mpi`: only then does the executor leave the whole allocation to the command, which
    starts its tasks with `srun` (``cmapkd.launch``).

    Args:
        exclusion: option of sbatch for the n-th attempt that keeps away from nodes (``cmapkd.jobs.exclusion``).
        extra: the user's own options of sbatch, which are added.
    """
    resources = _gpus(site, of.ranks_per_node)
    options = [resources[EXTRA]] if EXTRA in resources else []
    if of.nodes > 1:  # one task is on one node; said for each job, a group of jobs would ask for the sum of nodes
        resources |= {"nodes": of.nodes, "mpi": "srun", "tasks": of.nodes, "tasks_per_gpu": 0}
        options.append("--ntasks-per-node=1")
    return {**resources, EXTRA: _joined([*options, SIGNAL], extra or Extra(), exclusion)}


def _joined(options: list[str], extra: Extra, exclusion: Callable[[int], str] | None = None) -> Callable[..., str]:
    """The options of sbatch of a job: the rule's own, the user's, and of nodes to keep away from at this attempt."""

    # By its names Snakemake hands over everything that a resource may depend on.
    def options_of_job(wildcards: Any, attempt: int, rulename: str = "", **given: Any) -> str:
        own = extra.of(rulename, wildcards, attempt=attempt, rulename=rulename, **given)
        return join(*options, own, exclusion(attempt) if exclusion is not None else "")

    return options_of_job


def partition_of(rule: str, settings: Any) -> str:
    """The partition that a rule's jobs go to by Snakemake's resource settings; empty: the site's default."""
    for given in ((settings.overwrite_resources or {}).get(rule), settings.default_resources):
        if name := _text((given or {}).get("slurm_partition")):
            return name
    return ""


def _text(entry: Any) -> str:
    raw = getattr(entry, "raw", entry)
    raw = getattr(entry, "value", None) if raw is None else raw
    return "" if raw is None else str(raw).strip("'\" ")
