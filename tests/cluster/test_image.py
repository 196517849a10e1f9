"""A real image of the lock, built here or named by CMAPKD_TEST_IMAGE, and the smoke experiment's jobs in it on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmapkd.files import sha256_of
from cmapkd.image import check, labels_of

from ..pipeline.conftest import FINISHED, REPOSITORY, Checkout, copy_repository
from .apptainer import build, fetch_wheels, install
from .old_libc import relink
from .slurm import Cluster, Unavailable
from .test_slurm import LAB, SMALL, THREADS, numbers

pytestmark = pytest.mark.cluster

GIGABYTES = 40  # of disk: wheels, unpacked system and image, for a moment all at once


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    given = os.environ.get("CMAPKD_TEST_IMAGE")
    if not given and os.environ.get("CMAPKD_BUILD_IMAGE") != "1":
        pytest.skip("an image takes 3 GB of downloads: CMAPKD_BUILD_IMAGE=1 builds one, CMAPKD_TEST_IMAGE names one")
    try:
        install()
    except Unavailable as reason:
        pytest.skip(str(reason))
    if given:
        yield Path(given).resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="cmapkd-image-"))
    try:
        if shutil.disk_usage(folder).free < GIGABYTES * 1e9:
            pytest.skip(f"building the image takes {GIGABYTES} GB of disk below {folder.parent} for a moment")
        try:
            wheels = fetch_wheels(folder / "wheels")
        except Unavailable as reason:
            pytest.skip(str(reason))
        build(folder / "cmapkd.sif", wheels)
        shutil.rmtree(folder / "wheels", ignore_errors=True)
        yield folder / "cmapkd.sif"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_image_says_what_it_was_made_from(image: Path) -> None:
    assert labels_of(image)["cmapkd.lock.sha256"] == sha256_of(REPOSITORY / "requirements.lock")
    assert any(sha256_of(image) in line for line in check(image))


def test_the_image_can_do_the_work(image: Path, tmp_path: Path) -> None:
    command = ["apptainer", "exec", "--cleanenv", "--no-home", "--pwd", "/", str(image)]
    command += ["cmapkd", "selfcheck", "--require", "tex"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    states = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert {name for name, state in states.items() if state == "passed"} >= {
        "imports", "versions", "distributed", "drawing", "tex",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run_in_image(cluster: Cluster, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Data, the teacher, one student and its metrics by the literal `--profile slurm`; everything but fetching in the image."""
    checkout = copy_repository(tmp_path_factory.mktemp("image"))
    (checkout.root / "slurm").symlink_to((REPOSITORY / "slurm").readlink())
    checkout.run("python", "-m", "cmapkd", "site")
    submit(checkout, image)
    return checkout


def submit(checkout: Checkout, image: Path, *options: str) -> str:
    command = ["snakemake", "results/smoke/metrics/Scratch/0.json", "--profile", "slurm", "--configfile", "config/smoke.yaml"]
    command += ["--config", f"image={image}"]
    done = checkout.run(*command, *LAB, *SMALL, *THREADS, *options, timeout=1500)
    return done.stdout + done.stderr


def test_metrics_name_the_image(run_in_image: Checkout, image: Path) -> None:
    provenance = json.loads((run_in_image.home / "metrics/Scratch/0.json").read_text())["provenance"]
    digest = f"sha256:{sha256_of(image)}"
    assert provenance["image_digest"] == digest
    assert (run_in_image.home / "image.txt").read_text() == f"{digest} ({image.stat().st_size} bytes)\n"
    assert provenance["versions"]["python"].startswith("3.11."), "the image's, whatever runs the tests"


def test_numbers_are_those_without_an_image(run_in_image: Checkout) -> None:
    if not FINISHED:
        pytest.skip("no local run in this session: `pytest tests/pipeline tests/cluster` makes one")
    name = "metrics/Scratch/0.json"
    there, here = (numbers(json.loads((home / name).read_text())["metrics"]) for home in (FINISHED[0], run_in_image.home))
    assert here == there
    assert len(here) > 50


def test_another_image_is_seen_and_a_touched_one_is_not(run_in_image: Checkout, image: Path) -> None:
    """Without running anything: what a dry run says. The other image is one for the workflow only, which reads its bytes."""
    same = run_in_image.root / "same.sif"
    same.symlink_to(image)
    assert "Nothing to be done" in submit(run_in_image, same, "--dry-run")
    other = run_in_image.root / "other.sif"
    other.write_bytes(b"another image")
    told = submit(run_in_image, other, "--dry-run")
    for rule in ("data_build", "train", "evaluate"):
        assert re.search(rf"^{rule} +\d", told, flags=re.M), told
    submit(run_in_image, image, "--dry-run")  # leaves the record as it was


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
