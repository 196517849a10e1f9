"""Where a number comes from: code, machine, time, versions and command of the process that computes it.

Torch-free, and cheap: package versions are read from installed metadata, nothing is imported for them.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cmapkd.paths import portable

UNKNOWN = "unknown"

# Distributions whose version can change a number. The lock file has the others.
KEY_PACKAGES = (
    "cmapkd", "torch", "torchvision", "open_clip_torch", "transformers", "deepspeed", "webdataset", "safetensors",
    "numpy", "scipy", "scikit-learn", "pillow", "resvg-py", "snakemake",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """The moment a piece of work began: wall clock for people, monotonic clock for durations."""

    utc: datetime = field(default_factory=lambda: datetime.now(UTC))
    monotonic: float = field(default_factory=time.monotonic)  # [s]


_PROCESS_START = Start()  # the module is imported early, so this is near the process's start


def collect(
    start: Start | None = None,
    *,
    config_digest: str | None = None,
    data_digests: Mapping[str, str] | None = None,
    stages: Sequence[Any] = (),
    command: str | None = None,
) -> dict[str, Any]:
    """The ``provenance`` entry of a metric file.

    Args:
        start: when the work began; by default when this process began.
        config_digest: digest of the configuration subtree the work depends on.
        data_digests: data set -> digest of its manifest.
        stages: the training stages behind the number (JSON-able), first to last.
        command: the command that does the work; by default this process's command line.

    Returns:
        JSON-able dictionary: commit, dirty (true, false or "unknown"), config_digest, data_digests, stages, host,
        started (UTC, ISO 8601), wall_seconds [s], versions, machine, image_digest, command.
    """
    start = start or _PROCESS_START
    commit, dirty = code_version()
    return {
        "commit": commit,
        "dirty": dirty,
        "config_digest": config_digest if config_digest is not None else UNKNOWN,
        "data_digests": dict(data_digests or {}),
        "stages": list(stages),
        "host": platform.node() or UNKNOWN,
        "started": start.utc.isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - start.monotonic, 3),
        "versions": versions(),
        "machine": machine(),
        "image_digest": os.environ.get("CMAPKD_IMAGE_DIGEST") or None,
        "command": command if command is not None else command_line(),
    }


def code_version(package: Path | None = None) -> tuple[str, bool | str]:
    """Commit of the running code, and whether that has uncommitted changes ("dirty").

    From git, else from CMAPKD_COMMIT and CMAPKD_DIRTY, else "unknown".

    The repository asked is the one that tracks this package's own files. An installed copy below somebody else's repository
    (a virtual environment inside it, say) is not described by that repository's commit.

    A change is one of what the fingerprints cover (``cmapkd.fingerprint``) and of the packages that the code runs with: a
    tracked file of the package or a new module in it, and ``requirements.lock``. The files of ``config/models`` and
    ``config/deepspeed`` do not count, as their content is part of the address of each stage, nor do experiments, which are kept
    with the results, nor pages, rules of the workflow, and the profile of a site, which change no number.
    """
    file = (package or Path(__file__).parent) / "provenance.py"
    if _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is not None:
        commit = _git(file.parent, "rev-parse", "HEAD")
        if commit:
            return commit, _changed(file.parent)
    commit = os.environ.get("CMAPKD_COMMIT", "").strip() or UNKNOWN
    return commit, _truth(os.environ.get("CMAPKD_DIRTY", "")) if commit != UNKNOWN else UNKNOWN


def machine() -> dict[str, Any]:
    """What can change a result by rounding and is no setting: threads, processor, device, versions.

    Torch is not imported for it: a process that computes has imported it already.
    """
    torch: Any = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads() if torch is not None else None,
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        **versions(("torch", "open_clip_torch", "deepspeed")),
    }


@functools.cache
def _processor() -> str:
    """Model of the processor, by Linux's name for it where there is one."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or UNKNOWN


def versions(packages: Sequence[str] = KEY_PACKAGES) -> dict[str, str]:
    """Version of Python and of each installed package of ``packages``."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str] | None = None) -> str:
    """This process's command line, quoted for a shell; the program is ``cmapkd`` however it was started.

    Absolute paths are written as ``cmapkd.paths.portable`` does, which a shell expands to the same here.
    """
    arguments = list(sys.argv if arguments is None else arguments)
    if not arguments:
        return UNKNOWN
    program = Path(arguments[0])
    if program.name in ("cmapkd", "cmapkd.exe") or (program.name == "__main__.py" and program.parent.name == "cmapkd"):
        arguments[0] = "cmapkd"
    return " ".join(map(_word, arguments))


def _word(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if not value.startswith("/"):
        return shlex.quote(argument)
    path = portable(value, variables=True)
    first, slash, rest = path.partition("/")
    # A quoted `~` is a name, and so is one after `=`.
    start = '"$HOME"' if first == "~" else f'"{first}"'
    word = f"{start}{slash}{shlex.quote(rest) if rest else ''}" if first[:1] in ("~", "$") else shlex.quote(path)
    return f"{shlex.quote(option)}{equals}{word}" if option else word


def _changed(package: Path) -> bool | str:
    """Whether files of the package, or the lock beside it, differ from the commit; "unknown" if git does not answer."""
    # Paths as they are, ended by NUL: without quotes, whatever the locale and their characters. All untracked files one by one,
    # whatever the user's settings. No lock of the index is taken, as many jobs ask at the same time.
    options = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    status = _git(package.parent, *options, "--", package.name, "requirements.lock")
    if status is None:
        return UNKNOWN
    entries = [entry for entry in status.split("\0") if entry.strip()]
    return any(not entry.startswith("??") or entry.endswith(".py") for entry in entries)


def _git(directory: Path, *arguments: str) -> str | None:
    """Output of a git command, or None if git is missing or refuses."""
    # In a container the files often belong to another user; reading them is harmless, so ownership is not checked.
    options = ["-c", "safe.directory=*", "-c", "core.fileMode=false", "--no-optional-locks", "--literal-pathspecs"]
    command = ["git", *options, "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None


def _truth(text: str) -> bool | str:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "dirty"):
        return True
    return False if word in ("0", "false", "no", "clean") else UNKNOWN
