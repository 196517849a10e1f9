"""Data workers that send nothing end with their cause; the rest is torch's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from cmapkd.data.loading import SHARED_MEMORY, explained, load, resources
from cmapkd.errors import UserError


class Numbers(Dataset[Any]):
    """Numbers; at ``bad`` a worker does what it is told."""

    def __init__(self, bad: str = "") -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2 and self.bad == "wait":
            time.sleep(600)
        if index == 2 and self.bad == "end":
            os._exit(3)
        if index == 2 and self.bad:
            raise ValueError(self.bad)
        return torch.tensor([index])


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_the_data(workers: int) -> None:
    assert torch.cat(list(load(Numbers(), workers, "training.workers", batch_size=2))).flatten().tolist() == [0, 1, 2, 3]


# torch may notice the loss once more while the loader is taken down.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("bad", "word"), [("wait", "sent no batch for 1 seconds"), ("end", "could not go on (")])
def test_a_worker_that_cannot_go_on_ends_the_loading_with_its_cause(bad: str, word: str) -> None:
    loaded = []
    with pytest.raises(UserError) as caught:
        # The wait of a worker that ends is long enough for a slow machine; torch notices its end by itself.
        for batch in load(Numbers(bad), 1, "training.workers", wait=1 if bad == "wait" else 300, batch_size=1):
            loaded.append(int(batch))
    assert caught.value.key == "training.workers" and word in caught.value.reason
    assert resources() in caught.value.reason and str(SHARED_MEMORY) in caught.value.reason
    assert "training.workers: 0" in caught.value.fix and "ulimit -n" in caught.value.fix


def test_an_error_of_the_data_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="a damaged sample"):
        list(load(Numbers("a damaged sample"), 1, "training.workers", batch_size=1))


def test_a_loss_that_torch_raises_elsewhere_is_explained() -> None:
    killed = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that shared memory is short."
    with pytest.raises(UserError, match="Bus error"), explained(2, "training.workers", outside=True):
        raise RuntimeError(killed)
    for workers, other in ((0, RuntimeError(killed)), (2, RuntimeError("Connection closed by peer")), (2, OSError(28, "full"))):
        with pytest.raises(type(other)) as caught, explained(workers, "training.workers", outside=True):
            raise other
        assert caught.value is other


SMALL = """
import torch
from torch.utils.data import Dataset
from cmapkd.data.loading import load
class Large(Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return torch.ones(1_000_000)
list(load(Large(), 2, "training.workers", wait=20, batch_size=2))
"""


def test_with_little_shared_memory_the_error_names_it() -> None:
    program = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$0" -c "$1"'
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace is to be had here")
    command = ["unshare", "-m", "sh", "-c", program, sys.executable, SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    if "mount:" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode
    assert re.search(rf"{SHARED_MEMORY} has [01] of 1 MB free", done.stderr), done.stderr[-2000:]
    assert "training.workers: 0" in done.stderr
