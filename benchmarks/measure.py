"""Times of things that are compared: measured in turns, so that a noisy minute meets all of them, and given as ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: letter and title of the benchmark.
        name: what was measured.
        value: median.
        low, high: quartiles.
        unit: of the three.
        ratio: of the value to its reference's, median over turns; None for what has no reference.
        reference: what it is compared with.
        bound: what the ratio should be, as ``<= 1.08``.
    """

    group: str
    name: str
    value: float
    low: float
    high: float
    unit: str
    ratio: float | None = None
    reference: str = ""
    bound: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the file of results."""
        return asdict(self)

    @property
    def kept(self) -> bool | None:
        """Whether the ratio keeps its bound; None without one."""
        if self.ratio is None or not self.bound:
            return None
        sign, limit = self.bound.split()
        return self.ratio <= float(limit) if sign == "<=" else self.ratio >= float(limit)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
chosen_clock = ["wall"]


def in_turns(actions: Mapping[str, Callable[[], object]], turns: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds that each action took, by turn; the first ``warm`` turns are left out.

    By the wall's clock, or by that of the processor (`chosen_clock`), which with one thread does not count what others do.
    """
    clock = CLOCKS[chosen_clock[0]]
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns + warm):
        for name, action in actions.items():
            started = clock()
            action()
            if turn >= warm:
                found[name].append(clock() - started)
    return found


def rows(
    group: str,
    seconds: Mapping[str, list[float]],
    reference: str,
    bounds: Mapping[str, str] | None = None,
    *,
    amount: float = 1.0,
    unit: str = "ms",
) -> list[Row]:
    """Rows of what was measured in turns.

    Args:
        reference: name whose times the others are divided by (rates: which is divided by theirs).
        bounds: by name.
        amount: done in each turn: steps, for times in ``ms``; samples, for rates in ``samples/s``.
    """
    rate = unit.endswith("/s")
    found = []
    for name, times in seconds.items():
        values = [amount / value if rate else 1000 * value / amount for value in times]
        low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        ratios = [b / a if rate else a / b for a, b in zip(times, seconds[reference], strict=True)]
        ratio = None if name == reference else statistics.median(ratios)
        found.append(
            Row(
                group,
                name,
                median,
                low,
                high,
                unit,
                ratio,
                reference if ratio is not None else "",
                (bounds or {}).get(name, ""),
            )
        )
    return found


def most_memory() -> int:
    """The most that this process had at once [bytes]; `ru_maxrss` would count the memory of the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
