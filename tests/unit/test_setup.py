"""`scripts/setup-environment.sh` and the lock, on a project and packages of a few bytes that the tests make."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "setup-environment.sh"
# A build backend without dependencies, for the editable installation at the end.
BACKEND = """
import zipfile
def build_editable(folder, *_, **__):
    with zipfile.ZipFile(f"{folder}/toy-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy.py", "")
        wheel.writestr("toy-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\n")
        wheel.writestr("toy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("toy-1.dist-info/RECORD", "")
    return "toy-1-py3-none-any.whl"
"""
PROJECT = (
    '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "toy"\nversion = "1"\n'
)


def wheel(folder: Path, name: str, version: str = "1.0", content: str = "") -> str:
    """Write a wheel of one module; returns its requirement with the hash."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=") for path, text in files.items()
    }
    record = "".join(f"{path},sha256={digest.decode()},{len(files[path])}\n" for path, digest in digests.items())
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(inside, text)
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def make_project(folder: Path) -> Path:
    (folder / "wheels").mkdir(parents=True)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "requirements.lock").write_text("--require-hashes\n" + wheel(folder / "wheels", "pinned"))
    return folder


def set_up(project: Path, python: str = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    # No test installs packages of the distribution.
    refusing = project.parent / "refusing"
    refusing.mkdir(exist_ok=True)
    for program in ("apt-get", "sudo"):
        (refusing / program).write_text("#!/bin/sh\nexit 1\n")
        (refusing / program).chmod(0o755)
    environment = {
        "PATH": f"{refusing}:{os.environ['PATH']}",
        "HOME": str(project),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": (project / "wheels").as_uri(),
        **variables,
    }
    command = ["bash", str(SCRIPT), python, ".venv"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, errors="replace", timeout=300)


def inside(project: Path, code: str) -> str:
    return subprocess.run([project / ".venv/bin/python", "-I", "-c", code], capture_output=True, text=True).stdout.strip()


def version_of(project: Path, name: str) -> str:
    return inside(project, f"from importlib.metadata import version; print(version({name!r}))")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose environment is there; its folder has a space and a letter outside of ASCII in its name."""
    project = make_project(tmp_path_factory.mktemp("set") / "fremde Maschine ü")
    done = set_up(project, LC_ALL="C")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / ".venv/.complete").is_file()
    return project


def test_every_requirement_has_hashes_and_every_file_of_the_lock_is_checked() -> None:
    lines = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    requirements = [line for line in lines if line and not line.startswith(("#", "--"))]
    assert len(requirements) > 150
    for line in requirements:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[\w.!+]+(\s+--hash=sha256:[0-9a-f]{64})+\s*", line), line
    names = [line.partition("==")[0] for line in requirements]
    assert {"pip", "setuptools", "wheel", "torch", "deepspeed"} <= set(names)
    assert len(names) == len(set(names))
    options = [line for line in lines if line.startswith("--")]
    # For pip, an option for all packages replaces those before it.
    assert options[:2] == ["--require-hashes", "--only-binary :all:"]
    assert {name for option, name in (line.split() for line in options[2:]) if option == "--no-binary"} == {
        "deepspeed", "connection-pool",
    }  # fmt: skip
    assert not re.search(r"https?://|index-url|find-links", "\n".join(lines))


def test_every_way_to_install_checks_hashes() -> None:
    for path in ("scripts/setup-environment.sh", "tests/cluster/apptainer.py"):
        assert "--require-hashes" in (ROOT / path).read_text(), path
    # The editable installation of the checkout takes nothing from anywhere.
    (own,) = [line for line in SCRIPT.read_text().splitlines() if "pip_install" in line and " -e " in line]
    assert "--no-index --no-build-isolation" in own


def test_packages_from_elsewhere_do_not_count(project: Path, tmp_path: Path) -> None:
    """Of a loaded module (PYTHONPATH), and where pip's variables and configuration would put packages."""
    (tmp_path / "extra-1.0.dist-info").mkdir()
    (tmp_path / "extra-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    lock = project / "requirements.lock"
    lock.write_text(lock.read_text() + wheel(project / "wheels", "extra"))
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[install]\nuser = true\n")
    done = set_up(
        project, PYTHONPATH=str(tmp_path), PYTHONUSERBASE=str(tmp_path / "user"), PIP_TARGET=str(tmp_path / "target"),
        PIP_PREFIX=str(tmp_path / "prefix"), PIP_USER="1", PIP_CONFIG_FILE=str(configuration),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert version_of(project, "extra") == "1.0"
    assert not {"user", "target", "prefix"} & {path.name for path in tmp_path.iterdir()}
    configuration.write_text(f"[global]\ntarget = {tmp_path / 'target'}\n")
    refused = set_up(project, PIP_CONFIG_FILE=str(configuration))
    assert refused.returncode == 1
    assert "pip config unset global.target" in refused.stderr


def test_a_file_with_another_hash_is_refused(project: Path) -> None:
    lock = project / "requirements.lock"
    kept = lock.read_text()
    lock.write_text(kept + wheel(project / "wheels", "changed"))
    wheel(project / "wheels", "changed", content="print('something else')")
    try:
        done = set_up(project)
    finally:
        lock.write_text(kept)
    assert done.returncode == 1
    assert "requirements.lock: a file differs from what the lock pins" in done.stderr
    assert version_of(project, "changed") == ""


def test_a_package_that_an_interruption_left_half_installed_is_installed_again(project: Path) -> None:
    site = Path(inside(project, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (site / "pinned.py").unlink()
    (site / "pinned-1.0.dist-info/INSTALLER").unlink()
    (site / "~inned").mkdir()
    done = set_up(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (site / "pinned.py").is_file()
    assert not (site / "~inned").exists()


def test_the_environment_may_be_a_link(tmp_path: Path) -> None:
    project, scratch = make_project(tmp_path / "clone"), tmp_path / "scratch"
    (project / ".venv").symlink_to(scratch)
    scratch.mkdir()
    (scratch / "thesis.tex").write_text("not ours")
    refused = set_up(project)
    assert refused.returncode == 1
    assert "would be emptied" in refused.stderr
    assert (scratch / "thesis.tex").read_text() == "not ours"
    (scratch / "thesis.tex").unlink()
    scratch.rmdir()
    done = set_up(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / ".venv").is_symlink()
    assert (scratch / ".complete").is_file()
    assert version_of(project, "pinned") == "1.0"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("# python: 2.7 3.0\n", "packages of the lock are for Python 2.7 to 3.0"),
        ("# machine: z80\n", "packages of the lock are for z80"),
        ("# glibc: 99.1\n", "need 99.1 or newer"),
    ],
)
def test_a_machine_for_which_there_are_no_wheels_is_named_at_the_start(tmp_path: Path, header: str, said: str) -> None:
    project = make_project(tmp_path / "clone")
    (project / "requirements.lock").write_text(header)
    done = set_up(project)
    assert done.returncode == 1
    assert said in done.stderr
    assert "fix: " in done.stderr
    assert not (project / ".venv").exists()


def test_no_python_and_another_system(tmp_path: Path) -> None:
    project = make_project(tmp_path / "clone")
    assert "PYTHON = no-such-python" in set_up(project, python="no-such-python").stderr
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (programs / "uname").chmod(0o755)
    assert "WSL2" in set_up(project, PATH=f"{programs}:{os.environ['PATH']}").stderr


def test_a_full_quota_is_explained_before_and_after(project: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "df").write_text("#!/bin/sh\nprintf 'header\\nfs 9 9 1000000 0%% /\\n'\n")
    (programs / "df").chmod(0o755)
    fresh = make_project(tmp_path / "clone")
    done = set_up(fresh, PATH=f"{programs}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "1 GB are free there" in done.stderr
    for variable in ("PIP_CACHE_DIR", "PIP_NO_CACHE_DIR", "TMPDIR", "HF_HOME", "CMAPKD_CACHE", ".venv"):
        assert variable in done.stderr, variable
    # pip meets a full disk: /dev/full is one.
    site = Path(inside(project, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    pip = site / "pip/__main__.py"
    kept = pip.read_text()
    pip.write_text(
        kept.replace(
            "if __name__", "import sys\nif 'install' in sys.argv:\n    open('/dev/full', 'w', 1).write('x\\n')\nif __name__", 1
        )
    )
    try:
        done = set_up(project)
    finally:
        pip.write_text(kept)
    assert done.returncode == 1
    assert "the disk or the quota is full" in done.stderr
    assert "PIP_CACHE_DIR" in done.stderr
