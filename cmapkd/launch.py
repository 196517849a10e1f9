"""How a training with several ranks starts: on one machine, or on each node of a SLURM job.

One node: ``torchrun --standalone`` at 127.0.0.1, so that no name need resolve. Several: the first call, in the job's
allocation, starts itself once on each node with ``srun``; there it finds its node's place in the variables of the step and
starts ``torchrun``, which meets the others at the first node. Inside of that, a container if there is one: `srun` and
`scontrol` exist only outside.

Environment:
    CMAPKD_RANKS_PER_NODE: ranks on one node (the site's profile); unset or 0: all.
    CMAPKD_CONTAINER: command that runs another one in the container, with its options; unset: none.
    CMAPKD_RENDEZVOUS: name or address of the first node, where its name in SLURM is none.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from cmapkd.cluster import Layout, layout
from cmapkd.errors import UserError
from cmapkd.image import pass_on
from cmapkd.jobs import FORWARDED, NODE
from cmapkd.training.launch import ON_ONE_NODE

# Of the ports below those that Linux gives out by itself (32768 and up), so that no other connection holds it.
# Signals reach the ranks, which stop with a checkpoint; it has ten minutes before they are killed.
TORCHRUN = ("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout=600")
_FIRST_PORT, _PORTS = 20_000, 12_000


def launch_command(
    ranks: int,
    threads: int,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    address_of: Callable[[str], str] | None = None,
) -> list[str]:
    """The command that replaces this process.

    Args:
        ranks: of the training.
        threads: CPUs of a node that it may use; 0: as many as there are.
        arguments: of ``python -m cmapkd``, the same for each rank.
        environment: of this process.
        address_of: from a node's name in SLURM to an address; by default ``node_address``.

    Raises:
        UserError: ranks that do not fill nodes, or several nodes outside of a SLURM job.
    """
    where = layout(ranks, int(environment.get("CMAPKD_RANKS_PER_NODE") or 0))
    program = [sys.executable, "-m"]
    torchrun = [*program, "torch.distributed.run", f"--nproc-per-node={where.ranks_per_node}", *TORCHRUN]
    if where.nodes == 1:
        return [*torchrun, *ON_ONE_NODE, "-m", "cmapkd", *arguments]
    if "SLURM_JOB_ID" not in environment:
        raise UserError(
            key="training.ranks",
            value=ranks,
            reason=f"needs {where.nodes} nodes of {where.ranks_per_node} ranks, and this is no SLURM job",
            fix="run it by `snakemake --profile slurm`, or unset CMAPKD_RANKS_PER_NODE",
        )
    if environment.get("SLURM_STEP_NUM_NODES") != str(where.nodes):
        return [*_srun(where, threads), *program, "cmapkd", *arguments]
    first = node_names(environment["SLURM_STEP_NODELIST"])[0]
    address = environment.get("CMAPKD_RENDEZVOUS") or (address_of or node_address)(first)
    port = _FIRST_PORT + int(environment["SLURM_JOB_ID"]) % _PORTS
    container = shlex.split(environment.get("CMAPKD_CONTAINER", ""))
    if container:
        torchrun[0] = "python"  # the container's own
        # Only of the job's variables: a container may let none in. The node is this task's, not the one that started it.
        told = {**environment, NODE: environment.get("SLURMD_NODENAME", "")}
        if carried := [f"{name}={told[name]}" for name in FORWARDED if told.get(name)]:
            container += ["env", *carried]
    meeting = [f"--nnodes={where.nodes}", f"--node-rank={environment['SLURM_NODEID']}"]
    meeting += [f"--master-addr={address}", f"--master-port={port}"]
    return [*container, *torchrun, *meeting, "-m", "cmapkd", *arguments]


def launch(ranks: int, threads: int, arguments: Sequence[str]) -> None:
    """Become the command that starts the ranks, so that signals and the exit code are its own."""
    command = launch_command(ranks, threads, arguments, os.environ)
    if os.environ.get("CMAPKD_CONTAINER"):
        pass_on()  # this node's GPUs may be others than the first node's
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)  # noqa: S606 - an argument list of our own, no shell


def _srun(where: Layout, threads: int) -> list[str]:
    # All of it is said: the executor removes SLURM's variables, from which srun would take it. One lost node ends the others,
    # which would wait for it otherwise.
    options = [f"--nodes={where.nodes}", f"--ntasks={where.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    return ["srun", *options, *([f"--cpus-per-task={threads}"] if threads else [])]


def node_names(listed: str) -> list[str]:
    """The names in a node list of SLURM: ``gpu[01-03,7],login`` is gpu01, gpu02, gpu03, gpu7 and login.

    In containers there is no `scontrol show hostnames`.
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", listed):
        expanded = [""]
        for text, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
            choices = [text] if text else [number for span in ranges.split(",") for number in _numbers(span)]
            expanded = [head + choice for head in expanded for choice in choices]
        names += expanded
    return names


def _numbers(span: str) -> list[str]:
    first, _, last = span.partition("-")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]


def node_address(name: str) -> str:
    """An address of the node called ``name`` in SLURM, which need not be a name of the network."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        told = subprocess.run(["scontrol", "show", "node", name], capture_output=True, text=True, timeout=60).stdout
        found = re.search(r"\bNodeAddr=(\S+)", told)
        if found is None:
            raise UserError(
                key="CMAPKD_RENDEZVOUS",
                reason=f"the node {name} has no address: neither the network nor scontrol knows it",
                fix="set it to a name or address of the first node",
            ) from None
        return found[1]
    return name
