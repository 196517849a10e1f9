"""A SLURM of our own for the tests of this folder; where there can be none, they are skipped with the reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..pipeline.conftest import REPOSITORY, Checkout, copy_repository
from .slurm import Cluster, Unavailable

SUBMITTING = [
    "--profile", "slurm", "--workflow-profile", "workflow/profiles/slurm-bare", "--configfile", "config/smoke.yaml",
]  # fmt: skip


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
    """What a user's checkout holds, with the link that makes `snakemake --profile slurm` work."""
    made = copy_repository(tmp_path_factory.mktemp("cluster"))
    link = REPOSITORY / "slurm"
    (made.root / "slurm").symlink_to(link.readlink())
    return made


def sbatch_lines(checkout: Checkout, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the executor would call for each job, one JSON object a line, in a dry run."""
    program = Path(__file__).parent / "sbatch_lines.py"
    return checkout.run(sys.executable, str(program), *arguments)
