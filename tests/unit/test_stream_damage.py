"""Damaged data: what is named, replaced, counted, and from which share on a run stops."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_source import png, write_fake
from test_stream import stream

from cmapkd.data.index import index_path, read_index
from cmapkd.data.split import BadSamples, CorruptSample, Split
from cmapkd.data.stream import batches
from cmapkd.errors import UserError
from cmapkd.files import read_json, sha256_of, write_json


def damage(directory: Path, kind: str, number: int = 2) -> tuple[Path, str, str]:
    """Damage sample 3 of shard 2 of ``train`` (sample 17) in one way; return the shard, its key and the expected reason."""
    shard = directory / "train" / f"{number:06d}.tar"
    index = read_index(shard)
    data = bytearray(shard.read_bytes())
    row, key = 3, index["keys"][3]
    offset, size, _ = index["images"][row]
    if kind == "flipped_picture":
        data[offset + size // 2] ^= 1
        reason = "the picture is damaged"
    elif kind == "flipped_record":
        data[index["records"][row][0] + 5] ^= 1
        reason = "the record is damaged"
    elif kind == "truncated":
        del data[offset + size // 2 :]
        reason = "beyond the end of the shard"
    elif kind == "missing":
        shard.unlink()
        return shard, "number 3", "cannot be opened"
    elif kind == "index_missing":
        index_path(shard).unlink()
        return shard, "number 3", "cannot be read"
    elif kind == "index_garbage":
        index_path(shard).write_text('{"version": 1, "keys"')
        return shard, "number 3", "is not JSON"
    elif kind == "index_short":
        index_path(shard).write_text(json.dumps({**index, "keys": index["keys"][:-1]}))
        return shard, "number 3", "members for 7 samples"
    elif kind == "index_of_another":
        index_path(shard).write_text(json.dumps({**index, "sha256": "0" * 64}))
        return shard, "number 3", "another shard"
    elif kind == "index_overflow":
        index_path(shard).write_text(json.dumps({**index, "images": [[10**30, 1, 0]] * 7}))
        return shard, "number 3", "its index is damaged"
    elif kind == "index_beyond":
        index["images"][row][1] = 10**12
        index_path(shard).write_text(json.dumps(index))
        return shard, key, "beyond the end of the shard"
    elif kind in ("index_swaps_images", "index_swaps_records"):
        places = index[kind.rpartition("_")[2]]
        places[row], places[row + 1] = places[row + 1], places[row]
        index_path(shard).write_text(json.dumps(index))
        return shard, key, "the index leads to"
    else:
        raise AssertionError(kind)
    shard.write_bytes(data)
    return shard, key, reason


KINDS = ["flipped_picture", "flipped_record", "truncated", "missing"]
KINDS += ["index_missing", "index_garbage", "index_short", "index_of_another", "index_overflow", "index_beyond"]
KINDS += ["index_swaps_images", "index_swaps_records"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    shard, key, reason = damage(write_fake(tmp_path), kind)
    split = Split(tmp_path, "train")
    with pytest.raises(CorruptSample, match=reason) as error:
        split.read(17)
    assert error.value.path == str(shard)
    assert error.value.sample == key
    assert reason in error.value.why
    assert split.read(13).key == "train_000013"  # other shards are not affected
    if kind in ("flipped_picture", "flipped_record", "truncated"):
        assert split.read(16).key == "train_000016"  # nor is what lies before it in the same shard


def replace_member(directory: Path, split: str, number: int, key: str, extension: str, content: bytes) -> None:
    """Rewrite a shard with another member, with index and manifest that fit: damage that the source itself delivered."""
    shard = directory / split / f"{number:06d}.tar"
    index = read_index(shard)
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    members[f"{key}.{extension}"] = content
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(shard) as tar:
        place = {m.name: [m.offset_data, m.size, zlib.crc32(members[m.name])] for m in tar.getmembers()}
    index["images"] = [place[f"{k}.png"] for k in index["keys"]]
    index["records"] = [place[f"{k}.json"] for k in index["keys"]]
    index["sha256"], index["bytes"] = sha256_of(shard), shard.stat().st_size
    index_path(shard).write_text(json.dumps(index))
    manifest = read_json(directory / "manifest.json")
    manifest["splits"][split]["shards"][number] |= {"sha256": index["sha256"], "bytes": index["bytes"]}
    write_json(directory / "manifest.json", manifest)


def record(**changes: Any) -> bytes:
    content = {
        "key": "train_000017",
        "extension": "png",
        "captions": ["a"],
        "stratum": None,
        "label": None,
        "questions": [],
        "meta": {},
    }
    return json.dumps(content | changes).encode()


@pytest.mark.parametrize(
    ("extension", "content", "reason"),
    [
        ("json", b'{"key": "train_000017", ', "the record is not JSON"),
        ("json", b"\xff\xfe{}", "the record is not JSON"),
        ("json", b"[]", "belongs to another sample"),
        ("json", record(key="train_000018"), "belongs to another sample"),
        ("json", record(captions=[]), "no caption"),
        ("json", record(captions=None), "no caption"),
        ("png", png(16, 16)[:100], "the picture cannot be decoded"),
        ("png", b"not a picture", "the picture cannot be opened"),
        ("png", png(200, 200), "more than the limit"),
    ],
)
def test_bad_samples_of_the_source_are_named_and_replaced(tmp_path: Path, extension: str, content: bytes, reason: str) -> None:
    write_fake(tmp_path)
    replace_member(tmp_path, "train", 2, "train_000017", extension, content)
    one = stream(Split(tmp_path, "train"), bad_limit=0.5, max_pixels=150 * 150)
    epoch = [one[i] for i in range(40)]
    assert Counter(item["index"] for item in epoch)[18] == 2  # the neighbour stands in
    assert 17 not in {item["index"] for item in epoch}
    (bad,) = one.bad.samples
    assert (Path(bad.path).name, bad.sample) == ("000002.tar", "train_000017")
    assert reason in bad.why
    stand_ins = [item for item in epoch if item["index"] == 18]
    assert torch.equal(stand_ins[0]["image"], stand_ins[1]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_counted_wherever_they_are_met(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    damage(write_fake(tmp_path), "truncated")  # the picture of sample 17 and all of 18, 19 and 20
    reference = stream(Split(tmp_path, "train"), bad_limit=0.2)
    with caplog.at_level(logging.WARNING):
        seen = list(batches(reference, global_batch=10, steps=8, workers=workers))
    assert [batch["image"].shape[0] for batch in seen] == [10] * 8
    assert sorted(reference.bad.found) == [17, 18, 19, 20]
    assert reference.bad.read == 80
    assert len([r for r in caplog.records if "bad sample" in r.message]) == 4  # each once, not once an epoch
    assert reference.bad.report()["bad"] == 4
    assert not {17, 18, 19, 20} & {int(i) for batch in seen for i in batch["index"]}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run(tmp_path: Path, workers: int) -> None:
    damage(write_fake(tmp_path), "flipped_picture")
    one = stream(Split(tmp_path, "train"))  # the default limit, 0.1 %
    with pytest.raises(UserError, match=r"1 of \d+ samples read are bad.*000002.tar:train_000017") as error:
        list(batches(one, global_batch=8, steps=5, workers=workers))
    assert "0.10%" in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_any_good_sample_is_a_users_error(tmp_path: Path, workers: int) -> None:
    write_fake(tmp_path)
    for shard in (tmp_path / "train").glob("*.tar"):
        shard.write_bytes(b"")
    with pytest.raises(UserError, match="bad"):
        next(iter(batches(stream(Split(tmp_path, "train"), bad_limit=0.99), global_batch=4, steps=1, workers=workers)))


def test_a_share_is_judged_once_there_is_enough_to_judge() -> None:
    def corrupt(index: int) -> tuple[int, CorruptSample]:
        return index, CorruptSample("s.tar", str(index), "why")

    large = BadSamples(1_000_000)
    large.add(100, [corrupt(0)])  # 1 % of what was read, but one sample says nothing
    large.add(100, [corrupt(i) for i in range(1, 10)])
    with pytest.raises(UserError, match="11 of 300"):
        large.add(100, [corrupt(10)])

    steady = BadSamples(1_000_000)
    for block in range(100):
        steady.add(10_000, [corrupt(block * 10 + i) for i in range(5)])  # 0.05 %
    assert steady.share == pytest.approx(0.0005)

    again = BadSamples(2000)
    for _ in range(50):
        again.add(2000, [corrupt(5)])  # the same one in each epoch
    assert again.share == pytest.approx(1 / 2000)

    with pytest.raises(UserError):
        BadSamples(1_000_000, limit=0).add(10, [corrupt(0)])
