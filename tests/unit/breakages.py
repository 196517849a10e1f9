"""Ways of breaking a results directory: each takes a tree, damages it, and returns the file and words of the problem."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from synthetic_results import Tree, edit_json, edit_yaml

from cmapkd.files import read_json, sha256_of


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def metric_value(tree: Tree) -> tuple[Path, str]:
    path = tree.metric_file("KD")
    edit_json(path, lambda content: content["metrics"]["efficiency"].update(image_parameters=7))
    return path, "says"


def truncated_arrays(tree: Tree) -> tuple[Path, str]:
    path = tree.metric_file("KD").with_suffix(".npz")
    path.write_bytes(path.read_bytes()[:-10])
    return path, "one of the two was changed"


def missing_metrics(tree: Tree) -> tuple[Path, str]:
    path = tree.metric_file("KD")
    path.unlink()
    return path, "is missing"


def table_value(tree: Tree) -> tuple[Path, str]:
    path = tree.context.paper / "table2.json"
    edit_json(path, lambda content: content["cells"]["KD"]["i2t_r1"].update(value=99.5))
    return path, "value is 99.5, its parents give"


def table_text(tree: Tree) -> tuple[Path, str]:
    path = tree.context.paper / "table1.json"
    edit_json(path, lambda content: content["texts"]["progressive/fine"]["trains"].update(text="everything"))
    return path, "its parents give"


def printed_number(tree: Tree) -> tuple[Path, str]:
    path = tree.context.paper / "table2.tex"
    value = read_json(tree.context.paper / "table2.json")["cells"]["KD"]["i2t_r1"]["value"]
    _replace(path, f"{value:.1f}", f"{value + 1:.1f}")
    return path, "made again it is"


def macro(tree: Tree) -> tuple[Path, str]:
    path = tree.context.paper / "numbers.tex"
    _replace(path, "{KD}{i2t_r1}{", "{KD}{i2t_r1}{9")
    return path, "made again it is"


def document(tree: Tree) -> tuple[Path, str]:
    path = tree.context.paper / "paper.tex"
    _replace(path, "One seed", "Nine seeds")
    return path, "Nine seeds"


def no_parents(tree: Tree) -> tuple[Path, str]:
    path = tree.context.paper / "table2.json"
    edit_json(path, lambda content: content["cells"]["KD"]["i2t_r1"].update(parents=[]))
    return path, "a number without a parent"


def lost_cell(tree: Tree) -> tuple[Path, str]:
    path = tree.context.paper / "table2.json"
    edit_json(path, lambda content: content["cells"]["KD"].pop("t2i_r1"))
    return path, "lacks a cell that its parents give"


def two_data(tree: Tree) -> tuple[Path, str]:
    path = tree.metric_file("KD")
    edit_json(path, lambda content: content["provenance"].update(data_digests={"emoji_scenes": "beef" * 16}))
    return path, "runs of different data in one table"


def trained_on_other_data(tree: Tree) -> tuple[Path, str]:
    path = tree.stage("KD")
    edit_json(path, lambda content: content["provenance"].update(data_digests={"emoji_scenes": "beef" * 16}))
    return path, "runs of different data in one table"


def two_codes(tree: Tree) -> tuple[Path, str]:
    path = tree.stage("w/o ALSN (uniform)")
    edit_json(path, lambda content: content.update(code="0123456789abcdef"))
    return path, "was trained by other code of cmapkd than"


def two_evaluations(tree: Tree) -> tuple[Path, str]:
    path = tree.metric_file("w/o ALSN (uniform)")
    edit_json(path, lambda content: content["provenance"].update(evaluation_code="0123456789abcdef"))
    return path, "was evaluated by other code of cmapkd than"


def missing_stage(tree: Tree) -> tuple[Path, str]:
    path = tree.stage("KD")
    path.unlink()
    return path, "a training that numbers rest on is gone"


def missing_teacher_pyramid(tree: Tree) -> tuple[Path, str]:
    (directory,) = (tree.home / "stages").glob("teacher-pyramid-*")
    shutil.rmtree(directory)
    return directory / "stage.json", "is gone"


def settings(tree: Tree) -> tuple[Path, str]:
    path = tree.stage("KD")
    edit_json(path, lambda content: content["settings"].update(seed=1))
    return path, "its settings are not those that its address was made from"


def weights(tree: Tree) -> tuple[Path, str]:
    path = tree.stage("KD").parent / "model" / "open_clip_model.safetensors"
    path.write_bytes(b"other weights")
    return path, "has SHA-256"


def student(tree: Tree) -> tuple[Path, str]:
    path = tree.home / "runs" / "KD" / "0" / "student" / "open_clip_model.safetensors"
    path.write_bytes(b"other weights")
    return path, "has SHA-256"


def trained_again(tree: Tree) -> tuple[Path, str]:
    edit_json(tree.stage("KD"), lambda content: content["provenance"].update(started="2025-01-01T00:00:00+00:00"))
    return tree.metric_file("KD"), "was measured on another training of"


def teacher_trained_again(tree: Tree) -> tuple[Path, str]:
    """The teacher, its run and its metrics agree with each other; the students were taught by the one before."""
    directory = tree.stage("Teacher").parent
    weights = directory / "model/open_clip_model.safetensors"
    weights.write_bytes(b"other weights")
    edit_json(directory / "stage.json", lambda content: content["files"].update({f"model/{weights.name}": sha256_of(weights)}))
    run = tree.home / "runs/Teacher/0"
    (run / "student" / weights.name).write_bytes(b"other weights")
    edit_json(
        run / "run.json", lambda content: content["stages"][0]["files"].update({f"model/{weights.name}": sha256_of(weights)})
    )
    return tree.stage("KD"), "was trained on other files than are there now of"


def preprocessing(tree: Tree) -> tuple[Path, str]:
    path = tree.stage("KD").parent / "model/open_clip_config.json"
    path.write_text(path.read_text() + " ")
    return path, "stage.json"


def shard(tree: Tree) -> tuple[Path, str]:
    path = tree.home / "data" / "emoji_scenes" / "train" / "000000.tar"
    raw = bytearray(path.read_bytes())
    raw[515] ^= 1  # of the first member's content
    path.write_bytes(bytes(raw))
    return path, "manifest.json says"


def shard_index(tree: Tree) -> tuple[Path, str]:
    """Two images change places in the index: each would be read under the caption of the other."""
    path = tree.home / "data" / "emoji_scenes" / "train" / "000000.index.json"
    edit_json(path, lambda content: content["images"].reverse())
    return path, "states another place for a than the tar"


def classes(tree: Tree) -> tuple[Path, str]:
    directory = tree.home / "data" / "emoji_scenes"
    edit_json(directory / "classes.json", lambda content: content["classes"].append("cow"))
    return directory / "manifest.json", "one of the two files was changed"


def stranger(tree: Tree) -> tuple[Path, str]:
    path = tree.home / "metrics" / "KD" / "7.json"
    shutil.copy(tree.metric_file("KD"), path)
    edit_json(path, lambda content: content.update(seed=7))
    return path, "that is no run and seed of this experiment"


def double(tree: Tree) -> tuple[Path, str]:
    path = tree.home / "metrics" / "Copy" / "0.json"
    path.parent.mkdir()
    shutil.copy(tree.metric_file("KD"), path)
    return path, f"so does {tree.metric_file('KD')}"


def other_evaluation(tree: Tree) -> tuple[Path, str]:
    edit_yaml(tree.file, lambda content: content["evaluation"]["vqa"].update(epochs=9))
    return tree.metric_file("KD"), "was evaluated with other settings"


def other_schedule(tree: Tree) -> tuple[Path, str]:
    edit_yaml(tree.file, lambda content: content["schedules"]["standard"][0].update(lr=0.5))
    return tree.metric_file("KD"), "but the experiment's are"


BREAKAGES: list[Callable[[Tree], tuple[Path, str]]] = [
    metric_value, truncated_arrays, missing_metrics, table_value, table_text, printed_number, macro, document,
    no_parents, lost_cell, two_data, trained_on_other_data, two_codes, two_evaluations, missing_stage,
    missing_teacher_pyramid, settings, weights, student, trained_again, teacher_trained_again,
    preprocessing, shard_index, shard, classes, stranger, double,
    other_evaluation, other_schedule,
]  # fmt: skip
