"""Provenance: with git, without git, and in a container that only has environment variables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cmapkd import provenance


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository that tracks a package with a provenance.py."""
    package = tmp_path / "code" / "cmapkd"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(package.parent), *arguments], check=True, capture_output=True)
    return package


def test_commit_and_dirtiness_come_from_the_repository_of_the_code(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAPKD_COMMIT", "stale")
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert provenance.code_version(repository) == (head, False)
    (repository / "new.py").write_text("x = 1\n")
    assert provenance.code_version(repository) == (head, True)


def test_a_copy_that_the_surrounding_repository_does_not_track_is_not_described_by_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = repository.parent / ".venv" / "cmapkd"
    installed.mkdir(parents=True)
    (installed / "provenance.py").write_text("")
    monkeypatch.delenv("CMAPKD_COMMIT", raising=False)
    assert provenance.code_version(installed) == ("unknown", "unknown")


@pytest.mark.parametrize(
    ("commit", "dirty", "expected"),
    [
        ("abc", "0", ("abc", False)),
        ("abc", "true", ("abc", True)),
        ("abc", "", ("abc", "unknown")),
        ("", "1", ("unknown", "unknown")),
    ],
)
def test_without_git_the_environment_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str, dirty: str, expected: tuple[str, object]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    monkeypatch.setenv("CMAPKD_COMMIT", commit)
    monkeypatch.setenv("CMAPKD_DIRTY", dirty)
    assert provenance.code_version() == expected


def test_collect_is_json_with_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAPKD_IMAGE_DIGEST", "sha256:1234")
    start = provenance.Start()
    time.sleep(0.02)
    found = provenance.collect(start, config_digest="c", data_digests={"d": "e"}, stages=["coarse"], command="cmapkd evaluate")
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {
        "commit", "dirty", "config_digest", "data_digests", "stages", "host", "started", "wall_seconds", "versions",
        "machine", "image_digest", "command",
    }  # fmt: skip
    assert found["started"].endswith("+00:00")
    assert 0.02 <= found["wall_seconds"] < 10
    assert found["image_digest"] == "sha256:1234"
    assert {"python", "numpy"} <= set(found["versions"])
    assert found["machine"]["threads"] == torch.get_num_threads() and found["machine"]["processor"]


def test_versions_import_nothing() -> None:
    code = (
        "import sys\nfrom cmapkd.provenance import versions\nfound = versions()\n"
        "assert 'torch' in found, found\nassert not {'torch', 'numpy', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/somewhere/bin/cmapkd", "evaluate", "w/o ALSN/0"], "cmapkd evaluate 'w/o ALSN/0'"),
        (["/somewhere/cmapkd/__main__.py", "plan"], "cmapkd plan"),
        (["/somewhere/train.py", "x"], "/somewhere/train.py x"),
        ([], "unknown"),
    ],
)
def test_command_line_can_be_pasted_into_a_shell(arguments: list[str], expected: str) -> None:
    assert provenance.command_line(arguments) == expected
