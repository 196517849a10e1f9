"""Tars of samples: keys by path and shard, members that are not adjacent, damaged headers, sizes that only a header claims."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import public_fixtures as make
import pytest
from public_fixtures import build, read

from cmapkd.config.sources import ConceptualCaptionsConfig
from cmapkd.data.sources.conceptual_captions import _groups
from cmapkd.data.sources.public.tars import split_name
from cmapkd.errors import UserError

Members = Sequence[tuple[str, bytes]]


def tar(path: Path, members: Members, **keys: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **keys) as out:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return path


def pair(stem: str, seed: int) -> list[tuple[str, bytes]]:
    return [(f"{stem}.jpg", make.jpeg(seed)), (f"{stem}.txt", f"caption {seed}".encode())]


def built(root: Path, **keys: Any) -> list[tuple[str, bytes, list[str]]]:
    """Key, image and captions of each sample of the training split."""
    build(ConceptualCaptionsConfig, root, root / "out", **keys)
    return [(sample.key, sample.image, sample.captions) for sample in read(root / "out", "train")]


def test_equal_names_in_several_tars_are_different_samples(tmp_path: Path) -> None:
    for shard in range(3):
        tar(tmp_path / f"train/{shard:05d}.tar", [m for k in range(4) for m in pair(f"{k:06d}", 10 * shard + k)])
    samples = built(tmp_path)
    seeds = [10 * shard + k for shard in range(3) for k in range(4)]
    assert [(image, captions) for _, image, captions in samples] == [(make.jpeg(s), [f"caption {s}"]) for s in seeds]
    assert [key for key, _, _ in samples[:4]] == [f"{k:06d}" for k in range(4)]  # as if there were one tar
    assert len({key for key, _, _ in samples}) == 12


@pytest.mark.parametrize("prefix", ["", "./"])
def test_folders_within_a_tar_belong_to_the_key(prefix: str, tmp_path: Path) -> None:
    tar(tmp_path / "train/0.tar", [*pair(f"{prefix}a/000", 1), (f"{prefix}b/000.jpg", make.jpeg(2)), *pair(f"{prefix}b/1", 3)])
    tar(tmp_path / "train/1.tar", pair(f"{prefix}a/000", 4))
    samples = built(tmp_path)
    assert [captions for _, _, captions in samples] == [["caption 1"], [], ["caption 3"], ["caption 4"]]
    assert [image for _, image, _ in samples] == [make.jpeg(seed) for seed in (1, 2, 3, 4)]
    assert samples[0][0] == "000"


def test_the_last_resort_for_a_key_is_a_number(tmp_path: Path) -> None:
    for name in ("train/x.tar", "train/x/y.tar"):
        tar(tmp_path / name, pair("a", 1))
    tar(tmp_path / "train/0.tar", [*pair("a", 2), *pair("x/a", 3), *pair("b/x/a", 4)])
    keys = [key for key, _, _ in built(tmp_path)]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("order", ["images first", "texts first", "backwards"])
def test_members_that_are_not_adjacent_are_regrouped(order: str, tmp_path: Path) -> None:
    members = [member for k in range(5) for member in pair(f"{k:06d}", k)]
    if order == "backwards":
        members = members[::-1]
    else:
        members.sort(key=lambda member: member[0].endswith(".txt") == (order == "images first"))
    tar(tmp_path / "train/0.tar", members)
    assert {key: captions for key, _, captions in built(tmp_path)} == {f"{k:06d}": [f"caption {k}"] for k in range(5)}


@pytest.mark.parametrize("second", ["a.jpg", "a.JPG", "./a.jpg", "a.txt"])
def test_a_member_twice_in_one_sample_is_refused(second: str, tmp_path: Path) -> None:
    tar(tmp_path / "train/0.tar", [*pair("a", 1), *pair("b", 2), (second, make.jpeg(3))])
    with pytest.raises(UserError, match=r"0\.tar.*holds a\.(jpg|txt) twice"):
        built(tmp_path)


@pytest.mark.parametrize(
    ("name", "sample", "extension"),
    [
        ("a/b.c/000.jpg", "a/b.c/000", "jpg"),
        ("./000.JPG", "000", "jpg"),
        ("x.seg.png", "x", "seg.png"),
        ("/abs/1.txt", "/abs/1", "txt"),
        ("none", "none", ""),
    ],
)
def test_names_are_split_as_webdataset_splits_them(name: str, sample: str, extension: str) -> None:
    assert split_name(name) == (sample, extension)


@pytest.mark.parametrize("names", [("img_{}.v1.jpg", "img_{}.v1.txt"), ("s{}.input.jpg", "s{}.outputs.txt")])
def test_dots_in_names_are_the_reason_that_is_given(names: tuple[str, str], tmp_path: Path) -> None:
    tar(tmp_path / "train/0.tar", [(name.format(k), make.jpeg(k)) for k in range(3) for name in names])
    with pytest.raises(UserError, match=r"3 dots in names.*the key of webdataset ends at the first dot") as raised:
        built(tmp_path)
    assert "one dot" in str(raised.value).partition("fix:")[2]


def test_a_sample_without_an_image_names_what_it_has(tmp_path: Path) -> None:
    tar(tmp_path / "train/0.tar", [*pair("a", 1), ("b.npy", b"x"), ("b.txt", b"text")])
    with pytest.raises(UserError, match=r"1 without an image.*the tar holds \.npy, \.txt of it, and none of jpg"):
        built(tmp_path)


def test_every_damaged_header_is_named_and_no_sample_is_lost_in_silence(tmp_path: Path) -> None:
    root = make.conceptual(tmp_path / "root", "train", tars=1)
    path = root / "train/00000.tar"
    (root / "train/00000_stats.json").unlink()
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        offsets = [member.offset for member in archive]
    assert len(list(_groups(path))) == 6
    for offset in offsets:
        for place in (0, 100, 124, 148, 156, 257):  # name, mode, size, checksum, type, magic
            spoilt = bytearray(whole)
            spoilt[offset + place] ^= 1
            path.write_bytes(spoilt)
            with pytest.raises(UserError, match=r"00000\.tar"):
                list(_groups(path))


@pytest.mark.parametrize("keys", [{"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}])
def test_long_names_are_read(keys: dict[str, Any], tmp_path: Path) -> None:
    tar(tmp_path / "train/0.tar", pair(f"{'d' * 90}/{'é' * 90}", 1), **keys)
    assert [captions for _, _, captions in built(tmp_path)] == [["caption 1"]]


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "0.jpg") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = max(size, 0), kind
    data = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header(-512), id="negative"),
        pytest.param(header(8 << 30), id="beyond the end"),
        pytest.param(header(8 << 30, tarfile.XHDTYPE), id="pax of 8 GiB"),
        pytest.param(header(8 << 30, tarfile.GNUTYPE_LONGNAME), id="name of 8 GiB"),
        pytest.param(header(300 << 20), id="an image of 300 MiB"),
    ],
)
def test_a_declared_size_is_no_memory(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train/0.tar"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(data)
        file.truncate(9 << 30)  # sparse: it takes no room
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"0\.tar"):
            list(_groups(path))
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_members_that_no_sample_needs_are_not_read(tmp_path: Path) -> None:
    extra = [(f"a.x{number}", bytes(2**20)) for number in range(40)]
    path = tar(tmp_path / "train/0.tar", [*pair("a", 1), *extra])
    del extra
    tracemalloc.start()
    try:
        [(_, members)] = list(_groups(path))
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert sorted(members) == ["jpg", "txt"]


def test_a_tar_with_fewer_samples_than_its_statistics_is_named(tmp_path: Path) -> None:
    root = make.conceptual(tmp_path / "root", "train")
    path = root / "train/00001.tar"
    members = [(f"{name}.{extension}", data) for name, found in _groups(path) for extension, data in found.items()]
    tar(path, members[:-3])
    with pytest.raises(UserError, match=r"00001\.tar.*has 5 samples, but 00001_stats\.json says that 6"):
        build(ConceptualCaptionsConfig, root, tmp_path / "out")


def test_a_tar_that_is_missing_or_compressed_is_named(tmp_path: Path) -> None:
    root = make.conceptual(tmp_path / "root", "train")
    path = root / "train/00001.tar"
    path.rename(tmp_path / "kept.tar")
    with pytest.raises(UserError, match=r"00001\.tar.*is missing, and 00001_stats\.json says that 6 samples"):
        build(ConceptualCaptionsConfig, root, tmp_path / "out")
    (root / "train/00001_stats.json").unlink()
    make.write(root / "train/00001.tar.gz", gzip.compress((tmp_path / "kept.tar").read_bytes()))
    with pytest.raises(UserError, match=r"00001\.tar\.gz.*is compressed"):
        build(ConceptualCaptionsConfig, root, tmp_path / "out")


@pytest.mark.parametrize("value", ["1e400", "NaN", "-1", "true", '"6"', "[" * 100_000, "6.5"])
def test_statistics_that_are_not_counts_are_named(value: str, tmp_path: Path) -> None:
    root = make.conceptual(tmp_path / "root", "train", tars=1)
    text = '{"count": 8, "successes": %s, "failed_to_download": 2, "failed_to_resize": 0}'
    make.write(root / "train/00000_stats.json", text % value)
    with pytest.raises(UserError, match=r"00000_stats\.json.*is no statistics file") as raised:
        build(ConceptualCaptionsConfig, root, tmp_path / "out")
    assert "delete" not in str(raised.value)


@pytest.mark.parametrize("record", ['{"caption": 3}', '{"caption": ["a"]}', '{"caption": {"en": "a"}}', "[" * 100_000, '"a"'])
def test_a_caption_of_another_type_is_not_made_text(record: str, tmp_path: Path) -> None:
    tar(tmp_path / "train/0.tar", [("a.jpg", make.jpeg(1)), ("a.json", record.encode())])
    with pytest.raises(UserError, match=r"the record of sample a is not one of img2dataset"):
        built(tmp_path)


def test_text_that_is_not_unicode_reaches_the_shards_as_valid_json(tmp_path: Path) -> None:
    record = b'{"caption": "\\ud800 x", "url": "http://x/\\udfff"}'
    tar(tmp_path / "train/0.tar", [("a.jpg", make.jpeg(1)), ("a.json", record)])
    build(ConceptualCaptionsConfig, tmp_path, tmp_path / "out")
    [sample] = read(tmp_path / "out", "train")
    assert sample.captions == ["� x"]
    assert sample.meta["url"] == "http://x/�"


def test_links_are_not_followed_and_not_called_missing(tmp_path: Path) -> None:
    path = tmp_path / "train/0.tar"
    tar(path, pair("a", 1))
    with tarfile.open(path, "a") as out:
        for name, kind, target in (("b.jpg", tarfile.LNKTYPE, "a.jpg"), ("b.txt", tarfile.SYMTYPE, "/etc/passwd")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            out.addfile(member)
    with pytest.raises(UserError, match=r"the tar holds \.jpg \(a link\), \.txt \(a link\) of it"):
        built(tmp_path)


def test_system_files_in_and_beside_tars_are_ignored(tmp_path: Path) -> None:
    junk = [("._a.jpg", b"\0\5\26\7"), (".DS_Store", b"x"), ("__MACOSX/a.txt", b"wrong"), ("a.jpg~", b"x")]
    tar(tmp_path / "train/0.tar", [*junk, *pair("a", 1)])
    make.write(tmp_path / "train/._0.tar", b"\0\5\26\7")
    make.write(tmp_path / "train/._0_stats.json", b"\0\5\26\7")
    assert built(tmp_path) == [("a", make.jpeg(1), ["caption 1"])]
