"""Damaged JSON, refusing disks and interrupted locks: an explanation that names the file, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config_examples import CONFIG

from cmapkd.cli.ending import told_to_users
from cmapkd.errors import DamagedFileError, UserError
from cmapkd.files import parse_json, read_json, write_json
from cmapkd.training import memory, retries
from cmapkd.training.failures import FILE as FAILURES
from cmapkd.training.failures import Failures
from cmapkd.training.locks import FILE, StageLock, identity

REPOSITORY = CONFIG.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
BAD = {
    b"": "line 1",
    b'{"a": 1': "line 1",
    b'{\n"a": nul}': "line 2",
    b"[" * 200_000: "nested too deep",
    b'{"a": 1, "b": {"c": 1, "c": 2}}': "'c' is given twice",
    b'{"a": NaN}': "NaN",
    b'{"a": -Infinity}': "Infinity",
    b'{"a": 1e999}': "1e999",
    b'{"a": ' + b"1" * 5_000 + b"}": "digits",
    b'{"a": "\\ud800"}': "ud800",
    b'{"a": "\xff"}': "byte 8",
    b"\xff\xfe{\0}\0": "byte 1",
    b"[1]": "an object is expected, and it is a list",
    b"null": "an object is expected, and it is null",
    b'"text"': "an object is expected, and it is a text",
    b"{}": "the key 'a' is missing",
    b'{"a": "1"}': "'a' is not an integer",
    b'{"a": true}': "'a' is not an integer",
    b'{"a": null}': "'a' is not an integer",
}


@pytest.mark.parametrize("raw", BAD, ids=lambda raw: raw[:24].decode("latin-1"))
def test_a_damaged_json_file_is_named(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(DamagedFileError, match="is damaged") as error:
        read_json(tmp_path / "x.json", dict, a=int)
    assert BAD[raw] in error.value.reason
    assert error.value.key == str(tmp_path / "x.json") and error.value.fix
    assert isinstance(error.value, UserError) and isinstance(error.value, ValueError)
    assert type(pickle.loads(pickle.dumps(error.value))) is DamagedFileError  # noqa: S301 - our own


def test_good_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {"a": 1, "b": [0.1, 1e-300, None, True, "ё😀"], "c": {"a": {}}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json", a=int, b=list, c=dict) == content
    assert parse_json(b'\xef\xbb\xbf{"x": 2}', "x", x=float) == {"x": 2}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "y.json")


# ---- the operating system refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EISDIR, errno.ENOENT, errno.EIO]
)
def test_a_file_that_is_refused_is_told(number: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"), told_to_users():
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'x'}: cannot be used: ") and "fix: " in told
    assert ("MB are free" in told) == (number in FULL)


def test_mistakes_of_ours_keep_their_traceback() -> None:
    for error in (OSError(errno.ECONNREFUSED, "refused"), OSError("no number"), KeyError("x"), ValueError("x")):
        with pytest.raises(type(error)), told_to_users():
            raise error


def cmapkd(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cmapkd", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, **options)


def limited() -> None:
    """A disk on which no file can grow beyond 2 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))


def test_a_disk_that_takes_no_more_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    options = ("-e", "config/smoke.yaml", "--results", str(tmp_path))
    done = cmapkd("paper", "algorithm", "algorithm1", *options, preexec_fn=limited)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert str(tmp_path / "smoke" / "paper") in done.stderr and "MB are free" in done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["algorithm1.tex"]  # which was small enough


@pytest.mark.parametrize("place", ["/proc/1/x", "/dev/null/x", "{}/file/x", "{}/" + "n" * 300])
def test_a_folder_that_cannot_be_made_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = ("-e", "config/smoke.yaml", "--results", place.format(tmp_path))
    done = cmapkd("paper", "algorithm", "algorithm1", *options)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "cannot be used" in done.stderr and "fix: " in done.stderr


# ---- records of a training -----------------------------------------------------------------------------------------------


def stage_lock(directory: Path, **options: Any) -> StageLock:
    return StageLock(directory, "stage", wait=0.0, stale=60.0, poll=0.01, **options)


