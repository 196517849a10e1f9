"""A SLURM and an image of our own for the tests of this folder; where there can be none, they are skipped with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import apptainer
from tests.cluster.slurm import Cluster, Unavailable
from tests.pipeline.conftest import ELSEWHERE, REPOSITORY, Checkout, copy_repository

SUBMITTING = [
    "--profile", "slurm", "--workflow-profile", "workflow/profiles/slurm-bare", "--configfile", "config/smoke.yaml",
]  # fmt: skip
# What this lab differs in from a site: jobs of seconds, so it is asked often, and stages that follow each other are one job.
LAB = [
    "--slurm-init-seconds-before-status-checks", "4", "--seconds-between-status-checks", "4", "--latency-wait", "10",
    "--slurm-keep-successful-logs", "--jobs", "4", "--groups", "train=stages", "teacher=teacher",
]  # fmt: skip
# A group asks for the sum of what its jobs ask for: with the profile's hours and gigabytes it would fit no node of the lab.
SMALL = [
    "--set-resources", "teacher:mem_mb=3000", "teacher:runtime=30", "train:mem_mb=3000", "train:runtime=30",
    "evaluate:mem_mb=3000", "evaluate:runtime=30", "data_build:runtime=30",
]  # fmt: skip
# As many threads as a local run of `--cores 2` gives each rule, for equal sums.
THREADS = ["--set-threads", "teacher=1", "train=1", "evaluate=2", "data_build=1"]
GIGABYTES = 40  # of disk: wheels, unpacked system and image, for a moment all at once


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of two cores and two (made-up) GPUs each."""
    # Not below pytest's own folder: the path of a socket must be short.
    root = Path(tempfile.mkdtemp(prefix="cmapkd-slurm-"))
    made = Cluster(root)
    try:
        try:
            made.start()
        except Unavailable as reason:
            pytest.skip(str(reason))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in made.environment.items():
                patch.setenv(name, value)
            yield made
    finally:
        made.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """What a user's checkout holds, with the profile as it comes."""
    return cluster_checkout(tmp_path_factory.mktemp("cluster") / ELSEWHERE)


def cluster_checkout(target: Path) -> Checkout:
    """A copy of the repository with the link that makes `snakemake --profile slurm` work."""
    made = copy_repository(target)
    (made.root / "slurm").symlink_to((REPOSITORY / "slurm").readlink())
    return made


class ImageBuild:
    """Builds the image, or says why there can be none, while other tests run."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cmapkd-image-"))
        self._made = ThreadPoolExecutor(1).submit(self._build)

    def _build(self) -> Path | str:
        try:
            apptainer.install()
            if given := os.environ.get("CMAPKD_TEST_IMAGE"):
                return Path(given).resolve()
            if shutil.disk_usage(self.folder).free < GIGABYTES * 1e9:
                return f"building the image takes {GIGABYTES} GB of disk below {self.folder.parent} for a moment"
            wheels = apptainer.fetch_wheels(self.folder / "wheels")
        except Unavailable as reason:
            return str(reason)
        apptainer.build(self.folder / "cmapkd.sif", wheels)
        shutil.rmtree(self.folder / "wheels", ignore_errors=True)
        return self.folder / "cmapkd.sif"

    def wait(self) -> Path | str:
        """The image, or the reason; raises if the build failed."""
        return self._made.result()

    def remove(self) -> None:
        wait([self._made])
        shutil.rmtree(self.folder, ignore_errors=True)


_BUILDS: list[ImageBuild] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """The build is begun with the first test of the session, whichever that is: it takes one of the processors for minutes."""
    wanted = os.environ.get("CMAPKD_TEST_IMAGE") or os.environ.get("CMAPKD_BUILD_IMAGE") == "1"
    needed = any("image_or_reason" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and needed and not session.config.option.collectonly:
        _BUILDS.append(ImageBuild())


def pytest_sessionfinish() -> None:
    for build in _BUILDS:
        build.remove()


@pytest.fixture(scope="session")
def image_or_reason() -> Path | str:
    """An image of the lock, built here or named by CMAPKD_TEST_IMAGE; or why there is none."""
    if not _BUILDS:
        return "an image takes 3 GB of downloads: CMAPKD_BUILD_IMAGE=1 builds one, CMAPKD_TEST_IMAGE names one"
    return _BUILDS[0].wait()


@pytest.fixture(scope="session")
def image(image_or_reason: Path | str) -> Path:
    """For tests that are of the image."""
    if isinstance(image_or_reason, str):
        pytest.skip(image_or_reason)
    return image_or_reason


@pytest.fixture(scope="session")
def prepared(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with the profile that `cmapkd site` wrote for this cluster."""
    made = cluster_checkout(tmp_path_factory.mktemp("prepared") / ELSEWHERE)
    made.run(sys.executable, "-m", "cmapkd", "site")
    return made


@dataclass
class Run:
    """The smoke experiment by the literal `--profile slurm`, complete."""

    checkout: Checkout
    submitting: list[str]  # the options by which it was run
    image: Path | None  # that its jobs ran in
    said: list[str]  # by `cmapkd status` meanwhile
    log: Path  # of snakemake


@pytest.fixture(scope="session")
def run_on_slurm(prepared: Checkout, image_or_reason: Path | str) -> Run:
    """In the image where there is one; otherwise in the environment of the tests."""
    image = image_or_reason if isinstance(image_or_reason, Path) else None
    submitting = SUBMITTING if image is None else [*SUBMITTING[:2], *SUBMITTING[4:], "--config", f"image={image}"]
    log, said = prepared.root / "driver.log", []
    with log.open("w") as file:
        command = ["snakemake", *submitting, *LAB, *SMALL, *THREADS]
        process = subprocess.Popen(
            command, cwd=prepared.root, env=prepared.environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )
        try:
            while process.poll() is None:
                time.sleep(10)
                if (prepared.home / "experiment.yaml").is_file():
                    said.append(prepared.cmapkd("status").stdout)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        slurm_logs = "\n".join(path.read_text()[-2000:] for path in prepared.root.glob(".snakemake/slurm_logs/*/**/*.log"))
        pytest.fail(f"snakemake ended with {process.returncode}:\n{log.read_text()[-6000:]}\n{slurm_logs[-6000:]}")
    return Run(prepared, submitting, image, said, log)


def sbatch_lines(checkout: Checkout, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the executor would call for each job, one JSON object a line, in a dry run."""
    program = Path(__file__).parent / "sbatch_lines.py"
    return checkout.run(sys.executable, str(program), *arguments)
