"""Public data sets in their publishers' formats: what becomes a sample, what is odd, and what is refused with a reason."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import public_fixtures as make
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from public_fixtures import build, read, source

from cmapkd.config import sources as options
from cmapkd.data.sources.public.annotations import Annotations, clean
from cmapkd.data.sources.public.pictures import examine
from cmapkd.errors import UserError
from cmapkd.evaluation import vqa

LIMIT = 50_000_000


Maker = Callable[[Path], tuple[type, dict[str, Any], dict[str, int]]]


def _coco(root: Path) -> tuple[type, dict[str, Any], dict[str, int]]:
    make.coco(root, "train", ids=range(1, 21))
    make.coco(root, "val", ids=range(30, 35))
    return options.CocoCaptionsConfig, {}, {"train": 20, "val": 5}


def _karpathy(root: Path) -> tuple[type, dict[str, Any], dict[str, int]]:
    make.karpathy_coco(root, {"train": range(1, 9), "restval": range(20, 24), "val": range(30, 33), "test": range(40, 45)})
    return options.CocoCaptionsConfig, {"partition": "karpathy"}, {"train": 8, "restval": 4, "val": 3, "test": 5}


def _flickr(root: Path) -> tuple[type, dict[str, Any], dict[str, int]]:
    make.karpathy_flickr(root, {"train": range(1, 9), "val": range(30, 33), "test": range(40, 45)})
    return options.Flickr30kConfig, {}, {"train": 8, "val": 3, "test": 5}


def _vqa(root: Path) -> tuple[type, dict[str, Any], dict[str, int]]:
    make.vqa(root, "train", range(1, 13))
    make.vqa(root, "val", range(20, 25))
    return options.Vqav2Config, {}, {"train": 12, "val": 5}


def _genome(root: Path) -> tuple[type, dict[str, Any], dict[str, int]]:
    make.genome(root, range(1, 11))
    return options.VisualGenomeConfig, {"regions": 3}, {"train": 10}


def _conceptual(root: Path) -> tuple[type, dict[str, Any], dict[str, int]]:
    make.conceptual(root, "train")
    return options.ConceptualCaptionsConfig, {}, {"train": 12}


def _imagenet(root: Path) -> tuple[type, dict[str, Any], dict[str, int]]:
    make.imagenet(root)
    return options.ImagenetConfig, {}, {"val": 12}


def _own(root: Path) -> tuple[type, dict[str, Any], dict[str, int]]:
    for split, count in (("train", 6), ("test", 3)):
        for number in range(count):
            make.write(root / split / f"{number} a.png", make.png(number))
            make.write(root / split / f"{number} a.txt", f"first {number}\n\nsecond ✓\n")
    return options.OwnConfig, {"splits": ("train", "test")}, {"train": 6, "test": 3}


MAKERS: tuple[Maker, ...] = (_coco, _karpathy, _flickr, _vqa, _genome, _conceptual, _imagenet, _own)


@pytest.mark.parametrize("maker", MAKERS)
def test_shards_hold_every_picture_unchanged_and_are_the_same_twice(maker: Maker, tmp_path: Path) -> None:
    kind, keys, counts = maker(tmp_path / "root")
    first = build(kind, tmp_path / "root", tmp_path / "a", shard_size=7, **keys)
    again = build(kind, tmp_path / "root", tmp_path / "b", shard_size=7, **keys)
    assert {split: about["samples"] for split, about in first["splits"].items()} == counts
    assert first == again
    for split in counts:
        for path in sorted((tmp_path / "a" / split).iterdir()):
            assert path.read_bytes() == (tmp_path / "b" / split / path.name).read_bytes()
    originals = {path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.suffix in (".jpg", ".JPEG", ".png")}
    originals |= {make.jpeg(1000 + number) for number in range(16)}  # those of Conceptual Captions lie in tars
    assert all(sample.image in originals for split in counts for sample in read(tmp_path / "a", split))
    assert all(record["sha256"] and record["licence"] for record in first["sources"])


@pytest.mark.parametrize("maker", MAKERS)
def test_a_wrong_folder_says_what_was_expected(maker: Maker, tmp_path: Path) -> None:
    kind, keys, _ = maker(tmp_path / "root")
    (tmp_path / "wrong" / "holiday").mkdir(parents=True)
    with pytest.raises(UserError) as raised:
        build(kind, tmp_path / "wrong", tmp_path / "out", **keys)
    assert str(tmp_path / "wrong") in str(raised.value)
    assert "fix:" in str(raised.value)


def test_coco_keeps_all_captions_in_the_order_of_the_file(tmp_path: Path) -> None:
    make.coco(tmp_path / "root")
    build(options.CocoCaptionsConfig, tmp_path / "root", tmp_path / "out", splits=("train",))
    third = read(tmp_path / "out", "train")[2]
    assert third.key == "000000000003"
    assert len(third.captions) == 7
    assert third.captions[::-1][:5] == [f"{text} 3".strip() for text in make.CAPTIONS]
    assert third.meta["identity"] == ["coco:3", "flickr:603"]
    build(options.CocoCaptionsConfig, tmp_path / "root", tmp_path / "five", splits=("train",), captions_per_image=5)
    assert [len(sample.captions) for sample in read(tmp_path / "five", "train")] == [5] * 20


def test_zips_are_read_in_place_and_give_the_same_shards_as_folders(tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root")
    keys = {"splits": ("train",)}
    folder = build(options.CocoCaptionsConfig, root, tmp_path / "a", **keys)
    make.archive(root / "train2017", root / "train2017.zip")
    make.archive(root / "annotations", root / "annotations_trainval2017.zip")
    shutil.rmtree(root / "train2017")
    shutil.rmtree(root / "annotations")
    zipped = build(options.CocoCaptionsConfig, root, tmp_path / "b", **keys)
    assert zipped["digest"] == folder["digest"]
    assert sorted(path.name for path in root.iterdir()) == ["annotations_trainval2017.zip", "train2017.zip"]


def test_a_truncated_zip_is_named(tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root")
    make.archive(root / "train2017", root / "train2017.zip")
    shutil.rmtree(root / "train2017")
    whole = (root / "train2017.zip").read_bytes()
    (root / "train2017.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train2017\.zip.*is no whole zip"):
        build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))


def test_the_test_split_of_karpathy_needs_val2014_only(tmp_path: Path) -> None:
    root = make.karpathy_coco(tmp_path / "root", {"train": range(1, 3), "test": range(40, 45)})
    shutil.rmtree(root / "train2014")
    build(options.CocoCaptionsConfig, root, tmp_path / "out", partition="karpathy", splits=("test",))
    assert [sample.meta["image_id"] for sample in read(tmp_path / "out", "test")] == [40, 41, 42, 43, 44]
    files = [f.name for f in source(options.CocoCaptionsConfig, root, partition="karpathy", splits=("test",)).files()]
    assert files == ["caption_datasets.zip", "val2014.zip"]


@pytest.mark.parametrize(
    ("keys", "file", "content", "reason"),
    [
        ({}, "annotations/captions_train2017.json", {"images": [], "type": "instances"}, "is not COCO's captions"),
        ({}, "annotations/captions_train2017.json", [1], "holds a list, expected the object of COCO's captions"),
        ({}, "annotations/captions_train2017.json", '{"images": [', "is no JSON"),
        (
            {},
            "annotations/captions_train2017.json",
            {"images": [{"id": "1"}], "annotations": []},
            r"images\[0\].*no usable `id`",
        ),
        (
            {},
            "annotations/captions_train2017.json",
            {"images": [], "annotations": [{"image_id": 9, "id": 1, "caption": "a"}]},
            "about picture 9, which the file lacks",
        ),
        (
            {"partition": "karpathy"},
            "dataset_coco.json",
            {"images": [], "dataset": "flickr30k"},
            "is of the data set 'flickr30k', expected 'coco'",
        ),
    ],
)
def test_json_of_another_data_set(keys: dict[str, Any], file: str, content: Any, reason: str, tmp_path: Path) -> None:
    root = make.karpathy_coco(make.coco(tmp_path / "root"), {"train": range(1, 3)})
    make.write(root / file, content)
    with pytest.raises(UserError, match=reason) as raised:
        build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",), **keys)
    assert file in str(raised.value)


def test_missing_pictures_are_an_error_or_left_out_by_the_limit(tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root")
    (root / "train2017" / f"{4:012d}.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of the 20 pictures .* are missing, for example 000000000004.jpg"):
        build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))
    manifest = build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",), bad_pictures=0.05)
    assert manifest["splits"]["train"]["samples"] == 19
    assert manifest["leakage"]["train"]["left_out"] == {"missing": 1}


@pytest.mark.parametrize("cut", [0, 40, 400])
def test_truncated_jpegs_are_counted_and_limited(cut: int, tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root")
    path = root / "train2017" / f"{7:012d}.jpg"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"bad_pictures = 0.001: 1 of 20 .*000000000007.jpg"):
        build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))
    manifest = build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",), bad_pictures=0.05)
    about = manifest["leakage"]["train"]
    assert about["left_out"] == {"damaged": 1}
    assert "000000000007.jpg" in about["left_out_examples"][0]


def test_duplicated_ids_are_joined_and_contradictions_refused(tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root")
    path = root / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())
    make.write(path, {**content, "images": [*content["images"], content["images"][0]],
                      "annotations": [*content["annotations"], content["annotations"][0]]})  # fmt: skip
    manifest = build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))
    assert manifest["splits"]["train"]["samples"] == 20
    assert manifest["splits"]["train"]["captions"] == 102
    assert manifest["leakage"]["train"]["duplicated_ids"] == 2
    make.write(path, {**content, "images": [*content["images"], {**content["images"][0], "file_name": "other.jpg"}]})
    with pytest.raises(UserError, match="belongs to two pictures"):
        build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))


def test_greyscale_cmyk_and_rotated_pictures_are_kept_and_counted(tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root")
    odd = [make.jpeg(1, mode="L"), make.jpeg(2, mode="CMYK"), make.jpeg(3, orientation=6), make.png(4, "RGBA")]
    for number, data in enumerate(odd, 1):
        make.write(root / "train2017" / f"{number:012d}.jpg", data)
    manifest = build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))
    assert manifest["leakage"]["train"]["pictures"] == {"cmyk": 1, "greyscale": 1, "rotated": 1, "transparent": 1}
    samples = read(tmp_path / "out", "train")
    assert [sample.image for sample in samples[:4]] == odd
    assert [sample.extension for sample in samples[:5]] == ["jpg", "jpg", "jpg", "png", "jpg"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_turns_as_pillow_does(orientation: int) -> None:
    from PIL import ImageOps

    data = make.jpeg(5, orientation=orientation)
    picture = examine(data, max_pixels=LIMIT, upright=True)
    turned = np.asarray(Image.open(io.BytesIO(picture.data)), np.int16)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), np.int16)
    assert turned.shape == expected.shape
    assert np.abs(turned - expected).mean() < 3  # a JPEG of quality 95 was written anew
    assert (picture.data == data) == (orientation == 1)


def test_reduced_pictures_have_the_shorter_side_asked_for() -> None:
    wide, small = make.jpeg(1, 90, 60), make.jpeg(2, 40, 30)
    assert Image.open(io.BytesIO(examine(wide, max_pixels=LIMIT, shorter_side=32).data)).size == (48, 32)
    assert examine(small, max_pixels=LIMIT, shorter_side=32).data == small


def test_absurd_sizes_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ValueError, match="64 x 48 pixels, more than the limit of 3000"):
        examine(make.jpeg(1), max_pixels=3000)
    with pytest.raises(ValueError, match="no picture in a known form"):
        examine(b"GIF89a" + b"\0" * 3, max_pixels=3000)


@given(st.binary(max_size=300), st.integers(0, 700))
def test_any_bytes_are_a_picture_or_a_value_error(noise: bytes, at: int) -> None:
    whole = make.jpeg(1)
    try:
        picture = examine(whole[:at] + noise + whole[at + len(noise) :], max_pixels=LIMIT, full=True)
    except ValueError:
        return
    assert picture.extension == "jpg"


def test_flickr_tokens_and_csv_agree(tmp_path: Path) -> None:
    root = make.karpathy_flickr(tmp_path / "root", {"train": range(1, 5)})
    lines = [(number, place, f"{text} {number}") for number in range(1, 5) for place, text in enumerate(make.CAPTIONS)]
    make.write(
        root / "results_20130124.token", "".join(f"{n}.jpg#{p}\t{t}\n".replace("\tbench", " bench") for n, p, t in lines)
    )
    keys = {"partition": "whole"}
    first = build(options.Flickr30kConfig, root, tmp_path / "a", **keys)
    (root / "results_20130124.token").unlink()
    head = "image_name| comment_number| comment\n"
    make.write(root / "results.csv", head + "".join(f"{n}.jpg| {p}| {t}\n".replace("\tbench", " bench") for n, p, t in lines))
    second = build(options.Flickr30kConfig, root, tmp_path / "b", **keys)
    assert [(s.key, s.captions) for s in read(tmp_path / "a", "all")] == [
        (s.key, s.captions) for s in read(tmp_path / "b", "all")
    ]
    assert first["splits"]["all"]["captions"] == second["splits"]["all"]["captions"] == 20
    make.write(root / "results.csv", head + "no separators here\n")
    with pytest.raises(UserError, match=r"line 2.*is not of the form"):
        build(options.Flickr30kConfig, root, tmp_path / "b", **keys)


def test_vqa_has_ten_answers_and_its_head_those_that_are_frequent(tmp_path: Path) -> None:
    kind, keys, _ = _vqa(tmp_path / "root")
    build(kind, tmp_path / "root", tmp_path / "out", **keys)
    samples = read(tmp_path / "out", "train")
    questions = [question for sample in samples for question in sample.questions]
    assert samples[0].key == "COCO_train2014_000000000001"
    assert {len(question.answers) for question in questions} == {10}
    assert [(q.question, q.type) for q in samples[0].questions] == [("Is it red?", "yes/no"), ("How many?", "number")]
    assert vqa.vocabulary([question.answers for question in questions], 9) == ["2", "yes"]
    assert vqa.vocabulary([question.answers for question in questions], 13) == []
    path = tmp_path / "root" / "v2_mscoco_train2014_annotations.json"
    shutil.copy(tmp_path / "root" / "v2_mscoco_val2014_annotations.json", path)
    with pytest.raises(UserError, match="is of 'val2014', expected train2014"):
        build(kind, tmp_path / "root", tmp_path / "other", **keys)


def test_visual_genome_takes_the_largest_regions(tmp_path: Path) -> None:
    kind, keys, _ = _genome(tmp_path / "root")
    build(kind, tmp_path / "root", tmp_path / "out", **keys)
    first, second = read(tmp_path / "out", "train")[:2]
    assert first.captions == ["the whole scene", "half", "small"]
    assert first.meta["identity"] == ["visual_genome:1", "coco:101", "flickr:601"]
    assert second.meta["identity"] == ["visual_genome:2", "flickr:602"]


def test_dead_links_are_counted_and_a_broken_tar_is_named(tmp_path: Path) -> None:
    kind, keys, _ = _conceptual(tmp_path / "root")
    manifest = build(kind, tmp_path / "root", tmp_path / "out", **keys)
    about = manifest["leakage"]["train"]
    assert {key: about[key] for key in ("addresses", "fetched", "failed_to_download", "dead_links")} == {
        "addresses": 16, "fetched": 12, "failed_to_download": 4, "dead_links": 4,
    }  # fmt: skip
    assert read(tmp_path / "out", "train")[0].captions == ["a thing 0 ✓"]
    tar = tmp_path / "root" / "train" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"00001\.tar.*is no whole tar .*\n.*delete it"):
        build(kind, tmp_path / "root", tmp_path / "out", **keys)


def test_imagenet_labels_are_places_among_the_sorted_synsets(tmp_path: Path) -> None:
    root = make.imagenet(tmp_path / "root")
    build(options.ImagenetConfig, root, tmp_path / "out")
    assert [sample.label for sample in read(tmp_path / "out", "val")] == [0] * 3 + [10] * 3 + [20] * 3 + [30] * 3
    classes = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert len(classes["classes"]) == 1000
    assert classes["classes"][0] == "tench"
    assert len(classes["templates"]) == 80
    assert classes["templates"][0] == "a bad photo of a {}."
    (root / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(UserError, match="names 4 synsets, expected 1000"):
        build(options.ImagenetConfig, root, tmp_path / "again")


def test_imagenet_as_a_flat_folder_and_as_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = make.imagenet(tmp_path / "root")
    build(options.ImagenetConfig, root, tmp_path / "a")
    rows = []
    for path in sorted((root / "val").glob("*/*")):
        rows.append((path.stem, path.parent.name, path.read_bytes()))
        path.rename(root / "val" / path.name)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    table = "ImageId,PredictionString\n" + "".join(f"{stem},{synset} 1 2 3 4\n" for stem, synset, _ in rows)
    make.write(root / "LOC_val_solution.csv", table)
    build(options.ImagenetConfig, root, tmp_path / "b")
    labels = [make.SYNSETS.index(synset) for _, synset, _ in rows]
    pictures = [{"bytes": data, "path": f"{stem}.JPEG"} for stem, _, data in rows]
    (tmp_path / "hub" / "data").mkdir(parents=True)
    path = tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": pictures, "label": labels}), path)
    build(options.ImagenetConfig, tmp_path / "hub", tmp_path / "c")
    folders, flat, hub = ([(s.image, s.label) for s in read(tmp_path / name, "val")] for name in "abc")
    assert folders == flat == hub
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is no whole parquet file"):
        build(options.ImagenetConfig, tmp_path / "hub", tmp_path / "c")


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=9), max_size=3), max_size=30), st.booleans()
)
def test_lists_read_one_by_one_are_those_read_whole(items: list[Any], spaced: bool) -> None:
    import tempfile

    from cmapkd.data.sources.public import annotations

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotations, "CHUNK", 5)
        path = Path(folder) / "list.json"
        path.write_text(json.dumps(items, indent=2 if spaced else None, ensure_ascii=False), encoding="utf-8")
        assert list(Annotations(Path(folder), ("list.json",), key="root").elements("a list")) == items
        path.write_text(path.read_text(encoding="utf-8")[:-1], encoding="utf-8")
        with pytest.raises(UserError, match="truncated or damaged"):
            list(Annotations(Path(folder), ("list.json",), key="root").elements("a list"))


@given(st.text(st.characters()))
def test_cleaned_texts_are_utf8_and_otherwise_unchanged(text: str) -> None:
    assert clean(text) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
    assert clean(text).encode().decode() == clean(text)


def test_splits_that_are_not_written_are_refused() -> None:
    with pytest.raises(ValueError, match=r"splits names 'test'.*there are train, val"):
        options.CocoCaptionsConfig(splits=("test",))
    assert options.CocoCaptionsConfig(partition="karpathy").built() == ("train", "restval", "val", "test")
    assert options.ImagenetConfig().built() == ("val",)
