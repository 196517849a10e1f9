"""Paths that a user configures: what they become, what is refused and how, and what is written."""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_examples import classes
from config_examples import experiment as raw
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.config import load_experiment, parse_experiment
from cmapkd.config.load import effective_text
from cmapkd.config.paths import missing_folders, path_keys, paths_of, require_folders
from cmapkd.data.sources import build_source
from cmapkd.errors import UserError
from cmapkd.paths import VARIABLES, ResolvedPath, cache, home, names_path, portable, resolve
from cmapkd.plan import make_plan
from cmapkd.provenance import command_line
from cmapkd.start import check_files
from cmapkd.workflow import dataset_params, overlap_params, write_effective

REPOSITORY = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "addresses.json"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder and a working directory of the test's own, and none of the variables that paths may start from."""
    for name in (*VARIABLES, "CMAPKD_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("Ümit's home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "Ümit's home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def experiment(**datasets: dict[str, Any]) -> dict[str, Any]:
    content = raw()
    content["datasets"] = {**content["datasets"], **datasets}
    return content


def own(root: str, **keys: Any) -> dict[str, Any]:
    return {"source": "own", "root": root, **keys}


def test_what_a_path_becomes(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("USER", "me")
    user, work = machine / "Ümit's home", machine / "work"
    expected = {
        "~": user,
        "~/": user,
        "~/daten/Bücher und Bilder": user / "daten/Bücher und Bilder",
        "$HOME/x": user / "x",
        "${HOME}/x": user / "x",
        "$SCRATCH/a": Path("/scratch/me/a"),
        "${SCRATCH}a": Path("/scratch/mea"),
        "/data/$USER/a": Path("/data/me/a"),
        "a/./b//c": work / "a/b/c",
        "../store": machine / "store",
        "/": Path("/"),
        "a~b/5$": work / "a~b/5$",
    }
    assert {text: resolve(text, "key") for text in expected} == expected
    monkeypatch.setenv("HOME", "/home/$SCRATCH")
    assert resolve("~/x", "key") == Path("/home/$SCRATCH/x"), "what a variable holds is not expanded again"


def test_a_folder_above_a_link_is_that_of_its_target(machine: Path) -> None:
    (machine / "far/away").mkdir(parents=True)
    (machine / "work/link").symlink_to(machine / "far/away")
    assert resolve("link/../x", "key") == machine / "far/x"
    assert resolve("link/x", "key") == machine / "work/link/x", "what is configured is bound under its own name"
    (machine / "store").symlink_to(machine / "far")
    assert resolve("../store", "key") == machine / "store"
    # In a container, a link that nothing but `..` goes through is not there.
    texts = {"link/../x": f"{machine}/far/x", "../store/x": "../store/x", "../../x": "../../x", "a..b/..c": "a..b/..c"}
    assert {text: portable(ResolvedPath(resolve(text, "key"), text)) for text in texts} == texts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("$SCRATCH/x", "SCRATCH, which is not set"),
        ("${DATA}/x", "DATA, which is not set"),
        ("$WORK/x", "WORK, which is empty"),
        ("$MINE/x", "'MINE', which is not expanded"),
        ("${SCRATCH:-/tmp}/x", "'SCRATCH:-/tmp', which is not expanded"),
        ("~other/x", "another user"),
        ("/data/a:b", "cannot be bound into a container"),
        ("sets/a,b", "cannot be bound into a container"),
        ("$PROJECT/x", "holds ':'"),
        ("a\nb", "control character"),
        ("", "is empty"),
        ("  ", "is empty"),
    ],
)
def test_what_is_refused_by_key(text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORK", "")
    monkeypatch.setenv("PROJECT", "/secret:place")
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        resolve(text, "datasets.mine.root")
    assert str(caught.value).startswith(f"datasets.mine.root = {text!r}: ")
    assert "\n  fix: " in str(caught.value)
    assert "secret" not in str(caught.value), "the text is shown as configured, never what a variable holds"


def test_a_working_directory_may_have_any_name(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is below it is not bound by its own name."""
    odd = machine / "a,b:c"
    odd.mkdir()
    monkeypatch.chdir(odd)
    assert resolve("data", "key") == odd / "data"


def test_the_home_is_that_of_the_user_who_started_the_workflow(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, HOME is the checkout."""
    monkeypatch.setenv("CMAPKD_HOME", str(machine / "home"))
    monkeypatch.setenv("HOME", str(machine / "work"))
    assert resolve("~/data", "key") == resolve("$HOME/data", "key") == machine / "home/data"
    assert portable(machine / "home/data") == "~/data"
    assert cache() == machine / "home/.cache/cmapkd"


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(UserError, match="export HOME="):
        home()
    with pytest.raises(UserError, match=r"key = '~/x': needs HOME.*\n  fix: export HOME="):
        resolve("~/x", "key")
    assert resolve("/x", "key") == Path("/x"), "nothing else needs it"


def test_what_is_written(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("DATA", "/")
    user, work = machine / "Ümit's home", machine / "work"
    written = {work / "a/b": "a/b", work: ".", user / "x": "~/x", user: "~", Path("/scratch/me/x"): "/scratch/me/x"}
    assert {path: portable(path) for path in written} == written
    assert {path: resolve(text, "key") for path, text in written.items()} == {path: path for path in written}
    assert resolve(portable(work / "~x/y"), "key") == work / "~x/y"
    assert portable("/scratch/me/x", variables=True) == "$SCRATCH/x"
    assert portable("/scratch/me", variables=True) == "$SCRATCH"
    assert portable("/scratch/menu", variables=True) == "/scratch/menu"
    for text in ("~/a", "$SCRATCH/a", "../a", "a/./b"):
        assert portable(ResolvedPath(resolve(text, "key"), text)) == text, "as configured, where that holds on other machines"


def test_a_resolved_path_survives_copies(machine: Path) -> None:
    path = ResolvedPath("/home/me/x", "~/x")
    for copied in (pickle.loads(pickle.dumps(path)), copy.deepcopy(path)):  # noqa: S301 - our own bytes
        assert (copied, copied.configured, type(copied)) == ("/home/me/x", "~/x", ResolvedPath)


def test_an_experiment_has_absolute_paths_and_writes_portable_ones(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    user, work = machine / "Ümit's home", machine / "work"
    content = experiment(
        a=own("~/ä b"),
        b=own(f"{work}/sets", table="list.csv"),
        c=own("../store", table="~/list.csv"),
        v={"source": "vqav2", "root": "$SCRATCH/vqa", "images": f"{user}/coco"},
    )
    content |= {"student": {"model": "mini-student", "init": "~/w.pt"}, "paper": {"manuscript": "paper/other.tex"}}
    read = parse_experiment(content)
    found = {key: (str(path), path.configured) for key, path in paths_of(read)}
    assert found == {
        "datasets.a.root": (f"{user}/ä b", "~/ä b"),
        "datasets.b.root": (f"{work}/sets", f"{work}/sets"),
        "datasets.c.root": (f"{machine}/store", "../store"),
        "datasets.c.table": (f"{user}/list.csv", "~/list.csv"),
        "datasets.v.root": ("/scratch/me/vqa", "$SCRATCH/vqa"),
        "datasets.v.images": (f"{user}/coco", f"{user}/coco"),
        "student.init": (f"{user}/w.pt", "~/w.pt"),
        "paper.manuscript": (f"{REPOSITORY}/paper/other.tex", "paper/other.tex"),
    }
    written = read.model_dump(mode="json")
    sets = written["datasets"]
    assert [sets["a"]["root"], sets["b"]["root"], sets["c"]["root"]] == ["~/ä b", "sets", "../store"]
    assert [sets["b"]["table"], sets["c"]["table"]] == ["list.csv", "~/list.csv"]
    assert [sets["v"]["root"], sets["v"]["images"]] == ["$SCRATCH/vqa", "~/coco"]
    assert (written["student"]["init"], written["paper"]["manuscript"]) == ("~/w.pt", "paper/other.tex")
    # What is kept with the results is the same experiment, and writes the same again.
    write_effective(read, work / "results/x/experiment.yaml")
    again = load_experiment(work / "results/x/experiment.yaml")
    assert again == read
    assert effective_text(again.model_dump(mode="json")) == (work / "results/x/experiment.yaml").read_text()
    assert str(machine) not in (work / "results/x/experiment.yaml").read_text()
    assert list(make_plan(again).stages) == list(make_plan(read).stages)


def test_every_key_of_a_path_is_marked_as_one() -> None:
    """Whoever adds a key that names a file or folder is reminded of its type."""
    others = {  # names of files in folders of the repository, columns of tables, and keys that only speak of a file
        "TeacherConfig.model", "StudentConfig.model", "TrainingConfig.deepspeed",
        "OwnConfig.image_column", "OwnConfig.label_column", "PaperConfig.planned", "PaperConfig.title",
        "CocoCaptionsConfig.partition", "Flickr30kConfig.partition", "PublicConfig.upright", "EvaluationConfig.validation",
        "TrainingConfig.nan_retries", "TrainingConfig.oom_retries",
    }  # fmt: skip
    told, marked = set(), set()
    for model in dict.fromkeys(classes()):
        for key, field in model.model_fields.items():
            name = f"{next(base for base in model.__mro__ if key in inspect.get_annotations(base)).__name__}.{key}"
            if re.search(r"\b(file|folder|directory|path|\w+\.(json|yaml|pdf|csv|txt))\b", field.description or ""):
                told.add(name)
            if key in path_keys(model):
                marked.add(name)
    assert marked == {
        "ExperimentConfig.extends", "ExperimentConfig.data_root", "ExperimentConfig.tuned", "TeacherConfig.pretrained",
        "StudentConfig.init", "PaperConfig.manuscript", "PublicConfig.root", "Vqav2Config.images", "OwnConfig.table",
    }  # fmt: skip
    assert told == marked | others


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data_root": "$SCRATCH/sets"}, "data_root"),
        ({"datasets": {"mine": own("$SCRATCH/x")}}, "datasets.mine.root"),
        ({"datasets": {"mine": {"source": "vqav2", "images": "~other/x"}}}, "datasets.mine.images"),
        ({"datasets": {"mine": own("x", table="$SCRATCH/x.csv")}}, "datasets.mine.table"),
        ({"teacher": {"model": "ViT-L-14", "pretrained": "$SCRATCH/x.pt"}}, "teacher.pretrained"),
        ({"student": {"model": "mini-student", "init": "weights,old/x.pt"}}, "student.init"),
        ({"tuned": "$SCRATCH/tuned.yaml"}, "tuned"),
        ({"extends": "$SCRATCH/mini.yaml"}, "extends"),
        ({"paper": {"manuscript": "$SCRATCH/a.tex"}}, "paper.manuscript"),
    ],
)
def test_a_wrong_path_is_named_by_its_key(change: dict[str, Any], key: str) -> None:
    content = raw()
    for name, value in change.items():
        content[name] = {**content[name], **value} if name == "datasets" else value
    with pytest.raises(UserError) as caught:
        parse_experiment(content)
    assert re.search(rf"(^|[ :]){re.escape(key)} = '", str(caught.value), flags=re.M), caught.value
    assert re.search("not set|another user|container", str(caught.value))


def test_tuned_values_of_a_base_elsewhere_are_written_portably(machine: Path) -> None:
    bases = machine / "Ümit's home/bases"
    bases.mkdir()
    (bases / "tuned.yaml").write_text("{runs: {KD: {complete: true, method: kd, values: {lr_scale: 2.0}}}}")
    (bases / "base.yaml").write_text(yaml.safe_dump({**raw(), "tuned": "tuned.yaml"}))
    file = machine / "work/mine.yaml"
    file.write_text(yaml.safe_dump({"extends": "~/bases/base.yaml", "name": "mine"}))
    read = load_experiment(file)
    assert read.tuned == str(bases / "tuned.yaml")
    assert (read.runs["KD"].lr_scale, read.model_dump()["tuned"]) == (2.0, "~/bases/tuned.yaml")
    # Of the repository's own experiments, which extend each other, the text is relative to the repository.
    assert load_experiment(REPOSITORY / "config/mini-extensions.yaml").model_dump()["tuned"] == "config/tuned/mini.yaml"


def test_tags_are_no_paths() -> None:
    named = {"openai": False, "random": False, "laion2b_s32b_b82k": False, "exported": False}
    named |= {"x.pt": True, "a/b": True, "./exported": True, "~": True, "$SCRATCH": True, "x.safetensors": True}
    assert {text: names_path(text) for text in named} == named


def test_a_source_reads_where_the_experiment_says(machine: Path) -> None:
    content = experiment(mine=own("~/mine"), coco={"source": "coco_captions"})
    read = parse_experiment(content).datasets
    assert build_source(read["mine"], cache()).root == machine / "Ümit's home/mine"
    assert build_source(read["coco"], cache()).root == machine / "Ümit's home/.cache/cmapkd/coco_captions"


def recorded() -> dict[str, dict[str, Any]]:
    found = {}
    for file in sorted((REPOSITORY / "config").glob("*.yaml")):
        if file.stem == "planned":
            continue
        read = load_experiment(file)
        data = {name: dataset_params(read, name)["config"] for name in read.datasets}
        overlap = overlap_params(read)["config"]
        found[file.stem] = {"addresses": sorted(make_plan(read).stages), "data": data, "overlap": overlap}
    return found


def test_no_address_and_no_digest_of_data_depends_on_the_machine(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded on another one. A change on purpose makes the file again; the changelog then says that results are lost."""
    assert recorded() == json.loads(RECORDED.read_text())
    monkeypatch.setenv("HOME", "/home/somebody")
    for name in VARIABLES[1:]:
        monkeypatch.setenv(name, "/home/somebody/data")
    assert recorded() == json.loads(RECORDED.read_text())


def test_weights_in_a_file_have_the_same_address_on_each_machine(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = set()
    for user in ("one", "two"):
        monkeypatch.setenv("HOME", f"/home/{user}")
        monkeypatch.setenv("SCRATCH", f"/home/{user}/scratch")
        for init in ("~/w.pt", f"/home/{user}/w.pt"):
            plan = make_plan(parse_experiment({**raw(), "student": {"model": "mini-student", "init": init}}))
            addresses |= set(plan.stages)
            assert {s.settings["init"] for s in plan.stages.values() if s.method == "pretrained"} == {"~/w.pt"}
    assert len(addresses) == len(plan.stages)


def test_a_variable_that_happens_to_be_set_changes_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses() -> list[str]:
        return list(make_plan(parse_experiment({**raw(), "student": {"model": "mini-student", "init": "/big/w.pt"}})).stages)

    before = addresses()
    monkeypatch.setenv("SCRATCH", "/big")
    assert addresses() == before


def test_folders_that_are_not_there(machine: Path) -> None:
    (machine / "work/there").mkdir()
    content = experiment(a=own("~/none"), b=own("there"), v={"source": "vqav2", "root": "there", "images": "/no/such/folder"})
    read = parse_experiment(content)
    assert [key for key, _ in missing_folders(read)] == ["datasets.a.root", "datasets.v.images"]
    require_folders(read, ["b"])
    with pytest.raises(UserError, match=r"^datasets.a.root = '~/none': is not there \(here .*/none\)\n  fix: ") as caught:
        require_folders(read, ["a"])
    assert str(machine) in str(caught.value)
    with pytest.raises(UserError) as caught:
        check_files(make_plan(read), str(machine / "work/results/x"))
    assert "2 folders are not there" in str(caught.value)
    assert "datasets.v.images = '/no/such/folder': is not there" in str(caught.value)
    for name in ("a", "v"):  # built already: what they were built from may be gone
        manifest = machine / "work/results/x/data" / name / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
    check_files(make_plan(read), str(machine / "work/results/x"))


def test_check_lists_folders_and_fetch_refuses(machine: Path) -> None:
    file = machine / "work/x.yaml"
    file.write_text(yaml.safe_dump(experiment(mine=own("~/none"))))
    checked = CliRunner().invoke(app, ["config", "check", str(file)])
    assert checked.exit_code == 0, checked.exception
    assert "1 folder of data is not there" in checked.stderr
    assert "datasets.mine.root = '~/none'" in checked.stderr
    fetched = CliRunner().invoke(app, ["data", "fetch", "mine", "--experiment", str(file)])
    assert isinstance(fetched.exception, UserError)
    assert fetched.exception.key == "datasets.mine.root"
    shown = CliRunner().invoke(app, ["data", "fetch", "mine", "--list", "--experiment", str(file)])
    assert shown.exit_code == 0, "what there is to fetch can be seen before the folder is made"


def test_weights_that_are_not_there_are_named_as_configured(machine: Path) -> None:
    file = machine / "work/x.yaml"
    file.write_text(yaml.safe_dump({**raw(), "student": {"model": "mini-student", "init": "~/w.pt"}}))
    checked = CliRunner().invoke(app, ["config", "check", str(file)])
    assert isinstance(checked.exception, UserError)
    assert str(checked.exception).startswith("student.init = '~/w.pt': there is no such file (here ")


def test_the_workflow_asks_for_weights_that_it_has_yet_to_read(machine: Path) -> None:
    results = machine / "work/results/x"
    for key, change in {
        "student.init": {"student": {"model": "mini-student", "init": "~/w.pt"}},
        "teacher.pretrained": {"teacher": {"model": "mini-teacher", "pretrained": "~/w.pt"}},
    }.items():
        plan = make_plan(parse_experiment({**raw(), **change}))
        with pytest.raises(UserError, match=rf"^{key} = '~/w.pt': there is no such file"):
            check_files(plan, str(results))
        address = next(address for address, stage in plan.stages.items() if stage.method == "pretrained")
        (results / "stages" / address).mkdir(parents=True)
        (results / "stages" / address / "stage.json").touch()
        check_files(plan, str(results))


def test_a_recorded_command_can_be_pasted(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, work = machine / "Ümit's home", machine / "work"
    monkeypatch.setenv("SCRATCH", "/scratch/my place")
    given = ["cmapkd", "x", f"{user}/a b", f"--out={user}/c", f"{work}/d", "/scratch/my place/e f", "/usr/g", "it's", "--n=1"]
    told = command_line(given)
    assert str(machine) not in told
    assert "my place" not in told
    pasted = subprocess.run(["sh", "-c", f"printf '%s\\n' {told}"], capture_output=True, text=True, check=True, env=os.environ)
    assert pasted.stdout.splitlines() == [word.replace(f"{work}/", "") for word in given]
    assert shlex.split(told)[0] == "cmapkd"
