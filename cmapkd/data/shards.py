"""Writes a data source as webdataset shards with a manifest, and verifies them.

A shard is a tar with the members ``{key}.{extension}`` and ``{key}.json`` for each sample, in the source's order, as
webdataset's own ``TarWriter`` writes it (mtime 0, no owner), so that two builds are byte-identical and
``webdataset.WebDataset`` reads it. Beside each shard lies ``000000.index.json`` with the place and CRC-32 of every
member: it makes random access possible, which webdataset does not have. A build has a few pictures in memory
(``cmapkd.data.packing``), or one shard of them while it compares a shard with that of an earlier build.

**Interrupted builds.** Shard, index and manifest are each written under a temporary name and renamed, in this order.
A build that is run again keeps a shard when its index parses, names the same *build digest* (configuration, source
versions and source code), lists the keys that the source yields at this place, and the shard's recomputed SHA-256 is
the recorded one; any other shard is written anew. The manifest is removed first and written last, so a manifest
always describes a finished data set. A finished data set with the same build digest and intact shards is left alone.

This module imports neither torch nor webdataset: the workflow reads manifests through it.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from cmapkd.config.paths import path_keys
from cmapkd.config.sources import SourceConfig
from cmapkd.data.index import INDEX_VERSION, index_path, misplaced, read_index
from cmapkd.data.packing import HashedTar, ahead
from cmapkd.data.sample import Sample
from cmapkd.errors import UserError
from cmapkd.files import atomic_path, digest, read_json, sha256_of, write_atomic, write_json
from cmapkd.fingerprint import fingerprint

MANIFEST = "manifest.json"
CLASSES = "classes.json"
EXTENSIONS = ("png", "jpg")
# A USTAR name holds 100 characters; the rest is for the dot and the extension.
KEY_LENGTH = 90


class ShardSource(Protocol):
    """What the writer needs of a data source (a part of ``cmapkd.data.sources.Source``)."""

    name: str
    config: Any

    def fetch(self) -> Any:
        """Bring what the source needs into its cache; does nothing when it is there."""

    def splits(self) -> list[str]:
        """Names of the splits, in the order in which they are written."""

    def samples(self, split: str) -> Iterator[Sample]:
        """The samples of a split: the same ones in the same order each time."""

    def classes(self) -> tuple[list[str], list[str]] | None:
        """Zero-shot class names and prompt templates (with ``{}``), if the source has them."""

    def provenance(self) -> list[dict[str, Any]]:
        """Where the data come from: name, version, sha256, licence, attribution."""

    def leakage(self) -> dict[str, Any]:
        """What the source knows about overlap between its splits."""


def write_dataset(source: ShardSource, directory: str | Path, *, dataset: str) -> dict[str, Any]:
    """Write every split of ``source`` as shards; return (and write, last of all) the manifest.

    Args:
        source: a data source; ``source.config.shard_size`` [samples] is the size of a shard.
        directory: where ``manifest.json``, ``classes.json`` and one directory for each split go.
        dataset: name of the data set in the experiment (a source may serve several).

    Raises:
        UserError: a key occurs twice in a split, a sample is malformed, or a split is empty.
    """
    directory = Path(directory)
    source.fetch()
    build = build_digest(source, dataset)
    if (finished := _finished(directory, build)) is not None:
        _check_uses(source, finished)
        return finished
    (directory / MANIFEST).unlink(missing_ok=True)

    splits = {}
    for split in source.splits():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
            raise UserError(
                key="split", value=split, reason="a split's name becomes a directory", fix="letters, digits, _ and -"
            )
        splits[split] = _write_split(source, split, directory, build)
    classes = source.classes()
    if classes is None:
        (directory / CLASSES).unlink(missing_ok=True)
    else:
        write_json(directory / CLASSES, {"classes": list(classes[0]), "templates": list(classes[1])})
    leakage = source.leakage()
    for split, about in leakage.items():
        if split in splits and isinstance(about, dict) and "without_caption" in about:
            splits[split]["without_caption"] = about["without_caption"]
    hashes = {split: [shard["sha256"] for shard in record["shards"]] for split, record in splits.items()}
    manifest = {
        "dataset": dataset,
        "source": source.name,
        "config": _config(source),
        "splits": splits,
        "sources": source.provenance(),
        "leakage": leakage,
        "build": build,
        "digest": digest({"shards": hashes, "classes": classes}),
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a data set directory.

    Raises:
        UserError: there is none (the build has not finished), or it cannot be read.
    """
    path = Path(directory) / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        reason = "no manifest here: the data set has not been built, or its build was interrupted"
        raise UserError(key="dataset", value=str(directory), reason=reason, fix="run `cmapkd data build` (again)") from None
    except (OSError, ValueError) as error:
        raise UserError(
            key=str(path), reason=f"cannot be read: {error}", fix="delete it and run `cmapkd data build` again"
        ) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("splits"), dict):
        raise UserError(key=str(path), reason="is not a data set's manifest", fix="delete it and run `cmapkd data build` again")
    return manifest


