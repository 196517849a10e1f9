"""The index of a shard: where its members are, so that a sample is read without the others.

``000000.index.json`` next to ``000000.tar`` has, for each sample, its key and the offset, size and CRC-32 of its image and its
record. It is a function of the tar; ``misplaced`` compares the two.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmapkd.files import read_json

INDEX_VERSION = 1


def index_path(shard: Path) -> Path:
    """``train/000000.tar`` -> ``train/000000.index.json``."""
    return shard.with_suffix(".index.json")


def read_index(shard: Path) -> dict[str, Any]:
    """The index of a shard.

    Raises:
        ValueError: it is missing, does not parse or contradicts itself; the message says what.
    """
    path = index_path(shard)
    try:
        index = read_json(path)
    except OSError as error:
        raise ValueError(f"index {path.name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"index {path.name} is not JSON: {error}") from None
    if not isinstance(index, dict) or index.get("version") != INDEX_VERSION:
        raise ValueError(f"index {path.name} is not an index of version {INDEX_VERSION}")
    columns = [index.get(column) for column in ("keys", "extensions", "images", "records")]
    lengths = {len(column) if isinstance(column, list) else 0 for column in columns}
    if lengths != {index.get("samples")}:
        raise ValueError(f"index {path.name} lists {sorted(lengths)} members for {index.get('samples')} samples")
    return index


def misplaced(shard: Path, index: Mapping[str, Any]) -> str | None:
    """What an index states otherwise than the headers of its tar; None if they agree. Contents are not read.

    Args:
        index: as `read_index` gives it.
    """
    name = index_path(shard).name
    places: dict[str, list[int]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                places[member.name] = [member.offset_data, member.size]
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
        columns = zip(index["keys"], index["extensions"], index["images"], index["records"], strict=True)
        for key, extension, image, record in columns:
            if places.pop(f"{key}.{extension}") != image[:2] or places.pop(f"{key}.json") != record[:2]:
                return f"{name} states another place for {key} than the tar"
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return f"{name} does not describe its tar: {error}"
    except (tarfile.TarError, OSError) as error:
        return f"cannot be read as a tar: {error}"
    return f"{name} leaves out {next(iter(places))}" if places else None
