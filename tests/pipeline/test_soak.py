"""Three disturbances of a training on two ranks lose nothing; `make soak` makes twenty of them."""

from __future__ import annotations

from pathlib import Path

from tests.pipeline.soak import soak


def test_a_training_disturbed_at_random_moments_ends_as_one_left_alone(tmp_path: Path) -> None:
    assert len(soak(tmp_path, count=3, ranks=2, seed=3, steps=60)) == 3
