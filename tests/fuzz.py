"""Random and damaged input for the readers of files that others may have written, for as long as one likes.

`python -m tests.fuzz --minutes 60` (`make fuzz`) prints for each reader how many inputs were read, were refused with an
explanation, or ended in anything else, with the first input of each kind of failure, the longest time and the peak of memory.
It ends with 1 where there was a failure, an input that took longer than `LONGEST` seconds, or more memory than `MEMORY`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "unit"))

import synthetic_metrics as synthetic  # noqa: E402 - a module of the unit tests
from test_config_fuzz import FULL, JSON, KEYED, places  # noqa: E402
from test_public_sources import MAKERS, build  # noqa: E402
from test_sources_fuzz import SPOILT, spoil  # noqa: E402

from cmapkd.config import load_experiment, parse_experiment  # noqa: E402
from cmapkd.errors import UserError  # noqa: E402
from cmapkd.files import read_json, sha256_of  # noqa: E402
from cmapkd.paper.build import build_table  # noqa: E402
from cmapkd.paper.findings import Findings  # noqa: E402
from cmapkd.plan import make_plan  # noqa: E402
from cmapkd.training import checkpoints, failures, locks  # noqa: E402

LONGEST = 60.0  # [s] of one input
MEMORY = 2e9  # [bytes]
ROUND = 50  # inputs between two looks at the clock
TAGS = ("timestamp", "int", "float", "bool", "null", "set", "omap", "pairs", "binary", "str", "seq", "map", "x")
SNIPPETS = (
    "&a ", "*a", "? ", ": ", "- ", "|\n", ">\n", "{", "[", "}", "]", "\t", "\r", "%", "@", "`", "---\n", "...\n", "<<: ",
    *(f"!!{tag} " for tag in TAGS), "\ufeff", "\0", "\u202e", "1e400", ".nan", "0x", "1:30", "2020-99-99",
    "__use_yte__: true\n", "?x", "{error.args}", "\\ud800",
)  # fmt: skip


class TooLong(BaseException):
    """An input took longer than `LONGEST`."""


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    read: int = 0
    refused: int = 0
    longest: float = 0.0
    failures: dict[tuple[str, ...], str] = field(default_factory=dict)

    def take(self, action: Callable[[], object], shown: Callable[[], str]) -> None:
        """Run one input."""
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            action()
            self.read += 1
        except UserError as error:
            self.refused += 1
            assert str(error)
        except (Exception, TooLong) as error:
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/cmapkd/" in frame.filename]
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
            self.failures.setdefault((type(error).__name__, place), f"{str(error)[:200]}\n{shown()[:2_000]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.longest = max(self.longest, time.monotonic() - began)


def damaged(draw: Callable[[Any], Any], raw: bytes) -> bytes:
    """Bytes with one to four edits: flipped, cut, inserted or repeated."""
    content = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["flip", "cut", "snippet", "bytes", "repeat", "end"])):
            case "flip":
                content[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del content[at : at + draw(st.sampled_from([1, 2, 50, 500]))]
            case "snippet":
                content[at:at] = draw(st.sampled_from(SNIPPETS)).encode()
            case "bytes":
                content[at:at] = draw(st.binary(max_size=8))
            case "repeat":
                content[at:at] = content[at : at + 60] * draw(st.sampled_from([1, 2, 1_000]))
            case _:
                del content[at:]
    return bytes(content)


def changed(draw: Callable[[Any], Any], content: Any) -> Any:
    """JSON with one value removed or replaced by any other."""
    content = json.loads(json.dumps(content))
    path = draw(st.sampled_from([path for path in places(content) if path] or [()]))
    if not path:
        return draw(JSON)
    section = content
    for key in path[:-1]:
        section = section[key]
    if draw(st.booleans()):
        section[path[-1]] = draw(JSON | KEYED)
    else:
        del section[path[-1]]
    return content


def spoilt_json(draw: Callable[[Any], Any], raw: bytes) -> bytes:
    """The content of a JSON file, with another value or other bytes."""
    if draw(st.booleans()):
        return damaged(draw, raw)
    return json.dumps(changed(draw, json.loads(raw))).encode("utf-8", "surrogatepass")


Reader = Callable[[Path], Callable[[Callable[[Any], Any], Tally], None]]


def configuration(folder: Path) -> Callable[[Callable[[Any], Any], Tally], None]:
    """Experiment files: other values, and other text."""
    text = (REPOSITORY / "config" / "mini.yaml").read_bytes()
    path = folder / "x.yaml"

    def one(draw: Callable[[Any], Any], tally: Tally) -> None:
        if draw(st.booleans()):
            content = changed(draw, FULL)
            tally.take(lambda: make_plan(parse_experiment(content)), lambda: repr(content))
        else:
            path.write_bytes(damaged(draw, text))
            tally.take(lambda: make_plan(load_experiment(path)), lambda: repr(path.read_bytes()))

    return one


def metrics(folder: Path) -> Callable[[Callable[[Any], Any], Tally], None]:
    """Metric files, for tables and for `verify`."""
    context = synthetic.context(folder, tables=("table2",), figures=())
    synthetic.write_all(context)
    path = context.metric_file("KD", 0)
    good = path.read_bytes()

    def one(draw: Callable[[Any], Any], tally: Tally) -> None:
        path.write_bytes(spoilt_json(draw, good))

        def read() -> None:
            Findings().json(path, "fix")
            build_table("table2", context)

        tally.take(read, lambda: repr(path.read_bytes()))

    return one


def checkpoint(folder: Path) -> Callable[[Callable[[Any], Any], Tally], None]:
    """Records of a training: checkpoints, locks, failures, results."""
    step = folder / "step-00000004"
    step.mkdir()
    (step / "rank").write_bytes(b"x" * 100)
    about = {"step": 4, "origin": "o", "ranks": 1, "zero": 0, "accumulation": 1, "files": {"rank": sha256_of(step / "rank")}}
    records = {
        step / "checkpoint.json": {**about, "numbers": {"optimizer_steps": 4}},
        folder / locks.FILE: {"token": "other", **locks.identity(), "began": "now"},
        folder / failures.FILE: {"origin": "o", "failures": []},
        folder / "failed-00000.json": {"origin": "o", "kind": "memory", "reason": "r", "checkpoint": 1, "rank": 0, "host": "h"},
        folder / "stage.json": {"files": {}, "summary": {}, "provenance": {}},
    }
    goods = {path: json.dumps(content).encode() for path, content in records.items()}

    def one(draw: Callable[[Any], Any], tally: Tally) -> None:
        path = draw(st.sampled_from(sorted(goods)))
        for other, raw in goods.items():
            other.write_bytes(raw)
        path.write_bytes(spoilt_json(draw, goods[path]))
        shown = path.read_bytes()

        def read() -> None:
            checkpoints._choose(folder, "o")
            with contextlib.suppress(UserError):
                locks.StageLock(folder, "fuzz", wait=0.0, stale=1e6, poll=0.0).__enter__().__exit__()
            failures.Failures(folder, "o", "fuzz", 2).gather()
            read_json(folder / "stage.json", files=dict)

        tally.take(read, lambda: f"{path.name}: {shown!r}")

    return one


def sources(folder: Path) -> Callable[[Callable[[Any], Any], Tally], None]:
    """Data sets in their publishers' formats."""
    made = []
    for number, maker in enumerate(MAKERS):
        root = folder / f"root{number}"
        kind, keys, _ = maker(root)
        files = sorted(path for path in root.rglob("*") if path.suffix in SPOILT)
        texts = [path for path in files if path.suffix in (".json", ".tsv", ".csv", ".txt", ".tar")]
        made.append((kind, root, keys, texts * 3 + files[:3]))

    def one(draw: Callable[[Any], Any], tally: Tally) -> None:
        kind, root, keys, files = draw(st.sampled_from(range(len(made))).map(made.__getitem__))
        path = draw(st.sampled_from(files))
        original, out = path.read_bytes(), folder / "out"
        spoilt = spoil(original, path.name, draw)
        path.write_bytes(spoilt)
        try:
            tally.take(lambda: build(kind, root, out, **keys), lambda: f"{path.name}: {spoilt!r}")
        finally:
            path.write_bytes(original)
            shutil.rmtree(out, ignore_errors=True)

    return one


