"""`cmapkd status` on made-up result trees, queues and processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cmapkd.config import load_experiment
from cmapkd.plan import Plan, make_plan
from cmapkd.site import Ask
from cmapkd.slurm import waiting
from cmapkd.status import Item, clock, own_processes, queue, status, tell

SMOKE = Path(__file__).parents[2] / "config/smoke.yaml"


def silent(command: Sequence[str]) -> str | None:
    """A machine without SLURM."""
    return None


@pytest.fixture
def plan() -> Plan:
    return make_plan(load_experiment(SMOKE))


@pytest.fixture
def home(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The smoke experiment with its data, the teacher trained, and nothing else; it is the working directory too."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "results/smoke"
    manifest = home / "data/emoji_scenes/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"splits": {"train": {"samples": 256}}}))
    finish(home, plan.teacher)
    return home


def finish(home: Path, address: str) -> None:
    (home / "stages" / address).mkdir(parents=True, exist_ok=True)
    (home / "stages" / address / "stage.json").write_text("{}")


def begin(home: Path, address: str, steps: int, rate: float = 64.0, said: str = "") -> Path:
    """A training that has written its log for so many steps of 32 samples."""
    folder = home / "stages" / address
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, "loss": 1.0, "samples_per_second": rate}) for step in range(steps)]
    (folder / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    log = home / "logs/train" / f"{address}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(said)
    return folder / "log.jsonl"


def address_of(plan: Plan, label: str) -> str:
    return next(stage.address for stage in plan.stages.values() if stage.label == label)


def seen(plan: Plan, home: Path, asking: Ask = silent, processes: list[tuple[str, ...]] | None = None) -> dict[str, Item]:
    found = status(plan, home.parent, asking, [] if processes is None else processes)
    return {item.label: item for item in (*found.trainings, *found.evaluations)}


def squeue(*lines: str) -> Ask:
    def asking(command: Sequence[str]) -> str | None:
        assert command[0] == "squeue"
        return "".join(f"{line}|{Path.cwd()}\n" for line in lines)

    return asking


def test_a_fresh_experiment_waits_for_its_teacher(plan: Plan, home: Path) -> None:
    (home / "stages" / plan.teacher / "stage.json").unlink()
    items = seen(plan, home)
    assert items["teacher"].state == "waiting"
    assert items["teacher"].waits_for == ()
    assert items["KD, seed 0: train"].waits_for == (plan.teacher,)
    assert items["Scratch, seed 0: train"].waits_for == ()
    assert items["KD/0"].state == "waiting"


def test_a_training_of_this_machine_is_told_with_its_rate_and_time_left(plan: Plan, home: Path) -> None:
    """8 steps of 32 samples; 3 are done, and 5 are left at 64 samples a second: 2.5 s."""
    address = address_of(plan, "KD, seed 0: train")
    begin(home, address, 3)
    items = seen(plan, home, processes=[("python", "-m", "cmapkd", "train", address)])
    item = items["KD, seed 0: train"]
    assert item.state == "running"
    assert item.progress is not None
    assert (item.progress.step, item.progress.steps, item.progress.seconds_left) == (3, 8, 2.5)
    told = tell(status(plan, home.parent, silent, [("cmapkd", "train", address)]))
    assert "step 3 of 8 (37 %), 64 samples/s, 0:02 left" in told
    assert "silent" not in told


def test_a_quarter_of_an_epoch_has_a_quarter_of_its_steps(plan: Plan, home: Path) -> None:
    address = address_of(plan, "CMAPKD, seed 0: coarse")
    begin(home, address, 1)
    progress = seen(plan, home, processes=[("cmapkd", "train", address)])["CMAPKD, seed 0: coarse"].progress
    assert progress is not None
    assert progress.steps == 2


def test_a_training_that_says_nothing_for_long_is_noted(plan: Plan, home: Path) -> None:
    import os

    address = address_of(plan, "KD, seed 0: train")
    log = begin(home, address, 3)
    os.utime(log, (time.time() - 7200, time.time() - 7200))
    assert "silent for 2:00:0" in tell(status(plan, home.parent, silent, [("cmapkd", "train", address)]))


def test_a_line_that_is_being_written_does_not_count(plan: Plan, home: Path) -> None:
    address = address_of(plan, "KD, seed 0: train")
    log = begin(home, address, 3)
    with log.open("a") as file:
        file.write('{"step": 3, "lo')
    progress = seen(plan, home, processes=[("cmapkd", "train", address)])["KD, seed 0: train"].progress
    assert progress is not None
    assert progress.step == 3


def test_a_failed_training_shows_the_end_of_its_log(plan: Plan, home: Path) -> None:
    address = address_of(plan, "Scratch, seed 0: train")
    begin(home, address, 5, said="loading\nsteps\nmore\nerror: training.global_batch: no\n  fix: mend it\n")
    item = seen(plan, home)["Scratch, seed 0: train"]
    assert item.state == "failed"
    assert item.tail[-2:] == ("error: training.global_batch: no", "  fix: mend it")
    told = tell(status(plan, home.parent, silent, []))
    assert "failed  Scratch, seed 0: train" in told
    assert "      error: training.global_batch: no" in told


def test_what_slurm_said_of_a_killed_job_is_shown_too(plan: Plan, home: Path) -> None:
    address = address_of(plan, "Scratch, seed 0: train")
    begin(home, address, 5, said="going well\n")
    kept = Path(".snakemake/slurm_logs/rule_train") / address / "12.log"
    kept.parent.mkdir(parents=True)
    kept.write_text("Building DAG\nslurmstepd: error: *** JOB 12 ON n1 CANCELLED AT ... DUE TO TIME LIMIT ***\n")
    tail = seen(plan, home)["Scratch, seed 0: train"].tail
    assert tail == ("going well", "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT ... DUE TO TIME LIMIT ***")


def test_a_training_that_was_asked_to_stop_has_not_failed(plan: Plan, home: Path) -> None:
    address = address_of(plan, "Scratch, seed 0: train")
    begin(home, address, 5, said="Scratch: stopped after step 5 of 8; the same command goes on from there\n")
    assert seen(plan, home)["Scratch, seed 0: train"].state == "stopped"


def test_jobs_of_slurm_are_found_by_their_comment(plan: Plan, home: Path) -> None:
    scratch, kd = (address_of(plan, f"{name}, seed 0: train") for name in ("Scratch", "KD"))
    finish(home, scratch)
    begin(home, kd, 2)
    asking = squeue(
        f"41|RUNNING|rule_train_wildcards_{kd}|1:02|n2",
        "42|PENDING|rule_evaluate_wildcards_Scratch_0|0:00|(Resources)",
        f"43|PENDING|rule_teacher_wildcards_{address_of(plan, 'teacher pyramid (fit)')}|0:00|(Priority)",
    )
    items = seen(plan, home, asking)
    assert items["KD, seed 0: train"].state == "running"
    assert items["Scratch/0"].state == "queued"
    assert items["teacher pyramid (fit)"].state == "queued"
    told = tell(status(plan, home.parent, asking, []))
    assert "SLURM job 41, running, 1:02, n2" in told
    assert "SLURM job 42, pending, 0:00, (Resources)" in told
    assert "9 trainings: 2 done, 1 running, 1 queued, 5 waiting" in told


def test_further_jobs_of_this_folder_are_listed(plan: Plan, home: Path) -> None:
    """Data sets, and groups of jobs, whose comment names no wildcards."""
    asking = squeue("4|PENDING|rule_stages_train|0:00|(PartitionTimeLimit)")
    assert "SLURM job 4, pending, 0:00, (PartitionTimeLimit): stages_train" in tell(status(plan, home.parent, asking, []))


def test_jobs_of_another_folder_are_not_ours(tmp_path: Path) -> None:
    def asking(command: Sequence[str]) -> str | None:
        return (
            f"1|RUNNING|rule_train_wildcards_a|0:01|n1|{tmp_path}\n2|RUNNING|rule_train_wildcards_b|0:01|n1|/elsewhere\nnoise\n"
        )

    assert set(queue(asking, tmp_path)) == {"rule_train_wildcards_a"}


def test_processes_are_found_by_what_they_work_on(tmp_path: Path) -> None:
    if not Path("/proc/self/cwd").exists():
        pytest.skip("no /proc on this machine")
    program = "import sys; sys.stdin.read()"
    command = [sys.executable, "-c", program, "cmapkd", "train", "fine-0123", "--results", "results"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE) as process:
        end = time.monotonic() + 10
        while not (ours := own_processes(tmp_path / "results")) and time.monotonic() < end:
            time.sleep(0.02)
        others = own_processes(tmp_path / "other")
        process.stdin.close()  # type: ignore[union-attr]
    assert any("fine-0123" in arguments for arguments in ours)
    assert not any("fine-0123" in arguments for arguments in others)


def test_a_finished_experiment(plan: Plan, home: Path) -> None:
    for address in plan.stages:
        finish(home, address)
    for directory in ("Teacher/0", *(run.directory for run in plan.runs)):
        (home / "metrics" / directory).parent.mkdir(parents=True, exist_ok=True)
        (home / "metrics" / f"{directory}.json").write_text("{}")
    (home / "paper").mkdir()
    (home / "paper/paper.tex").write_text("")
    assert tell(status(plan, home.parent, silent, [])).splitlines() == [
        "smoke: 9 trainings: 9 done", "5 of 5 runs measured", "the paper is written",
    ]  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_it_imports_no_torch() -> None:
    code = "import sys, cmapkd.status, cmapkd.site, cmapkd.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_the_workflow_waits_for_is_told(plan: Plan, home: Path) -> None:
    (home.parents[1] / ".snakemake").mkdir()
    waiting.write(waiting.Waiting({"7": "train a", "8": "train b"}, ("train c",), "AssocMaxSubmitJobLimit"))

    def asking(command: Sequence[str]) -> str | None:
        return {"%i": "3\n4\n"}.get(command[command.index("-o") + 1], "")

    lines = tell(status(plan, home.parent, asking, [])).splitlines()
    assert any(line.startswith("SLURM knows none of the 2 jobs that the workflow waits for: 7, 8.") for line in lines)
    assert "the workflow waits to submit 1 job: AssocMaxSubmitJobLimit" in lines
    lines = tell(status(plan, home.parent, silent, [])).splitlines()
    assert any(line.startswith("SLURM does not answer") for line in lines)
    waiting.remove()
    assert not any("SLURM" in line for line in tell(status(plan, home.parent, silent, [])).splitlines())
