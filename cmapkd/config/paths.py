"""Types of the keys that hold paths: resolved while an experiment is parsed, written in a form that holds on other machines.

A value of these types is a `ResolvedPath`, absolute; ``model_dump`` writes its portable text. Each key of a path has one of
them (a test looks for descriptions of files and folders), so what is bound into containers and checked at the start finds all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, PlainSerializer
from pydantic import Field as PydanticField

from cmapkd.errors import UserError
from cmapkd.paths import ResolvedPath, names_path, portable, portable_text, resolved

REPOSITORY = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class PathKey:
    """Marks the annotation of a key that holds a path."""

    words: str = "path"  # its type, in config/README.md


def _path(text: str) -> str:
    return ResolvedPath(resolved(text), text)


def _in_repository(text: str) -> str:
    return ResolvedPath(resolved(text, REPOSITORY), text) if text else text


def _below(text: str) -> str:
    return _path(text) if text.startswith(("/", "~", "$")) else text


def _weights(text: str) -> str:
    return _path(text) if names_path(text) else text


def _repository_text(value: str) -> str:
    return portable(value, REPOSITORY) if isinstance(value, ResolvedPath) else value


# Relative to the working directory; to the repository, where "" means none; and to another key, which stays so.
_SOME = PydanticField(min_length=1)
PathText = Annotated[str, _SOME, AfterValidator(_path), PlainSerializer(portable_text, return_type=str), PathKey()]
RepositoryPath = Annotated[str, AfterValidator(_in_repository), PlainSerializer(_repository_text, return_type=str), PathKey()]
PathBelow = Annotated[str, _SOME, AfterValidator(_below), PlainSerializer(portable_text, return_type=str), PathKey()]
WeightsPath = Annotated[str, AfterValidator(_weights), PlainSerializer(portable_text, return_type=str), PathKey("text or path")]


def path_keys(model: type[BaseModel]) -> frozenset[str]:
    """Names of the keys of one section that hold paths."""
    return frozenset(name for name, field in model.model_fields.items() if _marked((field.annotation, *field.metadata)))


def _marked(parts: Any) -> bool:
    return any(isinstance(part, PathKey) or _marked(get_args(part)) for part in parts)


def paths_of(content: Any, key: str = "") -> Iterator[tuple[str, ResolvedPath]]:
    """Every resolved path of a typed section, with the key that it is configured at."""
    if isinstance(content, ResolvedPath):
        yield key, content
    elif isinstance(content, BaseModel):
        for name in type(content).model_fields:
            yield from paths_of(getattr(content, name), f"{key}.{name}" if key else name)
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from paths_of(value, f"{key}.{name}")
    elif isinstance(content, list | tuple):
        for place, value in enumerate(content):
            yield from paths_of(value, f"{key}.{place}")


def require_file(weights: str | None, key: str) -> None:
    """Refuse weights that a path names, and that are not there; a tag says nothing of that.

    Raises:
        UserError: naming the key, with the text as configured.
    """
    if isinstance(weights, ResolvedPath) and not Path(weights).exists():
        fix = "correct the path, or use a tag of open_clip"
        raise UserError(key=key, value=weights.configured, reason=f"there is no such file (here {weights})", fix=fix)


def missing_folders(experiment: Any, datasets: Any = None) -> list[tuple[str, ResolvedPath]]:
    """Keys and paths of data sets whose folder or file is not there.

    Args:
        experiment: typed.
        datasets: names of those that are looked at; all by default.
    """
    names = experiment.datasets if datasets is None else datasets
    found = [pair for name in names for pair in paths_of(experiment.datasets[name], f"datasets.{name}")]
    return [(key, path) for key, path in found if not Path(path).exists()]


def tell_missing(key: str, path: ResolvedPath) -> str:
    """One line about a folder that is not there."""
    meant = "" if path.configured == path else f" (here {path})"
    return f"{key} = {path.configured!r}{meant}: is not there"


def require_folders(experiment: Any, datasets: Any = None) -> None:
    """Refuse data sets whose folders are not there, before anything starts.

    Raises:
        UserError: naming all of them, each with its key and its text as configured.
    """
    missing = missing_folders(experiment, datasets)
    if not missing:
        return
    fix = "correct `data_root` or the key, or make the folder and put the publisher's files there (docs/data/ tells which)"
    if len(missing) == 1:
        (key, path), where = missing[0], "" if missing[0][1].configured == missing[0][1] else f" (here {missing[0][1]})"
        raise UserError(key=key, value=path.configured, reason=f"is not there{where}", fix=fix)
    lines = "\n".join(f"  - {tell_missing(key, path)}" for key, path in missing)
    raise UserError(key="datasets", reason=f"{len(missing)} folders are not there:\n{lines}", fix=fix)
