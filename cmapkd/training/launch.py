"""Several ranks on this machine: `torchrun` as a child, and what its end means.

torchrun ends with 1 whatever a rank ended with, so the ranks leave word beside their checkpoints: stopped with a checkpoint
(exit code 75), out of memory (started again at once, with half the micro-batch), or failed. Signals are handed on to torchrun,
and by it to the ranks: it does so by itself with SIGTERM and SIGINT, with SIGUSR1 only when told to (`--signals-to-handle`;
otherwise it would die of it, and its ranks with it). It is given long enough for a checkpoint before it kills.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from cmapkd.training import failures
from cmapkd.training.stopping import EXIT, SIGNALS, STARTED, start_of_job

_PATIENCE = 600  # seconds for a checkpoint after a signal, before torchrun kills; a batch system may be less patient
# Without an address, torchrun gives the ranks this machine's name, which need not resolve: they would wait for 300 seconds.
ON_ONE_NODE = ("--standalone", "--local-addr=127.0.0.1")
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def run_ranks(ranks: int, arguments: list[str], checkpoints: Path, oom_retries: int) -> int:
    """Run ``cmapkd ARGUMENTS`` on ``ranks`` processes; returns the exit code that one process would have.

    Args:
        checkpoints: directory of the stage's checkpoints.
        oom_retries: how often it is started again at once after running out of memory.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", *ON_ONE_NODE, f"--nproc-per-node={ranks}",
        "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", f"--shutdown-timeout={_PATIENCE}", "-m", "cmapkd",
    ]  # fmt: skip
    environment = {**os.environ, STARTED: start_of_job()}
    (checkpoints / failures.STOPPED).unlink(missing_ok=True)  # of the attempt before
    for left in range(oom_retries, -1, -1):
        code, asked = _run([*command, *arguments], environment)
        if code == 0 or asked or not left or not failures.left_by_memory(checkpoints):
            break
    if code and (asked or failures.was_stopped(checkpoints)):
        return EXIT
    return 2 if code and failures.left_by_user(checkpoints) else code  # as the command line ends with a user's error


def leave_rank() -> None:
    """End this process at once if it is a rank of `torchrun`, with success: its work is done and on the disk.

    What libraries do when an interpreter ends (threads of a process group, say) can abort a rank, and torchrun then ends all
    ranks with a failure.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run a command to its end, handing on the first signal: its exit code, and whether there was one."""
    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        if not asked:  # a second one would end torchrun's waiting for the ranks
            asked.append(number)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    # A session of its own: what a terminal sends to all its processes would reach torchrun twice.
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent)
    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        code = process.wait()
        return 128 - code if code < 0 else code, bool(asked)  # killed by a signal: as a shell says it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies: ranks without torchrun stop with a checkpoint."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one, up to 2 GB.

    Else every map of more than some megabytes is taken from the kernel anew, which clears it page by page: by how a process's
    heap happens to lie, that is a tenth of a step on a CPU, or nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest it takes
