"""The container image: which one jobs run in, what it is known by, how it is built, and what of outside its jobs see.

An image is known by the SHA-256 of its file. The workflow takes it when it starts, keeps it in ``image.txt`` beside the
results, which is an input of what computes, and hands it to jobs, whose provenance records it. A touched image is the same.
``.image.json`` beside it has the time and size that the image had then, so that gigabytes are read once.

Apptainer reads the rest from the environment of the process that calls it: ``APPTAINER_BIND`` (folders that jobs see),
``APPTAINER_NV`` (the host's GPU driver), ``APPTAINERENV_<name>`` (variables that ``--cleanenv`` would take away).
Torch-free: the workflow imports it on every node.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from cmapkd.config.paths import paths_of
from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of, write_atomic, write_json
from cmapkd.paths import HOME, UNBOUND, VARIABLES, home, make_folder, resolve
from cmapkd.provenance import UNKNOWN, code_version

IMAGE = "containers/cmapkd.sif"
DEFINITIONS = {"cluster": "containers/cmapkd.def", "cpu": "containers/cmapkd-cpu.def"}
# Rather built and read fast than small: the default is gzip at its highest level, slow on so many gigabytes.
COMPRESSION = "-comp zstd -Xcompression-level 3"
LOCK_LABEL, REVISION_LABEL = "cmapkd.lock.sha256", "org.opencontainers.image.revision"
# Of the submitting or allotting process; CUDA_VISIBLE_DEVICES is the job's own GPUs, and without it a rank would take others'.
PASSED = (
    "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_TOKEN", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_DEBUG",
    "GLOO_SOCKET_IFNAME", *(name for name in VARIABLES if name not in ("HOME", "HF_HOME", "CMAPKD_CACHE")),
)  # fmt: skip
# Variables that name a folder or a file: that is bound, too. A folder of the first ones is made if it can be.
CACHES = ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_UNQUOTED = re.compile(r"[^\w@%+=./~-]")  # what Snakemake's command does not take in the path of an image
_LISTED = 1000  # entries of a folder of data that are looked at for links
_EARLIEST = 946_684_800  # 2000-01-01, where git does not say when the source was made
_ROOT = Path(__file__).parents[1]


def chosen(given: str | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Path of the image: the workflow's ``--config image=...``, else ``CMAPKD_IMAGE``, else ``containers/cmapkd.sif``.

    Raises:
        UserError: a path that cannot be resolved (`cmapkd.paths`).
    """
    text = str(given or environment.get("CMAPKD_IMAGE") or IMAGE)
    return resolve(text, "image") if text.startswith(("~", "$")) else Path(text)


def identify(image: Path, record: Path) -> str:
    """``sha256:<hex>`` of an image, kept in ``record``; read again only when its time or size is another than it was.

    Raises:
        UserError: there is no such file, or its path is one that Snakemake cannot start.
    """
    if found := _UNQUOTED.search(str(image)):
        raise UserError(
            key="image",
            value=str(image),
            reason=f"holds {found[0]!r}, which the path of an image cannot",
            fix="rename it, or link to it from another folder: `--config image=<link>`",
        )
    if not image.is_file():
        raise UserError(
            key="image",
            value=str(image),
            reason="is not there, and this profile runs jobs in it",
            fix="make it with `cmapkd image build`, copy one there or name one with `--config image=<path>`; "
            "without Apptainer add `--workflow-profile workflow/profiles/slurm-bare`",
        )
    about = image.stat()
    # As numbers: the time of the record itself may be one of whole seconds, on another file system than the image's.
    state = {"mtime_ns": about.st_mtime_ns, "bytes": about.st_size}
    known = _seen(record)
    digest = known.get("digest") if {key: known.get(key) for key in state} == state else None
    if digest is None:
        digest = f"sha256:{sha256_of(image)}"
        lock = {"lock": known["lock"]} if known.get("digest") == digest and "lock" in known else {}
        write_json(_seen_file(record), {"digest": digest, **state, **lock})
    text = f"{digest} ({about.st_size} bytes)\n"
    if not record.is_file() or record.read_text(encoding="utf-8") != text:  # its time decides what is run again
        write_atomic(record, text)
    return str(digest)


