"""A real Apptainer on this machine, and an image of this checkout.

Debian 12 has no Apptainer: then the package of Debian's unstable is taken, alone, from the mirror that apt uses, its programs
are made to load with the older libc (``old_libc``), and apt installs it. It needs root, and Debian or Ubuntu.

    python tests/cluster/apptainer.py install
    python tests/cluster/apptainer.py build build/cmapkd.sif     # then: export CMAPKD_TEST_IMAGE=build/cmapkd.sif
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cmapkd.image import apt_mirror

if __package__:
    from tests.cluster.old_libc import relink
    from tests.cluster.slurm import Unavailable
else:  # started as a program
    sys.path.insert(0, str(Path(__file__).parent))
    from old_libc import relink  # isort: skip
    from slurm import Unavailable  # isort: skip

REPOSITORY = Path(__file__).parents[2]
# squashfuse and the like are for others than root, and for kernels without squashfs.
PACKAGES = ("debootstrap", "squashfs-tools", "squashfuse", "fuse2fs", "fuse-overlayfs", "uidmap", "fakeroot")
_LIBRARY = "usr/lib/x86_64-linux-gnu/apptainer"
PROGRAMS = ("usr/bin/apptainer", f"{_LIBRARY}/bin/starter", f"{_LIBRARY}/lib/offsetpreload.so")
_NEW_NAMESPACES = 0x1000_0000 | 0x0002_0000  # CLONE_NEWUSER | CLONE_NEWNS
# Capabilities by number (linux/capability.h).
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip


def install() -> None:
    """Install Apptainer where it is missing, and let root use it where root lacks a capability.

    Raises:
        Unavailable: not root, no apt, no network, or another machine than x86-64.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or os.uname().machine != "x86_64":
        raise Unavailable("an Apptainer of our own needs root on Linux, x86-64")
    if shutil.which("apptainer") is None:
        if shutil.which("apt-get") is None:
            raise Unavailable("Apptainer is not installed, and there is no apt-get to install it")
        with tempfile.TemporaryDirectory(prefix="cmapkd-apptainer-") as folder:
            _run("apt-get", "update", "-qq")
            package = _package(Path(folder))
            _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", str(package), *PACKAGES)
    missing = missing_capabilities()
    configuration = Path("/etc/apptainer/apptainer.conf")
    if missing and configuration.is_file():
        # Root in containers is to have all that root has here, not all that there are.
        names = [f"CAP_{name}" for name in CAPABILITIES if name not in missing]
        configuration.with_name("capability.json").write_text(json.dumps({"users": {"root": names}}))
        text = configuration.read_text()
        configuration.write_text(
            re.sub(r"^root default capabilities = .*$", "root default capabilities = file", text, flags=re.M)
        )


def missing_capabilities() -> list[str]:
    """Names of the capabilities that root lacks here, as in some virtual machines."""
    status = Path("/proc/self/status").read_text()
    bits = int(re.findall(r"^CapBnd:\s*([0-9a-f]+)", status, flags=re.M)[0], 16)
    return [name for number, name in enumerate(CAPABILITIES) if not bits >> number & 1]


