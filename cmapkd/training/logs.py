"""What a training says of itself: JSON lines for every step, TensorBoard, progress for people, a closing summary."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cmapkd.files import parse_json, write_atomic
from cmapkd.objectives.base import Terms
from cmapkd.training import distributed

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 20.0  # where no terminal shows a bar


class TrainingLog:
    """Collects each step's terms and writes them in blocks, so that a GPU is not waited for at every step.

    Args:
        directory: of the stage; ``log.jsonl`` and ``tensorboard/`` are written there by rank 0.
        label: what people see.
        steps: of the whole stage.
        start: first step of this process; the log is cut back to it, so that a resumed run has each step once.
        samples: samples of one step over all ranks.
        every: steps between two writes.
    """

    def __init__(self, directory: Path, label: str, steps: int, start: int, samples: int, every: int) -> None:
        self.label, self.steps, self.samples, self.every = label, steps, samples, every
        self.writes = distributed.rank() == 0
        self._pending: list[tuple[int, dict[str, torch.Tensor], dict[str, float]]] = []
        self._began = self._flushed = self._printed = time.monotonic()
        self.start = start
        self.last: dict[str, float] = {}
        self._board: Any = None
        self._bar: tqdm | None = None
        if not self.writes:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = directory / "log.jsonl"
        kept = [line for line in _lines(path) if line["step"] < start]
        # A new file: who lost the lock of this stage, and does not know it yet, goes on writing into the old one.
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start)
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=start, desc=label, unit="step", dynamic_ncols=True)

    def step(self, step: int, terms: Terms, **scalars: float) -> None:
        """Note a finished step's loss, terms and other figures (learning rate, gradient norm, seconds waited for data)."""
        self._pending.append((step, {"loss": terms.total.detach(), **terms.parts}, scalars))
        if len(self._pending) >= self.every or step + 1 == self.steps:
            self.flush()

    def flush(self) -> None:
        """Average the pending steps' terms over ranks and write them."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        table = torch.stack([torch.stack([parts[name].float() for name in names]) for _, parts, _ in self._pending])
        table = distributed.mean_over_ranks(table).cpu()  # (steps, terms)
        now = time.monotonic()
        rate = self.samples * len(self._pending) / max(now - self._flushed, 1e-9)
        self._flushed = now
        for (step, _, scalars), row in zip(self._pending, table.tolist(), strict=True):
            self.last = dict(zip(names, row, strict=True))
            if self.writes:
                self._write(step, {**self.last, **scalars, "samples_per_second": rate})
        done = self._pending[-1][0] + 1
        self._pending.clear()
        if self.writes:
            self._file.flush()
            self._show(done, rate)

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **{name: float(f"{value:.7g}") for name, value in values.items()}}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def _show(self, done: int, rate: float) -> None:
        terms = " ".join(
            f"{name} {value:.3g}" for name, value in self.last.items() if not name.startswith(("weight_", "entropy_"))
        )
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:.0f} samples/s {terms}", refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            left = (self.steps - done) * (self._printed - self._began) / max(1, done - self.start)
            share = 100 * done // self.steps
            log.info(
                "%s: %d/%d (%d %%) %.0f samples/s, %s left | %s", self.label, done, self.steps, share, rate, _clock(left), terms
            )

    def sync(self) -> None:
        """Wait until the log is on the disk: a checkpoint without the lines of its steps would leave a gap."""
        if self.writes:
            os.fsync(self._file.fileno())

    def abandon(self) -> None:
        """Close the files without another word, and without the other ranks; does nothing after ``close``."""
        self._pending.clear()
        if self.writes and not self._file.closed:
            if self._bar is not None:
                self._bar.close()
            for close in (self._file.close, self._board.close):
                with contextlib.suppress(OSError):
                    close()

    def close(self, finished: bool) -> dict[str, Any]:
        """Close the files; the summary of what this process did. ``finished`` says so to people too."""
        self.flush()
        seconds = time.monotonic() - self._began
        summary = {
            "steps": self.steps,
            "resumed_at": self.start,
            "seconds": round(seconds, 2),
            "samples_per_second": round(self.samples * (self.steps - self.start) / max(seconds, 1e-9), 1),
            "last": {name: float(f"{value:.6g}") for name, value in self.last.items()},
        }
        if self.writes:
            if self._bar is not None:
                self._bar.close()
            self._file.close()
            self._board.close()
            if finished:
                terms = ", ".join(f"{name} {value:.4g}" for name, value in self.last.items())
                rate = summary["samples_per_second"]
                log.info("%s: done, %d steps in %s (%.0f samples/s): %s", self.label, self.steps, _clock(seconds), rate, terms)
        return summary


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of an earlier log; a line cut short by a kill is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(parse_json(text, str(path), dict))
        except ValueError:
            continue
    return found


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