def other_lock(image: Path, record: Path) -> str:
    """A message where an image was made from another lock than this checkout's; nothing where its labels cannot be read.

    The labels are read once for each digest; ``identify`` comes first.
    """
    known = _seen(record)
    if "lock" not in known:
        known["lock"] = labels_of(image).get(LOCK_LABEL, "")
        write_json(_seen_file(record), known)
    lock = _ROOT / "requirements.lock"
    if not known["lock"] or not lock.is_file() or known["lock"] == (wanted := sha256_of(lock)):
        return ""
    return (
        f"image = '{image}': was built from the lock {known['lock'][:12]}; that of the checkout is {wanted[:12]}, so jobs use "
        "other versions of packages than `requirements.lock` says\n  fix: build it again with `cmapkd image build`"
    )


def _seen_file(record: Path) -> Path:
    return record.with_name(".image.json")


def _seen(record: Path) -> dict[str, Any]:
    try:
        known = read_json(_seen_file(record))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def enter(
    digest: str,
    folders: Iterable[str | Path],
    caches: Mapping[str, Path],
    environment: MutableMapping[str, str] = os.environ,
) -> None:
    """Set the variables from which Apptainer takes what jobs see of outside.

    Args:
        digest: of the image, for provenance.
        folders: that jobs need; those that do not exist are left out. The working directory is there anyway.
        caches: variable -> folder, made if it is not there, with the same content inside as outside.
        environment: changed; that of this process, which calls Apptainer.

    Raises:
        UserError: a cache that cannot be made, or a name that Apptainer would take apart.
    """
    for name, folder in caches.items():
        if not folder.is_dir() and (why := make_folder(folder)):
            fix = f"export {name}=<a folder that you can write to, and that the nodes of jobs see>"
            raise UserError(key=name, value=str(folder), reason=f"this folder of a cache cannot be made: {why}", fix=fix)
    if ":" in str(Path.cwd()):
        reason = "holds ':', and such a folder cannot be the home of a container"
        raise UserError(key="working directory", value=str(Path.cwd()), reason=reason, fix="rename or move the folder")
    given = environment.get(f"{_program().upper()}_BIND", "")
    wanted = dict.fromkeys(filter(None, given.split(",")))
    named = _named(environment)
    for folder in map(Path, [*folders, *caches.values(), *named.values()]):
        # Under its own name, which the configuration has, and under that of what it links to, which links in it may have.
        for path in dict.fromkeys((folder.absolute(), folder.resolve())):
            if not path.exists() or path.is_relative_to(Path.cwd()):
                continue
            if found := re.search(f"[{UNBOUND}]", str(path)):
                reason = f"holds {found[0]!r}, and such a folder cannot be bound into a container"
                raise UserError(key="folder", value=str(path), reason=reason, fix="rename it, or name another one")
            wanted[str(path)] = None
    _set(environment, "BIND", ",".join(wanted))
    if Path("/dev/nvidiactl").exists():
        _set(environment, "NV", "1")
    inside = {"CMAPKD_IMAGE_DIGEST": digest, **{name: str(folder.absolute()) for name, folder in caches.items()}}
    commit, dirty = code_version()
    if commit != UNKNOWN:  # inside, git may not reach the repository
        inside |= {"CMAPKD_COMMIT": commit, "CMAPKD_DIRTY": str(dirty)}
    for name, value in inside.items():
        environment[f"{_program().upper()}ENV_{name}"] = value
    pass_on(environment)