def _package(folder: Path) -> Path:
    """Apptainer's package: that of this distribution's release where it has one, else unstable's, made to load here."""
    if "Candidate: (none)" not in (told := _run("apt-cache", "policy", "apptainer")) and told.strip():
        _run("apt-get", "-qq", "download", "apptainer", cwd=folder)
        return next(folder.glob("apptainer_*.deb"))
    uris = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    mirror = next((uri for uri in uris if uri.rstrip("/").endswith("/debian")), None)
    if mirror is None:
        raise Unavailable("apt does not say where Debian's packages are")
    (folder / "lists/partial").mkdir(parents=True)
    sources = folder / "unstable.list"
    sources.write_text(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} sid main\n")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        # A mirror may lag behind, or this machine's clock.
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Check-Date": "false",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    _run("apt-get", *options, "update", "-qq")
    _run("apt-get", *options, "-qq", "download", "apptainer", cwd=folder)
    tree, made = folder / "tree", folder / "apptainer.deb"
    _run("dpkg-deb", "-R", str(next(folder.glob("apptainer_*.deb"))), str(tree))
    for name in PROGRAMS:
        relink(tree / name)
    control = tree / "DEBIAN/control"
    text = re.sub(r"libc6 \(>= 2\.\d+\)", "libc6 (>= 2.36)", control.read_text())
    # Needed for networks of containers' own only, and not in Debian 12.
    text = text.replace("containernetworking-plugins, ", "")
    text = re.sub(r"^(Version: .*)$", r"\1~cmapkd", text, flags=re.M)
    control.write_text(re.sub(r"^(Static-)?Built-Using:.*\n(?: .*\n)*", "", text, flags=re.M))
    (tree / "DEBIAN/md5sums").unlink(missing_ok=True)
    _run("dpkg-deb", "-b", "-Znone", str(tree), str(made))
    return made


def build(out: Path, wheels: Path | None = None) -> None:
    """Build the image of this checkout that needs no registry, by `cmapkd image build`; what tries it is the tests.

    Root that lacks a capability cannot run Apptainer's %post; in a user namespace with the same ids it has all of them.

    Raises:
        RuntimeError: with the last lines of what the build said.
    """
    command = [sys.executable, "-m", "cmapkd", "image", "build", "--definition", "cpu", "--out", str(out), "--no-test"]
    command += ["--wheels", str(wheels)] if wheels else []
    base = out.with_name("base")
    if missing_capabilities():
        # In a namespace Apptainer watches its own debootstrap and never stops, which takes a processor for the whole build.
        _run("debootstrap", "--variant=minbase", "bookworm", str(base), apt_mirror())
        for node in (base / "dev").iterdir():  # nobody may make devices there; Apptainer brings its own
            shutil.rmtree(node) if node.is_dir() and not node.is_symlink() else node.unlink()
        command += ["--base", str(base)]
        command = [sys.executable, str(Path(__file__)), "in-namespace", *command]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "APPTAINER_TMPDIR": str(out.parent)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, errors="replace")
    shutil.rmtree(base, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(f"the image was not built:\n{(done.stdout + done.stderr)[-4000:]}")


def fetch_wheels(folder: Path) -> Path | None:
    """Files of the lock for the image's Python, by this machine's pip and index; None where this Python is another one.

    They have the hashes of the lock, so what publishes no wheel is a source distribution, which the image's build builds.
    """
    if sys.version_info[:2] != (3, 11):
        return None
    # Of source distributions pip reads the metadata, for which DeepSpeed's looks for torch.
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--no-build-isolation"]
    lock = ["-d", str(folder), "-r", str(REPOSITORY / "requirements.lock")]
    _run(*command, *lock, environment={"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"})
    return folder


def in_namespace(command: list[str]) -> int:
    """Run a command as root of new user and mount namespaces whose ids are those outside; returns its exit code."""
    ready, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NAMESPACES):
            os._exit(126)
        os.write(ready[1], b".")
        os.read(mapped[0], 1)
        os.execvp(command[0], command)  # noqa: S606 - an argument list of our own
    os.close(ready[1])
    if os.read(ready[0], 1):
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text("0 0 65536\n")
    os.write(mapped[1], b".")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(*command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", **(environment or {})}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise Unavailable(f"`{' '.join(command)[:200]}` failed (no network?): {done.stderr.strip()[-300:]}")
    return done.stdout


if __name__ == "__main__":
    if sys.argv[1] == "in-namespace":
        raise SystemExit(in_namespace(sys.argv[2:]))
    install()
    if sys.argv[1] == "build":
        target = Path(sys.argv[2]).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="cmapkd-wheels-", dir=target.parent) as downloads:
            build(target, fetch_wheels(Path(downloads)))
