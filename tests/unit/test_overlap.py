"""Pictures shared by distillation and evaluation sets: found by id and by hash, left out, refused or reported."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import public_fixtures as make
import pytest
import yaml
from config_examples import CONFIG
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.config import parse_experiment
from cmapkd.data import overlap as subject
from cmapkd.data.overlap import hash_picture, near_pairs
from cmapkd.files import read_json
from cmapkd.plan import make_plan


def photograph(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """A picture with structure at several scales and noise, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3))
    for side, weight in ((3, 1.0), (8, 0.6), (24, 0.3)):
        small = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        layers += weight * np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    layers += rng.normal(0, 4, layers.shape)
    return Image.fromarray((layers / 1.9).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, quality: int = 90, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": quality} if form == "JPEG" else {}))
    return buffer.getvalue()


def bits(first: bytes, second: bytes) -> tuple[int, int]:
    a, b = hash_picture(first), hash_picture(second)
    assert a is not None
    assert b is not None
    return (a[0] ^ b[0]).bit_count(), (a[1] ^ b[1]).bit_count()


@pytest.mark.parametrize("seed", range(6))
def test_resized_and_recompressed_pictures_are_near(seed: int) -> None:
    image = photograph(seed)
    original = encoded(image, 95)
    for other in (encoded(image, 30), encoded(image.resize((128, 96))), encoded(image.resize((640, 480))),
                  encoded(image, form="PNG"), encoded(image.convert("L"))):  # fmt: skip
        near, second = bits(original, other)
        assert near <= 4
        assert second <= 8


def test_near_misses_are_not_near() -> None:
    """Other pictures, and the same one mirrored, turned and cropped to a half: none is taken for the same."""
    image = photograph(0)
    others = [photograph(seed) for seed in range(1, 40)]
    others += [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.transpose(Image.Transpose.ROTATE_180)]
    others.append(image.crop((0, 0, 160, 120)))
    distances = [bits(encoded(image), encoded(other)) for other in others]
    assert min(near for near, _ in distances) > 4


def test_pictures_without_contrast_have_no_hash() -> None:
    assert hash_picture(encoded(Image.new("RGB", (64, 64), (200, 30, 30)))) is None
    assert hash_picture(b"no picture") is None


@given(st.integers(0, 8), st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 60))
def test_pairs_are_those_of_comparing_all(distance: int, seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    second = rng.integers(0, 2**64, m, dtype=np.uint64)
    first = rng.integers(0, 2**64, n, dtype=np.uint64)
    for i in range(min(n, m)):  # planted: some bits of another list's number flipped
        flips = rng.choice(64, rng.integers(0, 12), replace=False)
        first[i] = second[rng.integers(m)] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    i, j, bits_found = near_pairs(first, second, distance)
    expected = [
        (a, b, (int(x) ^ int(y)).bit_count())
        for a, x in enumerate(first.tolist())
        for b, y in enumerate(second.tolist())
        if (int(x) ^ int(y)).bit_count() <= distance
    ]
    assert list(zip(i.tolist(), j.tolist(), bits_found.tolist(), strict=True)) == expected


def experiment(tmp_path: Path, **train: Any) -> dict[str, Any]:
    """COCO 2017 to distil on, Karpathy's 5K test set and one's own pictures to evaluate on."""
    coco = make.coco(tmp_path / "coco", ids=range(1, 21))
    make.karpathy_coco(coco, {"test": range(17, 25)})  # 17 .. 20 are in train2017 too
    for number in range(6):
        data = make.jpeg(100 + number, 320, 240)
        if number < 2:  # the same as two pictures of COCO, smaller and compressed anew
            make.write(coco / "train2017" / f"{number + 1:012d}.jpg", encoded(photograph(number)))
            data = encoded(photograph(number).resize((160, 120)), 50)
        make.write(tmp_path / "own" / "test" / f"{number}.jpg", data)
        make.write(tmp_path / "own" / "test" / f"{number}.txt", "a picture")
    content = yaml.safe_load((CONFIG / "smoke.yaml").read_text())
    content.pop("tuned", None)
    content.pop("paper", None)
    content["datasets"] = {
        "coco": {"source": "coco_captions", "root": str(coco), "splits": ["train"], **train},
        "coco5k": {"source": "coco_captions", "root": str(coco), "partition": "karpathy", "splits": ["test"]},
        "own": {"source": "own", "root": str(tmp_path / "own"), "splits": ["test"]},
    }
    content["distillation"] = ["coco/train"]
    content["evaluation"] = {"retrieval": ["coco5k/test", "own/test"]}
    return content


def run(tmp_path: Path, content: dict[str, Any], *arguments: str) -> Any:
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content))
    where = ["--experiment", str(tmp_path / "experiment.yaml"), "--results", str(tmp_path / "results")]
    return CliRunner().invoke(app, [*arguments, *where])


