"""The smoke experiment by the literal `snakemake --profile slurm` on a real SLURM, and a training over two of its nodes."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import numpy as np
import pytest
import yaml

from cmapkd.config import load_experiment
from cmapkd.launch import node_names
from cmapkd.plan import make_plan
from tests.cluster.conftest import LAB, SMALL, THREADS, Run
from tests.cluster.slurm import Cluster
from tests.pipeline.conftest import FINISHED, Checkout

pytestmark = pytest.mark.cluster


def state(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()


def wait_for(cluster: Cluster, job: str, wanted: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while state(cluster, job) != wanted:
        assert time.monotonic() < end, f"job {job} is {state(cluster, job)}, not {wanted}\n{cluster.logs()}"
        time.sleep(0.2)


def test_the_site_is_found_out_and_written(prepared: Checkout) -> None:
    profile = yaml.safe_load((prepared.root / "slurm/profile.v9+.yaml").read_text())
    assert profile["slurm-status-command"] == "squeue", "this cluster has no slurmdbd"
    assert profile["default-resources"]["slurm_partition"] == "main"
    assert profile["default-resources"]["ranks_per_node"] == 2
    assert profile["default-resources"]["gpu_request"] == "gres=gpu:{n}"
    assert profile["set-resources"]["train"]["runtime"] == "min(1440 * attempt, 10080)"
    assert profile["set-resources"]["train"]["mem_mb"] == "min(64000 * attempt, 8000)"
    assert profile["set-threads"]["train"] == 2


def test_node_lists_expand_as_slurm_expands_them(cluster: Cluster) -> None:
    for listed in ("n[1-2]", "gpu[08-11,3],login", "r[1-2]n[01-03]", "node-a,b-[9-10]"):
        assert node_names(listed) == cluster.run("scontrol", "show", "hostnames", listed).split()


def test_a_job_is_requeued_for_one_of_a_higher_partition(cluster: Cluster) -> None:
    """The lab itself: without this, tests of preemption would test nothing."""
    script = cluster.root / "low.sh"
    script.write_text('#!/bin/sh\n[ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && exit 0\nsleep 300\n')
    options = ["--parsable", "--output=/dev/null", "--nodes=2", "--exclusive"]
    low = cluster.run("sbatch", *options, "--partition=low", "--requeue", str(script)).strip()
    wait_for(cluster, low, "RUNNING")
    high = cluster.run("sbatch", *options, "--partition=main", "--wrap=true").strip()
    wait_for(cluster, high, "COMPLETED")
    wait_for(cluster, low, "COMPLETED")


def test_the_experiment_runs_to_its_tables(run_on_slurm: Run) -> None:
    checkout = run_on_slurm.checkout
    for name in ("table1", "table2", "table3", "table4", "table5", "levels"):
        assert (checkout.home / f"paper/{name}.tex").is_file()
    assert (checkout.home / "paper/paper.tex").is_file()
    submitted = re.findall(r"has been submitted with SLURM jobid (\d+)", run_on_slurm.log.read_text())
    rules = {path.parent.parent.name for path in checkout.root.glob(".snakemake/slurm_logs/*/*/*.log")}
    assert {"rule_data_build", "rule_evaluate", "group_teacher_teacher"} <= {*rules, *_groups(checkout)}
    assert len(submitted) == len(set(submitted)), "a job was run twice"


def _groups(checkout: Checkout) -> set[str]:
    return {path.parent.name for path in checkout.root.glob(".snakemake/slurm_logs/group_*/*.log")}


def test_jobs_see_the_gpus_that_they_asked_for(cluster: Cluster, run_on_slurm: Run) -> None:
    jobs = [line.split("|") for line in cluster.run("squeue", "-h", "-t", "all", "-o", "%k|%b|%Z").splitlines()]
    of = {comment: gres for comment, gres, folder in jobs if folder == str(run_on_slurm.checkout.root)}  # not other tests' jobs
    assert len(of) > 3
    for comment, gres in of.items():
        wanted = "N/A" if comment.startswith("rule_data_build") else "gres:gpu:1"
        assert gres == wanted, comment


def test_numbers_are_those_of_a_local_run(run_on_slurm: Run) -> None:
    if not FINISHED:
        pytest.skip("no local run in this session: `pytest tests/pipeline tests/cluster` makes one")
    checkout = run_on_slurm.checkout
    compared = 0
    for path in sorted(FINISHED[0].glob("metrics/*/*.json")):
        there = numbers(json.loads(path.read_text())["metrics"])
        here = numbers(json.loads((checkout.home / path.relative_to(FINISHED[0])).read_text())["metrics"])
        assert here == there, path
        compared += len(here)
    assert compared > 500


def numbers(metrics: Any, name: str = "") -> dict[str, Any]:
    """All values by their path, but for how long something took and on what."""
    if isinstance(metrics, dict):
        return {key: value for part in metrics for key, value in numbers(metrics[part], f"{name}/{part}").items()}
    return {} if "latency" in name or name.endswith("/device") else {name: metrics}


def test_status_told_of_jobs_while_they_ran(run_on_slurm: Run) -> None:
    checkout, said = run_on_slurm.checkout, run_on_slurm.said
    assert any(re.search(r"running \S+/0: SLURM job \d+, running, [\d:]+, n[12]", text) for text in said), said
    assert any("after teacher-" in text for text in said)
    assert checkout.cmapkd("status").stdout.splitlines() == [
        "smoke: 9 trainings: 9 done", "5 of 5 runs measured", "the paper is written",
    ]  # fmt: skip


def test_a_training_over_two_nodes_is_that_of_one(run_on_slurm: Run) -> None:
    """Two ranks, one on each node: one mpi job, `srun`, `torchrun` and DeepSpeed between the nodes."""
    from safetensors.numpy import load_file

    checkout = run_on_slurm.checkout
    content = yaml.safe_load((checkout.root / "config/smoke.yaml").read_text())
    content["name"], content["training"]["ranks"] = "two", 2
    experiment = checkout.root / "config/two.yaml"
    experiment.write_text(yaml.safe_dump(content, sort_keys=False))
    plan = make_plan(load_experiment(experiment))
    address = next(stage.address for stage in plan.stages.values() if stage.label.startswith("Scratch"))
    home = checkout.root / "results/two"
    home.mkdir()
    (home / "data").symlink_to(checkout.home / "data")
    options = ["--default-resources", "ranks_per_node=1", "gpu_request=gres=gpu:{n}", "mem_mb=2000", "runtime=20"]
    options += ["--allowed-rules", "train", "--configfile", str(experiment)]
    checkout.run(
        "snakemake", f"results/two/stages/{address}/stage.json", *run_on_slurm.submitting, *LAB[:6], *SMALL, *THREADS, *options
    )
    stage = json.loads((home / "stages" / address / "stage.json").read_text())
    assert stage["summary"]["cut"]["ranks"] == 2
    assert (stage["provenance"]["image_digest"] is None) == (run_on_slurm.image is None)
    for name in ("model/open_clip_model.safetensors",):
        one, two = (load_file(base / "stages" / address / name) for base in (checkout.home, home))
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_allclose(two[key], one[key], atol=1e-4, err_msg=key)
