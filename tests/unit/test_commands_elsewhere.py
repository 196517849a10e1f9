"""Commands that messages print work where the message appeared: in another folder, for results elsewhere, for kept results."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import page_examples
import pytest
import typer.main
from snakemake.cli import parse_config
from synthetic_results import Tree, experiment_of, write_tree
from typer.testing import CliRunner

from cmapkd import commands, workflow_text
from cmapkd.cli import app
from cmapkd.cli.options import dataset_named
from cmapkd.done import say_what_was_made
from cmapkd.errors import UserError
from cmapkd.paper.markdown import keep_results
from cmapkd.paper.verify import verify

REPOSITORY = Path(__file__).parents[2]
PAPER = {"tables": ["table1", "table2", "table5"], "figures": ["figure3"]}
COMMAND = re.compile(r"`((?:cmapkd|snakemake) [^`]+)`|(?:^|(?<=[\s:]))((?:snakemake --|cmapkd [a-z]).*)$", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Complete results on another disk, the experiment's file with them."""
    return write_tree(tmp_path_factory.mktemp("größere Platte") / "alle Ergebnisse", experiment_of(paper=PAPER))


@pytest.fixture(scope="module")
def kept(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept of it."""
    home = tmp_path_factory.mktemp("gehütete") / "smoke"
    keep_results(tree.context, home)
    return home


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test runs in a folder that is no clone, with a space and a letter that ASCII lacks."""
    folder = tmp_path / "ein Ördner"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))
    yield folder
    commands.forget()


def said(*words: str) -> str:
    """What a command prints, or the message that refuses it; any other error is one of the test."""
    done = CliRunner().invoke(app, list(words))
    if isinstance(done.exception, UserError):
        return commands.completed(str(done.exception), dataset=dataset_named(done.exception))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def printed(text: str) -> list[list[str]]:
    """Commands of a message as arguments. What a result records of its own making is no advice."""
    lines = "\n".join(line for line in text.splitlines() if not line.strip().startswith("command: "))
    return [shlex.split(match[1] or match[2]) for match in COMMAND.finditer(lines)]


def check(found: Iterable[list[str]]) -> set[str]:
    """Every command parses, names files that are there, and Snakemake can make its targets; returns which programs."""
    asked: dict[tuple[str, ...], list[str]] = {}
    seen = set()
    for words in found:
        seen.add(words[0])
        named = [words[at + 1] for at, word in enumerate(words) if word in ("--experiment", "--configfile", "--snakefile")]
        assert all(Path(name).is_file() for name in named), words
        if words[0] == "cmapkd":
            page_examples.parse(words)
        else:
            head, targets = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
            asked.setdefault(tuple(head), []).extend(targets)
    for head, targets in asked.items():
        dry = [sys.executable, "-m", *head, "--dry-run", "--quiet", *(["--", *dict.fromkeys(targets)] if targets else [])]
        done = subprocess.run(dry, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(dry)}\n{done.stdout}{done.stderr}"
    return seen


# ---- results on another disk ----------------------------------------------------------------------------------------------


def test_commands_of_a_number_s_origin_recompute_it(tree: Tree) -> None:
    where = ["--experiment", str(tree.file), "--results", str(tree.home.parent)]
    found = printed(said("trace", "table2", "CMAPKD", "i2t_r1", *where))
    assert ["cmapkd", "evaluate", "CMAPKD/0", *where] in found
    assert len(found) > 6
    assert check(found) == {"cmapkd", "snakemake"}


def test_commands_of_problems_mend_them(tree: Tree, tmp_path: Path) -> None:
    home = tmp_path / "noch eine Platte" / "smoke"
    shutil.copytree(tree.home, home)
    for name in ("data/emoji_scenes/train/000000.tar", "metrics/KD/0.npz", "runs/CMAPKD/0/run.json", "paper/table2.tex"):
        (home / name).unlink()
    (home / "paper" / "figure3.pdf").write_bytes(b"%PDF")
    for stage in (home / "stages").iterdir():
        (stage / "stage.json").unlink()
    found = [printed(problem.fix) for problem in verify(home).problems]
    assert len(found) > 8
    assert all(found)
    assert check(words for fix in found for words in fix) == {"cmapkd", "snakemake"}