def test_shared_pictures_are_left_out_of_the_distillation_split(tmp_path: Path) -> None:
    content = experiment(tmp_path)
    home = tmp_path / "results" / content["name"] / "data"
    early = run(tmp_path, content, "data", "build", "coco")
    assert "run `cmapkd data overlap` first" in str(early.exception)
    done = run(tmp_path, content, "data", "overlap")
    assert done.exit_code == 0, done.output + str(done.exception)
    report = read_json(home / "overlap.json")
    assert report["counts"] == {
        "coco/train in coco5k/test": {"id": 4, "hash": 0},
        "coco/train in own/test": {"id": 0, "hash": 2},
    }
    assert report["removed"] == {"coco/train": [f"{number:012d}" for number in (1, 2, 17, 18, 19, 20)]}
    named = {(pair["train"], pair["test"]) for pair in report["pairs"]}
    assert ("coco/train:000000000002", "own/test:test/1.jpg") in named
    assert all(pair["distance"] <= 4 for pair in report["pairs"])
    for dataset, samples in (("coco", 14), ("coco5k", 8), ("own", 6)):
        assert run(tmp_path, content, "data", "build", dataset).exit_code == 0
        manifest = read_json(home / dataset / "manifest.json")
        assert sum(split["samples"] for split in manifest["splits"].values()) == samples
    about = read_json(home / "coco" / "manifest.json")
    assert about["leakage"]["train"]["removed_for_overlap"] == 6
    assert about["sources"][-1]["version"] == "6 samples"


def test_overlap_is_refused_or_reported_where_that_is_asked_for(tmp_path: Path) -> None:
    content = experiment(tmp_path, overlap="refuse")
    home = tmp_path / "results" / content["name"] / "data"
    refused = run(tmp_path, content, "data", "overlap")
    assert (
        "6 pictures of distillation splits are in evaluation splits: coco/train:000000000017 is coco5k/test:000000000017"
        in str(refused.exception)
    )
    assert len(read_json(home / "overlap.json")["pairs"]) == 6
    content["datasets"]["coco"]["overlap"] = "report"
    stale = run(tmp_path, content, "data", "build", "coco")
    assert "was made for other data sets or options" in str(stale.exception)
    assert run(tmp_path, content, "data", "overlap").exit_code == 0
    assert run(tmp_path, content, "data", "build", "coco").exit_code == 0
    assert read_json(home / "coco" / "manifest.json")["splits"]["train"]["samples"] == 20


def test_a_split_that_is_both_is_refused(tmp_path: Path) -> None:
    content = experiment(tmp_path)
    content["evaluation"]["retrieval"] = ["coco/train"]
    assert "20 pictures of distillation splits" in str(run(tmp_path, content, "data", "overlap").exception)


def test_addresses_of_trainings_know_what_is_left_out_and_not_where_it_lies(tmp_path: Path) -> None:
    content = experiment(tmp_path)
    first = make_plan(parse_experiment(content))
    content["datasets"]["coco"]["root"] = "/elsewhere"
    assert list(make_plan(parse_experiment(content)).stages) == list(first.stages)
    content["evaluation"]["retrieval"] = ["coco5k/test"]
    assert not set(make_plan(parse_experiment(content)).stages) & {
        address for address in first.stages if first.stages[address].settings["kind"] != "pretrained"
    }


def test_generated_data_sets_have_no_overlap_to_check() -> None:
    from cmapkd.config import load_experiment
    from cmapkd.config.overlap import checked_splits

    assert checked_splits(load_experiment(CONFIG / "mini.yaml")) == ([], [])


def test_search_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 K by 5 K numbers: candidates stay far below all pairs."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2**64, 20_000, dtype=np.uint64), rng.integers(0, 2**64, 5_000, dtype=np.uint64)
    second[:50] = first[:50] ^ np.uint64(0b1011)
    seen = []
    joined = subject._joined

    def counted(*arguments: Any) -> Any:
        for i, j in joined(*arguments):
            seen.append(len(i))
            yield i, j

    monkeypatch.setattr(subject, "_joined", counted)
    i, j, bits_found = near_pairs(first, second, 4)
    assert (i.tolist(), j.tolist(), set(bits_found.tolist())) == (list(range(50)), list(range(50)), {3})
    assert sum(seen) < 20_000 * 5_000 / 500
