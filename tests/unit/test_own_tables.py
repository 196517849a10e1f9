"""Tables and folders of one's own: three forms that agree, mistakes that are named, no way out of the folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import public_fixtures as make
import pytest
from PIL import Image
from public_fixtures import build, read

from cmapkd.config import sources as options
from cmapkd.errors import UserError

LIMIT = 50_000_000


def test_own_tables_in_all_three_forms_agree(tmp_path: Path) -> None:
    import pandas as pd

    root = tmp_path / "root"
    rows = []
    for number in range(5):
        make.write(root / "pictures" / f"é {number}.jpg", make.jpeg(number))
        for text in ("a, b", 'say "x"'):
            row = {
                "image": f"pictures/é {number}.jpg",
                "caption": f"{text} {number}",
                "split": "test" if number > 3 else "train",
            }
            rows.append({**row, "label": "cat" if number % 2 else "dog", "question": "", "answer": ""})
    rows[0] |= {"question": "what is it?", "answer": "dog|hound"}
    make.write(root / "classes.txt", "dog\ncat\n")
    frame = pd.DataFrame(rows)
    frame.to_csv(root / "a.csv", index=False)
    frame.to_parquet(root / "c.parquet")
    make.write(root / "b.tsv", "\n".join("\t".join(row) for row in [list(rows[0]), *(list(row.values()) for row in rows)]))
    built = []
    for name in ("a.csv", "b.tsv", "c.parquet"):
        out = tmp_path / name
        manifest = build(options.OwnConfig, root, out, table=name, splits=("train", "test"), licence="CC0-1.0")
        built.append([(s.key, s.captions, s.label, s.image) for split in ("train", "test") for s in read(out, split)])
        assert manifest["sources"][0]["licence"] == "CC0-1.0"
    assert built[0] == built[1] == built[2]
    assert len(built[0]) == 5
    assert built[0][1][1:3] == (["a, b 1", 'say "x" 1'], 1)
    question = read(tmp_path / "a.csv", "train")[0].questions[0]
    assert (question.question, question.answers, question.type) == ("what is it?", ["dog", "hound"], "other")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("image,caption\n../secret.jpg,a\n", "which is not below"),
        ("image,caption\n/etc/passwd,a\n", "which is not below"),
        ("picture,caption\na.jpg,a\n", "has no column 'image'"),
        ("", "has no column 'image'"),
        ("image,caption,split\na.jpg,a,dev\n", "row 1 has the split 'dev'"),
        ("image,caption\na.jpg,b,c\n", "row 1 has more cells"),
        ("image,caption,label\na.jpg,b,cat\n", "row 1 has a class, but classes.txt is missing"),
        ("image,question\na.jpg,why?\n", "row 1 has a question and no answer"),
        ("image,caption\nb.jpg,missing\n", "1 of 1 pictures .* missing"),
    ],
)
def test_mistakes_of_own_tables_are_named(table: str, reason: str, tmp_path: Path) -> None:
    make.write(tmp_path / "root" / "a.jpg", make.jpeg(1))
    make.write(tmp_path / "secret.jpg", make.jpeg(2))
    make.write(tmp_path / "root" / "table.csv", table)
    with pytest.raises(UserError, match=reason):
        build(options.OwnConfig, tmp_path / "root", tmp_path / "out", table="table.csv")


def test_a_link_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    make.write(tmp_path / "secret.jpg", make.jpeg(2))
    make.write(tmp_path / "root" / "table.csv", "image,caption\nlink.jpg,a\n")
    (tmp_path / "root" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="which is not below"):
        build(options.OwnConfig, tmp_path / "root", tmp_path / "out", table="table.csv")


def test_own_pictures_in_other_forms_become_png(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(make.pixels(1)).save(buffer, "WEBP", lossless=True)
    make.write(tmp_path / "root" / "a.webp", buffer.getvalue())
    make.write(tmp_path / "root" / "a.txt", "a caption")
    build(options.OwnConfig, tmp_path / "root", tmp_path / "out")
    sample = read(tmp_path / "out", "train")[0]
    assert sample.extension == "png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample.image))), make.pixels(1))


@pytest.mark.parametrize("columns", ["image,caption", "image,caption,split", "image,caption,label", "image,label"])
def test_a_table_reads_the_same_with_every_default_written_out(columns: str, tmp_path: Path) -> None:
    """Jobs read the experiment that is kept with the results, in which every key has a value."""
    root = tmp_path / "root"
    values = {"image": "a.jpg", "caption": "a dog", "split": "train", "label": "dog"}
    make.write(root / "a.jpg", make.jpeg(1))
    make.write(root / "classes.txt", "dog\n")
    make.write(root / "table.csv", f"{columns}\n{','.join(values[name] for name in columns.split(','))}\n")
    given = {"table": "table.csv", "splits": ("train",)}
    written = options.OwnConfig(root=str(root), **given).model_dump(exclude={"source", "root"})
    assert set(written) > set(given)
    one, two = (build(options.OwnConfig, root, tmp_path / name, **keys) for name, keys in (("a", given), ("b", written)))
    assert one["digest"] == two["digest"]
