"""What becomes of a training whose loss or gradient is not finite: back to the checkpoint before, at half the learning rates.

Each retry is kept in a file beside the checkpoints, so that a resumed training goes on at its rates, and ends up in the
summary of ``stage.json``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cmapkd.errors import UserError
from cmapkd.files import checked, read_json, write_json
from cmapkd.training import checkpoints, distributed

log = logging.getLogger(__name__)
FILE = "nan-retries.json"


class NotFinite(FloatingPointError):  # noqa: N818 - a state of the training, an error only where no retry is left
    """Step ``step`` gave no finite loss or gradient, on all ranks alike; nothing of it was saved."""

    def __init__(self, step: int, reason: str, samples: str) -> None:
        super().__init__(f"{reason}, at step {step}, on the samples {samples}")
        self.step, self.reason = step, f"{reason}, on the samples {samples}"


class Retries:
    """The retries of a stage.

    Args:
        directory: of its checkpoints.
        origin: of code and settings, as for the checkpoints; retries of another one are forgotten.
        limit: most retries in all.
        label: of the stage, for people.
    """

    def __init__(self, directory: Path, origin: str, limit: int, label: str) -> None:
        self.directory, self.origin, self.limit, self.label = directory, origin, limit, label
        kept = [_read(directory / FILE, origin) if distributed.rank() == 0 else []]
        dist.broadcast_object_list(kept, src=0)
        self.taken: list[dict[str, Any]] = kept[0]
        self._open: tuple[int, str] | None = None

    @property
    def lr_factor(self) -> float:
        """Share of the learning rates that is left."""
        return 0.5 ** (len(self.taken) + (self._open is not None))

    def ask(self, failure: NotFinite) -> None:
        """Begin a retry: drop the checkpoints that lead to ``failure`` at any learning rate.

        A checkpoint of just the failed step is spoilt, finite as its weights may be: no update lies between the two.

        Raises:
            UserError: no retry is left; the checkpoints stay.
        """
        if len(self.taken) >= self.limit:
            more = "" if self.limit == 3 else f", or allow {self.limit + 1} of training.nan_retries"
            raise UserError(
                key=self.label,
                reason=f"{failure}" + (f", after {len(self.taken)} of {self.limit} retries" if self.taken else ""),
                fix=f"lower lr or lr_scale, or look at these samples{more}; the last checkpoint is kept",
            ) from None
        reasons: list[Any] = [failure.reason]
        if distributed.world_size() > 1:  # the ranks failed together, but only some of them may know the cause
            reasons = [None] * distributed.world_size()
            dist.all_gather_object(reasons, failure.reason)
            reasons = [f"rank {rank}: {reason}" for rank, reason in enumerate(reasons)]
        self._open = failure.step, "; ".join(reasons)
        # Before the retry is noted: killed in between, the training would fail here again and ask again.
        checkpoints.drop_from(self.directory, failure.step)

    def restarted(self, step: int) -> bool:
        """Note the retry that was begun, if any: it goes on at ``step``, at lower rates from now on. False without one."""
        if self._open is None:
            return False
        failed, reason = self._open
        record = {"step": failed, "reason": reason, "restarted_at": step, "lr_factor": self.lr_factor}
        self.taken, self._open = [*self.taken, record], None
        if distributed.rank() == 0:
            write_json(self.directory / FILE, {"origin": self.origin, "retries": self.taken})
            log.warning(
                "%s: step %d: %s; retry %d of %d goes on from step %d at %g times the learning rates",
                self.label, failed, reason, len(self.taken), self.limit, step, record["lr_factor"],
            )  # fmt: skip
        distributed.barrier("a retry")
        return True


def _read(path: Path, origin: str) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    content = read_json(path, origin=str, retries=list)
    known = content["retries"] if content["origin"] == origin else []
    return [checked(entry, f"{path}: retries", step=int, reason=str, restarted_at=int, lr_factor=float) for entry in known]
