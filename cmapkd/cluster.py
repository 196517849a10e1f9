"""What trainings and evaluations ask a cluster for: nodes, tasks and GPUs, from the experiment's ranks and the site's facts.

The experiment says how many ranks a training has; how many of them fit on a node, and how a GPU is asked for, the site's
profile says (``default-resources`` of ``workflow/profiles/slurm``). Without a profile a training stays on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
        gpu_request: how a job asks for ``{n}`` GPUs on each of its nodes: ``gres=gpu:{n}`` or an option of sbatch such as
            ``--gpus-per-node={n}``; empty where there are none.
    """

    ranks_per_node: int = 0
    gpu_request: str = ""

    @classmethod
    def read(cls, resources: Mapping[str, Any] | None) -> Site:
        """From Snakemake's default resources (whose texts are expressions that have not been evaluated).

        Raises:
            UserError: a number of ranks that is none, or a request that neither names a ``gres`` nor is an option.
        """
        given = {name: _text((resources or {}).get(name)) for name in (RANKS_PER_NODE, GPU_REQUEST)}
        ranks = given[RANKS_PER_NODE] or "0"
        if not ranks.isdigit():
            raise UserError(
                key=f"default-resources: {RANKS_PER_NODE}", value=ranks, reason="is no number", fix="give the GPUs of a node"
            )
        request = given[GPU_REQUEST]
        if request and not (request.startswith(("gres=", "--")) and "{n}" in request):
            raise UserError(
                key=f"default-resources: {GPU_REQUEST}",
                value=request,
                reason="is no way to ask for {n} GPUs on a node",
                fix="use 'gres=gpu:{n}', '--gpus-per-node={n}', or leave it out where there are no GPUs",
            )
        return cls(int(ranks), request)


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


def gpu_resources(site: Site, count: int) -> dict[str, Any]:
    """Resources of a job with ``count`` GPUs on each of its nodes; none where the site has no GPUs."""
    if not site.gpu_request:
        return {}
    request = site.gpu_request.replace("{n}", str(count))
    if request.startswith("gres="):
        # Without `tasks_per_gpu=0` the executor would bind as many tasks to each GPU as the job has.
        return {"gres": request.removeprefix("gres="), "tasks_per_gpu": 0}
    return {"slurm_extra": request}


def training_resources(of: Layout, site: Site, exclusion: Callable[[int], str] | None = None) -> dict[str, Any]:
    """Resources of a training: one task on each node, where `torchrun` starts that node's ranks.

    With several nodes the job is one of `mpi`: only then does the executor leave the whole allocation to the command, which
    starts its tasks with `srun` (``cmapkd.launch``).

    Args:
        exclusion: option of sbatch for the n-th attempt that keeps away from nodes (``cmapkd.jobs.exclusion``).
    """
    resources = gpu_resources(site, of.ranks_per_node)
    options = [resources["slurm_extra"]] if "slurm_extra" in resources else []
    if of.nodes > 1:  # one task is on one node; said for each job, a group of jobs would ask for the sum of nodes
        resources |= {"nodes": of.nodes, "mpi": "srun", "tasks": of.nodes, "tasks_per_gpu": 0}
        options.append("--ntasks-per-node=1")
    options.append(SIGNAL)

    def extra(wildcards: Any, attempt: int) -> str:
        kept_away = exclusion(attempt) if exclusion is not None else ""
        return " ".join([*options, kept_away] if kept_away else options)

    return {**resources, "slurm_extra": extra}


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
