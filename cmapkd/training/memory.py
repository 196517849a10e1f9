"""What becomes of a training that runs out of memory: back to the last checkpoint, with half the micro-batch.

Twice as many micro-batches then make the same global batch, so the result is the same to rounding. Only an allocation that
the training itself saw fail counts. A process that was killed from outside may have been, by the kernel, for its memory; but so
are the processes of a node that is lost or a job that is cancelled, and a smaller micro-batch would then be kept for nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cmapkd.errors import UserError
from cmapkd.files import checked, read_json, write_json

log = logging.getLogger(__name__)
FILE = "oom-retries.json"


class Halvings:
    """How often a stage's micro-batch was halved, kept beside its checkpoints.

    Args:
        directory: of the checkpoints.
        origin: of code and settings; halvings of another one are forgotten.
        limit: most halvings in all.
        label: of the stage, for people.
        samples: of one rank in one step.
        accumulation: micro-batches of a step as configured.
    """

    def __init__(self, directory: Path, origin: str, limit: int, label: str, samples: int, accumulation: int) -> None:
        self.directory, self.origin, self.limit, self.label = directory, origin, limit, label
        self.samples, self.configured = samples, accumulation
        path = directory / FILE
        content = read_json(path, origin=str, retries=list) if path.is_file() else {}
        known = content["retries"] if content.get("origin") == origin else []
        self.taken = [checked(entry, f"{path}: retries", reason=str, accumulation=int) for entry in known]

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on each rank."""
        return int(self.taken[-1]["accumulation"]) if self.taken else self.configured

    def take(self, reason: str) -> None:
        """Halve the micro-batch from now on. On one rank.

        Raises:
            UserError: no retry is left, or the micro-batch cannot be halved.
        """
        now = self.accumulation
        why = None
        if len(self.taken) >= self.limit:
            why = f"after {len(self.taken)} of {self.limit} retries (training.oom_retries)"
        elif self.samples % (2 * now):
            why = f"and a micro-batch of {self.samples // now} samples cannot be halved"
        if why is not None:
            raise UserError(
                key=self.label,
                reason=f"out of memory, {why}: {reason}",
                fix="use more ranks, a file of config/deepspeed with a higher ZeRO stage or more accumulation, or a smaller "
                "model; the last checkpoint is kept, and goes on with any of them",
            )
        self.taken.append({"reason": reason, "accumulation": 2 * now})
        write_json(self.directory / FILE, {"origin": self.origin, "retries": self.taken})
        log.warning(
            "%s: out of memory; retry %d of %d with micro-batches of %d samples, %d a step (%s)",
            self.label, len(self.taken), self.limit, self.samples // (2 * now), 2 * now, reason,
        )  # fmt: skip
