"""A real image of the lock, built here or named by CMAPKD_TEST_IMAGE; `test_slurm.py` runs the smoke experiment in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cmapkd.files import sha256_of
from cmapkd.image import check, labels_of
from tests.cluster.conftest import LAB, SMALL, THREADS, Run
from tests.cluster.old_libc import relink
from tests.pipeline.conftest import REPOSITORY

pytestmark = pytest.mark.cluster


def test_the_image_says_what_it_was_made_from(image: Path) -> None:
    assert labels_of(image)["cmapkd.lock.sha256"] == sha256_of(REPOSITORY / "requirements.lock")
    assert any(sha256_of(image) in line for line in check(image))


def test_the_image_can_do_the_work(image: Path, tmp_path: Path) -> None:
    """Its own `%test`, which the build leaves to this."""
    command = ["apptainer", "test", "--cleanenv", "--no-home", "--pwd", "/", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    states = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert {name for name, state in states.items() if state == "passed"} >= {
        "imports", "versions", "distributed", "drawing", "tex",
    }  # fmt: skip


def test_the_whole_experiment_names_the_image(run_on_slurm: Run, image: Path) -> None:
    """Every training and measurement was made in it, and its digest is kept beside the results."""
    digest = f"sha256:{sha256_of(image)}"
    home = run_on_slurm.checkout.home
    assert run_on_slurm.image == image
    assert (home / "image.txt").read_text() == f"{digest} ({image.stat().st_size} bytes)\n"
    files = [*home.glob("stages/*/stage.json"), *home.glob("metrics/*/*.json")]
    assert len(files) == 9 + 5
    for file in files:
        provenance = json.loads(file.read_text())["provenance"]
        assert provenance["image_digest"] == digest, file
        assert provenance["versions"]["python"].startswith("3.11."), "the image's, whatever runs the tests"


def test_another_image_is_seen_and_a_touched_one_is_not(run_on_slurm: Run, image: Path) -> None:
    """Without running anything: what a dry run says. The other image is one for the workflow only, which reads its bytes."""
    root = run_on_slurm.checkout.root
    (root / "same.sif").symlink_to(image)  # named from the checkout, as Snakemake takes no image whose path has a blank
    assert "Nothing to be done" in dry_run(run_on_slurm, Path("same.sif"))
    (root / "other.sif").write_bytes(b"another image")
    told = dry_run(run_on_slurm, Path("other.sif"))
    for rule in ("data_build", "train", "evaluate"):
        assert re.search(rf"^{rule} +\d", told, flags=re.M), told
    dry_run(run_on_slurm, image)  # leaves the record as it was


def dry_run(run: Run, image: Path) -> str:
    done = run.checkout.run("snakemake", *run.submitting[:-1], f"image={image}", *LAB, *SMALL, *THREADS, "--dry-run")
    return done.stdout + done.stderr


def test_programs_are_relinked_only_where_they_need_it(tmp_path: Path) -> None:
    """The harness's own part; that the result runs, the tests of the image show."""
    program = tmp_path / "python"
    shutil.copy(Path(sys.executable).resolve(), program)
    before = program.read_bytes()
    assert relink(program, have=(2, 99)) == []
    assert program.read_bytes() == before
    with pytest.raises(ValueError, match="__libc_start_main"):
        relink(program, have=(2, 2))
    assert program.read_bytes() == before
    with pytest.raises(ValueError, match="no 64-bit"):
        relink(Path(__file__))
