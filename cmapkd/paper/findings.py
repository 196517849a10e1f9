"""What a check of a results directory finds: problems, remarks and how much was looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of

SHOWN_CELLS = 3  # cells that one problem names; of a changed file there may be hundreds


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: file, cells (if it concerns numbers of the paper), reason and fix."""

    file: str
    reason: str
    fix: str = ""
    cells: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.file}: {self.reason}"]
        if self.cells:
            rest = len(self.cells) - SHOWN_CELLS
            more = f" and {rest} more" if rest > 0 else ""
            lines.append(f"  cell{'s' if len(self.cells) > 1 else ''}: {'; '.join(self.cells[:SHOWN_CELLS])}{more}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


@dataclass
class Findings:
    """Problems and remarks in the order in which they were found, and counts of what was checked."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: bool = False  # the results are a copy without arrays, models and data: what is not there is counted
    absent: dict[str, set[Path]] = field(default_factory=dict)  # of a copy: kind -> what is not there
    counts: Counter[str] = field(default_factory=Counter)
    _digests: dict[tuple[int, int], str] = field(default_factory=dict)
    _parsed: dict[Path, Any] = field(default_factory=dict)

    def problem(self, file: Path | str, reason: str, fix: str = "", *cells: str) -> None:
        """Note a problem; that of a file and reason that is known already only adds its cells."""
        for index, known in enumerate(self.problems):
            if (known.file, known.reason) == (str(file), reason):
                merged = tuple(dict.fromkeys((*known.cells, *cells)))
                self.problems[index] = Problem(known.file, reason, known.fix, merged)
                return
        self.problems.append(Problem(str(file), reason, fix, cells))

    def refused(self, error: UserError, *cells: str) -> None:
        """A refusal of another part as a problem, unless its file is known to be wrong."""
        if not any(problem.file == error.key for problem in self.problems):
            shown = f"{error.value!r} " if error.value is not None else ""
            self.problem(error.key, f"{shown}{error.reason}", error.fix, *cells)

    @contextmanager
    def reading(self, path: Path, fix: str) -> Iterator[None]:
        """What a file's content may do to the one who reads it, if it was edited to another form, is a problem of that file."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            self.problem(path, f"is not of the form that was written here: {type(error).__name__}: {error}", fix)

    def gone(self, path: Path, kind: str) -> bool:
        """Whether a file is not there because these results are a copy without it; it is counted then."""
        if not self.kept or path.exists():
            return False
        self.absent.setdefault(kind, set()).add(path)
        return True

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def sha256(self, path: Path) -> str:
        """Hex SHA-256 of a file's bytes, read once: a run's model is a hard link to that of its last stage."""
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if key not in self._digests:
            self._digests[key] = sha256_of(path)
            self.counts["files"] += 1
            self.counts["bytes"] += status.st_size
        return self._digests[key]

    def same(self, path: Path, expected: Any, named_by: str, fix: str, *cells: str) -> bool:
        """Whether a file exists and has the digest that ``named_by`` gives for it; if not, that is a problem."""
        if path.suffix == ".npz" and self.gone(path, "per-query arrays"):
            return False
        self.counts["digests"] += 1
        if not path.is_file():
            self.problem(path, f"is missing; {named_by} names it", fix, *cells)
            return False
        actual = self.sha256(path)
        if actual != expected:
            reason = f"has SHA-256 {actual[:12]}, but {named_by} says {str(expected)[:12]}: one of the two was changed"
            self.problem(path, reason, fix, *cells)
            return False
        return True

    def json(self, path: Path, fix: str, *, missing: str = "is missing", kind: str = "") -> dict[str, Any] | None:
        """A JSON object, parsed once; None and a problem when it is missing, cut off or something else.

        Args:
            kind: of what kept results have none of.
        """
        if kind and self.gone(path, kind):
            return None
        if path not in self._parsed:
            self._parsed[path] = None
            try:
                content = read_json(path)
            except FileNotFoundError:
                self.problem(path, missing, fix)
            except (OSError, ValueError) as error:
                self.problem(path, f"is truncated or no JSON: {error}", fix)
            else:
                if isinstance(content, dict):
                    self._parsed[path] = content
                else:
                    self.problem(path, "is not a JSON object", fix)
        found: dict[str, Any] | None = self._parsed[path]
        return found
