"""The image: both definitions hold the same, its digest, and what jobs in it see of outside."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from config_examples import experiment

from cmapkd import image
from cmapkd.config import parse_experiment
from cmapkd.errors import UserError
from cmapkd.image import chosen, enter, identify, other_lock, pass_on, paths_in
from cmapkd.start import enter_image

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


def test_a_coarse_clock_of_the_results_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system with times of whole seconds, the record's own time is never that of the image."""
    sif, record = tmp_path / "a.sif", tmp_path / "image.txt"
    sif.write_bytes(b"one")
    os.utime(sif, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    first = identify(sif, record)
    for file in tmp_path.iterdir():
        if file != sif:
            os.utime(file, (1_600_000_000, 1_600_000_000))
    monkeypatch.setattr(image, "sha256_of", lambda path: pytest.fail("read again"))
    assert identify(sif, record) == first
    assert record.stat().st_mtime == 1_600_000_000, "untouched, so nothing is run again"


@pytest.mark.parametrize("damage", ["", "[]", "{}", "no json"])
def test_a_damaged_record_is_written_again(damage: str, tmp_path: Path) -> None:
    sif, record = tmp_path / "a.sif", tmp_path / "image.txt"
    sif.write_bytes(b"one")
    first = identify(sif, record)
    (tmp_path / ".image.json").write_text(damage)
    record.unlink()
    assert identify(sif, record) == first
    assert record.read_text() == f"{first} (3 bytes)\n"


def test_an_image_of_another_lock_is_named_once_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sif, record = tmp_path / "a.sif", tmp_path / "image.txt"
    own = hashlib.sha256((REPOSITORY / "requirements.lock").read_bytes()).hexdigest()
    asked: list[Path] = []

    def labels(path: Path) -> dict[str, str]:
        asked.append(path)
        return {image.LOCK_LABEL: path.read_text()} if path.read_text() else {}

    monkeypatch.setattr(image, "labels_of", labels)
    for content, named in ((own, False), ("0" * 64, True), ("", False)):
        sif.write_text(content)
        os.utime(sif, (len(asked) + 1, 1))
        identify(sif, record)
        before = len(asked)
        for _ in range(2):
            message = other_lock(sif, record)
            assert bool(message) == named, content
        assert len(asked) == before + 1, "once for each image"
        os.utime(sif, (9, 9 + before))
        identify(sif, record)
        other_lock(sif, record)
        assert len(asked) == before + 1, "a touched image is the same"
        if named:
            assert re.search(r"^image = .*built from the lock 000000000000; .*\n  fix: .*`cmapkd image build`$", message)


@pytest.mark.parametrize("name", ["a b.sif", "a:b.sif", "a,b.sif", "a'b.sif"])
def test_the_path_of_an_image_that_snakemake_cannot_start(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"one")
    with pytest.raises(UserError, match="the path of an image cannot"):
        identify(tmp_path / name, tmp_path / "image.txt")


def test_an_image_may_be_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAPKD_HOME", "/home/me")
    monkeypatch.delenv("SCRATCH", raising=False)
    assert chosen("~/a.sif", {}) == Path("/home/me/a.sif")
    with pytest.raises(UserError, match=r"^image = '\$SCRATCH/a.sif': .*not set"):
        chosen(None, {"CMAPKD_IMAGE": "$SCRATCH/a.sif"})


@pytest.mark.parametrize("name", ["a:b", "a,b"])
def test_folders_that_apptainer_would_take_apart(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, odd = tmp_path / "work", tmp_path / name
    work.mkdir()
    odd.mkdir()
    (tmp_path / "a.sif").write_bytes(b"one")
    monkeypatch.chdir(work)
    with pytest.raises(UserError, match="cannot be bound into a container"):
        enter("sha256:1", [odd], {}, {})
    with pytest.raises(UserError, match=r"^results = .*cannot be bound into a container.*\n  fix: .*--config results="):
        enter_image(str(tmp_path / "a.sif"), f"{odd}/results/x", [], parse_experiment(experiment()))


@pytest.fixture
def variables() -> Iterator[os._Environ[str]]:
    """Those of this process, without folders of the user, and as they were afterwards."""
    kept = dict(os.environ)
    for name in ("CMAPKD_CACHE", "XDG_CACHE_HOME", *image.CACHES, *image.CERTIFICATES):
        os.environ.pop(name, None)
    yield os.environ
    os.environ.clear()
    os.environ.update(kept)


def test_a_cache_that_cannot_be_made_is_named(
    tmp_path: Path, variables: os._Environ[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place, for a home folder that cannot be written to: root may write to any folder."""
    user = tmp_path / "user"
    user.mkdir()
    (user / ".cache").write_text("no folder")
    (tmp_path / "a.sif").write_bytes(b"one")
    variables["CMAPKD_HOME"] = str(user)
    monkeypatch.setattr(image, "_program", lambda: "apptainer")
    arguments = (str(tmp_path / "a.sif"), str(tmp_path / "results/x"), [tmp_path], parse_experiment(experiment()))
    with pytest.raises(UserError, match=r"^CMAPKD_CACHE = .*cannot be made.*\n  fix: export CMAPKD_CACHE="):
        enter_image(*arguments)
    variables["CMAPKD_CACHE"] = str(tmp_path / "downloads")
    enter_image(*arguments)  # the other cache is none that is needed
    assert variables["APPTAINERENV_XDG_CACHE_HOME"] == variables["APPTAINERENV_CMAPKD_CACHE"] == str(tmp_path / "downloads")
    variables["XDG_CACHE_HOME"] = str(user / ".cache/own")
    with pytest.raises(UserError, match=r"^XDG_CACHE_HOME = .*\n  fix: export XDG_CACHE_HOME="):
        enter_image(*arguments)


def test_variables_go_in_with_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "site.pem").touch()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("CMAPKD_HOME", str(tmp_path))
    monkeypatch.setattr(image, "_program", lambda: "apptainer")
    environment = {
        "HF_HOME": "~/hf",
        "SSL_CERT_FILE": f"{tmp_path}/site.pem",
        "CURL_CA_BUNDLE": "/no/such/file.pem",
        "SCRATCH": "/scratch/me",
        "HOME": "/elsewhere",
    }
    enter("sha256:1", [], {}, environment)
    assert environment["APPTAINER_BIND"].split(",") == [f"{tmp_path}/hf", f"{tmp_path}/site.pem"]
    inside = {name.partition("_")[2]: value for name, value in environment.items() if name.startswith("APPTAINERENV_")}
    assert inside["HF_HOME"] == f"{tmp_path}/hf"
    assert inside["SSL_CERT_FILE"] == f"{tmp_path}/site.pem"
    assert inside["SCRATCH"] == "/scratch/me"
    assert inside["CMAPKD_HOME"] == str(tmp_path)
    assert not {"CURL_CA_BUNDLE", "HOME"} & set(inside)


def test_a_link_is_bound_by_its_name_and_by_its_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration has the name, and links in the folder may have the target's."""
    for folder in ("work", "far", "store/val", "one"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "one/table.csv").touch()
    (tmp_path / "data").symlink_to(tmp_path / "far")
    (tmp_path / "far/pictures").mkdir()
    (tmp_path / "far/pictures/val").symlink_to(tmp_path / "store/val")
    (tmp_path / "far/table.csv").symlink_to(tmp_path / "one/table.csv")
    (tmp_path / "far/inside").symlink_to(tmp_path / "far/pictures")
    (tmp_path / "far/broken").symlink_to(tmp_path / "none/file")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(image, "_program", lambda: "apptainer")
    read = parse_experiment(experiment(datasets__mine={"source": "own", "root": str(tmp_path / "data")}))
    environment: dict[str, str] = {}
    enter("sha256:1", paths_in(read), {}, environment)
    bound = environment["APPTAINER_BIND"].split(",")
    assert [path for path in bound if not path.startswith(str(REPOSITORY))] == [
        f"{tmp_path}/{name}" for name in ("data", "far", "store/val", "one")
    ]


def test_paths_of_an_experiment_that_exist(tmp_path: Path) -> None:
    mine = {"source": "own", "root": str(tmp_path), "table": "/no/such/table.csv"}
    read = parse_experiment(experiment(datasets__mine=mine, datasets__other={"source": "own", "root": "/"}))
    # The article with the files that it uses.
    assert paths_in(read) == [str(tmp_path), str(REPOSITORY / "paper")]


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
