"""Data loaders whose workers cannot hold a process up for ever.

A worker of torch's DataLoader that gets no shared memory or may not open another file prints a traceback and sends nothing,
and the loader waits without end. Here, waiting ends after `WAIT` seconds, and the error names what a worker needs and how much
of it there is.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from cmapkd.errors import UserError

# Seconds in which workers must have the next batch. A file system that is slower than this for one batch trains nothing.
WAIT = 600
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps it
_SILENT = re.compile(r"DataLoader timed out after")
_WORKER = re.compile(r"DataLoader worker \(pid.*\) (?:is killed|exited)")
_LOST = re.compile(r"shared memory|\(shm\)|Too many open files|ancdata")
_ERRNO = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN)


def load(dataset: Dataset[Any], workers: int, key: str, wait: float = WAIT, **options: Any) -> Iterator[Any]:
    """Batches of a DataLoader with ``workers`` processes; 0 reads in this one.

    Args:
        key: of the configuration that sets the number of workers, for the message.
        wait: seconds for which workers may be silent.
        options: of ``DataLoader``.

    Raises:
        UserError: the workers send nothing, or one of them ended.
    """
    loader = DataLoader(dataset, num_workers=workers, timeout=wait if workers else 0, **options)
    with explained(workers, key, wait):
        yield from loader


@contextmanager
def explained(workers: int, key: str, wait: float = WAIT, outside: bool = False) -> Iterator[None]:
    """Explain what becomes of a process whose workers cannot go on.

    Args:
        outside: what runs is not the loading itself. torch raises the loss of a worker wherever the process is just then.

    Raises:
        UserError: in place of torch's error.
    """
    trouble = None
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not workers or not (_WORKER.search(str(error)) if outside else _is_of_workers(error)):
            raise
        what = f"sent no batch for {wait:g} seconds" if _SILENT.search(str(error)) else f"could not go on ({_cause(error)})"
        trouble = UserError(
            key=key,
            value=workers,
            reason=f"the processes that load data {what}; {resources()}. What they printed is above",
            fix=f"{key}: 0 loads data in the training process, without shared memory; or give the job more shared memory, or a "
            "higher limit of open files (`ulimit -n`)",
        )
    if trouble is not None:  # torch's error is gone here, and with it the loader, which would report the same loss again
        raise trouble


def resources() -> str:
    """What workers need of this machine: shared memory and files, as far as it can be found out."""
    found = []
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        found.append(f"{SHARED_MEMORY} has {usage.free / 1e6:.0f} of {usage.total / 1e6:.0f} MB free")
    except OSError:
        found.append(f"there is no {SHARED_MEMORY}")
    try:
        import resource  # not on Windows

        found.append(f"a process may open {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files")
    except (ImportError, OSError):
        pass
    return ", ".join(found)


def _is_of_workers(error: BaseException) -> bool:
    # A worker that ends while a tensor is taken over from it breaks the connection first.
    if isinstance(error, ConnectionError | EOFError) or (isinstance(error, OSError) and error.errno in _ERRNO):
        return True
    return any(pattern.search(str(error)) for pattern in (_SILENT, _WORKER, _LOST))


def _cause(error: BaseException) -> str:
    """The last line: before it, torch puts the traceback of a worker."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
