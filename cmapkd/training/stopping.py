"""When a training stops before its end: a signal, or the time limit of its job. Both end with a checkpoint.

SIGTERM and SIGINT ask to stop, SIGUSR1 too (a batch system sends it ahead of its limit, as by `timeout -s USR1`). The time
limit is that of the job, from the start of the process; the training stops so early that a checkpoint takes three times as
long as the longest yet, and one more step, still fit in, and a margin after that.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from cmapkd.errors import UserError

EXIT = 75  # EX_TEMPFAIL of sysexits.h: not done, and the same command goes on
STARTED = "CMAPKD_STARTED"  # seconds since the epoch at which the job's first process started, for those that it starts
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_UNMEASURED = 60.0  # seconds that a first checkpoint is expected to take at most


class Interrupted(Exception):  # noqa: N818 - not an error: the stage goes on at the next start
    """The process was asked to stop and has written a checkpoint."""


class Signals:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a flag that the loop reads between two steps."""

    def __init__(self) -> None:
        self.stop = False
        self.name = ""
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop, self.name = True, signal.Signals(number).name

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave_when_asked() -> None:
    """End at once with `EXIT` when a signal comes before training has begun: nothing is there to be saved yet."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT)

    for number in SIGNALS:
        signal.signal(number, leave)


class Budget:
    """The time that a job has left.

    Args:
        limit: minutes of the whole job; 0: none.
        margin: minutes left free at the end.
        started: seconds since the epoch; None: of the process that began the job, or now.

    Raises:
        UserError: the limit is not longer than the margin.
    """

    def __init__(self, limit: float, margin: float, started: float | None = None) -> None:
        if limit and limit <= margin:
            raise UserError(
                key="--time-limit",
                value=limit,
                reason=f"leaves nothing beside training.stop_margin_minutes = {margin:g}",
                fix="ask for a longer runtime, or lower the margin",
            )
        self.limit, self.margin = 60 * limit, 60 * margin
        self._started = started if started is not None else float(os.environ.get(STARTED) or time.time())
        self._checkpoint: float | None = None
        self._step = 0.0

    def saved(self, seconds: float) -> None:
        """Note how long a checkpoint took."""
        self._checkpoint = max(self._checkpoint or 0.0, seconds)

    def stepped(self, seconds: float) -> None:
        """Note how long a step took."""
        self._step = max(self._step, seconds)

    @property
    def reserve(self) -> float:
        """Seconds that the end needs."""
        checkpoint = _UNMEASURED if self._checkpoint is None else self._checkpoint
        # A checkpoint never measured must not eat a short limit: a tenth of it at most is put by.
        return min(3 * checkpoint, self.limit / 10 if self._checkpoint is None else 3 * checkpoint) + self._step + self.margin

    def used_up(self, now: float | None = None) -> bool:
        """Whether it is time to stop."""
        return bool(self.limit) and (time.time() if now is None else now) - self._started >= self.limit - self.reserve


def start_of_job(environment: Mapping[str, str] = os.environ) -> str:
    """What `STARTED` is set to for processes that this one starts."""
    return environment.get(STARTED) or repr(time.time())
