"""What each rule asks SLURM for, from the profile and the experiment, by the executor's own builder: no SLURM is needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import SUBMITTING, sbatch_lines
from tests.pipeline.conftest import Checkout

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


def edited(checkout: Checkout, tmp_path: Path, **changes: Any) -> list[str]:
    """Options of a run with a profile that a user has edited."""
    profile = yaml.safe_load((checkout.root / "slurm/profile.yaml").read_text())
    for key, value in changes.items():
        for name, entry in value.items():
            own = profile[key.replace("_", "-")]
            own[name] = {**own[name], **entry} if isinstance(entry, dict) else entry
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited/profile.yaml").write_text(yaml.safe_dump(profile))
    return ["--profile", str(tmp_path / "edited"), *SUBMITTING[2:]]


@pytest.mark.parametrize(("request_", "own"), [("--gpus-per-node={n}", "--gpus-per-node=1 "), ("gres=gpu:{n}", "")])
def test_options_of_the_user_are_joined_with_those_of_a_training(
    checkout: Checkout, tmp_path: Path, request_: str, own: str
) -> None:
    rules = {"train": {"slurm_extra": "'--exclusive'"}, "evaluate": {"slurm_extra": "'--exclusive'"}}
    options = edited(checkout, tmp_path, default_resources={"gpu_request": request_}, set_resources=rules)
    told = sbatch_lines(checkout, *options, "--cores", "999").stdout
    jobs = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    asked = {(job["rule"], job["attempt"]): job["sbatch"].partition("-cpus-per-task=")[2].partition(" ")[2] for job in jobs}
    gres = "" if own else " --gres=gpu:1"
    for attempt in (1, 2):
        assert asked["train", attempt] == f"{own}--signal=USR1@120 --exclusive{gres}"
        assert asked["teacher", attempt] == f"{own}--signal=USR1@120{gres}"
        assert asked["evaluate", attempt] == f"{own}--exclusive{gres}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"default_resources": {"gpu_request": "--gpus={n}"}}, "use '--gpus-per-node={n}'"),
        ({"set_resources": {"train": {"slurm_extra": "'--signal=TERM@60'"}}}, "set-resources: train: slurm_extra"),
        ({"set_resources": {"evaluate": {"slurm_extra": "'--gres=gpu:1'"}}}, "set-resources: evaluate: slurm_extra"),
    ],
)
def test_what_the_executor_would_refuse_is_refused_at_the_start(
    checkout: Checkout, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    done = checkout.run("snakemake", *edited(checkout, tmp_path, **changes), "--dry-run", check=False)
    told = done.stdout + done.stderr
    assert done.returncode
    assert words in told
    assert "Traceback" not in told


@pytest.fixture
def sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that answers as a site with one partition of four hours does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "sinfo"
    program.write_text("#!/bin/sh\ncase \"$*\" in *%P*%l) echo 'gpu*|4:00:00';; *) exit 1;; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_partition_that_is_gone_and_a_time_beyond_the_limit(checkout: Checkout, tmp_path: Path, sinfo: None) -> None:
    gone = edited(checkout, tmp_path, set_resources={"train": {"slurm_partition": "gpus"}})
    done = checkout.run("snakemake", *gone, "--dry-run", check=False)
    assert done.returncode
    assert "set-resources: train: slurm_partition = 'gpus': is not a partition of this SLURM" in done.stdout + done.stderr
    assert "did you mean 'gpu'?" in done.stdout + done.stderr
    (tmp_path / "edited/profile.yaml").unlink()
    (tmp_path / "edited").rmdir()
    long = edited(checkout, tmp_path, set_resources={"train": {"slurm_partition": "gpu"}})
    noted = checkout.run("snakemake", *long, "--dry-run").stderr
    assert "set-resources: train: runtime is 1440 minutes, and partition gpu ends jobs after 240" in noted


def test_a_profile_of_an_older_version_is_named_with_the_command_that_renews_it(checkout: Checkout) -> None:
    written = checkout.root / "workflow/profiles/slurm/profile.v9+.yaml"
    shipped = written.with_name("profile.yaml")
    try:
        written.write_text("# profile.yaml: sha256 0\n" + shipped.read_text())
        assert "`cmapkd site --renew`" in checkout.run("snakemake", *SUBMITTING, "--dry-run").stderr
        checkout.run(sys.executable, "-m", "cmapkd", "site", "--renew")
        assert "--renew" not in checkout.run("snakemake", *SUBMITTING, "--dry-run").stderr
    finally:
        written.unlink()


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
