"""What all unit tests share: one thread for each process (two cores, many small tensors), and no network."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; inherited by processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# A first call may compile or import for seconds; random examples are the same at every run, so a failure can be repeated.
settings.register_profile(
    "unit", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unit")

_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """A process group of one, as training makes it. It stays for the session (DeepSpeed keeps its first one); what it put
    into the environment does not, for a process started by another test would take itself for a rank."""
    from cmapkd.training.engine import start_process_group

    with pytest.MonkeyPatch.context() as patch:
        for name, value in _RANK.items():
            patch.setenv(name, value)  # noted here, so that it is removed again
            if not dist.is_initialized():
                patch.delenv(name)
        start_process_group()
        yield


@pytest.fixture(autouse=True)
def torchs_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO 3 has one of its own until its engine is closed, which tests do not always do."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
