"""Experiment files of strangers, through the real Snakemake: nothing in them runs, and nothing in them vanishes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import REPOSITORY, Checkout, copy_repository

SMOKE = (REPOSITORY / "config" / "smoke.yaml").read_text()
TWICE = SMOKE.replace("  Scratch: {method: scratch}", "  Scratch: {method: scratch}\n  Scratch: {method: kd}")
DRY = ("--dry-run", "--quiet", "--cores", "1")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return copy_repository(tmp_path_factory.mktemp("attacked"))


def evil(checkout: Checkout, mark: str) -> str:
    """The name of a file with a template whose code makes the file `mark`."""
    code = f"__use_yte__: true\n__definitions__:\n  - import os\nseeds: ?[os.system('touch {mark}')]\n"
    (checkout.root / "evil.yaml").write_text(code + SMOKE.replace("seeds: [0]\n", ""))
    return "evil.yaml"


def told(checkout: Checkout, *arguments: str) -> str:
    done = checkout.run("snakemake", *DRY, *arguments, check=False)
    assert done.returncode
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


PROFILE = "configfile: [evil.yaml]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--configfile", "evil.yaml"),
        ("--configfile", "config/smoke.yaml", "evil.yaml"),
        (
            "--profile",
            "workflow/profiles/slurm",
            "--workflow-profile",
            "workflow/profiles/slurm-bare",
            "--configfile",
            "evil.yaml",
        ),
        ("--profile", "mine"),
    ],
)
def test_a_template_is_refused_before_its_code_runs(arguments: tuple[str, ...], checkout: Checkout) -> None:
    (checkout.root / "mine").mkdir(exist_ok=True)
    (checkout.root / "mine" / "profile.yaml").write_text(PROFILE)
    evil(checkout, "mark")
    assert "template engine YTE" in told(checkout, *arguments)
    assert not (checkout.root / "mark").exists()


def test_from_another_folder(checkout: Checkout, tmp_path: Path) -> None:
    file = checkout.root / evil(checkout, "mark")
    snakefile = str(checkout.root / "workflow" / "Snakefile")
    arguments = ("--snakefile", snakefile, "--directory", str(tmp_path), "--configfile", str(file))
    assert "template engine YTE" in told(checkout, *arguments)
    assert not [path for folder in (checkout.root, tmp_path) for path in folder.glob("mark")]


def test_where_another_workflow_profile_takes_the_place_of_ours_the_workflow_refuses(checkout: Checkout) -> None:
    assert "template engine YTE" in told(checkout, "--workflow-profile", "none", "--configfile", evil(checkout, "late"))
    (checkout.root / "twice.yaml").write_text(TWICE)
    assert "'Scratch' is given twice" in told(checkout, "--workflow-profile", "none", "--configfile", "twice.yaml")


def test_a_key_given_twice_is_refused(checkout: Checkout) -> None:
    (checkout.root / "twice.yaml").write_text(TWICE)
    assert "'Scratch' is given twice" in told(checkout, "--configfile", "twice.yaml")
    values = "runs={KD: {method: kd}, KD: {method: scratch}}"
    assert "'KD' is given twice" in told(checkout, "--configfile", "config/smoke.yaml", "--config", values)


def test_files_and_values_are_still_merged_key_by_key(checkout: Checkout) -> None:
    name = "{run} %s [red] {0.__class__} $HOME"
    changes = {"seeds": [3], "runs": {name: {"method": "kd"}}, "paper": {"title": "{title} %d"}}
    (checkout.root / "more.yaml").write_text(yaml.safe_dump(changes))
    options = ["--configfile", "config/smoke.yaml", "more.yaml", "--config", "results=else"]
    target = "else/smoke/paper/algorithm1.json"
    checkout.run("snakemake", "--cores", "1", *options, "--", target)
    effective = yaml.safe_load((checkout.root / "else" / "smoke" / "experiment.yaml").read_text())
    assert effective["seeds"] == [3] and effective["paper"]["title"] == "{title} %d"
    assert list(effective["runs"])[-1] == name and "Scratch" in effective["runs"]