def pass_on(environment: MutableMapping[str, str] = os.environ) -> None:
    """Hand the variables of ``PASSED``, and what paths start from, into containers that this process starts."""
    inside = {name: environment[name] for name in PASSED if name in environment}
    # Apptainer gives HOME the value of its own `--home`.
    inside |= {HOME: str(home()), **{name: str(path) for name, path in _named(environment).items()}}
    for name, value in inside.items():
        environment[f"{_program().upper()}ENV_{name}"] = value


def _named(environment: Mapping[str, str]) -> dict[str, Path]:
    """Caches and certificates that variables name and that are there, or can be made, as absolute paths."""
    found = {}
    for name in (*CACHES, *CERTIFICATES):
        if value := environment.get(name):
            path = resolve(value, name)
            if name in CACHES:
                make_folder(path)
            if path.exists():
                found[name] = path
    return found


def paths_in(experiment: ExperimentConfig) -> list[str]:
    """Paths of an experiment that exist, data and weights, and what links in their folders lead to."""
    named = [Path(path).parent if key == "paper.manuscript" else Path(path) for key, path in paths_of(experiment)]
    paths = [path for path in named if path != Path("/") and path.exists()]
    return [str(path) for path in dict.fromkeys([*paths, *(target for path in paths for target in _links(path))])]


def _links(folder: Path, depth: int = 2) -> Iterator[Path]:
    """Folders outside of ``folder`` that links in it, or in the folders in it, lead to: data sets are often put together so."""
    if depth == 0 or not folder.is_dir():
        return
    try:
        with os.scandir(folder) as listed:
            entries = list(itertools.islice(listed, _LISTED))
    except OSError:
        return
    for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.is_symlink():
            target = Path(entry.path).resolve()
            target = target if target.is_dir() else target.parent
            if target.exists() and target != Path("/") and not target.is_relative_to(folder.resolve()):
                yield target
        elif entry.is_dir():
            yield from _links(Path(entry.path), depth - 1)


