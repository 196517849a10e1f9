"""Own data, end to end: `config/own.yaml`, `cmapkd data check` and splits by shares."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import public_fixtures as make
import pytest
import yaml
from config_examples import CONFIG
from PIL import Image, ImageDraw
from public_fixtures import build, read, source
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.config import load_experiment, parse_experiment
from cmapkd.config.sources import OwnConfig
from cmapkd.data.contact import SIDE, _shortened
from cmapkd.data.overlap import find_overlap
from cmapkd.data.own_check import check_folder
from cmapkd.data.sources.public.division import divide, split_of
from cmapkd.errors import UserError
from cmapkd.plan import make_plan
from cmapkd.workflow import dataset_params

SHARES = {"val": 0.2, "test": 0.3}
SPLITS = ("train", "val", "test")


def said(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def folder(root: Path, count: int = 40) -> Path:
    """Images with texts, all different."""
    for number in range(count):
        make.write(root / f"{number:03d}.jpg", make.jpeg(number))
        make.write(root / f"{number:03d}.txt", f"a thing {number}\n")
    return root


def parts(root: Path, out: Path, **keys: Any) -> dict[str, set[str]]:
    """Captions of each split of a build."""
    build(OwnConfig, root, out, **keys)
    names = [path.name for path in out.iterdir() if path.is_dir()]
    return {name: {sample.captions[0] for sample in read(out, name)} for name in names}


# config/own.yaml


def own_experiment(root: Path, **options: Any) -> dict[str, Any]:
    content = yaml.safe_load((CONFIG / "own.yaml").read_text())
    content["datasets"]["mine"] |= {"root": str(root), **options}
    return dict(content)


def test_the_complete_experiment_reads_a_folder_of_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "images")
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(own_experiment(root), sort_keys=False))
    loaded = load_experiment(file)
    assert list(loaded.runs) == ["Scratch", "KD", "CLIP-KD", "CMAPKD"]
    assert (loaded.evaluation.retrieval, loaded.evaluation.zeroshot, loaded.evaluation.vqa) == (("mine/test",), (), None)
    assert len(make_plan(loaded).runs) == 4
    assert "is not there" not in said("config", "check", str(file))
    options = ("--experiment", str(file), "--results", str(tmp_path / "results"))
    for command in ("fetch mine", "overlap", "build mine", "verify mine", "contact mine test"):  # in this order, on the page
        said("data", *command.split(), *options)
    manifest = json.loads((tmp_path / "results/own/data/mine/manifest.json").read_text())
    assert sum(about["samples"] for about in manifest["splits"].values()) == 40
    assert all(about["samples"] for about in manifest["splits"].values())
    assert (tmp_path / "results/own/contact/mine/test.png").is_file()


def test_the_file_as_it_is_needs_its_folder_only() -> None:
    loaded = load_experiment(CONFIG / "own.yaml")
    assert str(loaded.datasets["mine"].root).endswith("/my-data")  # type: ignore[union-attr]
    assert loaded.datasets["mine"].built() == SPLITS


# cmapkd data check


def crowded(root: Path) -> Path:
    """One of everything that is reported."""
    folder(root, 10)
    make.write(root / "copy.jpg", make.jpeg(3))
    make.write(root / "copy.txt", "the same again\n")
    make.write(root / "000.png", make.png(50))  # shares 000.txt
    clear = Image.new("RGBA", (20, 30), (255, 0, 0, 0))
    deep = Image.new("I;16", (500, 400), 40000)
    for name, image in (("clear", clear), ("deep", deep)):
        image.save(root / f"{name}.png")
    make.write(root / "clear.txt", "two\ncaptions\n")
    make.write(root / "deep.txt", " \n\u200b\n")
    make.write(root / "lonely.txt", "no image")
    make.write(root / "mute.jpg", make.jpeg(60))
    make.write(root / "broken.jpg", b"\xff\xd8\xff nothing")
    make.write(root / "broken.txt", b"caf\xe9")
    make.write(root / ".DS_Store", b"x")
    make.write(root / "._000.jpg", b"x")
    return root


def test_a_folder_is_described_before_it_is_built(tmp_path: Path) -> None:
    lines = "\n".join(check_folder(str(crowded(tmp_path / "images"))).lines)
    for expected in (
        "images: 16; by format: JPEG 12, PNG 3",
        "sizes: 20 x 30 to 500 x 400 px; shorter side 20 / 48 / 400 px",
        "background`, by default white): 1, e.g. clear.png",
        "with 16 bits or floats (16 bits are scaled to 8, floats are refused): 1, e.g. deep.png",
        "that cannot be opened (left out; more than `bad_pictures` stop a build): 1, e.g. broken.jpg",
        "images with equal content: 2 in groups of 2, e.g. 003.jpg, copy.jpg",
        "images that differ in the ending of their name only: 2, e.g. 000.jpg, 000.png",
        "captions: 14 in 14 text files of the same name, 0 / 1 / 2 a text",
        "images without a text, which stop a build: 1, e.g. mute.jpg",
        "texts without a caption: 1, e.g. deep.txt",
        "not UTF-8 or too long, which stop a build: 1, e.g. broken.txt",
        "texts without an image: 1 (not used)",
        "splits: none, all is `train`",
        "ignored files of systems and editors: 2",
    ):
        assert expected in lines, expected


def test_folders_that_are_splits_and_those_that_are_none(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("test", 2), ("validation", 2)):
        folder(tmp_path / name, count)
    make.write(tmp_path / "outside.png", make.png(1))
    make.write(tmp_path / "outside.txt", "outside")
    found = check_folder(str(tmp_path))
    lines = "\n".join(found.lines)
    assert "splits by folders: train 5, test 2" in lines
    assert "folder validation/: is not a split by this name; rename it to val/" in lines
    assert "images outside of train/, test/: 3 (not used)" in lines
    assert "2 groups are in several splits" in lines
    assert (found.options["split_shares"], found.options["splits"]) == ({"val": 0.1}, ["train", "val", "test"])


@pytest.mark.parametrize("layout", ["texts", "table", "columns", "embedded"])
def test_the_printed_lines_read_the_folder(layout: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "my images", 60)
    if layout != "texts":
        rows = [
            {"image": path.name, "caption": path.with_suffix(".txt").read_text().strip()} for path in sorted(root.glob("*.jpg"))
        ]
        for text in root.glob("*.txt"):
            text.unlink()
        if layout == "columns":
            rows = [{"id": "7", "file_name": row["image"], "caption_1": row["caption"], "caption_2": "more"} for row in rows]
        if layout == "embedded":
            import pandas as pd

            pd.DataFrame([{**row, "image": (root / row["image"]).read_bytes()} for row in rows]).to_parquet(root / "t.parquet")
        else:
            with (root / "captions.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    printed = CliRunner().invoke(app, ["data", "check", str(root)], catch_exceptions=False).stdout
    content = yaml.safe_load(printed)
    assert list(content["datasets"]) == ["my_images"]
    whole = {**own_experiment(root), **content}
    whole["paper"] = {**whole["paper"], "labels": {}}
    config = parse_experiment(whole).datasets["my_images"]
    made = source(OwnConfig, root, **config.model_dump(exclude={"root"}, exclude_unset=True))
    read_back = {split: [sample.captions for sample in made.samples(split)] for split in made.splits()}
    assert sorted(map(len, read_back.values()))[0] > 0
    assert sum(map(len, read_back.values())) == 60
    assert ["a thing 7", *(["more"] if layout == "columns" else [])] in [c for split in read_back.values() for c in split]


def test_a_table_is_described(tmp_path: Path) -> None:
    folder(tmp_path, 3)
    for text in tmp_path.glob("*.txt"):
        text.unlink()
    table = "image,caption,split\n000.jpg,a,train\n001.jpg,,test\ngone.jpg,c,train\n"
    make.write(tmp_path / "a.csv", table)
    lines = "\n".join(check_folder(str(tmp_path)).lines)
    for expected in (
        "table: a.csv with the columns image, caption, split",
        "captions: 2 for the 3 images that the table names",
        "images without a caption: 1, e.g. 001.jpg",
        "images of the table that are missing: 1, e.g. gone.jpg",
        "images that the table does not name: 1 (not used)",
        "splits by the column split: train 2, test 1",
    ):
        assert expected in lines, expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "is not a folder"), ("empty", "has no images that can be read"), ("~nobody/x", "another user")],
)
def test_what_cannot_be_looked_at_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=reason):
        check_folder(name if name.startswith("~") else str(tmp_path / name))


def test_a_table_of_classes_is_for_zero_shot_classification(tmp_path: Path) -> None:
    make.write(tmp_path / "classes.txt", "dog\ncat\n")
    make.write(tmp_path / "a.jpg", make.jpeg(1))
    make.write(tmp_path / "t.csv", "Path,label,Split\na.jpg,dog,test\n")
    found = check_folder(str(tmp_path))
    assert "classes: 2 in classes.txt" in found.lines
    assert "splits by the column Split: test 1" in found.lines
    options = {
        "source": "own",
        "root": found.options["root"],
        "table": "t.csv",
        "image_column": "Path",
        "split_column": "Split",
    }
    assert yaml.safe_load(found.yaml("mine")) == {
        "datasets": {"mine": {**options, "splits": ["test"]}},
        "evaluation": {"zeroshot": ["mine/test"]},
    }


def test_names_of_files_do_not_reach_a_terminal_as_they_are(tmp_path: Path) -> None:
    make.write(tmp_path / "a\x1b[2J.jpg", make.jpeg(1))
    assert "a\\x1b[2J.jpg" in said("data", "check", str(tmp_path))


def test_the_check_does_not_import_torch(tmp_path: Path) -> None:
    script = "import sys; from cmapkd.data.own_check import check_folder; check_folder(sys.argv[1]); "
    script += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, str(folder(tmp_path / "images", 2))], check=True)


# Splits by shares


def test_shares_divide_by_a_hash_of_the_key() -> None:
    keys = [f"{number}.jpg" for number in range(5000)]
    found = [split_of(key, SHARES, 0) for key in keys]
    for split, share in {**SHARES, "train": 0.5}.items():
        assert found.count(split) / 5000 == pytest.approx(share, abs=0.03), split
    assert found != [split_of(key, SHARES, 1) for key in keys]
    other = [split_of(key, {**SHARES, "val": 0.01}, 0) for key in keys]
    assert [key for key, split in zip(keys, other, strict=True) if split == "test"] == [
        key for key, split in zip(keys, found, strict=True) if split == "test"
    ]
    # `printf '0\0dog.jpg' | sha256sum` and so on, as shares of 2^256: a change would move every user's images.
    numbers = {"dog.jpg": 0.16693, "cat.jpg": 0.89085, "a/b.png": 0.73427}
    for key, number in numbers.items():
        for share, split in ((number - 1e-5, "train"), (number + 1e-5, "val")):
            assert split_of(key, {"val": share}, 0) == split


def test_images_stay_where_they_are_when_others_are_added(tmp_path: Path) -> None:
    before = parts(folder(tmp_path / "images", 40), tmp_path / "a", split_shares=SHARES)
    after = parts(folder(tmp_path / "images", 60), tmp_path / "b", split_shares=SHARES)
    assert set(before) == set(SPLITS)
    assert set.union(*before.values()) == {f"a thing {number}" for number in range(40)}
    assert all(before[split] <= after[split] for split in SPLITS)
    assert parts(tmp_path / "images", tmp_path / "c", split_shares=dict(reversed(SHARES.items()))) == after


def drawing(number: int, quality: int) -> bytes:
    """One image at two qualities: other bytes, nearly the same hash."""
    return make.jpeg(number, quality=quality)


def test_near_duplicates_are_on_one_side(tmp_path: Path) -> None:
    for number in range(40):
        for name, quality in (("a", 95), ("b", 60)):
            make.write(tmp_path / "images" / f"{name}{number}.jpg", drawing(number, quality))
            make.write(tmp_path / "images" / f"{name}{number}.txt", str(number))
    plain = Image.new("RGB", (32, 32), "navy")  # without contrast, so without a perceptual hash
    buffer = io.BytesIO()
    plain.save(buffer, "PNG")
    for number in range(12):
        make.write(tmp_path / "images" / f"plain{number}.png", buffer.getvalue())
        make.write(tmp_path / "images" / f"plain{number}.txt", "plain")
    found = parts(tmp_path / "images", tmp_path / "out", split_shares=SHARES)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 41
    assert min(map(len, found.values())) > 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sum(manifest["leakage"][split]["near_duplicates_together"] for split in SPLITS) == 92
    for number in (0, 7):
        assert str(number) in found[split_of(f"a{number}.jpg", SHARES, 0)], "a group goes where its smallest key goes"
    # The alternative: without groups, some pair would be divided.
    assert any(split_of(f"a{n}.jpg", SHARES, 0) != split_of(f"b{n}.jpg", SHARES, 0) for n in range(40))
    overlap = find_overlap(parse_experiment(own_experiment(tmp_path / "images", split_shares=SHARES)), tmp_path / "cache")
    assert overlap["counts"] == {}


def test_unusable_images_and_chains_of_duplicates() -> None:
    images = [("z", make.png(1)), ("m", make.png(1)), ("a", None), ("b", b"no image")]
    found = divide(images, {"test": 0.5}, 0, 4)
    assert found.grouped == {"z", "m"}
    assert found.splits == {key: split_of(min(key, "m"), {"test": 0.5}, 0) for key in "zmab"}


def test_only_train_is_divided(tmp_path: Path) -> None:
    folder(tmp_path / "images" / "train", 30)
    folder(tmp_path / "images" / "test", 5)
    keys = {"splits": SPLITS, "split_shares": {"val": 0.3}, "overlap": "report"}
    found = parts(tmp_path / "images", tmp_path / "out", **keys)
    assert len(found["test"]) == 5
    assert len(found["train"] | found["val"]) == 30
    with pytest.raises(UserError, match="is the split 'test' already"):
        build(OwnConfig, tmp_path / "images", tmp_path / "other", split_shares={"test": 0.3})
    make.write(tmp_path / "images" / "t.csv", "image,caption,split\ntrain/000.jpg,a,train\ntest/000.jpg,b,test\n")
    with pytest.raises(UserError, match="row 2 has the split 'test', which `split_shares` divides"):
        build(OwnConfig, tmp_path / "images", tmp_path / "third", table="t.csv", split_shares={"test": 0.3})


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few images for the split 'val' of `split_shares`: none of 2"):
        build(OwnConfig, folder(tmp_path / "images", 2), tmp_path / "out", split_shares={"val": 0.0001})


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ({"val": 0.6, "test": 0.4}, "leaves nothing to train on"),
        ({}, "names no split"),
        ({"train": 0.9}, "split_shares.train"),
        ({"val": 0}, "must be greater than 0"),
        ({"val": "much"}, "must be a number"),
    ],
)
def test_impossible_shares_are_refused(shares: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        parse_experiment(own_experiment(tmp_path, split_shares=shares))


def test_shares_are_a_part_of_the_digest_only_where_they_are_given(tmp_path: Path) -> None:
    def params(**options: Any) -> Any:
        return dataset_params(parse_experiment(own_experiment(tmp_path, **options)), "mine")["config"]

    assert params(split_shares=SHARES) != params(split_shares={**SHARES, "val": 0.25})
    assert params(split_shares=SHARES) == params(split_shares=dict(reversed(SHARES.items())))
    assert "split_shares" not in OwnConfig(root=str(tmp_path)).model_dump(mode="json")


# Contact sheets


def test_keys_of_a_contact_sheet_fit_under_their_images() -> None:
    font = ImageDraw.ImageDraw(Image.new("RGB", (8, 8))).getfont()
    long = "animals_mammals_cats_cartoon_lion_with_a_long_name_png-f06ec52a765"
    shown = _shortened(long, font)  # type: ignore[arg-type]
    assert font.getlength(shown) <= SIDE
    assert shown.startswith("...") and long.endswith(shown[3:])
    assert _shortened("scene-001", font) == "scene-001"  # type: ignore[arg-type]
