"""config/paper.yaml: its rules, and the same experiment for real on fixtures of every data set."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from tests.pipeline.conftest import Checkout, copy_repository
from tests.pipeline.paper_fixtures import data, derived, short

LOCAL = ["--profile", "workflow/profiles/local", "--cores", "2", "--configfile"]
# Jobs of config/paper.yaml by rule; 49 are 16 runs of three seeds and the teacher.
JOBS = {
    "data_fetch": 6, "data_build": 6, "data_overlap": 1, "data_page": 6, "contact_sheet": 8, "pretrained": 2, "teacher_gate": 1,
    "teacher": 2, "train": 105, "collect": 49, "evaluate": 49, "run_page": 49, "log_pages": 1, "table": 9, "figure": 6,
    "drawing": 2, "algorithm": 2, "document": 1, "all": 1,
}  # fmt: skip
TYPESETTING = {"pdf", "manuscript"}  # only where there is LaTeX


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, dict]:
    """A copy of the repository, and the experiment derived for it."""
    folder = tmp_path_factory.mktemp("paper")
    checkout = copy_repository(folder / "checkout")
    weights = folder / "weights"
    weights.mkdir()
    program = (
        "import json, sys, torch\nfrom safetensors.torch import save_file\nfrom cmapkd.models import towers\n"
        "for seed, role in enumerate(('teacher', 'student')):\n"
        "    torch.manual_seed(seed)\n"
        "    config = json.load(open(f'config/models/mini-{role}.json'))\n"
        "    model = towers.create(f'mini-{role}', config, 'random')\n"
        "    save_file(model.state_dict(), f'{sys.argv[1]}/{role}.safetensors')\n"
    )
    checkout.run(sys.executable, "-c", program, str(weights))
    return checkout, derived(data(folder / "data"), weights, checkout.root / "config" / "paper.yaml")


def write(checkout: Checkout, content: dict) -> str:
    (checkout.root / "derived.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return "derived.yaml"


def jobs(checkout: Checkout, file: str) -> Counter[str]:
    """Rules of a dry run with the numbers of their jobs."""
    done = checkout.run("snakemake", *LOCAL, file, "--dry-run", "--quiet", "rules")
    table = (done.stdout + done.stderr).partition("Job stats:")[2].partition("total")[0]
    found = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)}
    return Counter({rule: count for rule, count in found.items() if rule not in TYPESETTING})


def test_the_derived_experiment_has_the_rules_of_the_paper(made: tuple[Checkout, dict]) -> None:
    checkout, content = made
    files = ["config/paper.yaml", "config/paper-32gb.yaml", "config/paper-coco-only.yaml", write(checkout, content)]
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(files, pool.map(lambda file: jobs(checkout, file), files), strict=True))
    coco = {**JOBS, "data_fetch": 5, "data_build": 5, "data_page": 5, "contact_sheet": 7}
    assert found == {file: coco if "coco-only" in file else JOBS for file in files}


def test_it_runs_and_nothing_is_trained_before_the_teacher_is_what_it_should_be(made: tuple[Checkout, dict]) -> None:
    checkout, content = made
    home = checkout.root / "results" / "paper-fixtures"
    file = write(checkout, short(content, 100.0))
    refused = checkout.run("snakemake", *LOCAL, file, check=False)
    told = refused.stdout + refused.stderr
    assert refused.returncode
    assert "the teacher does not measure what is known of it" in told
    assert "retrieval:coco5k/test i2t_r1: measured" in told
    assert "Traceback" not in told
    done = {path.parent.name.rpartition("-")[0] for path in home.glob("stages/*/stage.json")}
    assert done == {"teacher", "student"}

    metrics = json.loads((home / "metrics/Teacher/0.json").read_text())["metrics"]
    file = write(checkout, short(content, metrics["retrieval"]["coco5k/test"]["all"]["i2t_r1"]))
    checkout.run("snakemake", *LOCAL, file)
    overlap = json.loads((home / "data/overlap.json").read_text())
    assert overlap["removed"]["coco/train"] == [f"{number:012d}" for number in range(17, 21)]
    for run in ("Scratch", "PromptKD", "CMAPKD"):
        found = json.loads((home / "metrics" / run / "0.json").read_text())["metrics"]
        assert set(found["retrieval"]) == {"coco5k/test", "flickr30k/test", "coco5k/val"}
        assert (set(found["zeroshot"]), set(found["vqa"])) == ({"classes/val"}, {"vqa/val"})
    assert (home / "paper" / "table2.tex").read_text().count("COCO 5K")
    manifest = json.loads((home / "data/imagenet/manifest.json").read_text())
    assert manifest["splits"]["val"]["samples"] == 12
    again = checkout.run("snakemake", *LOCAL, file, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
