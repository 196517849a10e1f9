"""Interrupted training resumed is bit-exact; what is damaged or of other origin is not resumed from."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_experiment import same
from torch import Tensor

from cmapkd import provenance
from cmapkd.training import checkpoints
from cmapkd.training.engine import Engine

pytestmark = pytest.mark.usefixtures("one_rank")

# --- one engine ------------------------------------------------------------------------------------------------------

OF = tiny.stage(policy="alsn")


def engine(seed: int = 0, accumulation: int = 1) -> Engine:
    """CMAPKD with the dropout of ALSN, so that random state matters."""
    return tiny.engine(*tiny.setup("cmapkd", OF, seed, alsn={"dropout": 0.5}), OF, 4, accumulation, steps=6)


def steps(of: Engine, first: int, last: int) -> list[float]:
    """Losses of the steps ``first`` .. ``last - 1``."""
    losses = []
    for step in range(first, last):
        terms = of.step({"image": tiny.images(4, seed=step), "text": tiny.tokens(4, seed=step)}, step)
        losses.append(float(terms.total.detach()))
    return losses


def weights(of: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in of.module.state_dict().items()}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[int, dict[str, Tensor]]]:
    """Checkpoints of steps 1 to 3 (of which two are kept) and the weights at each."""
    running, at = engine(), {}
    for step in range(1, 4):
        steps(running, step - 1, step)
        at[step] = weights(running)
        checkpoints.save(running, tmp_path / "checkpoints", step, "origin")
    return tmp_path / "checkpoints", at


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_engine_goes_on_bit_for_bit(accumulation: int, tmp_path: Path) -> None:
    torch.manual_seed(7)
    straight = engine(accumulation=accumulation)
    expected = steps(straight, 0, 6)
    torch.manual_seed(7)
    first = engine(accumulation=accumulation)
    losses = steps(first, 0, 2)
    checkpoints.save(first, tmp_path, 2, "origin")
    torch.manual_seed(99)
    second = engine(seed=40, accumulation=accumulation)  # other weights and another random state: all comes from the file
    second.teacher = first.teacher
    assert checkpoints.resume(second, tmp_path, "origin") == 2
    assert losses + steps(second, 2, 6) == expected
    assert same(weights(second), weights(straight))


def test_the_last_two_are_kept_and_nothing_unfinished(saved: tuple[Path, Any]) -> None:
    directory, _ = saved
    assert [path.name for path in checkpoints.complete(directory)] == ["step-00000002", "step-00000003"]
    assert sorted(path.name for path in directory.iterdir()) == ["step-00000002", "step-00000003"]


def test_without_a_checkpoint_training_starts_at_zero(tmp_path: Path) -> None:
    fresh = engine()
    before = weights(fresh)
    assert checkpoints.resume(fresh, tmp_path / "none", "origin") == 0 and same(weights(fresh), before)


def test_a_checkpoint_of_other_origin_is_ignored(saved: tuple[Path, Any], caplog: pytest.LogCaptureFixture) -> None:
    directory, _ = saved
    fresh = engine(seed=40)
    before = weights(fresh)
    assert checkpoints.resume(fresh, directory, "edited") == 0
    assert same(weights(fresh), before) and "comes from other code, settings, data or weights" in caplog.text


def test_new_checkpoints_are_not_pushed_out_by_older_ones_that_are_further_ahead(saved: tuple[Path, Any]) -> None:
    directory, _ = saved
    fresh = engine(seed=40)
    steps(fresh, 0, 1)
    checkpoints.save(fresh, directory, 1, "edited")
    assert checkpoints.resume(engine(), directory, "edited") == 1


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


FORMS = ('{"step": 3, "origin": "origin", "files": {}}', "", "[]", "null", "1", "{}", '"text"', '{"checksum": 1}', "[" * 99_999)
DAMAGE = {
    "a flipped bit": ("rank-00000.safetensors", _flip),
    "cut short": ("rank-00000.safetensors", _cut),
    "gone": ("rank-00000.safetensors", Path.unlink),
    "description cut short": ("checkpoint.json", lambda path: path.write_text(path.read_text()[:40])),
    "description of another step": ("checkpoint.json", lambda path: _replace(path, '"step": 3', '"step": 2')),
    "description of another origin": (
        "checkpoint.json",
        lambda path: _replace(path, '"origin": "origin"', '"origin": "origim"'),
    ),
    "description without files": (
        "checkpoint.json",
        lambda path: path.write_text('{"step": 3, "origin": "origin", "files": {}}'),
    ),
    **{f"description {text[:9]}": ("checkpoint.json", partial(Path.write_text, data=text)) for text in FORMS},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage: str, saved: tuple[Path, dict[int, dict[str, Tensor]]], caplog: pytest.LogCaptureFixture
) -> None:
    directory, at = saved
    name, harm = DAMAGE[damage]
    harm(directory / "step-00000003" / name)
    fresh = engine(seed=40)
    assert checkpoints.resume(fresh, directory, "origin") == 2
    assert same(weights(fresh), at[2]) and "is damaged" in caplog.text


@pytest.mark.parametrize("seed", range(4))
def test_no_flipped_bit_of_the_description_is_accepted(seed: int, saved: tuple[Path, Any]) -> None:
    directory, _ = saved
    path = directory / "step-00000003/checkpoint.json"
    content, choice = path.read_bytes(), random.Random(seed)
    written = checkpoints._record(path.parent)
    assert written is not None
    for place in choice.sample(range(len(content)), 60):
        flipped = bytearray(content)
        flipped[place] ^= 1 << choice.randrange(8)
        path.write_bytes(flipped)
        assert checkpoints._record(path.parent) in (None, written)  # a blank may have become a tab


def test_what_changes_a_result_by_rounding_is_told_on_resuming(
    saved: tuple[Path, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = saved
    monkeypatch.setattr(checkpoints, "machine", lambda: {**provenance.machine(), "threads": 77, "processor": "another"})
    assert checkpoints.resume(engine(seed=40), directory, "origin") == 3
    assert "threads" in caplog.text and "-> 77" in caplog.text and "-> another" in caplog.text


def test_with_all_checkpoints_damaged_nothing_of_them_is_left_in_the_weights(saved: tuple[Path, Any]) -> None:
    directory, _ = saved
    for path in checkpoints.complete(directory):
        _cut(path / "rank-00000.safetensors")
    fresh = engine(seed=40)
    before = weights(fresh)
    assert checkpoints.resume(fresh, directory, "origin") == 0 and same(weights(fresh), before)


def test_a_checkpoint_that_was_being_written_is_not_taken_for_one(saved: tuple[Path, Any]) -> None:
    directory, _ = saved
    (directory / "step-00000003").rename(directory / ".partial-step-00000009")
    shutil.copytree(directory / "step-00000002", directory / "step-00000007")
    (directory / "step-00000007" / "checkpoint.json").unlink()
    assert checkpoints.resume(engine(), directory, "origin") == 2


def test_clear_removes_all(saved: tuple[Path, Any]) -> None:
    checkpoints.clear(saved[0])
    assert not saved[0].exists()
    checkpoints.clear(saved[0])  # nothing to do is fine