def build(
    out: Path,
    definition: str,
    *,
    base: Path | None = None,
    wheels: Path | None = None,
    mirror: str = "",
    fakeroot: bool = False,
    tested: bool = True,
) -> str:
    """Build the image of this checkout and write ``<out>.sha256`` beside it.

    Args:
        base: folder or image with a bare Debian 12, in place of what the definition begins from.

    Returns:
        Its digest, ``sha256:<hex>``.

    Raises:
        UserError: no Apptainer, no such definition, or a build that fails.
    """
    command, environment = build_command(
        out, definition, base=base, wheels=wheels, mirror=mirror, fakeroot=fakeroot, tested=tested
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(command[-2])
    if base is not None:
        text = (_ROOT / DEFINITIONS[definition]).read_text(encoding="utf-8")
        Path(command[-1]).write_text(on_base(text, base), encoding="utf-8")
    try:
        done = subprocess.run(command, cwd=_ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise UserError(
                key="image", value=str(out), reason=f"`{shlex.join(command)}` failed with {done.returncode}", fix="see above"
            )
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
        if base is not None:
            Path(command[-1]).unlink(missing_ok=True)
    digest = sha256_of(out)
    write_atomic(out.with_name(f"{out.name}.sha256"), f"{digest}  {out.name}\n")
    return f"sha256:{digest}"


def build_command(
    out: Path,
    definition: str,
    *,
    base: Path | None = None,
    wheels: Path | None = None,
    mirror: str = "",
    fakeroot: bool = False,
    tested: bool = True,
) -> tuple[list[str], dict[str, str]]:
    """The command that builds the image into a temporary file (its last argument but one), and variables that it needs."""
    if definition not in DEFINITIONS:
        raise UserError(key="definition", value=definition, reason="is none", fix=f"one of {', '.join(DEFINITIONS)}")
    if shutil.which(_program()) is None:
        raise UserError(key="apptainer", reason="is not installed here", fix="build the image on a machine that has it")
    commit, dirty = code_version()
    epoch = _commit_time()
    values = {"EPOCH": epoch, "COMMIT": f"{commit}{'-dirty' if dirty is True else ''}"}
    if base is not None and not base.exists():
        raise UserError(key="base", value=str(base), reason="is not there", fix="name a folder or an image of Debian 12")
    if definition == "cpu" and base is None:
        values["MIRROR"] = mirror or apt_mirror()
    options = ["--force", f"--mksquashfs-args={COMPRESSION}", *(["--fakeroot"] if fakeroot else [])]
    options += [] if tested else ["--notest"]
    options += [f"--build-arg={name}={value}" for name, value in values.items()]
    options += ["--bind", f"{wheels.resolve()}:/mnt:ro"] if wheels else []
    temporary = out.resolve().with_name(f".{out.name}.part")
    # Times in the file system of the image, too.
    text = DEFINITIONS[definition] if base is None else str(temporary.with_suffix(".def"))
    return [_program(), "build", *options, str(temporary), text], {"SOURCE_DATE_EPOCH": epoch}


def on_base(definition: str, base: Path) -> str:
    """The text of a definition that begins from a local root file system or image."""
    lines = definition.splitlines()
    headers = [number for number, line in enumerate(lines) if re.match(r"(Bootstrap|From|OSVersion|MirrorURL|Include):", line)]
    kept = [line for number, line in enumerate(lines) if number not in headers]
    return "\n".join([*kept[: headers[0]], "Bootstrap: localimage", f"From: {base.resolve()}", *kept[headers[0] :]]) + "\n"


def check(image: Path) -> list[str]:
    """Lines about an image.

    Raises:
        UserError: it is not there, not what its ``.sha256`` says, or made from another lock than this checkout's.
    """
    if not image.is_file():
        raise UserError(key="image", value=str(image), reason="is not there", fix="make it with `cmapkd image build`")
    digest = sha256_of(image)
    written = image.with_name(f"{image.name}.sha256")
    if written.is_file() and written.read_text(encoding="utf-8").split()[0] != digest:
        raise UserError(
            key="image", value=str(image), reason=f"has the digest {digest}, not that of {written.name}", fix="copy it again"
        )
    labels = labels_of(image)
    lock = sha256_of(_ROOT / "requirements.lock")
    if labels.get(LOCK_LABEL) != lock:
        raise UserError(
            key="image",
            value=str(image),
            reason=f"was built from the lock {labels.get(LOCK_LABEL, UNKNOWN)}; that of the checkout is {lock}",
            fix="build it again with `cmapkd image build`",
        )
    return [
        f"{image}: sha256:{digest}, {image.stat().st_size / 1e9:.2f} GB",
        f"built from commit {labels.get(REVISION_LABEL, UNKNOWN)}, with the packages of requirements.lock",
    ]


def labels_of(image: Path) -> dict[str, str]:
    """Labels of an image, as Apptainer tells them; none where it cannot be asked."""
    command = [_program(), "inspect", "--json", "--labels", str(image)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return dict(json.loads(done.stdout)["data"]["attributes"]["labels"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return {}


def _program() -> str:
    """As Snakemake chooses it."""
    return "apptainer" if shutil.which("apptainer") or not shutil.which("singularity") else "singularity"


def _set(environment: MutableMapping[str, str], name: str, value: str) -> None:
    environment[f"{_program().upper()}_{name}"] = value


def _commit_time() -> str:
    """Seconds since 1970 of the checkout's last commit."""
    command = ["git", "-c", "safe.directory=*", "-C", str(_ROOT), "log", "-1", "--format=%ct"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip() or str(_EARLIEST)
    except (OSError, subprocess.SubprocessError):
        return str(_EARLIEST)


def apt_mirror() -> str:
    """Where apt has Debian's packages from."""
    try:
        told = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        told = ""
    for line in told.splitlines():
        if line.rstrip("/").endswith("/debian"):
            return line
    raise UserError(key="mirror", reason="apt does not say where Debian's packages are", fix="name it: --mirror <address>")
