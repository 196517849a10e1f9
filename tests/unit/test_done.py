"""The last line of a run names files that exist, and of them those that were asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Any

import pytest

from cmapkd.done import say_what_was_made


def run(home: Path, targets: list[str], outputs: list[str], missing: tuple[str, ...] = ()) -> Any:
    """A run of jobs with these outputs, all of which exist but the missing ones."""
    for name in set(outputs) - set(missing):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    last = Any(output=[], input=[f"{home}/{name}" for name in targets])
    return Any(jobs=[last, *(Any(output=[f"{home}/{name}"], input=[]) for name in outputs)], targetjobs=[last])


def said(home: Path, dag: Any, capsys: pytest.CaptureFixture[str], latex: bool = True) -> list[str]:
    say_what_was_made(str(home), latex, dag)
    return [line for line in capsys.readouterr().err.replace(str(home), "HOME").splitlines() if line]


PAPER = ["paper/paper.tex", "paper/paper.pdf", "paper/manuscript.pdf"]


def test_the_whole_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(tmp_path, run(tmp_path, PAPER, [*PAPER, "paper/table2.json"]), capsys)
    assert lines[0] == "Done: HOME/paper/paper.pdf and HOME/paper/manuscript.pdf"
    origin = "A number's origin: cmapkd trace table2 Teacher i2t_r1 --experiment HOME/experiment.yaml"
    assert lines[1].startswith(origin)
    assert said(tmp_path, run(tmp_path, PAPER[:2], PAPER[:2]), capsys) == ["Done: HOME/paper/paper.pdf"]


def test_a_part_is_named_even_where_an_older_paper_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, PAPER, [*PAPER, "paper/table2.json"])
    part = ["data/emoji_scenes/manifest.json"]
    assert said(tmp_path, run(tmp_path, part, part), capsys) == ["Done: HOME/data/emoji_scenes/manifest.json"]
    several = [f"contact/{number}.png" for number in range(5)]
    shown = "HOME/contact/0.png, HOME/contact/1.png, HOME/contact/2.png and 2 more"
    assert said(tmp_path, run(tmp_path, several, several), capsys) == [f"Done: {shown}"]


def test_what_does_not_exist_is_not_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dag = run(tmp_path, PAPER, PAPER, missing=("paper/manuscript.pdf",))
    assert said(tmp_path, dag, capsys) == ["Done: HOME/paper/paper.pdf"]
    assert said(tmp_path, run(tmp_path, ["x.json"], ["x.json"], missing=("x.json",)), capsys) == []


def test_without_latex_the_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(tmp_path, run(tmp_path, PAPER[:1], PAPER[:1]), capsys, latex=False)
    assert line.startswith("Done: HOME/paper/ (LaTeX")