WITHOUT_RESULTS = [
    "compare KD CMAPKD", "paper", "paper all", "paper table table2", "paper document", "paper keep kept",
    "trace table2 KD i2t_r1", "export KD/0 --to made", "report run KD/0 page.html", "report data emoji_scenes page.html",
    "collect KD/0", "evaluate KD/0", "evaluate Teacher/0", "gate", "tune KD", "data contact emoji_scenes test_render",
    "data verify emoji_scenes",
]  # fmt: skip


def test_without_results_every_command_prints_what_makes_its_inputs(tmp_path: Path) -> None:
    empty = tmp_path / "leer é"
    empty.mkdir()
    found = []
    for line in WITHOUT_RESULTS:
        text = said(*line.split(), "--experiment", str(REPOSITORY / "config" / "mini.yaml"), "--results", str(empty))
        assert "\n  fix: " in text, line
        asked = [words for words in printed(text) if words[0] == "snakemake" and f"results={empty}" in words]
        assert asked, text
        found += asked
    check(found)
    assert list(empty.iterdir()) == []


def test_trainings_without_data_print_what_makes_them(tmp_path: Path) -> None:
    where = ["--experiment", str(REPOSITORY / "config" / "smoke.yaml"), "--results", str(tmp_path)]
    stage = next(line.split()[1] for line in said("plan", *where).splitlines() if "CMAPKD" in line)
    text = said("train", stage, *where)
    assert "the data set has not been built" in text
    assert check(printed(text)) == {"snakemake"}


def test_a_model_card_s_commands_are_for_a_clone(tree: Tree) -> None:
    """Whoever reads it has neither our folders nor our working directory."""
    command = commands.snakemake(
        ["a/b.json"], Path("results/a/experiment.yaml"), commands.RESULTS, force=False, in_project=True
    )
    assert command == "snakemake --cores all --configfile results/a/experiment.yaml -- results/a/b.json"


