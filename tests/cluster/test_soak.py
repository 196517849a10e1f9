"""Three disturbances of a job on a real SLURM lose nothing; `make soak SOAK=--slurm` makes twenty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster
from tests.cluster.soak import slurm_soak

pytestmark = pytest.mark.cluster


def test_a_job_disturbed_at_random_moments_ends_as_a_training_left_alone(cluster: Cluster, tmp_path: Path) -> None:
    assert len(slurm_soak(tmp_path, cluster, count=3, seed=5, steps=60)) == 3
