"""Who has locked a folder: told from made-up process tables, and from a real process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cmapkd.drivers import Drivers, look, told


def process(proc: Path, number: int, cwd: Path, *words: str) -> None:
    folder = proc / str(number)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
    (folder / "cwd").symlink_to(cwd)


def lock(folder: Path) -> None:
    path = folder / ".snakemake/locks/0.output.lock"
    path.parent.mkdir(parents=True)
    path.touch()


def test_a_driver_is_a_snakemake_of_this_folder_and_none_of_its_jobs(tmp_path: Path) -> None:
    here, proc = tmp_path / "here", tmp_path / "proc"
    here.mkdir()
    process(proc, 11, here, "/env/bin/python", "/env/bin/snakemake", "--profile", "slurm")
    process(proc, 12, here, "/env/bin/python", "-m", "snakemake", "--mode", "remote")
    process(proc, 13, tmp_path, "/env/bin/python", "/env/bin/snakemake")
    process(proc, 14, here, "tail", "-f", "driver.log")
    process(proc, 15, here, "/env/bin/python", "/env/bin/snakemake", "-n")
    process(proc, 16, here, "python", "-m", "snakemake")
    assert look(here, proc) == Drivers(False, (11, 16))


def test_the_message_names_the_process_or_how_to_unlock(tmp_path: Path) -> None:
    assert told(look(tmp_path, tmp_path)) == ""
    lock(tmp_path)
    left = told(look(tmp_path, tmp_path / "proc"))
    assert "--unlock" in left and "squeue --me" in left
    process(tmp_path / "proc", 11, tmp_path, "python", "-m", "snakemake")
    running = told(look(tmp_path, tmp_path / "proc"))
    assert "process 11 of this machine" in running and "--unlock" not in running


def test_a_real_process_is_seen(tmp_path: Path) -> None:
    if not Path("/proc/self/cwd").exists():
        return
    program = tmp_path / "snakemake"
    program.write_text("print(flush=True)\ninput()\n")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(program)], cwd=tmp_path, **pipes) as started:
        try:
            assert started.stdout is not None
            started.stdout.readline()  # from here on it is this program, and not yet a copy of us
            assert look(tmp_path).processes == (started.pid,)
        finally:
            started.kill()
    assert look(tmp_path).processes == ()
