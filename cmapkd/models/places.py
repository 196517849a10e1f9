"""Which files stand for weights that an experiment names by path, and the digest of their content. Torch-free.

A path is a checkpoint, a directory of open_clip's (``open_clip_config.json`` and weights) or of Hugging Face's
(``config.json`` and weights, which may be in several files). What describes weights stands next to them, so it is read, and
counts as their content, also where the file itself is named.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cmapkd.errors import UserError
from cmapkd.files import digest, read_json, sha256_of, write_json
from cmapkd.models.contents import read_description

WEIGHTS = "open_clip_model.safetensors"  # the names under which open_clip looks for both in a `local-dir:`
CONFIG = "open_clip_config.json"
_OTHER_WEIGHTS = (f"open_clip_pytorch_model.{suffix}" for suffix in ("safetensors", "bin", "pth"))
OPEN_CLIP_WEIGHTS = (WEIGHTS, *_OTHER_WEIGHTS)
HF_CONFIG, HF_WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
HF_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
HF_PREPROCESS = "preprocessor_config.json"
CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def weight_files(path: Path, key: str) -> tuple[Path, ...]:
    """The files of tensors that ``path`` stands for: itself, or those of a directory.

    Args:
        path: of a file or a directory that exists.
        key: where the experiment names it.

    Raises:
        UserError: a directory of neither form, or one whose weights are missing.
    """
    if not path.is_dir():
        return (path,)
    described = [name for name in (CONFIG, HF_CONFIG) if (path / name).is_file()]
    for config, names in ((CONFIG, OPEN_CLIP_WEIGHTS), (None, HF_WEIGHTS)):
        if (config in described) if config else described:
            for name in names:
                if (path / name).is_file():
                    return (path / name,)
    if described:
        for name in HF_INDEX:
            if (path / name).is_file():
                return _shards(path / name, key)
    raise _not_weights(path, described, key)


def _shards(index: Path, key: str) -> tuple[Path, ...]:
    """Files of a model that is kept in several, as its index lists them."""
    listed = read_description(index, key).get("weight_map")
    names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
    if not names or any(name != Path(name).name for name in names):
        reason = "does not list the files of the weights (`weight_map`)"
        raise UserError(key=key, value=str(index), reason=reason, fix="fetch it again")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        reason = f"lists {len(names)} files of weights, of which {len(missing)} are missing, e.g. {missing[0]}"
        raise UserError(key=key, value=str(index), reason=reason, fix="download the missing files into the same directory")
    return tuple(index.parent / name for name in names)


def _not_weights(path: Path, described: list[str], key: str) -> UserError:
    """Why a directory is none of weights, and what within it is."""
    inside = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if described:
        wanted = WEIGHTS if described[0] == CONFIG else HF_WEIGHTS[0]
        reason = f"is a directory with {' and '.join(described)}, but without {wanted} or another file of weights"
        fix = f"download {wanted} into it"
    else:
        reason = f"is a directory without {CONFIG} and {WEIGHTS}, and without {HF_CONFIG} and {HF_WEIGHTS[0]}; it holds "
        reason += ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "") if inside else "nothing"
        fix = "name a checkpoint, or a directory of open_clip's or Hugging Face's CLIP"
    below = [path / "model", path / "student", *sorted(path.glob("snapshots/*"))]
    files = [name for name in inside if name.endswith(CHECKPOINTS) and (path / name).is_file()]
    if directory := next((one for one in below if (one / CONFIG).is_file() or (one / HF_CONFIG).is_file()), None):
        fix = f"name the directory within it: {directory}"
    elif len(files) == 1:
        fix = f"name the checkpoint itself: {path / files[0]}"
    return UserError(key=key, value=str(path), reason=reason, fix=fix)


def content_files(path: Path, key: str) -> tuple[Path, ...]:
    """All files whose content decides what the weights at ``path`` are: tensors, and the descriptions next to them.

    Raises:
        UserError: as for ``weight_files``.
    """
    weights = weight_files(path, key)
    beside = (CONFIG, HF_CONFIG, HF_PREPROCESS, *(HF_INDEX if path.is_dir() and len(weights) > 1 else ()))
    return (*weights, *(one for name in beside if (one := weights[0].parent / name).is_file() and one not in weights))


def content_digests(path: Path, key: str) -> dict[str, str]:
    """SHA-256 of each of ``content_files`` by name."""
    return {file.name: sha256_of(file) for file in content_files(path, key)}


def cached_digest(path: Path, key: str) -> str:
    """One digest of ``content_digests``, read from the cache while no file changed in size, time or identity.

    Raises:
        UserError: as for ``weight_files``.
    """
    facts = {str(file.resolve()): _facts(file) for file in content_files(path, key)}
    base = os.environ.get("CMAPKD_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmapkd"
    record = Path(base) / "digests" / f"{digest(sorted(facts), 32)}.json"
    try:
        known = read_json(record)
        if known["files"] == facts:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = digest(content_digests(path, key))
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_json(record, {"files": facts, "digest": found})
    return found


def _facts(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
