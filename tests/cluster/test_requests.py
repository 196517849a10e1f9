"""What each rule asks SLURM for, from the profile and the experiment, by the executor's own builder: no SLURM is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..pipeline.conftest import Checkout
from .conftest import SUBMITTING, sbatch_lines

pytestmark = pytest.mark.cluster

LOCAL = {
    "all", "data_fetch", "contact_sheet", "collect", "table", "figure", "drawing", "algorithm", "document", "pdf", "manuscript",
    "run_page", "data_page", "log_pages",
}  # fmt: skip
# Options of sbatch by rule and attempt: memory and time grow with the attempt, GPUs and cores do not.
SMALL = {
    ("data_build", 1): "-t 720 --mem 8000 --ntasks=1 --cpus-per-task=1",
    ("data_build", 2): "-t 1440 --mem 16000 --ntasks=1 --cpus-per-task=1",
    ("teacher", 1): "-t 1440 --mem 64000 --cpus-per-task=32 --signal=USR1@120 --gres=gpu:1",
    ("teacher", 2): "-t 2880 --mem 128000 --cpus-per-task=32 --signal=USR1@120 --gres=gpu:1",
    ("train", 1): "-t 1440 --mem 64000 --cpus-per-task=32 --signal=USR1@120 --gres=gpu:1",
    ("train", 2): "-t 2880 --mem 128000 --cpus-per-task=32 --signal=USR1@120 --gres=gpu:1",
    ("evaluate", 1): "-t 240 --mem 32000 --cpus-per-task=8 --gres=gpu:1",
    ("evaluate", 2): "-t 480 --mem 64000 --cpus-per-task=8 --gres=gpu:1",
}
# 8 ranks on nodes of 4 GPUs: two nodes, one task on each, and no container around `srun`.
LARGE = "-t 1440 --mem 64000 --nodes=2 --ntasks=2 --cpus-per-task=32 --ntasks-per-node=1 --signal=USR1@120 --gres=gpu:4"


def requests(checkout: Checkout, *arguments: str) -> list[dict[str, Any]]:
    # A dry run knows one core of this machine unless it is told otherwise; a real one on a cluster knows no such limit.
    told = sbatch_lines(checkout, *SUBMITTING, "--cores", "999", *arguments).stdout
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    for line in lines:
        line["asks"] = line["sbatch"].partition("--comment comment ")[2].strip()
    return lines


def test_what_rules_ask_for(checkout: Checkout) -> None:
    jobs = requests(checkout)
    assert {job["rule"] for job in jobs if job["local"]} == LOCAL
    submitted = [job for job in jobs if not job["local"]]
    assert {(job["rule"], job["attempt"]) for job in submitted} == set(SMALL)
    for job in submitted:
        assert job["asks"] == SMALL[job["rule"], job["attempt"]], job
        assert job["mpi"] is None
        assert job["container"] == "containers/cmapkd.sif"


@pytest.fixture
def many_ranks(checkout: Checkout) -> Path:
    content = yaml.safe_load((checkout.root / "config/smoke.yaml").read_text())
    content["training"]["ranks"] = 8
    path = checkout.root / "config/eight.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_many_ranks_take_several_nodes(checkout: Checkout, many_ranks: Path) -> None:
    jobs = requests(checkout, "--configfile", str(many_ranks))
    trainings = [job for job in jobs if job["rule"] in ("teacher", "train") and job["attempt"] == 1]
    assert len(trainings) == 9
    for job in trainings:
        assert job["asks"] == LARGE
        assert job["mpi"] == "srun"
        assert job["container"] is None
    assert {job["asks"] for job in jobs if job["rule"] == "evaluate" and job["attempt"] == 1} == {SMALL["evaluate", 1]}


# What config/paper.yaml, which the profile names, asks for: 107 trainings of 8 ranks on two nodes of 4 GPUs, 49 evaluations.
PAPER = {
    "data_build": (6, SMALL["data_build", 1]),
    "data_overlap": (1, "-t 720 --mem 8000 --ntasks=1 --cpus-per-task=1"),
    "teacher": (2, LARGE),
    "train": (105, LARGE),
    "evaluate": (49, SMALL["evaluate", 1]),
}


def test_the_profile_runs_the_paper(checkout: Checkout) -> None:
    told = sbatch_lines(checkout, *SUBMITTING[:-2], "--cores", "999").stdout
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    jobs = [line for line in lines if line["attempt"] == 1 and not line["local"]]
    found: dict[str, set[str]] = {}
    for job in jobs:
        found.setdefault(job["rule"], set()).add(job["sbatch"].partition("--comment comment ")[2].strip())
        several = job["rule"] in ("teacher", "train")
        assert (job["mpi"], job["container"]) == (("srun", None) if several else (None, "containers/cmapkd.sif"))
    counts = {rule: sum(job["rule"] == rule for job in jobs) for rule in found}
    assert {rule: (counts[rule], *asked) for rule, asked in found.items()} == PAPER
    on_login = {line["rule"] for line in lines if line["local"]}
    assert on_login == LOCAL | {"pretrained", "teacher_gate"}
    assert {line["container"] for line in lines if line["rule"] == "pretrained"} == {"containers/cmapkd.sif"}


def test_ranks_that_do_not_fill_nodes_are_refused_before_anything_is_submitted(checkout: Checkout, many_ranks: Path) -> None:
    options = ["--default-resources", "ranks_per_node=3", "gpu_request=gres=gpu:{n}", "mem_mb=1000", "runtime=10"]
    done = checkout.run("snakemake", *SUBMITTING, "--configfile", str(many_ranks), "--dry-run", *options, check=False)
    told = done.stdout + done.stderr
    assert done.returncode
    assert "training.ranks = 8: does not fill nodes of 3 ranks" in told
    assert "Traceback" not in told


def test_without_a_profile_a_training_stays_on_this_machine(checkout: Checkout, many_ranks: Path) -> None:
    options = ["--profile", "workflow/profiles/local", "--cores", "16", "--configfile", str(many_ranks)]
    lines = [json.loads(line) for line in sbatch_lines(checkout, *options).stdout.splitlines() if line.startswith("{")]
    trainings = [line for line in lines if line["rule"] == "train"]
    assert trainings
    for line in trainings:
        assert "--cpus-per-task=8" in line["sbatch"], "one core for each rank"
        assert "--nodes" not in line["sbatch"]
        assert "gres" not in line["sbatch"]
