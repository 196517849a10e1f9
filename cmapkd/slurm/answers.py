"""Answers of SLURM's programs: how a job ended, whether a refused submission is worth a second try, and how long to wait.

The messages are those of ``src/common/slurm_errno.c`` and of the limits in ``src/common/slurm_protocol_defs.c`` of SLURM.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PAUSES = "CMAPKD_SLURM_PAUSES"
# States (`squeue`, section JOB STATE CODES) after which a job does not run again by itself. All other states are of jobs that
# wait or run. PREEMPTED and NODE_FAIL may be followed by a requeue.
COMPLETED = "COMPLETED"
REQUEUED = ("PREEMPTED", "NODE_FAIL")
# States of jobs that were ended from outside: what they had saved is progress.
OUTSIDE = {
    "TIMEOUT": "by its time limit",
    "PREEMPTED": "by a preemption",
    "NODE_FAIL": "by a failure of its node",
    "CANCELLED": "by a cancellation",
    "GONE": "for a reason that SLURM no longer knows",
}
ENDED = (*OUTSIDE, "FAILED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "ERROR", "LAUNCH_FAILED")

# A limit by name. Only limits on the number of submitted jobs become free again when other jobs end; a job that is too long or
# too large by itself (`QOSMaxWallDurationPerJobLimit`, `AssocMaxCpuPerJobLimit`) is refused each time.
_LIMIT = re.compile(r"\b(?:Assoc|QOS)(?:Max|Min|Grp|Not)\w+|\bInvalidQOS\b|\bInvalidAccount\b")
_SUBMIT_LIMIT = re.compile(r"Submit|MaxJobs|GrpJobs")
_PASSING = re.compile(
    r"job submit limit|timed? ?out|unable to contact slurm|temporarily un|unable to accept job|zero bytes were transmitted"
    r"|connection (?:refused|reset|timed|closed|failure)|no route to host|network is (?:unreachable|down)|transport endpoint"
    r"|send/recv operation|message (?:receive|send) failure|in standby|not responding|back ?off|rate limit"
    r"|sleeping and (?:re-?)?trying|munge|authentication error|invalid (?:authentication )?credential|i/o error writing"
    r"|cannot allocate memory|too many open files|unable to fork|no child processes|broken pipe|no space left on device"
    r"|required partition not available|slurmdbd|try again",
    re.IGNORECASE,
)
_LASTING = re.compile(
    r"invalid (?:partition|account|qos|generic|feature|node|job|time|license|reservation|constraint|wckey|option|argument)"
    r"|not allowed|not permitted|permission denied|access(?:/permission)? denied|unrecogni[sz]ed option|unknown option"
    r"|configuration is not available|more processors requested|command not found|appears to be invalid|limit is invalid"
    r"|can't be satisfied"
    r"|violates accounting/qos policy",
    re.IGNORECASE,
)


def state_of(text: str) -> str:
    """A job's state in one word: `sacct` writes ``CANCELLED by 1000``, and a ``+`` where a name is cut."""
    return (text.split() or [""])[0].rstrip("+")


def words_of(message: str) -> str:
    """SLURM's own words in a message of the executor plugin, on one line."""
    quoted = re.search(r"The error message was '?(.*?)'?\.?\n\s*sbatch (?:call|script):", message, re.DOTALL)
    text = quoted[1] if quoted else message.removeprefix("Job submission failed with exception: ")
    heads = r"^(?:(?:sbatch|sinfo|slurm_\w+)?:? ?error: )?(?:Batch job submission failed: )?"
    lines = [re.sub(heads, "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "sbatch failed without a message"


def is_passing(words: str, controller_answers: Callable[[], bool]) -> bool:
    """Whether the same submission may be accepted later.

    Args:
        words: of SLURM.
        controller_answers: asks whether the controller is up. Called only for a message that is not known: with a controller
            that answers, such a refusal is final.
    """
    limits = _LIMIT.findall(words)
    if limits:
        return any(_SUBMIT_LIMIT.search(limit) for limit in limits)
    if _PASSING.search(words):
        return True
    return not _LASTING.search(words) and not controller_answers()


@dataclass(frozen=True)
class Patience:
    """How long to wait for SLURM.

    Args:
        first: seconds of the first pause; each further one is twice as long.
        longest: seconds of a pause at most.
        total: seconds after which waiting ends with an error.
    """

    first: float = 10.0
    longest: float = 300.0
    total: float = 12 * 3600.0

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Patience:
        """From ``CMAPKD_SLURM_PAUSES=FIRST,LONGEST,TOTAL``; the defaults where it is not set or not three positive numbers."""
        try:
            numbers = [float(word) for word in environment.get(PAUSES, "").split(",")]
        except ValueError:
            return cls()
        return cls(*numbers) if len(numbers) == 3 and all(0 < number < float("inf") for number in numbers) else cls()

    def pause(self, number: int, waited: float) -> float | None:
        """Seconds to wait before the next question.

        Args:
            number: pauses so far.
            waited: seconds since the first failure.

        Returns:
            None: the patience is at its end.
        """
        return None if waited >= self.total else min(self.first * 2 ** min(number, 30), self.longest)

    @property
    def unknown(self) -> float:
        """Seconds after which a job that SLURM does not know any more is judged by its files: ten minutes by default."""
        return 60 * self.first
