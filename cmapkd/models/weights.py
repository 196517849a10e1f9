"""Pretrained weights by open_clip's tags: where they lie on this machine, and how they get there.

They are looked for in ``$CMAPKD_CACHE/weights`` (by default ``~/.cache/cmapkd/weights``) and where open_clip and
huggingface_hub put them themselves. Nothing is downloaded unless it is asked for: on a cluster, nodes have no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip import pretrained

from cmapkd.errors import UserError, nearest
from cmapkd.files import digest
from cmapkd.models.contents import form_of, read_description
from cmapkd.models.described import (
    WeightsDescription,
    check,
    of_hugging_face,
    of_open_clip,
    of_shapes,
    warn_of_unknown,
    warn_once,
)  # fmt: skip
from cmapkd.models.formats import Given, read_weights
from cmapkd.models.places import CHECKPOINTS, HF_CONFIG, HF_PREPROCESS, weight_files
from cmapkd.models.places import CONFIG as CONFIG
from cmapkd.models.places import WEIGHTS as WEIGHTS
from cmapkd.paths import cache, home

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
LAYER_NORM_EPS = 1e-5  # of open_clip's towers


def locate(name: str, init: str, key: str) -> Path | None:
    """The file or directory that ``init`` names; None for a tag and for ``random``.

    Raises:
        UserError: no tag of that architecture, and no such file.
    """
    path, tags = Path(init), open_clip.list_pretrained_tags_by_model(name)
    try:
        if path.is_dir() or path.is_file():
            return path
    except OSError as error:
        raise UserError(key=key, value=init, reason=f"cannot be read: {error.strerror}", fix="name another path") from None
    if init == "random":
        return None
    if init in tags:
        check_activation(name, init, key)
        return None
    known = ", ".join(sorted(tags)) or "none"
    if path.name != init or path.suffix in CHECKPOINTS:
        fix = f"correct the path (it is relative to {Path.cwd()}), or use a tag: {known}"
        raise UserError(key=key, value=init, reason="there is no such file", fix=fix)
    hint = nearest(init, [*tags, "random"])
    fix = hint if hint.startswith("known") else f"{hint} All tags: {known}"
    raise UserError(key=key, value=init, reason=f"is no tag of {name} and no file", fix=fix)


def check_init(
    name: str,
    init: str,
    key: str,
    config: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> tuple[Given, WeightsDescription] | None:
    """Refuse weights that do not exist, cannot be read or are not of the named model, before anything is built.

    Args:
        name: of the architecture.
        init: as for ``towers.create``.
        key: where the experiment names ``init``.
        config: the architecture's content, where open_clip does not know it by name.
        preprocessing: what the experiment states of mean, deviation and resizing.

    Returns:
        What was read of a path, and what is known of it; None for a tag, for ``random`` and for arrays of big_vision.

    Raises:
        UserError: names both values of what differs, and the fix.
    """
    path = locate(name, init, key)
    if path is None:
        return None
    if path.suffix in (".npz", ".npy"):  # open_clip reads these arrays itself
        if form_of(path, key) != "numpy":
            raise UserError(key=key, value=init, reason="is not an archive of numpy's arrays", fix="fetch it again")
        return None
    given, described = examine(path, key)
    content = config if config is not None else open_clip.get_model_config(name)
    if content is not None:
        model = of_open_clip({"model_cfg": content}, name)
        check(described, model, name, key, init)
        warn_of_unknown(described, model, name, key, init, preprocessing or {})
    return given, described


def examine(path: Path, key: str) -> tuple[Given, WeightsDescription]:
    """The weights at ``path``, and everything that they and the files next to them state.

    Raises:
        UserError: as ``formats.read_weights``, or a description of another kind of model.
    """
    folder = weight_files(path, key)[0].parent
    if path.is_dir() and not (folder / CONFIG).is_file():
        _clip_config(folder, key)  # of another kind: said before gigabytes are read
    given = read_weights(path, key)
    kind = "directory" if path.is_dir() else given.form
    shapes = {name: tuple(value.shape) for name, value in given.state.items()}
    found = of_shapes(shapes, kind, given.openai)
    if given.hugging_face and (folder / HF_CONFIG).is_file():
        stated = _hugging_face_config(folder, key, f"{kind} with {HF_CONFIG}")
        stated = _agreed(stated, found, folder / HF_CONFIG, key)
        if path.is_dir() and (folder / CONFIG).is_file():  # of the same weights in the other form
            stated = _agreed(_open_clip_config(folder / CONFIG, key, stated.form), stated, folder / CONFIG, key)
        return given, stated
    if not given.hugging_face and (folder / CONFIG).is_file():
        return given, _agreed(_open_clip_config(folder / CONFIG, key, f"{kind} with {CONFIG}"), found, folder / CONFIG, key)
    return given, found


def _agreed(stated: WeightsDescription, found: WeightsDescription, file: Path, key: str) -> WeightsDescription:
    """What a file states of the weights next to it, which it must describe."""
    check(replace(found, form="next to it"), stated, file.name, key, str(file))
    return stated.completed(found)


def _hugging_face_config(folder: Path, key: str, form: str) -> WeightsDescription:
    preprocess = folder / HF_PREPROCESS
    preprocessor = read_description(preprocess, key) if preprocess.is_file() else {}
    try:
        return of_hugging_face(_clip_config(folder, key), preprocessor, form)
    except (TypeError, KeyError, ValueError, AttributeError):
        reason = f"or its {HF_PREPROCESS} is not in the form of transformers"
        raise UserError(key=key, value=str(folder / HF_CONFIG), reason=reason, fix="download both again") from None


def _open_clip_config(file: Path, key: str, form: str) -> WeightsDescription:
    content = read_description(file, key)
    try:
        if content["model_cfg"]["vision_cfg"] and content["model_cfg"]["text_cfg"]:
            return of_open_clip(content, form)
    except (TypeError, KeyError, ValueError, AttributeError, ZeroDivisionError):
        pass
    reason = "has no model_cfg in open_clip's form"
    raise UserError(key=key, value=str(file), reason=reason, fix="download it again, or name the file of the weights alone")


def _clip_config(folder: Path, key: str) -> dict[str, Any]:
    """Content of ``config.json`` of a ``CLIPModel``.

    Raises:
        UserError: of another kind of model.
    """
    if not (folder / HF_CONFIG).is_file():
        return {}
    config = read_description(folder / HF_CONFIG, key)
    if config.get("model_type") != "clip":
        reason = f"is of a {config.get('model_type')!r}, not of a CLIPModel ('clip')"
        raise UserError(
            key=key, value=str(folder), reason=reason, fix="name weights of CLIP, whole, as open_clip or as CLIPModel"
        )
    for tower in ("text_config", "vision_config"):
        settings = config.get(tower) or {}
        epsilon = settings.get("layer_norm_eps", LAYER_NORM_EPS) if isinstance(settings, dict) else LAYER_NORM_EPS
        if epsilon != LAYER_NORM_EPS:
            reason = f"its {tower} has layer_norm_eps {epsilon!r}, open_clip's models have {LAYER_NORM_EPS}"
            raise UserError(key=key, value=str(folder), reason=reason, fix="name other weights")
    return config


def set_preprocess(model: Any, known: Mapping[str, Any], stated: Mapping[str, Any], key: str, init: str) -> None:
    """How the images of these weights are prepared: as the experiment states, else as is known, else open_clip's default."""
    own = open_clip.get_model_preprocess_cfg(model)
    found = {name: value for name in _PREPROCESSING if (value := stated.get(name) or known.get(name))}
    open_clip.set_model_preprocess_cfg(model, {**own, **found})
    for name, value in stated.items():
        if known.get(name) and digest(known[name]) != digest(value):
            role = key.partition(".")[0]
            warn_once(f"{role}.preprocessing.{name} = {value!r} is used, although {init!r} states {known[name]!r}")


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
