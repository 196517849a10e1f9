"""No tracked file names a folder of the machine that it was written on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# An absolute path that is not part of a longer word, an address or a relative path.
ABSOLUTE = re.compile(r"(?<![\w.$}<>~*/)\]-])/(?:[\w.@+-]+/)*[\w.@+-]+")
# Folders at the top of a file system. Only below one of these is a text taken for a path: `/head` is also a division.
TOP = re.compile(
    r"/(?:afs|bin|boot|data\d*|dev|etc|export|farm|gpfs|home|Library|lib(?:64)?|lustre|media|mnt|net|nfs|opt|private|proc|projects?"
    r"|root|run|sbin|scratch|srv|sys|tmp|Users|usr|var|work\w*)(?:/|$)"
)
# What every Linux has, or what the product's own images have.
SYSTEM = (
    "/bin", "/boot", "/dev/full", "/dev/fd", "/dev/null", "/dev/nvidiactl", "/dev/shm", "/dev/stderr", "/dev/stdout",
    "/dev/zero",
    "/etc/apptainer", "/etc/apt", "/etc/dpkg", "/etc/machine-id", "/etc/passwd", "/etc/ssl/certs", "/etc/subuid", "/lib",
    "/opt/cmapkd", "/proc", "/sbin", "/sys", "/usr/bin", "/usr/local/bin", "/usr/local/sbin", "/usr/sbin", "/usr/share",
    "/var/cache", "/var/lib", "/var/log",
)  # fmt: skip
# Folders that exist everywhere, named without anything of one machine below them.
BARE = (
    "/data", "/dev", "/etc", "/home", "/mnt", "/opt", "/root", "/run", "/scratch", "/srv", "/tmp", "/usr", "/var", "/var/tmp",
    "/work",
)  # fmt: skip
# Made-up folders of examples and tests.
EXAMPLES = (
    "/data/a", "/data/coco", "/data/me", "/data/photos", "/data/vqa", "/home/guest", "/home/me", "/home/somebody",
    "/home/visitor", "/mnt/data", "/path/to", "/scratch/me", "/scratch/mea", "/scratch/menu", "/scratch/my",
    "/scratch/results", "/usr/g", "/workflow/profiles",
)  # fmt: skip


def absolute_paths(text: str) -> list[str]:
    """Absolute paths in a text that are neither the system's nor of the lists above."""
    found = []
    for match in ABSOLUTE.finditer(text):
        path = match[0].rstrip(".,;:/")
        if not TOP.match(path) or path in BARE:
            continue
        if not any(path == known or path.startswith(f"{known}/") for known in (*SYSTEM, *EXAMPLES)):
            found.append(path)
    return found


@pytest.mark.parametrize(
    "line",
    ["tuned: /root/run/config/tuned/mini.yaml", "in /home/alice/x.py:3", '"/srv/run-of-bob/0"', "(/work/main)", "=/srv/a b"],
)
def test_a_path_of_somebodys_machine_is_seen(line: str) -> None:
    assert absolute_paths(line)


@pytest.mark.parametrize(
    "line",
    [
        "results/mini/data",
        "#!/usr/bin/env bash",
        "~/data/coco",
        "$HOME/tmp/x",
        "below /tmp and /var/tmp",
        "a/home/b",
        "1/root",
        "</work>",
    ],
)
def test_other_texts_are_not(line: str) -> None:
    assert not absolute_paths(line)


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the tracked files are known to git alone, and git does not answer: {error}")
    names = [name for name in listed.split("\0") if name]
    assert len(names) > 300
    found = {}
    for name in names:
        path = ROOT / name
        if name == f"tests/unit/{Path(__file__).name}" or not path.is_file() or path.is_symlink():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image
        if paths := absolute_paths(text):
            found[name] = paths
    assert found == {}