def test_a_lock_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path; from cmapkd.training.locks import StageLock\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "StageLock(Path(sys.argv[1]), 'stage', 0.0, 60.0).__enter__()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert "OSError: [Errno 27]" in done.stderr
    assert list(tmp_path.iterdir()) == []
    with stage_lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_taken_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with stage_lock(tmp_path) as held:
        assert read_json(tmp_path / FILE)["token"] == held.token
        with pytest.raises(UserError, match="is being trained"):
            stage_lock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_of_a_lock_is_removed_when_it_is_old(tmp_path: Path) -> None:
    for name, age in ((f".{FILE}.old", 1_000.0), (f".{FILE}.new", 0.0)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with stage_lock(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [f".{FILE}.new", FILE]


HERE: Callable[[], dict[str, Any]] = identity
LOCKS: dict[str, Callable[[], bytes]] = {
    "no pid": lambda: json.dumps({key: value for key, value in HERE().items() if key != "pid"}).encode(),
    "pid is text": lambda: json.dumps({**HERE(), "pid": "x"}).encode(),
    "pid is a list": lambda: json.dumps({**HERE(), "pid": [1]}).encode(),
    "deep": lambda: b"[" * 100_000,
    "empty": lambda: b"",
    "another form": lambda: b"[1, 2]",
    "not text": lambda: b"\xff\xff",
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_damaged_lock_ages_like_any_other(name: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(LOCKS[name]())
    with pytest.raises(UserError, match="is being trained"):
        stage_lock(tmp_path).__enter__()
    os.utime(tmp_path / FILE, (time.time() - 61,) * 2)
    with stage_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_beat_from_the_future_does_not_live_for_ever(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({**identity(), "host": "elsewhere", "token": "other"}))
    os.utime(tmp_path / FILE, (time.time() + 1e7,) * 2)
    waiting = StageLock(tmp_path, "stage", wait=30.0, stale=0.3, poll=0.05)
    with waiting:
        assert waiting.waited


REPORTS = [
    {"kind": "other"}, {}, {"kind": None}, {"kind": ["memory"]}, {"kind": "memory"},
    {"kind": "memory", "checkpoint": "x", "rank": 0, "host": "h", "reason": "r"},
]  # fmt: skip


@pytest.mark.parametrize("report", REPORTS, ids=str)
def test_damaged_records_of_failures_are_as_none(report: dict[str, Any], tmp_path: Path) -> None:
    for name, content in (("failed-00000.json", report), ("running.json", report), (FAILURES, {"failures": [report, 1, None]})):
        write_json(tmp_path / name, {"origin": "o", **content})
    failures = Failures(tmp_path, "o", "stage", 2)
    assert failures.gather() == []
    for raw in (b'{"origin": "o", "failures": null}', b"[1, 2, 3]", b"[" * 100_000, b""):
        (tmp_path / FAILURES).write_bytes(raw)
        assert failures.known() == []


def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    script = (
        "import time, typer, threading, os, signal\nfrom cmapkd.cli.ending import told_to_users\napp = typer.Typer()\n"
        "@app.command()\ndef wait():\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(30)\n"
        "with told_to_users():\n    app()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.startswith("error: interrupted") and "Traceback" not in done.stderr


@pytest.mark.parametrize("entry", [None, 1, {}, {"reason": "r"}, {"reason": "r", "accumulation": "x"}], ids=str)
def test_damaged_records_of_retries_are_named(entry: object, tmp_path: Path) -> None:
    for name in (memory.FILE, retries.FILE):
        write_json(tmp_path / name, {"origin": "o", "retries": [entry]})
    with pytest.raises(DamagedFileError, match=memory.FILE):
        memory.Halvings(tmp_path, "o", 2, "stage", 8, 1)
    with pytest.raises(DamagedFileError, match=retries.FILE):
        retries._read(tmp_path / retries.FILE, "o")


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(10**10)
    for name in ("pipe.json", "zero.json", "huge.json"):
        with pytest.raises(DamagedFileError, match=name):
            read_json(tmp_path / name)
    with pytest.raises(OSError):
        read_json(tmp_path)
