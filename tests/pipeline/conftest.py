"""A finished smoke experiment, run by the real workflow in a copy of the repository whose files the tests may edit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ELSEWHERE = "Größe 1"  # a folder with a blank and a letter that is not ASCII
CANARY = "hush-this-is-a-secret-4711"  # in the environment of every command; it may be in nothing that they leave
SECRETS = ("HF_TOKEN", "NPM_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN")
# Results of the finished experiment, once there are any in this session: other tests compare with them.
FINISHED: list[Path] = []


@dataclass
class Checkout:
    """A copy of the repository with results in it."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "results" / "smoke"

    @property
    def environment(self) -> dict[str, str]:
        """This environment, with its programs and the copy's own package."""
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        secrets = dict.fromkeys(SECRETS, CANARY)
        return {**os.environ, **secrets, "PYTHONPATH": str(self.root), "PATH": programs}

    def run(self, *command: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """A command in the copy, with this environment's programs and the copy's own package."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        """The workflow on config/smoke.yaml; returns what it printed."""
        options = ["--profile", "workflow/profiles/local", "--cores", "2", "--configfile", "config/smoke.yaml"]
        done = self.run("snakemake", *options, *arguments, check=check)
        return done.stdout + done.stderr

    def planned(self, *arguments: str) -> list[str]:
        """Messages of the jobs that a run would start now."""
        return re.findall(r"^Job \d+: (.*)$", self.snakemake("--dry-run", *arguments), flags=re.MULTILINE)

    def cmapkd(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A sub-command on the smoke experiment."""
        return self.run(sys.executable, "-m", "cmapkd", *arguments, "--experiment", "config/smoke.yaml", check=check)


def copy_repository(target: Path) -> Checkout:
    """What a user's checkout holds, without its environment and results."""
    for part in ("cmapkd", "workflow", "config", "paper"):
        shutil.copytree(REPOSITORY / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
    # Facts of the maker's site, which git ignores.
    (target / "workflow/profiles/slurm/profile.v9+.yaml").unlink(missing_ok=True)
    return Checkout(target)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The smoke experiment, complete. Tests that edit the copy must use ``edit``, which undoes it."""
    checkout = copy_repository(tmp_path_factory.mktemp("checkout") / ELSEWHERE)
    checkout.snakemake()
    FINISHED.append(checkout.home)
    return checkout


@pytest.fixture
def edit(finished: Checkout) -> Callable[[str, str, str], None]:
    """``edit(file, old, new)`` replaces text in a file of the copy for one test."""
    originals: dict[Path, str] = {}

    def change(name: str, old: str, new: str) -> None:
        path = finished.root / name
        text = path.read_text()
        assert old in text, f"{name} no longer holds {old!r}: mend this test"
        originals.setdefault(path, text)
        path.write_text(text.replace(old, new, 1))

    yield change  # type: ignore[misc]
    for path, text in originals.items():
        path.write_text(text)
