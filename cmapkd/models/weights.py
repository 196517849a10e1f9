"""Pretrained weights by open_clip's tags: where they lie on this machine, and how they get there.

They are looked for in ``$CMAPKD_CACHE/weights`` (by default ``~/.cache/cmapkd/weights``) and where open_clip and
huggingface_hub put them themselves. Nothing is downloaded unless it is asked for: on a cluster, nodes have no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip import pretrained

from cmapkd.errors import UserError, nearest
from cmapkd.models.formats import HF_CONFIG, HF_WEIGHTS
from cmapkd.paths import cache, home

WEIGHTS = "open_clip_model.safetensors"  # the names under which open_clip looks for both in a `local-dir:`
CONFIG = "open_clip_config.json"


def check_init(name: str, init: str, key: str) -> None:
    """Refuse weights that do not exist, before anything is downloaded or built.

    Args:
        name: of the architecture.
        init: as for ``create``.
        key: where the experiment names ``init``.

    Raises:
        UserError: no tag of that architecture, no such file, or a directory of another form.
    """
    path, tags = Path(init), open_clip.list_pretrained_tags_by_model(name)
    if path.is_dir():
        if (path / HF_CONFIG).is_file() and any((path / file).is_file() for file in HF_WEIGHTS):
            return
        if missing := [file for file in (CONFIG, WEIGHTS) if not (path / file).is_file()]:
            reason = f"is a directory without {' and '.join(missing)}"
            raise UserError(
                key=key,
                value=init,
                reason=reason,
                fix="name a checkpoint, or a directory of open_clip's or Hugging Face's CLIP",
            )
        return
    if init == "random" or path.is_file():
        return
    if init in tags:
        check_activation(name, init, key)
        return
    known = ", ".join(sorted(tags)) or "none"
    if path.name != init or path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        fix = f"correct the path (it is relative to {Path.cwd()}), or use a tag: {known}"
        raise UserError(key=key, value=init, reason="there is no such file", fix=fix)
    hint = nearest(init, [*tags, "random"])
    fix = hint if hint.startswith("known") else f"{hint} All tags: {known}"
    raise UserError(key=key, value=init, reason=f"is no tag of {name} and no file", fix=fix)


def folder() -> Path:
    """Where fetched weights are kept."""
    return cache() / "weights"


def about(name: str, tag: str) -> Mapping[str, Any]:
    """What open_clip knows of a tag: addresses, preprocessing, activation. Empty for an unknown one."""
    found: Mapping[str, Any] = pretrained.get_pretrained_cfg(name, tag)
    return found


def find(name: str, tag: str) -> Path | None:
    """The file of a tag on this machine, without network; None if there is none.

    Raises:
        UserError: a file whose digest is in its address, and which has another.
    """
    known = about(name, tag)
    for path in _places(known):
        if path.is_file():
            _check(path, str(known.get("url", "")))
            return path
    return None


def fetch(name: str, tag: str, key: str) -> Path:
    """The file of a tag, downloaded if it is not there.

    Raises:
        UserError: it cannot be downloaded; says where to put it by hand.
    """
    if (here := find(name, tag)) is not None:
        return here
    try:
        return Path(pretrained.download_pretrained(dict(about(name, tag)), cache_dir=str(folder())))
    except Exception as error:
        raise missing(name, tag, key, f", and fetching them failed: {str(error).splitlines()[0][:200]}") from None


def require(name: str, tag: str, key: str) -> Path:
    """The file of a tag on this machine.

    Raises:
        UserError: there is none; says which command fetches it.
    """
    here = find(name, tag)
    if here is None:
        raise missing(name, tag, key)
    return here


def missing(name: str, tag: str, key: str, why: str = "") -> UserError:
    """What to do about weights that are not here."""
    known = about(name, tag)
    fix = "run `cmapkd weights` where there is a network (the folder is $CMAPKD_CACHE/weights)"
    if url := known.get("url"):
        fix += f"; or put {Path(url).name} there"
    return UserError(
        key=key,
        value=tag,
        reason=f"the weights {tag} of {name} are not in {folder()}{why}",
        fix=f"{fix}; or name a file or a directory instead of a tag",
    )


def check_activation(name: str, tag: str, key: str) -> None:
    """Refuse weights for the activation that the architecture does not have: open_clip would only warn, and be wrong.

    Raises:
        UserError: names the architecture that has it.
    """
    config = open_clip.get_model_config(name) or {}
    wanted, has = bool(about(name, tag).get("quick_gelu", False)), bool(config.get("quick_gelu", False))
    if wanted == has:
        return
    other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
    raise UserError(
        key=key,
        value=tag,
        reason=f"these weights were trained with {'QuickGELU' if wanted else 'GELU'}, {name} has the other: every result "
        "would be somewhat wrong",
        fix=f"use the model {other}",
    )


def _places(known: Mapping[str, Any]) -> Iterator[Path]:
    if url := known.get("url"):
        yield from (place / Path(url).name for place in (folder(), home() / ".cache" / "clip"))
    if not known.get("hf_hub"):
        return
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = known["hf_hub"].rpartition("/")
    files = [file] if file else [WEIGHTS, "open_clip_pytorch_model.bin"]
    if file.endswith((".bin", ".pth")):
        files.insert(0, f"{file[:-4]}.safetensors")
    for place in (folder(), None):  # None: huggingface_hub's own
        for one in files:
            found = try_to_load_from_cache(repository, one, cache_dir=place)
            if isinstance(found, str):
                yield Path(found)


def _check(path: Path, url: str) -> None:
    """OpenAI's addresses hold the SHA-256 of their files, LAION's the beginning of it."""
    parts = url.split("/")
    expected = ""
    if path.name == parts[-1]:
        expected = parts[-2] if "openaipublic" in url else path.stem.rpartition("-")[2] if "mlfoundations" in url else ""
    if not expected or len(expected) < 8:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected):
        reason = f"has the SHA-256 {actual}, expected {expected}"
        raise UserError(key=str(path), reason=reason, fix="delete it and fetch it again")
