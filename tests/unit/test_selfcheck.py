"""`cmapkd selfcheck`: what passes, what fails, and what is only not here."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cmapkd import selfcheck
from cmapkd.cli import app
from cmapkd.errors import UserError
from cmapkd.selfcheck import CHECKS, Missing, check_drawing, check_tex, check_versions, parse_lock

SLOW = ("imports", "distributed", "gpu")  # they import torch, which the image's own test does


def test_a_lock_is_read_as_pip_reads_it() -> None:
    text = (
        "# a comment\n--only-binary :all:\nPyYAML==6.0.4 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nruff==0.1 # why\n\n"
    )
    assert parse_lock(f"{text}open_clip_torch==3.3.0\n") == {
        "pyyaml": "6.0.4", "ruff": "0.1", "open-clip-torch": "3.3.0",
    }  # fmt: skip


def test_versions_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"NumPy=={metadata.version('numpy')}\n")
    assert check_versions(lock) == "1 packages as in requirements.lock"
    lock.write_text("numpy==0.0.1\nno_such-package==2\n")
    with pytest.raises(ValueError, match=r"2 of 2 .*numpy \S+ instead of 0\.0\.1, no-such-package missing instead of 2"):
        check_versions(lock)
    with pytest.raises(Missing):
        check_versions(tmp_path / "none.lock")


def test_drawing_passes_and_a_wrong_colour_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "SVG to pixels" in check_drawing(Path())
    import resvg_py

    right = resvg_py.svg_to_bytes
    monkeypatch.setattr(resvg_py, "svg_to_bytes", lambda svg_string: right(svg_string=svg_string.replace("#f00", "#00f")))
    with pytest.raises(ValueError, match="red square"):
        check_drawing(Path())


def test_latex_that_is_not_here_is_skipped_unless_it_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="pdflatex, kpsewhich are not here"):
        check_tex(Path())
    others = [name for name in CHECKS if name != "tex"]
    assert [outcome.state for outcome in selfcheck.selfcheck(others)] == ["skipped"]
    assert [outcome.state for outcome in selfcheck.selfcheck(others, require=["tex"])] == ["failed"]


def test_a_failure_ends_with_a_code_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setitem(CHECKS, "versions", broken)
    without = [word for name in (*SLOW, "tex") for word in ("--without", name)]
    done = CliRunner().invoke(app, ["selfcheck", *without])
    assert done.exit_code == 1
    assert "failed   versions     OSError: the disk is gone" in done.output
    assert "passed   drawing" in done.output
    assert "failed: versions" in done.output


def test_an_unknown_check_is_refused() -> None:
    done = CliRunner().invoke(app, ["selfcheck", "--without", "texx"])
    assert isinstance(done.exception, UserError)
    assert "tex" in str(done.exception)


def test_the_module_imports_no_torch() -> None:
    import subprocess

    code = "import sys, cmapkd.selfcheck, cmapkd.image\nassert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
