"""Examples of README and documentation, run as they stand there, on the finished smoke experiment.

What the pages say of `mini` is done with `smoke`: the words `results/mini` and `config/mini.yaml` are replaced, and a command
that takes an experiment and names none gets that one.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.conftest import REPOSITORY, Checkout

sys.path.insert(0, str(REPOSITORY / "tests" / "unit"))
from page_examples import PAGES, Example, examples, takes_experiment, written

TUTORIAL = "docs/tutorial.md"
EXPERIMENT = "config/smoke.yaml"
BY_ENVIRONMENT = {".", "cd"}  # what a test's environment does for them
RUN = [example for page in PAGES for example in examples(page) if example.mark == "run"]


def as_smoke(words: list[str]) -> list[str]:
    """A command of a page, for the smoke experiment."""
    words = [word if word.startswith("docs/") else word.replace("results/mini", "results/smoke") for word in words]
    words = [EXPERIMENT if word == "config/mini.yaml" else word for word in words]
    if words[0] == "cmapkd":
        names_one = "--experiment" in words or "verify" in words  # verify finds it beside the results
        own = ["--experiment", EXPERIMENT] if takes_experiment(words) and not names_one else []
        return [sys.executable, "-m", *words, *own]
    if words[0] == "snakemake":
        own = ["--profile", "workflow/profiles/local", "--cores", "2"]
        return [*words, *own, *([] if "--configfile" in words else ["--configfile", EXPERIMENT])]
    return words


@pytest.fixture(scope="module")
def checkout(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A copy of the finished one that examples may write to, with the results that the repository keeps."""
    root = tmp_path_factory.mktemp("examples") / "checkout"
    shutil.copytree(finished.root, root, symlinks=True)
    shutil.copytree(REPOSITORY / "docs", root / "docs")
    yield Checkout(root)


@pytest.mark.parametrize("example", RUN, ids=str)
def test_examples_run(example: Example, checkout: Checkout) -> None:
    commands = [words for words in example.commands() if words[0] not in BY_ENVIRONMENT]
    assert commands
    for words in commands:
        assert words[0] in ("cmapkd", "snakemake"), f"{example}: mark it as skipped, or teach this test {words[0]}"
        done = checkout.run(*as_smoke(words), timeout=1800)  # `verify` alone takes ten minutes where others compute
        assert done.stdout + done.stderr
        if words[1] == "trace" and "--json" not in words:
            assert done.stdout.startswith("table2 / CMAPKD / i2t_r1 = ")
        if words[1] == "verify":
            kept = any(word.startswith("docs/results") for word in words)
            assert f"verified: {'what is here fits' if kept else 'every number is what its parents give'}" in done.stdout
    if any("--html" in words for words in commands):
        assert (checkout.root / "comparison.html").stat().st_size > 10_000


def test_the_method_of_the_tutorial_is_configured_and_trains(finished: Checkout, tmp_path: Path) -> None:
    copy = Checkout(tmp_path / "checkout")
    shutil.copytree(finished.root, copy.root, symlinks=True)
    shutil.copytree(REPOSITORY / "docs", copy.root / "docs")
    code = dict(written(TUTORIAL))
    methods = copy.root / "cmapkd/config/methods.py"
    text = methods.read_text()
    at = text.index("AnyMethod = Annotated[")
    text = f"{text[:at]}{code['cmapkd/config/methods.py']}\n\n{text[at:]}"
    text = text.replace("| CMAPKDConfig,\n", "| CMAPKDConfig | CosineConfig,\n")
    methods.write_text(text)
    (copy.root / "cmapkd/objectives/cosine.py").write_text(code["cmapkd/objectives/cosine.py"])
    experiment = copy.root / EXPERIMENT
    row = code[f"{EXPERIMENT}, under runs"]
    experiment.write_text(experiment.read_text().replace("\nevaluation:\n", f"{row}\nevaluation:\n", 1))

    after = [example for example in examples(TUTORIAL) if example.mark == "after the example"]
    assert len(after) == 1
    for words in after[0].commands():
        told = copy.run(*as_smoke(words)).stdout
    opened = [line for line in told.splitlines() if line.startswith("open")]
    assert len(opened) == 1, told
    assert opened[0].endswith("Cosine, seed 0: train")
    assert "| `weight` | number, ≥ 0 | `1` |" in (copy.root / "docs/methods/cosine.md").read_text()

    jobs = copy.planned()
    assert [job for job in jobs if job.startswith("Cosine") or "Cosine" in job]
    assert not [job for job in jobs if job.startswith(("KD, seed", "CMAPKD, seed", "Scratch, seed", "teacher"))], jobs
    address = opened[0].split()[1]
    copy.cmapkd("train", address)
    log = (copy.home / "stages" / address / "log.jsonl").read_text().splitlines()
    assert len(log) == 8
    assert '"cosine"' in log[-1]