def verify(directory: str | Path) -> dict[str, Any]:
    """Recompute the SHA-256 of every shard and the size of every index against the manifest; return the manifest.

    Raises:
        UserError: names the first shard that is missing, has another size or another digest, or whose index is unusable.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for record in manifest["splits"].values():
        for shard in record["shards"]:
            path = directory / shard["path"]
            reason = _flaw(path, shard)
            if reason:
                fix = "run `cmapkd data build` again: it rewrites damaged shards and keeps the others"
                raise UserError(key="shard", value=str(path), reason=reason, fix=fix)
    return manifest


def build_digest(source: ShardSource, dataset: str) -> str:
    """Digest of all that decides the shards' bytes: configuration, versions of the sources and the source's code."""
    module, file = type(source).__module__, inspect.getfile(type(source))
    inside = module.split(".")[0] == "cmapkd"
    code = fingerprint(module, __name__) if inside else fingerprint(__name__) + sha256_of(file)
    return digest(
        {
            "dataset": dataset,
            "source": source.name,
            "config": _config(source),
            "provenance": source.provenance(),
            "code": code,
        }
    )


def safe_key(key: str) -> str:
    """``key`` as a tar member's stem: ASCII letters, digits, ``_`` and ``-``, at most 90 characters.

    No path, no dot (webdataset splits a name at its first dot). A key that had to change gets a digest of the original
    appended, so that different keys stay different.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", key)
    if safe == key and 0 < len(key) <= KEY_LENGTH:
        return key
    suffix = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{safe[: KEY_LENGTH - 13]}-{suffix}"


def encode_record(sample: Sample) -> bytes:
    """All fields of a sample but its image as canonical JSON (sorted keys, UTF-8).

    A lone surrogate (of a file name that is not UTF-8) becomes its escape ``\\udc80``, which JSON reads back.
    """
    content = {name: value for name, value in asdict(sample).items() if name != "image"}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "backslashreplace"
    )


def _write_split(source: ShardSource, split: str, directory: Path, build: str) -> dict[str, Any]:
    folder = directory / split
    folder.mkdir(parents=True, exist_ok=True)
    total = getattr(source.config, split, None)
    seen: set[str] = set()
    members = ahead(map(_Member.of, _checked(source.samples(split), split, seen)), _Member.weight)
    bar = tqdm(
        members,
        desc=f"{source.name}/{split}",
        unit=" samples",
        total=total if isinstance(total, int) else None,
        disable=None,  # no bar where there is no terminal
    )
    indices: list[dict[str, Any]] = []
    with closing(members):
        for number, chunk in enumerate(_chunks(iter(bar), source.config.shard_size)):
            indices.append(_write_shard(folder / f"{number:06d}.tar", chunk, build))
    if not indices:
        raise UserError(key="split", value=split, reason=f"source {source.name!r} yields no sample for it")
    _remove_strangers(folder, len(indices))

    strata: Counter[str] = Counter()
    for index in indices:
        strata.update(index["strata"])
    return {
        "samples": sum(index["samples"] for index in indices),
        "strata": dict(sorted(strata.items())),
        "captions": sum(index["captions"] for index in indices),
        "questions": sum(index["questions"] for index in indices),
        "shards": [
            {"path": f"{split}/{index['shard']}", **{name: index[name] for name in ("samples", "bytes", "sha256")}}
            for index in indices
        ],
    }


def _checked(samples: Iterable[Sample], split: str, seen: set[str]) -> Iterator[Sample]:
    """Samples with safe keys, each seen once and well-formed."""
    for sample in samples:
        key = safe_key(sample.key)
        if key != sample.key:
            sample.meta = {**sample.meta, "source_key": sample.key}
            sample.key = key
        where = f"{split}/{key}"
        if key in seen:
            raise UserError(key="sample", value=where, reason="the source yields this key twice in one split")
        seen.add(key)
        if sample.extension not in EXTENSIONS:
            reason = f"extension {sample.extension!r} is none of {', '.join(EXTENSIONS)}"
            raise UserError(key="sample", value=where, reason=reason)
        if not sample.image:
            raise UserError(key="sample", value=where, reason="the image is empty")
        yield sample


@dataclass(slots=True)
class _Member:
    """A sample as it is written: its encoded picture and record, and what the index says of it."""

    key: str
    extension: str
    image: bytes
    record: bytes
    checksums: tuple[int, int]  # CRC-32 of the two
    stratum: str | None
    captions: int
    questions: int

    @classmethod
    def of(cls, sample: Sample) -> _Member:
        record = encode_record(sample)
        checksums = zlib.crc32(sample.image), zlib.crc32(record)
        counts = len(sample.captions), len(sample.questions)
        return cls(sample.key, sample.extension, sample.image, record, checksums, sample.stratum, *counts)

    def weight(self) -> int:
        return len(self.image) + len(self.record)


