"""`extends: <file>`: an experiment that is another one but for the keys it gives. Torch-free.

Mappings are merged key by key, lists are replaced, and a key given as `null` is taken out, so that its default holds. (No key
whose `null` means something has another default: a test sees to it.) Afterwards nothing tells an experiment that was put
together from one that was written out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError
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


def _extended(
    content: dict[str, Any], origin: str, directory: Path | None, read: Read, chain: tuple[Path, ...]
) -> dict[str, Any]:
    if "extends" not in content:
        return content
    key, name = f"{origin}: extends", content.pop("extends")
    if name is None:
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
    return merged(base, content)


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
