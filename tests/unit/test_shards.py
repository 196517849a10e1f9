"""Shards: webdataset reads them, builds are byte-identical, interrupted builds resume, damage is named."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_source import FakeConfig, FakeSource, write_fake
from hypothesis import given
from hypothesis import strategies as st

from cmapkd.data import packing, shards
from cmapkd.data.index import index_path, misplaced, read_index
from cmapkd.data.sample import Sample
from cmapkd.data.shards import read_manifest, safe_key, verify, write_dataset
from cmapkd.data.split import CorruptSample, Split
from cmapkd.errors import UserError
from cmapkd.files import sha256_of


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_two_builds_are_byte_identical(tmp_path: Path) -> None:
    one, two = contents(write_fake(tmp_path / "one")), contents(write_fake(tmp_path / "two"))
    assert one == two
    assert len([name for name in one if name.endswith(".tar")]) == 6 + 2
    assert not [name for name in one if Path(name).name.startswith(".")]


def test_another_seed_gives_another_digest(tmp_path: Path) -> None:
    write_fake(tmp_path / "one")
    write_fake(tmp_path / "two", seed=1)
    assert read_manifest(tmp_path / "one")["digest"] != read_manifest(tmp_path / "two")["digest"]


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    import webdataset

    write_fake(tmp_path)
    source = FakeSource()
    urls = [str(path) for path in sorted((tmp_path / "train").glob("*.tar"))]
    seen = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb"))
    assert [sample["__key__"] for sample in seen] == [f"train_{i:06d}" for i in range(40)]
    assert seen[11]["json"]["captions"] == source.sample("train", 11).captions
    assert seen[11]["png"].size == (16, 16)


def test_members_carry_no_time_and_no_owner(tmp_path: Path) -> None:
    write_fake(tmp_path)
    with tarfile.open(tmp_path / "train" / "000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members][:4] == ["train_000000.json", "train_000000.png", "train_000001.json", "train_000001.png"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_shards_are_those_of_webdataset_and_the_index_says_where_members_lie(tmp_path: Path) -> None:
    from webdataset.writer import TarWriter

    class Photographs(FakeSource):
        def sample(self, split: str, i: int) -> Sample:
            sample = super().sample(split, i)
            sample.extension = "jpg" if i % 3 else "png"  # on either side of the record
            sample.image = sample.image * (1 + 50 * (i == 4))
            return sample

    write_dataset(Photographs(), tmp_path, dataset="fake")
    path = tmp_path / "train" / "000000.tar"
    samples = list(Photographs().samples("train"))[:7]
    with (tmp_path / "theirs.tar").open("wb") as file, TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write({"__key__": sample.key, sample.extension: sample.image, "json": shards.encode_record(sample)})
    assert path.read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    index = read_index(path)
    with tarfile.open(path) as tar:
        found = {member.name: [member.offset_data, member.size] for member in tar}
    assert [place[:2] for place in index["images"]] == [found[f"{s.key}.{s.extension}"] for s in samples]
    assert [place[:2] for place in index["records"]] == [found[f"{s.key}.json"] for s in samples]


def test_what_is_read_ahead_keeps_its_order_and_comes_before_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PART", 3)
    given = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            if number == 500:
                raise KeyboardInterrupt
            given.append(number)
            yield number

    taken = []
    with pytest.raises(KeyboardInterrupt):
        taken.extend(packing.ahead(numbers(), lambda number: 1))
    # `extend` keeps what it got before the error.
    assert taken == list(range(500))

    given.clear()
    some = packing.ahead(numbers(), lambda number: 1)
    assert next(some) == 0
    some.close()
    assert len(given) <= 3 * (packing.WAITING + 3)
    assert "ahead" not in {thread.name for thread in threading.enumerate()}


def test_manifest_and_classes(tmp_path: Path) -> None:
    manifest = write_dataset(FakeSource(), tmp_path, dataset="fake")
    assert manifest == read_manifest(tmp_path) == verify(tmp_path)
    train = manifest["splits"]["train"]
    assert (train["samples"], train["captions"], train["questions"]) == (40, 120, 40)
    assert train["strata"] == {"complex": 20, "simple": 20}
    assert [shard["samples"] for shard in train["shards"]] == [7, 7, 7, 7, 7, 5]
    for shard in train["shards"]:
        path = tmp_path / shard["path"]
        assert (shard["bytes"], shard["sha256"]) == (path.stat().st_size, sha256_of(path))
    assert manifest["sources"] == FakeSource().provenance()
    assert manifest["leakage"] == {"shared": 0}
    assert manifest["config"]["shard_size"] == 7
    assert json.loads((tmp_path / "classes.json").read_text()) == {
        "classes": ["even", "odd"],
        "templates": ["a picture of {}."],
    }


def test_without_classes_there_is_no_classes_file(tmp_path: Path) -> None:
    with_classes = write_dataset(FakeSource(), tmp_path, dataset="fake")
    source = FakeSource(with_classes=False)
    (tmp_path / "manifest.json").unlink()
    without = write_dataset(source, tmp_path, dataset="fake")
    assert not (tmp_path / "classes.json").exists()
    assert without["digest"] != with_classes["digest"]


def test_every_sample_survives_the_round_trip(tmp_path: Path) -> None:
    write_fake(tmp_path)
    split = Split(tmp_path, "train")
    assert len(split) == 40
    assert [split.read(i) for i in range(40)] == list(FakeSource().samples("train"))
    assert split.name == "fake/train"
    with pytest.raises(IndexError):
        split.read(40)


def test_a_finished_data_set_is_left_alone(tmp_path: Path) -> None:
    write_fake(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = FakeSource()
    write_dataset(source, tmp_path, dataset="fake")
    assert source.yielded == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def interrupt_after(directory: Path, samples: int) -> None:
    source = FakeSource()
    whole = source.sample

    def sample(split: str, i: int) -> Sample:
        if source.yielded > samples:
            raise KeyboardInterrupt
        return whole(split, i)

    source.sample = sample  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        write_dataset(source, directory, dataset="fake")


def test_an_interrupted_build_leaves_no_manifest_and_resumes_at_the_shard(tmp_path: Path) -> None:
    interrupt_after(tmp_path / "part", 20)
    assert sorted(path.name for path in (tmp_path / "part" / "train").glob("*.tar")) == ["000000.tar", "000001.tar"]
    with pytest.raises(UserError, match="interrupted"):
        Split(tmp_path / "part", "train")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "part" / "train").iterdir()}
    (tmp_path / "part" / "train" / ".000002.tar.abcd.tar").write_bytes(b"what a killed build leaves")

    write_fake(tmp_path / "part")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert contents(tmp_path / "part") == contents(write_fake(tmp_path / "whole"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "no_index", "bad_index", "empty_index", "other_build", "no_shard"])
def test_a_build_rewrites_damaged_shards_only(tmp_path: Path, damage: str) -> None:
    whole = contents(write_fake(tmp_path))
    shard = tmp_path / "train" / "000002.tar"
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[700] ^= 1
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[:-600])
    elif damage == "no_shard":
        shard.unlink()
    elif damage == "no_index":
        index_path(shard).unlink()
    elif damage == "bad_index":
        index_path(shard).write_text("{")
    elif damage == "empty_index":
        index_path(shard).write_text('{"version": 1, "samples": 0}')
    else:
        index_path(shard).write_text(json.dumps({**read_index(shard), "build": "another"}))
        (tmp_path / "manifest.json").unlink()
    others = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar") if path != shard}
    write_fake(tmp_path)
    assert contents(tmp_path) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in others.items())


def test_another_configuration_rewrites_everything_and_removes_what_is_over(tmp_path: Path) -> None:
    write_fake(tmp_path / "here")
    write_fake(tmp_path / "here", shard_size=20, seed=3)
    assert contents(tmp_path / "here") == contents(write_fake(tmp_path / "there", shard_size=20, seed=3))


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "index"])
def test_verify_names_the_damaged_shard(tmp_path: Path, damage: str) -> None:
    write_fake(tmp_path)
    shard = tmp_path / "test" / "000001.tar"
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[600] ^= 4
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[:1000])
    elif damage == "missing":
        shard.unlink()
    else:
        index_path(shard).write_text("[]")
    with pytest.raises(UserError, match="test/000001") as error:
        verify(tmp_path)
    assert error.value.fix


def test_no_manifest_and_no_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not been built"):
        read_manifest(tmp_path)
    write_fake(tmp_path)
    with pytest.raises(UserError, match="did you mean 'train'"):
        Split(tmp_path, "trian")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not a data set's manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"key": "same"}, "twice"), ({"extension": "gif"}, "extension 'gif'"), ({"image": b""}, "empty")],
)
def test_malformed_samples_are_refused(tmp_path: Path, change: dict, reason: str) -> None:
    class Malformed(FakeSource):
        def sample(self, split: str, i: int) -> Sample:
            sample = super().sample(split, i)
            for name, value in change.items():
                setattr(sample, name, value)
            return sample

    with pytest.raises(UserError, match=reason):
        write_dataset(Malformed(), tmp_path, dataset="fake")
    assert not (tmp_path / "manifest.json").exists()


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="yields no sample"):
        write_dataset(FakeSource(FakeConfig(test=0)), tmp_path, dataset="fake")


def test_hostile_keys_become_harmless_members(tmp_path: Path) -> None:
    keys = ["../../etc/passwd", "/absolute", "a.b", "ü" * 200, ""]

    class Hostile(FakeSource):
        def sample(self, split: str, i: int) -> Sample:
            sample = super().sample(split, i)
            sample.key = keys[i]
            return sample

    write_dataset(Hostile(FakeConfig(train=5, test=5)), tmp_path, dataset="fake")
    split = Split(tmp_path, "train")
    assert [split.read(i).meta["source_key"] for i in range(5)] == keys
    with tarfile.open(tmp_path / "train" / "000000.tar") as tar:
        assert all(len(m.name) <= 100 and "/" not in m.name and m.name.count(".") == 1 for m in tar.getmembers())


@given(st.text(max_size=300))
def test_safe_keys_are_safe_and_stable(key: str) -> None:
    import re

    safe = safe_key(key)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,90}", safe)
    assert safe_key(safe) == safe


def test_safe_keys_stay_different() -> None:
    assert len({safe_key(key) for key in ("a.b", "a/b", "a_b", "a b", "x" * 100, "x" * 101)}) == 6


def test_reading_manifests_needs_neither_torch_nor_webdataset() -> None:
    code = "import sys, cmapkd.data.split; print([m for m in ('torch', 'webdataset', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(CorruptSample("train/000000.tar", "k", "why")))  # noqa: S301
    assert (error.path, error.sample, error.why) == ("train/000000.tar", "k", "why")
    assert isinstance(error, UserError)


def test_the_build_digest_depends_on_what_decides_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = shards.build_digest(FakeSource(), "fake")
    assert one == shards.build_digest(FakeSource(), "fake")
    assert one != shards.build_digest(FakeSource(FakeConfig(seed=1)), "fake")
    assert one != shards.build_digest(FakeSource(), "other")
    monkeypatch.setattr(FakeSource, "provenance", lambda self: [{"version": "2"}])
    assert one != shards.build_digest(FakeSource(), "fake")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: index["images"].reverse(), "another place for"),
        (lambda index: index["records"][0].__setitem__(1, 1), "another place for"),
        (lambda index: index["keys"].__setitem__(0, "other"), "does not describe its tar"),
        (lambda index: index["extensions"].__setitem__(0, "jpg"), "does not describe its tar"),
        (lambda index: index["images"].__setitem__(0, None), "does not describe its tar"),
        (lambda index: [index[name].pop() for name in ("keys", "extensions", "images", "records")], "leaves out"),
    ],
)
def test_an_index_that_differs_from_its_tar_is_named(tmp_path: Path, change: Any, reason: str) -> None:
    directory = write_fake(tmp_path)
    shard = directory / "train" / "000000.tar"
    index = read_index(shard)
    assert misplaced(shard, index) is None
    change(index)
    assert reason in str(misplaced(shard, index))
    index["samples"] = len(index["keys"])
    index_path(shard).write_text(json.dumps(index))
    with pytest.raises(UserError, match="index"):
        verify(directory)
