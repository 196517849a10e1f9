"""The image: both definitions hold the same, its digest, and what jobs in it see of outside."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from cmapkd import image
from cmapkd.errors import UserError
from cmapkd.image import chosen, enter, identify, pass_on, paths_in

REPOSITORY = Path(__file__).parents[2]
SECTIONS = ("arguments", "files", "post", "environment", "test", "labels", "runscript", "help")


def definition(kind: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Header and sections of a definition, without comments and blank lines."""
    header: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    lines = None
    for line in (REPOSITORY / image.DEFINITIONS[kind]).read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if found := re.fullmatch(r"%(\w+)", line):
            lines = sections.setdefault(found[1], [])
        elif lines is None:
            name, _, value = line.partition(": ")
            header[name] = value
        else:
            lines.append(line.strip())
    return header, sections


def test_both_definitions_differ_in_their_base_alone() -> None:
    (cluster, first), (cpu, second) = definition("cluster"), definition("cpu")
    assert list(first) == list(second) == list(SECTIONS)
    assert second["arguments"] == [*first["arguments"], "MIRROR="]
    for name in SECTIONS[1:]:
        assert first[name] == second[name], name
    assert cluster["Bootstrap"] == "docker"
    assert cpu == {"Bootstrap": "debootstrap", "OSVersion": "bookworm", "MirrorURL": "{{ MIRROR }}"}
    # By digest: a tag may name other files tomorrow. What it is of the same Debian, the comment above it says.
    assert re.fullmatch(r"debian@sha256:[0-9a-f]{64}", cluster["From"])
    assert re.search(
        r"^# .*: debian:bookworm-\d{8}-slim\.$", (REPOSITORY / image.DEFINITIONS["cluster"]).read_text(), flags=re.M
    )


@pytest.mark.parametrize("kind", image.DEFINITIONS)
def test_a_definition_is_complete(kind: str) -> None:
    _, sections = definition(kind)
    text = "\n".join(line for lines in sections.values() for line in lines)
    given = {line.partition("=")[0] for line in sections["arguments"]}
    assert set(re.findall(r"\{\{ (\w+) \}\}", text)) <= given
    inside = set()
    for line in sections["files"]:
        source, target = line.split()
        assert (REPOSITORY / source).exists(), line
        assert target == f"/opt/cmapkd/source/{source}"
        inside.add(source)
    script = (REPOSITORY / "containers/install.sh").read_text()
    assert sections["post"][-1] == "exec /opt/cmapkd/source/containers/install.sh /opt/cmapkd/source"
    # What it calls is in the image, and is what `make setup` calls.
    called = set(re.findall(r"^(scripts/\S+)", script, flags=re.M))
    assert called == {"scripts/setup-environment.sh", "scripts/setup-latex.sh"}
    sourced = {
        f"scripts/{name}"
        for path in called
        for name in re.findall(r'^\. "\$\(dirname "\$0"\)/(\S+)"', (REPOSITORY / path).read_text(), flags=re.M)
    }
    assert sourced
    assert called | sourced | {"requirements.lock", "pyproject.toml", "cmapkd"} <= inside
    for name in called:
        assert name in (REPOSITORY / "Makefile").read_text()
    assert any(line.startswith("cmapkd selfcheck") for line in sections["test"])


def test_which_image() -> None:
    assert chosen(None, {}) == Path("containers/cmapkd.sif")
    assert chosen(None, {"CMAPKD_IMAGE": "/images/a.sif"}) == Path("/images/a.sif")
    assert chosen("/images/b.sif", {"CMAPKD_IMAGE": "/images/a.sif"}) == Path("/images/b.sif")


def test_an_image_is_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sif, record = tmp_path / "a.sif", tmp_path / "results" / "image.txt"
    with pytest.raises(UserError, match="cmapkd image build"):
        identify(sif, record)
    sif.write_bytes(b"one")
    one = f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    assert identify(sif, record) == one
    kept = record.read_text()
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(image, "sha256_of", counted)
    assert identify(sif, record) == one
    assert not read, "gigabytes are not read again for nothing"
    os.utime(sif, (1, 1))
    assert identify(sif, record) == one
    assert record.read_text() == kept, "the same image, so nothing is run again"
    assert read
    sif.write_bytes(b"other")
    os.utime(sif, (1, 1))
    assert identify(sif, record) == f"sha256:{hashlib.sha256(b'other').hexdigest()}", "of the same time, but another size"