def test_the_last_lines_of_the_workflow_name_its_results(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(tree.context.paper / "table2.json")
    job = SimpleNamespace(output=[table], input=[])
    say_what_was_made(str(tree.home), True, SimpleNamespace(jobs=[job], targetjobs=[job]))
    found = printed(capsys.readouterr().err)
    assert check(found) == {"cmapkd"}
    assert "table2 / Teacher / i2t_r1 = " in said(*found[0][1:])


def test_refusals_of_the_workflow_name_its_experiment() -> None:
    error = UserError(key="tuned", reason="is missing", fix="run `cmapkd tune`, or take the key out")
    text = workflow_text.refusal(error, [Path("/a b/c.yaml")], "/d e")
    assert "`cmapkd tune --experiment '/a b/c.yaml' --results '/d e'`, or" in text


@pytest.mark.parametrize("name", ["7", "1e3", "true", "nan", "a: b", "a #b", "[x]", "ü é", "it's", '"q"', "- a", "a=b", "~x"])
def test_snakemake_reads_the_folder_of_results_as_it_is_named(name: str, tmp_path: Path) -> None:
    """It takes values of its configuration for numbers, truth values or YAML where it can."""
    folders = [tmp_path / name, REPOSITORY / name]
    for folder in folders:
        words = shlex.split(commands.snakemake(["a"], None, folder))
        value = parse_config([words[words.index("--config") + 1]])["results"]
        assert value == (name if folder.parent == REPOSITORY else str(folder))


# ---- kept results ---------------------------------------------------------------------------------------------------------


def test_kept_results_are_made_where_the_workflow_makes_them(kept: Path) -> None:
    where = ["--experiment", str(kept / "experiment.yaml"), "--results", str(kept.parent)]
    found = []
    for words in (("trace", "table2", "CMAPKD", "i2t_r1"), ("compare", "KD", "CMAPKD"), ("paper",)):
        text = said(*words, *where)
        assert any(command[0] == "snakemake" for command in printed(text)), text
        assert words[0] == "trace" or "these are kept results, without per-query arrays" in text
        found += printed(text)
    check(found)
    targets = [word for command in found if "--" in command for word in command[command.index("--") + 1 :]]
    assert all(target.startswith("results/smoke/") for target in targets)
    assert not any("--config" in command for command in found)


# ---- in a clone -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone, with a folder in it."""
    root = tmp_path / "mein Klön"
    shutil.copytree(REPOSITORY / "config", root / "config")
    (root / "workflow").mkdir()
    (root / "workflow" / "Snakefile").touch()
    (root / "docs" / "inner").mkdir(parents=True)
    return root


def test_the_project_is_found_from_its_folders(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_root = None
    for place, up in ((clone, ""), (clone / "docs" / "inner", "../../")):
        monkeypatch.chdir(place)
        text = said("plan")
        at_root = at_root or text
        assert text == at_root
        assert "trainings; and" in text
        text = said("evaluate", "CMAPKD/0")
        assert text.startswith(f"{up}results/mini/runs/CMAPKD/0/run.json: is missing")
        options = f"--snakefile {up}workflow/Snakefile --directory ../.. " if up else ""
        assert (
            f"snakemake {options}--cores all --configfile {up}config/mini.yaml -- results/mini/runs/CMAPKD/0/run.json" in text
        )
    missing = said("plan", "-e", "config/smoke.yaml")
    assert "fix: name it from here: ../../config/smoke.yaml" in missing
    (place / "results").mkdir()
    assert said("evaluate", "CMAPKD/0", "--results", "results").startswith("results/mini/")  # as it was given


def test_outside_of_any_clone_one_is_named() -> None:
    for words in (("plan",), ("evaluate", "CMAPKD/0"), ("verify",), ("paper",), ("paper", "all")):
        text = said(*words)
        assert "is in no clone of this repository" in text
        assert "run this in a clone, or name the experiment with --experiment" in text


def test_results_that_a_link_leads_to_are_the_project_s(clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (clone / "results").symlink_to(tmp_path / "scratch")
    monkeypatch.chdir(clone)
    assert commands.snakemake(["a"], None, clone / "results") == "snakemake --cores all --force -- results/a"
    assert commands.snakemake(["a"], None, Path("out")).endswith("--config results=out -- out/a")


# ---- wrong names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("plan", "-e", "config/smok.yaml"), "did you mean 'config/smoke.yaml'?"),
        (("plan", "-e", "confg/smoke.yaml"), "did you mean 'config/smoke.yaml'?"),
        (("plan", "-e", "config/smoke"), "did you mean 'config/smoke.yaml'?"),
        (("plan", "-e", "smoke.yaml"), "did you mean 'config/smoke.yaml'?"),
        (("config", "check", "config/papr.yaml"), "did you mean 'config/paper.yaml'?"),
        (("verify", "results/mino"), "did you mean 'results/mini'?"),
        (("verify", "result/mini"), "did you mean 'results/mini'?"),
        (("compare", "results/mino:KD", "KD"), "did you mean 'results/mini'?"),
        (("trace", "table2", "KD", "i2t_r1", "--results", "reslts"), "did you mean 'results'?"),
        (("data", "build", "emoji_scene"), "did you mean 'emoji_scenes'?"),
        (("data", "contact", "emoji", "test"), "did you mean 'emoji_scenes'?"),
        (("data", "verify", "emoji"), "did you mean 'emoji_scenes'?"),
        (("report", "data", "emoji", "x"), "did you mean 'emoji_scenes'?"),
        (("evaluate", "CMAPK/0"), "did you mean 'CMAPKD/0'?"),
        (("collect", "CMAPKD"), "did you mean 'CMAPKD/0'?"),
        (("tune", "CMAPK"), "did you mean 'CMAPKD'?"),
        (("train", "CMAPKD/0"), "run `cmapkd train coarse-"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_names_get_the_nearest(words: tuple[str, ...], hint: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "results" / "mini").mkdir(parents=True)
    shutil.copy(clone / "config" / "mini.yaml", clone / "results" / "mini" / "experiment.yaml")
    monkeypatch.chdir(clone)
    assert hint in said(*words)


def test_results_that_are_not_there_are_not_suggested(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    text = said("verify", "results/mino")
    assert "results/mini" not in text
    assert "make results first: snakemake --cores all" in text
    assert "--cores all --configfile config/smoke.yaml" in said("verify", "results/smoke")


def test_a_wrong_stage_gets_three_and_the_command_that_lists_all(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    text = said("train", "foo")
    assert re.search(r"the nearest of 41 are (\S+-[0-9a-f]{12}(, )?){3}; `cmapkd plan` lists all", text), text
    stage = next(line.split()[1] for line in said("plan").splitlines() if "coarse" in line)
    assert f"did you mean '{stage}'?" in said("train", stage[:-1])


def test_mistakes_in_yaml_name_the_file(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    for content in ("name: [1\n", "name: \x00\n", "a:\n\tb: 1\n"):
        Path("config/own.yaml").write_text(content)
        text = said("plan", "-e", "config/own.yaml")
        assert "unicode string" not in text
        assert 'in "config/own.yaml"' in text
    assert "is not valid YAML" in said("plan", "--change", "runs.KD.lr_scale=[1")


# ---- messages of code that knows only part of a command --------------------------------------------------------------------


def test_commands_get_what_the_running_one_was_given() -> None:
    given = {"--experiment": Path("a b.yaml")}
    assert (
        commands.completed("run `cmapkd data overlap` first", given)
        == "run `cmapkd data overlap --experiment 'a b.yaml'` first"
    )
    for text in ("run `cmapkd image build`", "`cmapkd plan --experiment x`", "`cmapkd verify results/a`", "no command"):
        assert commands.completed(text, given) == text
    assert "`cmapkd data build 'my own'` (again)" in commands.completed("run `cmapkd data build` (again)", {}, "my own")


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("dataset", "/r/paper/data/flickr30k", "flickr30k"),
        ("shard", "x/paper/data/coco/train/000000.tar", "coco"),
        ("coco_captions: root", "/data/photos", "coco"),  # the first of that source
        ("sample", "/data/photos/a.tar:b", None),
        ("dataset", "/r/paper/data/cocoa", None),
    ],
)
def test_commands_of_one_data_set_name_it(key: str, value: str, name: str | None) -> None:
    commands.remember("--experiment", REPOSITORY / "config" / "paper.yaml")
    error = UserError(key=key, value=value, reason="is wrong", fix="run `cmapkd data build` (again)")
    assert dataset_named(error) == name
    assert commands.completed(error.fix, {}, name) == f"run `cmapkd data build{f' {name}' if name else ''}` (again)"
    commands.remember_dataset("vqa")
    assert dataset_named(error) == "vqa"


def test_the_list_of_commands_with_options_is_that_of_the_command_line() -> None:
    def walk(command: object, name: str) -> Iterator[str]:
        inner = getattr(command, "commands", {})
        takes = {option for parameter in getattr(command, "params", ()) for option in parameter.opts}
        if {"--experiment", "--results"} <= takes:
            yield name
            return  # what `paper` takes, its sub-commands do
        for own, child in inner.items():
            yield from walk(child, f"{name} {own}".strip())

    assert sorted(walk(typer.main.get_command(app), "")) == sorted(commands.TAKE_OPTIONS)


def test_every_command_in_the_text_of_a_message_exists() -> None:
    found = set()
    for path in sorted((REPOSITORY / "cmapkd").rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {node.value for node in ast.walk(module) if isinstance(node, ast.Expr)}
        parts = {part for node in ast.walk(module) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(module):
            if node in documentation or node in parts:
                continue
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            found |= set(commands.NAMED.findall(text))
    assert len(found) > 15
    for command in sorted(found):
        page_examples.command_of(shlex.split(command))
        assert "<" not in command, command
