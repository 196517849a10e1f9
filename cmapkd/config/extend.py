"""`extends: <file>`: an experiment that is another one but for the keys it gives. Torch-free.

Mappings are merged key by key, lists are replaced, and a key given as `null` is taken out, so that its default holds. (No key
whose `null` means something has another default: a test sees to it.) What the list `replaces` names is taken from the extending
file alone. (A list and not a YAML tag: Snakemake reads the file with a parser of its own, which refuses unknown tags.)
Afterwards nothing tells an experiment that was put together from one that was written out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError, nearest
from cmapkd.paths import resolve

REPOSITORY = Path(__file__).parent.parent.parent
PLACES = (REPOSITORY / "config", REPOSITORY)  # where the workflow, which is not told the file, looks as well
_RELATIVE = ("root", "images")  # keys of a data set that `data_root` bears on

Read = Callable[[Path], dict[str, Any]]


def extended(content: Mapping[str, Any], origin: str, directory: Path | None, read: Read) -> dict[str, Any]:
    """The keys of an experiment with those of the files that it extends, directly or not.

    Args:
        content: keys of the experiment, plain.
        origin: what messages call it.
        directory: of its file; a base is looked for there, then in `config/`.
        read: reads a file into plain keys.

    Raises:
        UserError: a base that is missing, no text or part of a circle, or an experiment without a name of its own.
    """
    return _extended(dict(content), origin, directory, read, ())


def inherited(content: dict[str, Any], origin: str, directory: Path | None, read: Read) -> str | None:
    """Describe in one line what an experiment takes over from the file that it extends; None if it extends none.

    Args:
        content: as for `extended`, likewise the others.

    Raises:
        UserError: as `extended`.
    """
    base, whole = content.get("extends"), extended(content, origin, directory, read)
    if base is None:
        return None
    parts, keys = [], []
    for key, value in whole.items():
        own = content.get(key)
        if key not in content:
            taken = list(value) if isinstance(value, dict) else []
        elif isinstance(value, dict) and isinstance(own, dict):
            taken = [name for name in value if name not in own]
            if not taken:
                continue
        else:
            continue
        if key == "runs":
            parts.append(f"{len(taken)} run{'s' * (len(taken) != 1)} ({', '.join(taken)})")
        elif key in ("datasets", "evaluation"):
            parts.append(f"{key} {', '.join(taken)}")
        else:
            keys.append(key)
    parts += [f"all or part of {', '.join(keys)}"] if keys else []
    return f"from {base}: {'; '.join(parts) or 'nothing'}"


def _extended(
    content: dict[str, Any], origin: str, directory: Path | None, read: Read, chain: tuple[Path, ...]
) -> dict[str, Any]:
    name, replaced = content.pop("extends", None), content.pop("replaces", None)
    key = f"{origin}: extends"
    if name is None:
        if replaced:
            reason = "replaces keys of the file that `extends` names, and there is no `extends`"
            raise UserError(key=f"{origin}: replaces", value=replaced, reason=reason, fix="take it out, or add `extends`")
        return content
    if not isinstance(name, str) or not name:
        raise UserError(key=key, value=name, reason="is no name of a file", fix="e.g. extends: paper.yaml")
    if not isinstance(content.get("name"), str):
        reason = "needs a `name` of its own, or its results would be written over those of the experiment it extends"
        raise UserError(key=f"{origin}: name", reason=reason, fix="name: <something else>")
    places = looked_up(name, key, directory, PLACES)
    path = next((place for place in places if _is_file(place)), None)
    if path is None:
        where = " or ".join(dict.fromkeys(str(place) for place in places))
        raise UserError(key=key, value=name, reason=f"there is no file {where}", fix="the path is relative to this file")
    path = path.resolve()
    if path in chain:
        circle = " -> ".join(place.name for place in (*chain, path))
        raise UserError(key=key, value=name, reason=f"is a circle: {circle}", fix="take `extends` out of one of them")
    base = _extended(read(path), str(path), path.parent, read, (*chain, path))
    if isinstance(base.get("tuned"), str) and path.parent != directory and (beside := path.parent / base["tuned"]).is_file():
        base["tuned"] = str(beside)
    return merged(_without(base, replaced, content, f"{origin}: replaces"), content)


def _without(base: dict[str, Any], replaced: Any, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """``base`` without the keys that the extending file gives in their entirety."""
    if replaced is None:
        return base
    example = "e.g. replaces: [runs, datasets]"
    if not isinstance(replaced, list) or not all(isinstance(name, str) for name in replaced):
        raise UserError(key=key, value=replaced, reason="must be a list of keys of this file", fix=example)
    for name in replaced:
        if content.get(name) is None:
            reason = f"this file has no key {name!r} to put in place of that of the file it extends"
            fix = f"give `{name}` here, or take it out of `replaces`; {nearest(name, list(content))}"
            raise UserError(key=key, value=replaced, reason=reason, fix=fix)
    return {name: value for name, value in base.items() if name not in replaced}


def looked_up(name: str, key: str, directory: Path | None, places: tuple[Path, ...]) -> list[Path]:
    """Where a file that an experiment names may be: in the folder of the experiment's file, then in ``places``.

    Raises:
        UserError: a path that cannot be resolved (`cmapkd.paths`).
    """
    if name.startswith(("~", "$")):
        return [resolve(name, key)]
    return [place / name for place in ((directory,) if directory is not None else ()) + places]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def merged(base: Any, override: Any) -> Any:
    """``override`` on top of ``base``; see the module header."""
    if not isinstance(override, Mapping):
        return override
    result = dict(base) if isinstance(base, Mapping) else {}
    for key, value in override.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)  # in the place of the base's key: runs are rows in this order
    return result


def rooted(content: dict[str, Any], origin: str) -> dict[str, Any]:
    """The same without `data_root`, which is put before the relative folders of the data sets; those that start from ``/``,
    ``~`` or an environment variable stay as they are.

    Raises:
        UserError: `data_root` cannot be resolved (`cmapkd.paths`).
    """
    root, datasets = content.get("data_root"), content.get("datasets")
    if not isinstance(root, str) or not root or not isinstance(datasets, dict):
        return content
    resolve(root, f"{origin}: data_root")

    def below(folder: Any) -> Any:
        if not isinstance(folder, str) or folder.startswith(("/", "~", "$")):
            return folder
        return f"{root.rstrip('/')}/{folder}"

    placed = {
        name: {key: below(value) if key in _RELATIVE else value for key, value in dataset.items()}
        if isinstance(dataset, dict)
        else dataset
        for name, dataset in datasets.items()
    }
    return {**{key: value for key, value in content.items() if key != "data_root"}, "datasets": placed}
