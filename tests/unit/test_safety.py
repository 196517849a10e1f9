"""Attacks: files and names that come from elsewhere run nothing, reach nothing outside their folder, and exhaust nothing."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shlex
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import public_fixtures as make
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_metrics import context, write_all
from test_public_sources import build, read

from cmapkd.config import load_experiment, parse_experiment
from cmapkd.config import sources as options
from cmapkd.data.sources.public import annotations
from cmapkd.data.sources.public.pictures import examine
from cmapkd.errors import UserError
from cmapkd.files import sha256_of, write_json
from cmapkd.models import towers, weights
from cmapkd.paper.metrics import Metrics
from cmapkd.provenance import collect
from cmapkd.training.locks import StageLock
from cmapkd.workflow import quoted, results_folder

REPOSITORY = Path(__file__).parents[2]


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_would_run(tmp_path: Path) -> None:
    """The attack below is one: whoever unpickles it is caught."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))  # noqa: S301
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "weights.npz"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_weights_that_are_a_pickle_are_not_run(name: str, form: str, tmp_path: Path) -> None:
    path, mark = tmp_path / name, tmp_path / "ran"
    if form == "torch":
        torch.save({"state_dict": {"a": torch.ones(1)}, "more": Evil(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(Exception):  # noqa: B017 - whichever way it is refused
        towers.create("tiny-safety", tiny.architecture(), str(path))
    assert not mark.exists()


def test_an_open_clip_directory_with_a_pickle_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    write_json(tmp_path / towers.CONFIG, {"model_cfg": tiny.architecture(), "preprocess_cfg": {}})
    torch.save({"a": Evil(mark)}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(Exception):  # noqa: B017
        towers.load(tmp_path)
    assert not mark.exists()
    with pytest.raises(UserError, match="holds more than weights"):
        weights.check_init("ViT-B-32", str(tmp_path), "student.init")


def test_arrays_that_hold_objects_are_not_run(tmp_path: Path) -> None:
    made, mark = context(tmp_path), tmp_path / "ran"
    write_all(made)
    path = made.metric_file("KD", 0)
    arrays = path.with_suffix(".npz")
    with arrays.open("wb") as file:
        np.savez(file, **{"retrieval/a/b/i2t_ranks": np.array([Evil(mark)], dtype=object)})
    content = json.loads(path.read_text())
    content["per_query"]["sha256"] = sha256_of(arrays)  # an attacker would
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be read"):
        Metrics(made).arrays("KD", 0, "a test")
    assert not mark.exists()


# ---- what the code may not call at all -----------------------------------------------------------------------------------


UNPICKLING = ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")


def dangerous(source: str) -> list[str]:
    """Calls in Python code that run what they read, or hand a line to a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["UnpicklingError"]:
            continue  # an exception, raised by a reader that refuses
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in UNPICKLING]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load"):
            found.append(called)
        if called in ("torch.load", "open_clip.load_state_dict") and given.get("weights_only") != "True":
            found.append(called)
        if called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append(called)
        if called == "yaml.load" and given.get("Loader") not in ("_Loader", "yaml.SafeLoader", "yaml.BaseLoader"):
            found.append(called)
        if given.get("shell") == "True" or (called.endswith((".extractall", ".extract")) and given.get("filter") != "'data'"):
            found.append(called)
    return found


def test_no_module_runs_what_it_reads() -> None:
    for path in sorted((REPOSITORY / "cmapkd").rglob("*.py")):
        assert (path, dangerous(path.read_text())) == (path, [])
    bad = """
import pickle; from joblib import load; torch.load(f); np.load(f); np.load(f, allow_pickle=True)
yaml.load(f, Loader=yaml.Loader); tar.extractall(d); subprocess.run(x, shell=True); eval(s); os.system(s); yaml.unsafe_load(f)
"""
    assert len(dangerous(bad)) == 11


# ---- archives ------------------------------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in folder.rglob("*")}


def test_members_of_a_tar_stay_within_the_shards(tmp_path: Path) -> None:
    root = make.conceptual(tmp_path / "root", "train")
    secret = make.jpeg(424242)
    make.write(tmp_path / "secret.jpg", secret)
    with tarfile.open(root / "train" / "00001.tar", "w") as out:
        for place, name in enumerate(("../../evil", "/evil", "..\\evil", "a/../../evil", "-rf", "$(touch evil);'\"")):
            for extension, data in (("jpg", make.jpeg(place)), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{name}.{extension}")
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            for extension in ("jpg", "txt"):
                member = tarfile.TarInfo(f"link{kind.decode()}.{extension}")
                member.type, member.linkname = kind, str(tmp_path / "secret.jpg")
                out.addfile(member)
    before = listing(tmp_path)
    out = tmp_path / "out"
    try:
        build(options.ConceptualCaptionsConfig, root, out, bad_pictures=0.9)
    except UserError as error:
        assert str(error)
    else:
        assert not any(sample.image == secret for sample in read(out, "train"))
        with tarfile.open(next((out / "train").glob("*.tar"))) as tar:
            assert all(member.isreg() and "/" not in member.name and ".." not in member.name for member in tar)
    assert {path: size for path, size in listing(tmp_path).items() if not path.startswith(str(out))} == before


@pytest.mark.parametrize("packed", [False, True])
def test_names_in_annotations_reach_no_other_folder(packed: bool, tmp_path: Path) -> None:
    root, secret = make.coco(tmp_path / "root", "train", ids=range(1, 11)), make.jpeg(424242)
    make.write(tmp_path / "secret.jpg", secret)
    make.write(root / "secret.jpg", secret)
    file = root / "annotations" / "captions_train2017.json"
    content = json.loads(file.read_text())
    hostile = ["../secret.jpg", "../../secret.jpg", str(tmp_path / "secret.jpg"), "train2017/../../secret.jpg"]
    for image, name in zip(content["images"], hostile, strict=False):
        image["file_name"] = name
    file.write_text(json.dumps(content))
    if packed:
        make.archive(root / "train2017", root / "train2017.zip")
        with zipfile.ZipFile(root / "train2017.zip", "a") as out:
            out.writestr("train2017/../../../evil.jpg", make.jpeg(5))
            link = zipfile.ZipInfo("train2017/link.jpg")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            out.writestr(link, str(tmp_path / "secret.jpg"))
        for path in (root / "train2017").iterdir():
            path.unlink()
        (root / "train2017").rmdir()
    before = listing(tmp_path)
    with pytest.raises(UserError, match="are missing"):
        build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))
    report = build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",), bad_pictures=0.5)
    assert report["leakage"]["train"]["left_out"] == {"missing": len(hostile)}
    assert not any(sample.image == secret for sample in read(tmp_path / "out", "train"))
    assert {path: size for path, size in listing(tmp_path).items() if not path.startswith(str(tmp_path / "out"))} == before


def test_a_zip_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make.coco(tmp_path, "train", ids=range(1, 3))
    file = root / "annotations" / "captions_train2017.json"
    content = file.read_bytes() + b" " * 50_000_000  # 50 kB packed
    file.unlink()
    with zipfile.ZipFile(root / "annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("annotations/captions_train2017.json", content)
    monkeypatch.setattr(annotations, "MAXIMUM_BYTES", 10_000_000)
    with pytest.raises(UserError, match="more than the limit"):
        build(options.CocoCaptionsConfig, root, tmp_path / "out", splits=("train",))


def test_a_zip_damaged_at_any_place_is_a_users_error(tmp_path: Path) -> None:
    root = make.coco(tmp_path / "root", "train", ids=range(1, 3))
    file = root / "annotations" / "captions_train2017.json"
    packed = root / "annotations_trainval2017.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        out.write(file, "annotations/captions_train2017.json")
    file.unlink()
    whole = packed.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        packed.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            build(options.CocoCaptionsConfig, root, tmp_path / f"out{at}", splits=("train",))
        except UserError:
            refused += 1
    assert refused > len(whole) / 14  # dates and the like may change


@pytest.mark.timeout(60)
def test_pipes_and_files_larger_than_memory_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make.write(root / "good.png", make.png(1))
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    with (root / "huge.png").open("wb") as file:
        file.truncate(2**40)  # takes no place on the disk
    names = ("good.png", "pipe.png", "folder.png", "huge.png")
    make.write(root / "table.csv", "image,caption\n" + "".join(f"{name},a caption\n" for name in names))
    keys = {"table": "table.csv", "image_column": "image", "caption_columns": ("caption",), "splits": ("train",)}
    report = build(options.OwnConfig, root, tmp_path / "out", bad_pictures=0.9, **keys)
    assert report["leakage"]["train"]["left_out"] == {"damaged": 3}
    assert [sample.image for sample in read(tmp_path / "out", "train")] == [make.png(1)]


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_pictures_that_swell_are_refused_before_they_are_decoded() -> None:
    def png(width: int, height: int, *more: bytes) -> bytes:
        head = chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0]))
        body = chunk(b"IDAT", zlib.compress(bytes(3 * 64 + 64)))
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")

    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))
    assert len(text) < 200_000
    for data in (png(60_000, 60_000), png(2**31 - 1, 1), png(8, 8, text)):
        with pytest.raises(ValueError, match=r"limit|too large|no picture|truncated"):
            examine(data, max_pixels=50_000_000, full=True)


# ---- configuration and secrets -------------------------------------------------------------------------------------------


def test_yaml_builds_no_objects(tmp_path: Path) -> None:
    for tag in ("!!python/object/apply:pathlib.Path.touch", "!!python/object/new:os.system", "!!python/name:os.system"):
        path = tmp_path / "evil.yaml"
        path.write_text(f"name: {tag} ['{tmp_path / 'ran'}']\n")
        with pytest.raises(UserError, match="not valid YAML"):
            load_experiment(path)
    assert os.listdir(tmp_path) == ["evil.yaml"]  # noqa: PTH208


@pytest.mark.timeout(60)
def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]  # 9 ** 12 values
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="aliases"):
        load_experiment(path)
    own: list[Any] = []
    own += [own, own]
    with pytest.raises(UserError, match=r"aliases|nested"):
        parse_experiment({"name": own})


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_quoted_path_is_one_word_once_snakemake_has_formatted_it(name: str) -> None:
    assert shlex.split(quoted(name).format()) == [name]


@pytest.mark.parametrize("name", ["-x", "--help", "a{run}", "a}", "a*b", "a[b]", "a?", "a\nb", "", " ", 5, None])
def test_folders_of_results_that_would_be_misread_are_refused(name: Any) -> None:
    with pytest.raises(UserError, match="fix:"):
        results_folder(name)
    assert results_folder('it\'s; $(x) `y` "z" & -rf') == Path('it\'s; $(x) `y` "z" & -rf')


SECRETS = ("HF_TOKEN", "NPM_TOKEN", "AWS_SECRET_ACCESS_KEY", "SLURM_JWT", "GITHUB_TOKEN", "WANDB_API_KEY")


def test_secrets_of_the_environment_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "hush-4711")
    assert "hush-4711" not in json.dumps(collect())
    with StageLock(tmp_path / "stage", "a stage", wait=0, stale=600):
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(b"hush-4711" in data for data in written)