READERS: dict[str, Reader] = {
    "configuration": configuration,
    "metrics": metrics,
    "checkpoints": checkpoint,
    "sources": sources,
}


def rounds(one: Callable[[Callable[[Any], Any], Tally], None], tally: Tally, until: float, first: int) -> Iterator[int]:
    """Rounds of inputs until the time is over."""
    number = first
    while time.monotonic() < until:

        @seed(number)
        @settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def some(data: st.DataObject) -> None:
            one(data.draw, tally)

        some()
        number += 1
        yield number


def main() -> int:
    """Read the command line, and share the time between the readers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(READERS), nargs="+", default=list(READERS))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"more than {LONGEST:g} s")

    signal.signal(signal.SIGALRM, give_up)
    wrong = 0
    for name in arguments.only:
        tally, began = Tally(), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="cmapkd-fuzz-") as folder:
            one = READERS[name](Path(folder))
            until = began + arguments.minutes * 60 / len(arguments.only)
            for _ in rounds(one, tally, until, 1_000_000 * arguments.seed):
                pass
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sys.stdout.write(
            f"{name}: {tally.read + tally.refused} inputs ({tally.read} read, {tally.refused} refused), "
            f"{len(tally.failures)} kinds of failure, longest {tally.longest:.1f} s, peak {memory / 1e6:.0f} MB, "
            f"{time.monotonic() - began:.0f} s\n"
        )
        for kind, shown in tally.failures.items():
            sys.stdout.write(f"  {' '.join(kind)}: {shown}\n")
        sys.stdout.flush()
        wrong += len(tally.failures) + (tally.longest > LONGEST) + (memory > MEMORY)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
