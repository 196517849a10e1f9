"""Tables and folders of one's own with values of other types, other heads and separators, and files that no user made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import public_fixtures as make
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from public_fixtures import build, read, source

from cmapkd.config.sources import CocoCaptionsConfig, ImagenetConfig, OwnConfig
from cmapkd.data.sources.public.ignored import is_ignored
from cmapkd.errors import UserError


def images(root: Path, count: int = 3) -> Path:
    for number in range(count):
        make.write(root / "i" / f"{number}.jpg", make.jpeg(number))
    return root


def built(root: Path, **keys: Any) -> list[tuple[list[str], int | None]]:
    build(OwnConfig, root, root / "out", **keys)
    return [(sample.captions, sample.label) for sample in read(root / "out", "train")]


def parquet(root: Path, **columns: Any) -> list[tuple[list[str], int | None]]:
    images(root)
    cells = columns.pop("image", pa.array([{"bytes": make.jpeg(k), "path": "x"} for k in range(3)]))
    pq.write_table(pa.table({"image": cells, **columns}), root / "t.parquet")
    return built(root, table="t.parquet")


TYPES = {
    "int": pa.array([1, 2, 3]),
    "float": pa.array([1.5, None, 2.5]),
    "bool": pa.array([True, False, None]),
    "bytes": pa.array([b"a", b"b", b"c"]),
    "lists of numbers": pa.array([[1], [2], []]),
    "lists of lists": pa.array([[["a"]], [["b"]], []]),
    "struct": pa.array([{"raw": "a"}] * 3),
}


@pytest.mark.parametrize("column", ["caption", "split", "question", "answer"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_value_of_another_type_is_never_made_text(kind: str, column: str, tmp_path: Path) -> None:
    columns = {"caption": pa.array(["a"] * 3), column: TYPES[kind]}
    if column == "answer":
        columns["question"] = pa.array(["why?"] * 3)
    with pytest.raises(UserError, match=rf"t\.parquet.*row \d has .*{column}"):
        parquet(tmp_path, **columns)


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (pa.array([["a", None, "", " "], [], None], pa.list_(pa.string())), [["a"], [], []]),
        (pa.array(["a", None, ""]), [["a"], [], []]),
        (pa.array(["a", "nan", "None"]), [["a"], ["nan"], ["None"]]),  # text that somebody wrote
        (pa.array(["a", "b", "c"]).dictionary_encode(), [["a"], ["b"], ["c"]]),
        (pa.array(["a", "b", "c"], pa.large_string()), [["a"], ["b"], ["c"]]),
    ],
)
def test_gaps_are_no_captions(captions: Any, expected: list[list[str]], tmp_path: Path) -> None:
    assert [found for found, _ in parquet(tmp_path, caption=captions)] == expected


def test_a_column_of_nan_is_a_column_of_gaps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 of 3 images of own/train have no caption"):
        parquet(tmp_path, caption=pa.array([float("nan")] * 3, from_pandas=False))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([0.0, 1.0, None]), [0, 1, None]),
        (pa.array([0.0, 1.0, float("nan")], from_pandas=False), [0, 1, None]),
        (pa.array(["cat", "dog", "1.0"]), [1, 0, 1]),
        (pa.array([0.5, 1.0, None]), "class 0.5"),
        (pa.array([True, False, None]), "class True"),
        (pa.array([0, 1, -1]), "class -1"),
        (pa.array([b"cat", b"dog", b"dog"]), "class b'cat'"),
        (pa.array([0, 1, 2]), "class 2"),
    ],
)
def test_classes_by_number_and_name(labels: Any, expected: Any, tmp_path: Path) -> None:
    make.write(tmp_path / "classes.txt", "dog\ncat\n")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            parquet(tmp_path, caption=pa.array(["a"] * 3), label=labels)
    else:
        assert [label for _, label in parquet(tmp_path, caption=pa.array(["a"] * 3), label=labels)] == expected


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("first", [None, make.jpeg(0)])
def test_cells_with_a_path_and_no_bytes_name_files_below_root(first: bytes | None, tmp_path: Path) -> None:
    cells = [{"bytes": first, "path": "i/0.jpg"}, *({"bytes": None, "path": f"i/{k}.jpg"} for k in (1, 2))]
    parquet(tmp_path, image=pa.array(cells, STRUCT), caption=pa.array(["a", "b", "c"]))
    assert [sample.image for sample in read(tmp_path / "out", "train")] == [make.jpeg(k) for k in range(3)]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (pa.array([{"bytes": None, "path": f"/data/{k}.jpg"} for k in range(3)], STRUCT), "is not below"),
        (pa.array([{"bytes": None, "path": f"gone/{k}.jpg"} for k in range(3)], STRUCT), "no bytes but the path 'gone/0.jpg'"),
        (pa.array([{"bytes": None, "path": None}] * 3, STRUCT), "the cell has no bytes"),
        (pa.array([None] * 3, pa.binary()), "the cell has no bytes"),
        (pa.array([[1, 2]] * 3), "the cell holds a list"),
    ],
)
def test_cells_without_an_image_say_what_they_hold(cells: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        parquet(tmp_path, image=cells, caption=pa.array(["a"] * 3))


def test_a_column_that_declares_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    value = pa.array([b"\0" * (300 << 20)])
    pq.write_table(pa.table({"image": value, "caption": ["a"]}), tmp_path / "t.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"column image declares \d+ bytes from \d+ compressed ones"):
        built(tmp_path, table="t.parquet")


ROWS = "".join(f"i/{k}.jpg,a dog {k}\n" for k in range(3))
DOGS = [([f"a dog {k}"], None) for k in range(3)]


@pytest.mark.parametrize(
    ("head", "keys", "reason"),
    [
        ("image,title", {}, r"has no column 'caption'; it has image, title\n.*set `caption_columns`"),
        ("image,caption", {"caption_columns": ("captions",)}, r"has no column 'captions'; .*\n.*perhaps to 'caption'"),
        ("image,caption", {"caption_columns": ("caption", "title")}, "has no column 'title'"),
        ("filepath,caption", {}, r"has no column 'image'; it has filepath, caption\n.*set `image_column`"),
        ("image,caption", {"split_column": "fold"}, r"has no column 'fold'.*\n.*set `split_column`"),
        ("image,image", {"caption_columns": ()}, "has the column 'image' 2 times"),
        ("image,Caption", {}, "has no column 'caption'; it has image, Caption"),
    ],
)
def test_a_column_that_is_named_and_not_there_is_refused(head: str, keys: Any, reason: str, tmp_path: Path) -> None:
    make.write(images(tmp_path) / "t.csv", f"{head}\n{ROWS}")
    with pytest.raises(UserError, match=reason):
        source(OwnConfig, tmp_path, table="t.csv", **keys).fetch()  # `cmapkd data fetch` tells before a build
    with pytest.raises(UserError, match=reason):
        built(tmp_path, table="t.csv", **keys)


@pytest.mark.parametrize("head", ["image, caption", " image ,caption ", '"image","caption"', "\ufeffimage,caption"])
def test_blanks_around_the_names_of_columns_do_not_matter(head: str, tmp_path: Path) -> None:
    make.write(images(tmp_path) / "t.csv", f"{head}\n{ROWS}")
    assert built(tmp_path, table="t.csv") == DOGS


@pytest.mark.parametrize(
    ("names", "labels", "reason"),
    [
        ("dog\ncat\n", ("dog", "cat"), "gives the class 'cat' to i/0.jpg, which another row gives another class"),
        ("crane\ncrane\n", ("crane", "crane"), "has the class 'crane', which classes.txt has 2 times"),
    ],
)
def test_contradictory_and_ambiguous_classes_are_refused(
    names: str, labels: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    make.write(images(tmp_path) / "classes.txt", names)
    make.write(tmp_path / "t.csv", "image,caption,label\n" + "".join(f"i/0.jpg,a,{label}\n" for label in labels))
    with pytest.raises(UserError, match=reason.replace(".", r"\.")):
        built(tmp_path, table="t.csv")


def test_a_table_of_classes_needs_no_captions(tmp_path: Path) -> None:
    make.write(images(tmp_path) / "classes.txt", "dog\ncat\n")
    make.write(tmp_path / "t.csv", "image,label\n" + "".join(f"i/{k}.jpg,dog\n" for k in range(3)))
    assert built(tmp_path, table="t.csv") == [([], 0)] * 3
    make.write(tmp_path / "t.csv", "image\n" + "".join(f"i/{k}.jpg\n" for k in range(3)))
    assert built(tmp_path, table="t.csv", caption_columns=()) == [([], None)] * 3


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.csv", "image;caption\ni/0.jpg;a\n", "is separated by a semicolon, not by a comma"),
        ("t.csv", "image\tcaption\ni/0.jpg\ta\n", "is separated by a tab, not by a comma(.|\n)*name it .tsv"),
        ("t.tsv", "image,caption\ni/0.jpg,a\n", "is separated by a comma, not by a tab(.|\n)*name it .csv"),
        ("t.csv", "image|caption\ni/0.jpg|a\n", "is separated by a bar"),
        ("t.csv", "image,caption\ni\\0.jpg,a\n", "row 1 names .* with backslashes"),
        ("t.csv", 'image,caption\ni/0.jpg,a\ni/1.jpg,"b" c\n', "at row 2: ',' expected after"),
        ("t.csv", "image,caption\ni/0.jpg\n", "row 1 has fewer cells"),
        ("t.csv", "image,caption\ni/0.jpg," + "x" * 200_000 + "\n", "row 1 has a cell of more than 131072 characters"),
        ("t.csv", "image,caption\ni/0.jpg,a\n".encode("utf-16"), "is UTF-16"),
        ("t.csv", "image,caption\ni/0.jpg,caf\xe9\n".encode("latin-1"), "is not CSV in UTF-8"),
        ("t.csv", "", "has no column 'image'; it is empty"),
    ],
)
def test_tables_of_another_form_say_which(name: str, text: str | bytes, reason: str, tmp_path: Path) -> None:
    make.write(images(tmp_path) / name, text)
    with pytest.raises(UserError, match=reason):
        built(tmp_path, table=name)


def test_a_pattern_is_not_a_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names several files, and a table is one"):
        built(images(tmp_path), table="data/train-*.parquet")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_a_caption_ends_at_the_end_of_its_line_only(mark: str, tmp_path: Path) -> None:
    make.write(tmp_path / "a.jpg", make.jpeg(1))
    make.write(tmp_path / "a.txt", f"a dog{mark}on grass\ra cat\r\nan owl\n".encode())
    assert built(tmp_path) == [([f"a dog{mark}on grass", "a cat", "an owl"], None)]


def test_images_that_are_not_read_are_not_passed_over(tmp_path: Path) -> None:
    for name, data in (("a.jfif", make.jpeg(1)), ("b.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")):
        make.write(tmp_path / "train" / name, data)
        make.write((tmp_path / "train" / name).with_suffix(".txt"), name)
    make.write(tmp_path / "train" / "lonely.txt", "no image")
    with pytest.raises(UserError, match=r"1 of 2 pictures .*\(1 of another form\).*b\.heic.*HEIC"):
        built(tmp_path)
    assert built(tmp_path, bad_pictures=0.5) == [(["a.jfif"], None)]
    manifest = build(OwnConfig, tmp_path, tmp_path / "again", bad_pictures=0.5)
    assert manifest["leakage"]["train"]["texts_without_image"] == 1


def test_a_text_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    make.write(tmp_path / "secret.txt", "secret")
    make.write(tmp_path / "root" / "a.jpg", make.jpeg(1))
    (tmp_path / "root" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match=r"is a link to .*secret\.txt, outside of `root`"):
        built(tmp_path / "root")


SYSTEM = (
    ".DS_Store", "._0.jpg", "__MACOSX/train/0.jpg", "Thumbs.db", "thumbs.db", "desktop.ini", "0.jpg~", ".0.jpg.swp", "#0.jpg#",
    ".ipynb_checkpoints/0-checkpoint.jpg", "~$table.csv", "@eaDir/0.jpg", "$RECYCLE.BIN/0.jpg", ".Trash-1000/files/0.jpg",
    "lost+found/0.jpg",
)  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM)
def test_files_of_systems_and_editors_are_ignored_in_every_source(name: str, tmp_path: Path) -> None:
    assert is_ignored(name)
    for root in ("own", "imagenet", "coco"):
        (tmp_path / root).mkdir()
    for number in range(2):
        make.write(tmp_path / "own" / "train" / f"{number}.jpg", make.jpeg(number))
        make.write(tmp_path / "own" / "train" / f"{number}.txt", f"text {number}")
    make.write(tmp_path / "own" / "train" / name, make.jpeg(9))
    assert built(tmp_path / "own") == [(["text 0"], None), (["text 1"], None)]
    make.imagenet(tmp_path / "imagenet")
    for folder in ("val", f"val/{make.SYNSETS[0]}"):
        make.write(tmp_path / "imagenet" / folder / name, b"\0\5\26\7")
    manifest = build(ImagenetConfig, tmp_path / "imagenet", tmp_path / "a")
    assert (manifest["splits"]["val"]["samples"], manifest["leakage"]["val"]["left_out"]) == (12, {})
    make.coco(tmp_path / "coco")
    make.archive(tmp_path / "coco" / "train2017", tmp_path / "coco" / "train2017.zip")
    plain = build(CocoCaptionsConfig, tmp_path / "coco", tmp_path / "b", splits=("train",))
    make.write(tmp_path / "coco" / "train2017" / name, b"\0\5\26\7")
    assert build(CocoCaptionsConfig, tmp_path / "coco", tmp_path / "c", splits=("train",)) == plain


@pytest.mark.parametrize(
    "name", ["0.jpg", "a/b.txt", "./a.jpg", "../a.jpg", "swap.jpg", "thumbs.jpg", "a#b.jpg", "icon.png", "a.b.c"]
)
def test_files_of_users_are_not_ignored(name: str) -> None:
    assert not is_ignored(name)


def test_folders_without_a_mapping_name_the_odd_one(tmp_path: Path) -> None:
    for synset in (*make.SYNSETS, "holiday"):
        (tmp_path / "val" / synset).mkdir(parents=True)
    with pytest.raises(UserError, match="names 1001 synsets, expected 1000; holiday is not the name of one"):
        build(ImagenetConfig, tmp_path, tmp_path / "out")


def test_equal_names_in_two_classes_are_two_images(tmp_path: Path) -> None:
    make.imagenet(tmp_path)
    for place, synset in enumerate(make.SYNSETS[:2]):
        make.write(tmp_path / "val" / synset / "same.jpeg", make.jpeg(50 + place))
    manifest = build(ImagenetConfig, tmp_path, tmp_path / "out")
    assert manifest["splits"]["val"]["samples"] == 14


def test_a_zip_with_equal_names_in_two_folders_is_not_read_at_random(tmp_path: Path) -> None:
    import zipfile

    root = make.coco(tmp_path / "root")
    make.archive(root / "train2017", root / "train2017.zip")
    with zipfile.ZipFile(root / "train2017.zip", "a") as out:
        out.writestr("other/000000000005.jpg", make.jpeg(99))
    (root / "train2017").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"is twice in the zip: train2017/0+5\.jpg and other/0+5\.jpg"):
        build(CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))


def test_names_with_a_folder_are_not_called_missing(tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root")
    path = root / "annotations" / "captions_train2017.json"
    path.write_text(path.read_text().replace('"file_name": "', '"file_name": "train2017/'))
    with pytest.raises(UserError, match=r"20 of the 20 names of pictures .* contain a folder"):
        build(CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))
