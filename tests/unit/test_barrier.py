"""A rank that hangs is named; what fails on one rank ends all of them."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

from cmapkd.errors import UserError
from cmapkd.training import distributed


def on_two_ranks(folder: Path) -> dict[str, Any]:
    rank = distributed.rank()
    found: dict[str, Any] = {"shared": distributed.share(rank * 10), "together": distributed.together(lambda: rank, "a test")}
    distributed.barrier("the first", 1)

    def fail() -> None:
        if rank == 1:
            raise ValueError("rank 1 cannot")

    try:
        distributed.together(fail, "a test of failing")
    except Exception as error:
        found["failure"] = (type(error).__name__, str(error))
    began = time.monotonic()
    try:
        if rank == 1:
            while not (folder / "done").exists():  # hangs until the other one has given up
                time.sleep(0.01)
        else:
            distributed.barrier("a checkpoint", 0.01)
    except UserError as error:
        found["hang"] = (str(error), time.monotonic() - began)
        (folder / "done").touch()
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(on_two_ranks, 2, tmp_path_factory.mktemp("ranks"))


def test_a_rank_that_hangs_is_named_with_its_host_in_time(ranks: list[dict[str, Any]]) -> None:
    message, seconds = ranks[0]["hang"]
    assert f"waited 0.01 minutes before a checkpoint, without rank 1 on {socket.gethostname()}" in message
    assert 0.5 < seconds < 30


def test_a_failure_of_one_rank_is_told_to_all(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["failure"] == ("UserError", "rank 1: failed at a test of failing: ValueError: rank 1 cannot")
    assert ranks[1]["failure"] == ("ValueError", "rank 1 cannot")


def test_values_are_shared_in_the_order_of_ranks(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["shared"] == [0, 10] and found["together"] == [0, 1]