def test_what_jobs_see_of_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, data, cache = tmp_path / "work", tmp_path / "data", tmp_path / "cache"
    for folder in (work, data, work / "results"):
        folder.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(image, "_program", lambda: "apptainer")
    environment = {"CUDA_VISIBLE_DEVICES": "2,3", "SECRET": "x", "APPTAINER_BIND": "/site:/site"}
    for _ in range(2):  # a job's own Snakemake does it once more
        enter("sha256:1", [work / "results", data, tmp_path / "none"], {"CMAPKD_CACHE": cache}, environment)
    assert environment["APPTAINER_BIND"] == f"/site:/site,{data},{cache}"
    assert cache.is_dir()
    assert environment["APPTAINERENV_CMAPKD_IMAGE_DIGEST"] == "sha256:1"
    assert environment["APPTAINERENV_CMAPKD_CACHE"] == str(cache)
    assert environment["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "APPTAINERENV_SECRET" not in environment
    assert ("APPTAINER_NV" in environment) == Path("/dev/nvidiactl").exists()
    environment["CUDA_VISIBLE_DEVICES"] = "0,1"  # on the second node
    pass_on(environment)
    assert environment["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "0,1"


def test_data_that_the_configuration_names_by_path(tmp_path: Path) -> None:
    content = {"datasets": {"coco": {"root": str(tmp_path), "splits": ["train", "/"]}}, "ranks": 2, "none": "/no/such/folder"}
    assert paths_in(content) == [str(tmp_path)]


def test_the_command_that_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(image, "code_version", lambda: ("c0ffee", True))
    monkeypatch.setattr(image, "_commit_time", lambda: "1700000000")
    command, environment = image.build_command(
        tmp_path / "x.sif", "cpu", wheels=tmp_path, mirror="http://debian.example/debian"
    )
    assert command[:2] == ["apptainer", "build"]
    assert command[-2:] == [str(tmp_path / ".x.sif.part"), "containers/cmapkd-cpu.def"]
    assert "--build-arg=MIRROR=http://debian.example/debian" in command
    assert "--build-arg=COMMIT=c0ffee-dirty" in command
    assert command[command.index("--bind") + 1] == f"{tmp_path}:/mnt:ro"
    assert environment == {"SOURCE_DATE_EPOCH": "1700000000"}
    command, _ = image.build_command(tmp_path / "x.sif", "cluster", fakeroot=True)
    assert "--fakeroot" in command
    assert not any("MIRROR" in word for word in command)
    with pytest.raises(UserError, match="cluster, cpu"):
        image.build_command(tmp_path / "x.sif", "gpu")


def test_a_definition_on_a_base_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(UserError, match="is not there"):
        image.build_command(tmp_path / "x.sif", "cpu", base=tmp_path / "none")
    seen: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        seen.append(Path(command[-1]).read_text())
        Path(command[-2]).write_bytes(b"image")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(image, "code_version", lambda: ("c0ffee", False))
    monkeypatch.setattr(image, "_commit_time", lambda: "1700000000")
    monkeypatch.setattr(image.subprocess, "run", run)
    for definition in image.DEFINITIONS:
        image.build(tmp_path / "x.sif", definition, base=tmp_path)
        headers, _, rest = seen.pop().partition("%arguments")
        assert [line for line in headers.splitlines() if line and line[0] != "#"] == [
            "Bootstrap: localimage", f"From: {tmp_path}",
        ]  # fmt: skip
        assert rest == (REPOSITORY / image.DEFINITIONS[definition]).read_text().partition("%arguments")[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.sif", "x.sif.sha256"]


def test_a_damaged_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sif = tmp_path / "a.sif"
    sif.write_bytes(b"damaged")
    lock = hashlib.sha256((REPOSITORY / "requirements.lock").read_bytes()).hexdigest()
    monkeypatch.setattr(image, "labels_of", lambda _: {image.LOCK_LABEL: lock, image.REVISION_LABEL: "c0ffee"})
    assert "c0ffee" in image.check(sif)[1]
    sif.with_name("a.sif.sha256").write_text(f"{hashlib.sha256(b'whole').hexdigest()}  a.sif\n")
    with pytest.raises(UserError, match="copy it again"):
        image.check(sif)
    sif.with_name("a.sif.sha256").unlink()
    monkeypatch.setattr(image, "labels_of", lambda _: {image.LOCK_LABEL: "older"})
    with pytest.raises(UserError, match="built from the lock older"):
        image.check(sif)


def test_the_build_touches_nothing_that_apptainer_shows_of_the_host() -> None:
    # The host's /tmp, /var/tmp and home are mounted into a build: what the script removes or dates there is the user's.
    lines = (REPOSITORY / "containers" / "install.sh").read_text().replace("\\\n", " ").splitlines()
    removing = [line for line in lines if not line.startswith("#") and re.search(r"\brm\b", line)]
    assert removing
    for line in removing:
        assert not re.search(r"\s(/tmp|/var/tmp|/root|/home|~|\$HOME)(/|\s|$)", line), line
    (dating,) = [line for line in lines if "-newermt" in line]
    assert all(f"-path /{folder} " in dating for folder in ("tmp", "var/tmp", "root", "home", "mnt"))
