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

IDENTITY = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
TRACKED = {
    "cmapkd/provenance.py": "", "cmapkd/objectives/kd.py": "x = 1\n", "cmapkd/data/table.json": "{}\n",
    "requirements.lock": "a==1\n", "README.md": "", "config/mine.yaml": "", "config/models/small.json": "{}\n",
    "workflow/rules/x.smk": "", ".gitignore": "/workflow/profiles/slurm/profile.v9+.yaml\nresults/\n",
}  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The package of a git repository, in a folder with a space and a letter beyond ASCII."""
    root = tmp_path / "some c\u00f6de"
    for name, content in TRACKED.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    for arguments in (["init", "-q"], ["add", "."], [*IDENTITY, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)
    return root / "cmapkd"


def test_commit_and_dirtiness_come_from_the_repository_of_the_code(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAPKD_COMMIT", "stale")
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert provenance.code_version(repository) == (head, False)
    (repository / "new.py").write_text("x = 1\n")
    assert provenance.code_version(repository) == (head, True)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("cmapkd/objectives/kd.py", True),
        ("cmapkd/objectives/ne\u00fc er.py", True),
        ("cmapkd/new/module.py", True),
        ("cmapkd/data/table.json", True),
        ("requirements.lock", True),
        ("cmapkd/notes.txt", False),
        ("README.md", False),
        ("config/mine.yaml", False),
        ("config/my \u00e9xperiment.yaml", False),
        ("config/models/small.json", False),  # its content is in the address of each stage
        ("workflow/rules/x.smk", False),
        ("workflow/profiles/slurm/profile.v9+.yaml", False),
        ("results/smoke/metrics.json", False),
        ("script.py", False),
    ],
)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_changes_are_those_of_what_fingerprints_cover(
    repository: Path, monkeypatch: pytest.MonkeyPatch, file: str, expected: bool, locale: str
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    path = repository.parent / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("changed = True\n")
    assert provenance.code_version(repository)[1] is expected


def test_removed_renamed_and_staged_modules_are_changes(repository: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(repository.parent), *arguments], check=True, capture_output=True)

    git("mv", "cmapkd/objectives/kd.py", "kd.py")
    assert provenance.code_version(repository)[1] is True
    git("reset", "-q", "--hard")
    assert provenance.code_version(repository)[1] is False
    (repository / "objectives/kd.py").unlink()
    assert provenance.code_version(repository)[1] is True
    git("reset", "-q", "--hard")
    (repository / "objectives/kd.py").chmod(0o755)
    assert provenance.code_version(repository)[1] is False, "the mode of a file is not code"
    (repository.parent / "latest").symlink_to("results")
    git("config", "status.showUntrackedFiles", "no")
    assert provenance.code_version(repository)[1] is False
    (repository / "new.py").write_text("")
    assert provenance.code_version(repository)[1] is True


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
