"""What SLURM answers, how long to wait for it, and what counts as progress. The messages are SLURM's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cmapkd.slurm import waiting
from cmapkd.slurm.answers import Patience, is_passing, state_of, words_of
from cmapkd.slurm.progress import Stop, has_failed, marks, stages_of, stopped_since
from cmapkd.slurm.waiting import Waiting, told
from cmapkd.training.failures import Failures

POLICY = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
PASSING = [
    POLICY,
    f"sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: {POLICY}",
    f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: {POLICY}",
    f"sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: {POLICY}",
    f"sbatch: error: QOSGrpSubmitJobsLimit\nsbatch: error: {POLICY}",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
    "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
    "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    "sbatch: error: If munged is up, restart with --num-threads=10\nsbatch: error: Munge encode failed: Failed to connect",
    "sbatch: error: Batch job submission failed: Protocol authentication error",
    "sbatch: error: Batch job submission failed: I/O error writing script/environment to file",
    "sbatch: error: Batch job submission failed: Slurm backup controller in standby mode",
    "sbatch: error: slurm_receive_msg: Connection reset by peer",
]
LASTING = [
    "sbatch: error: invalid partition specified: q\nsbatch: error: Invalid partition name specified",
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
    "sbatch: error: Batch job submission failed: Invalid qos specification",
    "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification",
    "sbatch: error: Batch job submission failed: Requested node configuration is not available",
    "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
    f"sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: {POLICY}",
    f"sbatch: error: AssocMaxCpuPerJobLimit\nsbatch: error: {POLICY}",
    f"sbatch: error: QOSMinGRES\nsbatch: error: {POLICY}",
    "The --gres option is not allowed in the 'slurm_extra' parameter.",
    "The given account none appears to be invalid. Available accounts:\nproject",
    "/bin/sh: 1: sbatch: command not found",
]


def unasked() -> bool:
    raise AssertionError("the message is known")


@pytest.mark.parametrize("message", PASSING)
def test_a_refusal_that_passes_is_known(message: str) -> None:
    assert is_passing(words_of(plugin_message(message)), unasked)


@pytest.mark.parametrize("message", LASTING)
def test_a_refusal_that_lasts_is_known(message: str) -> None:
    assert not is_passing(words_of(plugin_message(message)), unasked)


def plugin_message(message: str) -> str:
    """As the executor plugin passes it on, with the call, in which any word may stand."""
    return f"SLURM sbatch failed. The error message was '{message}'.\n    sbatch call:\n        sbatch --comment 'timed out'\n"


@pytest.mark.parametrize("answers", [True, False])
def test_an_unknown_refusal_lasts_where_the_controller_answers(answers: bool) -> None:
    assert is_passing("sbatch: error: the site's own words", lambda: answers) is not answers


def test_the_words_are_slurms_own() -> None:
    assert words_of(plugin_message(PASSING[1])) == (
        "AssocMaxSubmitJobLimit; Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    )
    assert words_of("Job submission failed with exception: Failed to run sinfo") == "Failed to run sinfo"
    assert words_of("") == "sbatch failed without a message"


@pytest.mark.parametrize(("text", "state"), [("CANCELLED by 1000", "CANCELLED"), ("OUT_OF_ME+", "OUT_OF_ME"), ("", "")])
def test_a_state_is_one_word(text: str, state: str) -> None:
    assert state_of(text) == state


def test_pauses_double_to_five_minutes_and_end_after_more_than_an_hour() -> None:
    patience = Patience.read({})
    waited, pauses = 0.0, []
    while (pause := patience.pause(len(pauses), waited)) is not None:
        pauses.append(pause)
        waited += pause
    assert pauses[:7] == [10, 20, 40, 80, 160, 300, 300]
    assert waited >= 3600


@pytest.mark.parametrize("text", ["", "1,2", "a,b,c", "0,1,2", "1,2,inf", "1,2,nan", "-1,2,3"])
def test_pauses_that_are_none_are_the_defaults(text: str) -> None:
    assert Patience.read({"CMAPKD_SLURM_PAUSES": text}) == Patience()


def test_pauses_are_read() -> None:
    assert Patience.read({"CMAPKD_SLURM_PAUSES": "0.5,2,60"}) == Patience(0.5, 2, 60)


# --- progress ----------------------------------------------------------------------------------------------------------


def save(stage: Path, step: int) -> None:
    folder = stage / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")


def test_a_stop_with_a_new_checkpoint_is_progress_and_the_same_step_twice_is_not(tmp_path: Path) -> None:
    stage = stages_of([tmp_path / "stages/train-1/stage.json", tmp_path / "metrics.json"])
    assert stage == [tmp_path / "stages/train-1"]
    before = marks(stage)
    save(stage[0], 43)
    failures = Failures(stage[0] / "checkpoints", "origin", "KD, seed 0: train", 1)
    failures.running(0, 160)
    assert stopped_since(before, from_outside=False) is None, "it failed by itself"
    assert stopped_since(before, from_outside=True) == Stop("KD, seed 0: train", 43, 160, "")
    failures.stopped(43, "KD, seed 0: train: stopped after step 43 of 160 (the time limit is near); ...")
    assert stopped_since(before, from_outside=False) == Stop("KD, seed 0: train", 43, 160, "by its time limit")
    assert stopped_since(marks(stage), from_outside=True) is None
    (stage[0] / "stage.json").write_text("{}")
    assert stopped_since(before, from_outside=True) is None, "a finished stage did not stop"


def test_a_partial_checkpoint_and_the_shards_of_a_cache(tmp_path: Path) -> None:
    before = marks([tmp_path])
    (tmp_path / "checkpoints/step-00000009").mkdir(parents=True)
    assert marks([tmp_path]) == before == {tmp_path: 0}
    (tmp_path / "data").mkdir()
    for name in ("one.safetensors", "two.safetensors", ".partial.safetensors"):
        (tmp_path / "data" / name).touch()
    assert marks([tmp_path]) == {tmp_path: 2}


def test_a_failure_of_its_own_is_seen(tmp_path: Path) -> None:
    assert not has_failed([tmp_path])
    (tmp_path / "checkpoints").mkdir()
    Failures(tmp_path / "checkpoints", "origin", "stage", 1).report(0, "error", "reason", 3)
    assert has_failed([tmp_path])


# --- what the workflow waits for ---------------------------------------------------------------------------------------


def test_the_file_is_that_of_a_process_that_lives(tmp_path: Path) -> None:
    assert waiting.read(tmp_path) is None
    written = Waiting({"12": "train a"}, ("train b",), "AssocMaxSubmitJobLimit", 3.0, "no answer")
    (tmp_path / ".snakemake").mkdir()
    waiting.write(written, tmp_path)
    assert waiting.read(tmp_path) == written
    content = json.loads((tmp_path / waiting.FILE).read_text())
    assert content["process"] == os.getpid()
    (tmp_path / waiting.FILE).write_text(json.dumps({**content, "process": 2**30}))
    assert waiting.read(tmp_path) is None, "its process is gone"
    (tmp_path / waiting.FILE).write_text("{}")
    assert waiting.read(tmp_path) is None
    waiting.remove(tmp_path)
    waiting.remove(tmp_path)


@pytest.mark.parametrize(
    ("waits", "known", "words"),
    [
        (None, set(), []),
        (Waiting(), set(), []),
        (Waiting({"1": "a"}), {"1", "2"}, []),
        (Waiting({"1": "a", "2": "b"}), {"3"}, ["SLURM knows none of the 2 jobs that the workflow waits for: 1, 2"]),
        (Waiting({"1": "a", "2": "b"}), {"2"}, ["SLURM no longer knows 1 of 2 jobs that are waited for: 1"]),
        (Waiting({"1": "a"}, words="Unable to contact"), None, ["SLURM does not answer (Unable to contact)"]),
        (Waiting({}, ("a", "b"), "AssocMaxSubmitJobLimit"), set(), ["waits to submit 2 jobs: AssocMaxSubmitJobLimit"]),
        (Waiting({}, ("a",)), set(), []),
    ],
)
def test_status_tells_what_keeps_the_workflow_waiting(waits: Waiting | None, known: set[str] | None, words: list[str]) -> None:
    lines = told(waits, known)
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))