def _write_shard(path: Path, members: Iterable[_Member], build: str) -> dict[str, Any]:
    """Write one shard and its index, unless an earlier build of the same digest left them intact; return the index."""
    if path.is_file():
        members = list(members)
        if (kept := _kept(path, [member.key for member in members], build)) is not None:
            return kept
    index_path(path).unlink(missing_ok=True)  # never an index beside another build's shard
    keys, extensions, images, records = list[str](), list[str](), list[list[int]](), list[list[int]]()
    strata: Counter[str] = Counter()
    captions = questions = 0
    with atomic_path(path) as temporary, HashedTar(temporary) as tar:
        for member in members:
            places = {}
            for extension in sorted((member.extension, "json")):  # the order of webdataset
                places[extension] = tar.add(f"{member.key}.{extension}", member.record if extension == "json" else member.image)
            keys.append(member.key)
            extensions.append(member.extension)
            images.append([*places[member.extension], member.checksums[0]])
            records.append([*places["json"], member.checksums[1]])
            strata.update([member.stratum] if member.stratum is not None else [])
            captions += member.captions
            questions += member.questions
        sha256 = tar.finish()
    index = {
        "version": INDEX_VERSION,
        "shard": path.name,
        "build": build,
        "bytes": tar.offset,
        "sha256": sha256,
        "samples": len(keys),
        "strata": dict(sorted(strata.items())),
        "captions": captions,
        "questions": questions,
        "keys": keys,
        "extensions": extensions,
        # For each sample: offset [bytes], size [bytes], CRC-32 of the member.
        "images": images,
        "records": records,
    }
    write_atomic(index_path(path), json.dumps(index, separators=(",", ":")) + "\n")
    return index


def _kept(path: Path, keys: list[str], build: str) -> dict[str, Any] | None:
    """The index of a shard that an earlier, interrupted build wrote and that is exactly the one wanted."""
    try:
        index = read_index(path)
    except ValueError:
        return None
    same = index.get("build") == build and index.get("shard") == path.name and index["keys"] == keys
    return index if same and _flaw(path, index) is None else None


def _flaw(path: Path, expected: dict[str, Any]) -> str | None:
    """What is wrong with a shard (size, SHA-256, index), or None. ``expected``: the manifest's or index's entry."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"has {size} bytes instead of {expected['bytes']}"
        if (found := sha256_of(path)) != expected["sha256"]:
            return f"has SHA-256 {found[:12]}... instead of {expected['sha256'][:12]}..."
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    try:
        index = read_index(path)
    except ValueError as error:
        return str(error)
    if any(index.get(name) != expected[name] for name in ("samples", "bytes", "sha256")):
        return f"{index_path(path).name} describes another shard"
    return misplaced(path, index)


def _finished(directory: Path, build: str) -> dict[str, Any] | None:
    """The manifest, when the data set is complete, intact and of this build digest."""
    try:
        manifest = read_manifest(directory)
        return verify(directory) if manifest.get("build") == build else None
    except (UserError, KeyError, TypeError):
        return None


def _check_uses(source: ShardSource, manifest: dict[str, Any]) -> None:
    """The uses of a split may have changed since it was built: what its manifest counted is judged by those of today."""
    if (judge := getattr(source, "judge_captions", None)) is None:
        return
    for split, about in manifest.get("leakage", {}).items():
        if "without_caption" in about:
            judge(split, about["samples"], about["without_caption"], about["without_caption_examples"])


def _remove_strangers(folder: Path, shards: int) -> None:
    """Remove shards beyond the last one and temporary files, left by an earlier build that was larger or was killed."""
    wanted = {f"{number:06d}{suffix}" for number in range(shards) for suffix in (".tar", ".index.json")}
    for file in folder.iterdir():
        if file.name not in wanted and re.fullmatch(r"\.?\d{6}\.(tar|index\.json)(\..*)?", file.name):
            file.unlink()


def _chunks(members: Iterator[_Member], size: int) -> Iterator[Iterator[_Member]]:
    """Runs of ``size`` members; each must be used up before the next."""
    for first in members:
        yield itertools.chain([first], itertools.islice(members, size - 1))


def _config(source: ShardSource) -> dict[str, Any]:
    """The source's options without the folders that its files are in: data are the same wherever they came from."""
    config = source.config
    if not isinstance(config, SourceConfig):
        return dict(vars(config))
    return config.model_dump(mode="json", exclude=set(path_keys(type(config)) & config.operational))
