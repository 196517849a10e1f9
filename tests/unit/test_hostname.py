"""Ranks on one node meet whatever the name of the machine is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cmapkd import launch, selfcheck
from cmapkd.training.launch import ON_ONE_NODE

REPOSITORY = Path(__file__).parents[2]
RENAME = 'hostname no-such-host.invalid && exec "$@"'


def test_two_ranks_meet_on_a_machine_whose_name_does_not_resolve() -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-u", "true"], capture_output=True).returncode:
        pytest.skip("no namespace for a name of its own is to be had here")
    check = "from pathlib import Path; from cmapkd import selfcheck; print(selfcheck.check_distributed(Path()))"
    command = ["unshare", "-u", "sh", "-c", RENAME, "sh", sys.executable, "-c", check]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # Less than the 300 seconds for which ranks wait for each other at a name that does not resolve.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 ranks (gloo) agree" in done.stdout


def test_every_launch_on_one_node_names_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ON_ONE_NODE == ("--standalone", "--local-addr=127.0.0.1")
    assert set(ON_ONE_NODE) <= set(launch.launch_command(2, 0, ["train", "x"], {}))
    seen: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 0, "weight=0.75;weight=0.75;", "")

    monkeypatch.setattr(selfcheck.subprocess, "run", run)
    selfcheck.check_distributed(tmp_path)
    monkeypatch.setattr("cmapkd.training.launch._run", lambda command, environment: (seen.append(command), (0, False))[1])
    from cmapkd.training.launch import run_ranks

    run_ranks(2, ["train", "x"], tmp_path, 0)
    assert len(seen) == 2 and all(set(ON_ONE_NODE) <= set(command) for command in seen)
