"""Ranks on nodes: how they are laid out, what a job asks for, and the command that starts them; no SLURM is needed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmapkd.cluster import Layout, Site, gpu_resources, layout, training_resources
from cmapkd.errors import UserError
from cmapkd.launch import launch_command, node_names
from cmapkd.workflow import launch_variables

ARGUMENTS = ["train", "fine-0123", "--threads", "8"]
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NODEID": "1",
    "CMAPKD_RANKS_PER_NODE": "4",
}


SIGNAL = "--signal=USR1@120"


def asked_by(of: Layout, site: Site) -> dict[str, object]:
    """Resources at the first attempt."""
    asked = training_resources(of, site)
    return {**asked, "slurm_extra": asked["slurm_extra"](None, 1)}


@given(st.integers(1, 64), st.integers(0, 16))
def test_ranks_fill_their_nodes_evenly_or_are_refused(ranks: int, per_node: int) -> None:
    if per_node and ranks > per_node and ranks % per_node:
        with pytest.raises(UserError, match="does not fill nodes"):
            layout(ranks, per_node)
        return
    made = layout(ranks, per_node)
    assert made.ranks == ranks
    assert not per_node or made.ranks_per_node <= per_node
    assert made.nodes == 1 or made.ranks_per_node == per_node


def test_one_node_asks_for_its_gpus_alone() -> None:
    site = Site(4, "gres=gpu:a100:{n}")
    assert asked_by(layout(2, 4), site) == {"gres": "gpu:a100:2", "tasks_per_gpu": 0, "slurm_extra": SIGNAL}
    assert asked_by(layout(2, 0), Site()) == {"slurm_extra": SIGNAL}


def test_several_nodes_are_one_mpi_job_with_a_task_on_each() -> None:
    asked = asked_by(layout(8, 4), Site(4, "gres=gpu:{n}"))
    assert asked == {
        "nodes": 2, "mpi": "srun", "tasks": 2, "tasks_per_gpu": 0, "gres": "gpu:4",
        "slurm_extra": f"--ntasks-per-node=1 {SIGNAL}",
    }  # fmt: skip
    other = asked_by(layout(8, 4), Site(4, "--gpus-per-node={n}"))
    assert other["slurm_extra"] == f"--gpus-per-node=4 --ntasks-per-node=1 {SIGNAL}"
    assert "gres" not in other


def test_facts_of_the_site_are_read_from_default_resources() -> None:
    """As Snakemake holds them: a number has a value, a text is an expression that was not evaluated."""
    held = {
        "ranks_per_node": SimpleNamespace(raw=None, value=4),
        "gpu_request": SimpleNamespace(raw="'gres=gpu:{n}'", value=None),
        "mem_mb": SimpleNamespace(raw="8000 * attempt", value=None),
    }
    assert Site.read(held) == Site(4, "gres=gpu:{n}")
    assert Site.read(None) == Site.read({}) == Site(0, "")


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"ranks_per_node": "four"}, "is no number"),
        ({"gpu_request": "gpu:4"}, "gpu_request"),
        ({"gpu_request": "gres=gpu:4"}, "{n}"),
    ],
)
def test_facts_that_make_no_sense_are_refused(facts: dict[str, str], word: str) -> None:
    with pytest.raises(UserError) as refused:
        Site.read(facts)
    assert word in str(refused.value)


def test_evaluation_asks_for_one_gpu_where_there_are_any() -> None:
    assert gpu_resources(Site(4, "gres=gpu:{n}"), 1)["gres"] == "gpu:1"
    assert gpu_resources(Site(4, ""), 1) == {}


def test_on_one_machine_torchrun_stands_alone() -> None:
    command = launch_command(4, 8, ARGUMENTS, {})
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--standalone", "--nproc-per-node=4"} <= set(command)
    assert command[-len(ARGUMENTS) - 2 :] == ["-m", "cmapkd", *ARGUMENTS]


def test_in_a_job_of_several_nodes_srun_starts_the_same_command_once_on_each() -> None:
    command = launch_command(8, 16, ARGUMENTS, {"SLURM_JOB_ID": "4711", "CMAPKD_RANKS_PER_NODE": "4"})
    assert command[0] == "srun"
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=16", "--kill-on-bad-exit=1"} <= set(command)
    assert command[-len(ARGUMENTS) - 3 :] == [sys.executable, "-m", "cmapkd", *ARGUMENTS][-len(ARGUMENTS) - 3 :]


def test_in_each_task_torchrun_meets_the_others_at_the_first_node() -> None:
    command = launch_command(8, 16, ARGUMENTS, STEP, address_of=lambda name: f"{name}.cluster")
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=gpu07.cluster"} <= set(command)
    port = next(int(part.partition("=")[2]) for part in command if part.startswith("--master-port"))
    assert 1024 < port < 32768
    other = launch_command(8, 16, ARGUMENTS, {**STEP, "SLURM_NODEID": "0"}, address_of=lambda name: f"{name}.cluster")
    assert [part for part in other if part not in command] == ["--node-rank=0"]


def test_the_container_is_inside_of_srun_and_has_its_own_python() -> None:
    container = "apptainer exec --nv --home '/a b' /images/cmapkd.sif"
    outside = launch_command(8, 0, ARGUMENTS, {**STEP, "SLURM_STEP_NUM_NODES": "", "CMAPKD_CONTAINER": container})
    assert outside[0] == "srun"
    assert "apptainer" not in outside
    inside = launch_command(8, 0, ARGUMENTS, {**STEP, "CMAPKD_CONTAINER": container, "CMAPKD_RENDEZVOUS": "10.0.0.7"})
    assert inside[:8] == ["apptainer", "exec", "--nv", "--home", "/a b", "/images/cmapkd.sif", "python", "-m"]
    assert "--master-addr=10.0.0.7" in inside


def test_several_nodes_without_a_job_are_refused() -> None:
    with pytest.raises(UserError, match="no SLURM job"):
        launch_command(8, 0, ARGUMENTS, {"CMAPKD_RANKS_PER_NODE": "4"})


@pytest.mark.parametrize(
    ("listed", "names"),
    [  # as `scontrol show hostnames` expands them
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("gpu[08-11]", ["gpu08", "gpu09", "gpu10", "gpu11"]),
        ("gpu[01-02,7],login", ["gpu01", "gpu02", "gpu7", "login"]),
        ("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"]),
        ("a[9-10]-ib", ["a9-ib", "a10-ib"]),
        ("node-a,node-b", ["node-a", "node-b"]),
    ],
)
def test_node_lists_are_expanded(listed: str, names: list[str]) -> None:
    assert node_names(listed) == names


def test_rules_are_told_of_the_site_only_where_a_training_leaves_one_node() -> None:
    deployed = SimpleNamespace(deployment_method=[SimpleNamespace(name="APPTAINER")], apptainer_args="--nv")
    assert launch_variables(Site(4, "gres=gpu:{n}"), Layout(1, 4), "image.sif", deployed) == ""
    text = launch_variables(Site(4, "gres=gpu:{n}"), Layout(2, 4), "image.sif", deployed)
    assert "export CMAPKD_RANKS_PER_NODE=4; " in text
    container = shlex.split(text)[-1].removeprefix("CMAPKD_CONTAINER=").removesuffix(";")
    words = shlex.split(container)
    assert words[1:3] == ["exec", "--home"]
    assert words[-2:] == ["--nv", str(Path("image.sif").resolve())]
    assert f"PYTHONPATH={Path(__file__).parents[2]}" in words, "`--cleanenv` takes away the one of outside"
    bare = SimpleNamespace(deployment_method=[], apptainer_args="--nv")
    assert "CMAPKD_CONTAINER" not in launch_variables(Site(4, "gres=gpu:{n}"), Layout(2, 4), "image.sif", bare)


@pytest.mark.parametrize(("name", "code"), [("TORCHELASTIC_RUN_ID", 0), ("ANOTHER", -6)])
def test_a_rank_whose_work_is_done_does_not_fail_when_its_interpreter_ends(name: str, code: int) -> None:
    program = "import atexit, os; atexit.register(os.abort); from cmapkd.training.launch import leave_rank; "
    program += "print('the last line', end=''); leave_rank()"
    environment = {**{key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}, name: "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert code or done.stdout == "the last line"
