"""Names that a shell would take for commands, through the real workflow; and no secret in anything that it leaves."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import CANARY, Checkout, copy_repository

ODD = 'it\'s; touch evil & $(touch evil) `touch evil` "q" > evil'


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A copy of the repository in a folder of that name, with an experiment that has a run of that name."""
    checkout = copy_repository(tmp_path_factory.mktemp("odd") / ODD)
    experiment = yaml.safe_load((checkout.root / "config" / "smoke.yaml").read_text())
    experiment["runs"] = {ODD: {"method": "kd"}, "-rf": {"method": "scratch"}, **experiment["runs"]}
    experiment["export"] = [ODD]
    experiment["datasets"]["own"] = {"source": "own", "root": f"data/{ODD}", "splits": ["train"]}
    (checkout.root / "data" / ODD).mkdir(parents=True)  # a folder that is not there is refused at the start
    (checkout.root / "odd.yaml").write_text(yaml.safe_dump(experiment))
    yield checkout
    shutil.rmtree(checkout.root.parent, ignore_errors=True)


def snakemake(checkout: Checkout, *arguments: str, results: str, check: bool = True) -> str:
    (checkout.root / "results.yaml").write_text(yaml.safe_dump({"results": results}))
    options = ["--cores", "1", "--configfile", "odd.yaml", "results.yaml"]
    done = checkout.run("snakemake", *arguments[:-1], *options, "--", *arguments[-1:], check=check)
    return done.stdout + done.stderr


def test_every_shell_line_has_the_words_that_are_meant(odd: Checkout) -> None:
    told = snakemake(odd, "--dry-run", "--printshellcmds", "all", results=f"results {ODD}")
    lines = [line.partition("python -m cmapkd")[2] for line in told.splitlines() if "python -m cmapkd" in line]
    assert len(lines) > 20
    seen = set()
    for line in lines:
        words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
        operators = [word for word in words if set(word) <= set("();<>|&")]
        assert operators in ([">&", "|"], [">", "&", "|"]), line  # `2>&1 | tee`
        words = shlex.split(line[: line.rindex(" 2>&1 | tee")])
        assert words[words.index("--results") + 1] == f"results {ODD}"
        assert words[words.index("--experiment") + 1] == f"results {ODD}/smoke/experiment.yaml"
        seen.add(words[0])
    assert {"data", "train", "collect", "evaluate", "paper", "report", "export"} <= seen
    assert not list(odd.root.parent.rglob("evil"))


def test_a_job_runs_in_such_a_folder_and_nothing_else_does(odd: Checkout) -> None:
    results = f"results {ODD}"
    snakemake(odd, f"{results}/smoke/paper/algorithm1.json", results=results)
    assert (odd.root / results / "smoke" / "paper" / "algorithm1.json").is_file()
    assert not [path for path in odd.root.parent.rglob("*") if path.name == "evil"]


@pytest.mark.parametrize("name", ["-rf", "a{run}b", "a*"])
def test_folders_that_snakemake_or_a_program_would_misread_are_refused(name: str, odd: Checkout) -> None:
    told = snakemake(odd, "--dry-run", "all", results=name, check=False)
    assert "results = " in told
    assert "fix:" in told


def test_no_secret_of_the_environment_is_left_anywhere(finished: Checkout) -> None:
    files = [path for folder in ("results", ".snakemake") for path in (finished.root / folder).rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [str(path) for path in files if CANARY.encode() in Path(path).read_bytes()]
