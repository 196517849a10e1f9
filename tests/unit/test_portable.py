"""A checkpoint goes on bit for bit where it was written, and to rounding on other ranks, ZeRO stages and micro-batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import run_ranks
from torch import Tensor

from cmapkd.training import checkpoints, distributed
from cmapkd.training.engine import Engine
from cmapkd.training.state import fragments

BATCH, STEPS = 8, 4
OF = tiny.stage(policy="alsn")
FP32: dict[int, dict[str, Any]] = {stage: {"zero_optimization": {"stage": stage}} for stage in range(4)}
CASES: dict[str, dict[str, Any]] = {
    **{f"fp32, ZeRO {stage}": config for stage, config in FP32.items()},
    "bf16, ZeRO 1": {**FP32[1], "bf16": {"enabled": True}},
    "fp16, ZeRO 2": {**FP32[2], "fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 2}},
}
# From one cut to another: ranks, ZeRO stage and micro-batches of the first part, then of the second.
Cut = tuple[int, int, int]
CHANGES: dict[str, tuple[Cut, Cut]] = {
    "two ranks to one": ((2, 0, 1), (1, 0, 1)),
    "one rank to two": ((1, 0, 1), (2, 0, 1)),
    "two ranks of ZeRO 1 to one without": ((2, 1, 1), (1, 0, 1)),
    "two ranks of ZeRO 2 to one of ZeRO 1": ((2, 2, 1), (1, 1, 1)),
    "one rank without to two of ZeRO 2": ((1, 0, 1), (2, 2, 1)),
    "two ranks of ZeRO 3 to one without": ((2, 3, 1), (1, 0, 1)),
    "one rank without to two of ZeRO 3, smaller micro-batches": ((1, 0, 1), (2, 3, 2)),
    "another ZeRO stage and micro-batch on two ranks": ((2, 1, 1), (2, 2, 2)),
    "half the micro-batch on one rank": ((1, 0, 1), (1, 0, 2)),
}


def engine(config: dict[str, Any], accumulation: int = 1, seed: int = 0, dropout: float = 0.0) -> Engine:
    """CMAPKD; with dropout the random state of each rank matters."""
    module, teacher = tiny.setup("cmapkd", OF, seed, alsn={"dropout": dropout})
    shared = {**tiny.TRAINING, "global_batch": BATCH}
    full = {"gradient_clipping": 1.0, "gradient_accumulation_steps": accumulation, **config}
    if "fp16" in config:  # DeepSpeed refuses it on a CPU, where it is slow, but works
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    made = Engine(module, teacher, OF, shared, full, STEPS, torch.device("cpu"))
    if seed:  # other weights, but the same teacher
        _, made.teacher = tiny.setup("cmapkd", OF, 0)
        assert made.teacher is not None
        made.teacher.to(made.dtype)
    return made


def steps(of: Engine, first: int, last: int) -> list[float]:
    """Losses, averaged over ranks, of the steps ``first`` .. ``last - 1``."""
    size = BATCH // distributed.world_size()
    rows = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    losses = []
    for step in range(first, last):
        batch = {"image": tiny.images(BATCH, seed=step)[rows], "text": tiny.tokens(BATCH, seed=step)[rows]}
        losses.append(float(distributed.mean_over_ranks(of.step(batch, step).total)))
    return losses


def weights(of: Engine) -> dict[str, Tensor]:
    of.make_whole()
    return {name: value.detach().clone() for name, value in of.module.state_dict().items()}


def resumed_and_straight(case: str, folder: Path) -> dict[str, Any]:
    """What the steps after a checkpoint at a random step give, in an engine of other weights, and without."""
    config, at = CASES[case], random.Random(case).randint(1, STEPS - 1)
    torch.manual_seed(7 + distributed.rank())
    straight = engine(config, dropout=0.5)
    steps(straight, 0, at)
    checkpoints.save(straight, folder, at, "origin")
    expected = steps(straight, at, STEPS)
    torch.manual_seed(99)
    other = engine(config, seed=40, dropout=0.5)
    assert checkpoints.resume(other, folder, "origin") == at
    return {"losses": (steps(other, at, STEPS), expected), "weights": (weights(other), weights(straight))}


def first_part(cut: Cut, folder: Path) -> None:
    _, zero, accumulation = cut
    running = engine(FP32[zero], accumulation)
    steps(running, 0, 2)
    checkpoints.save(running, folder, 2, "origin")


def second_part(cut: Cut, folder: Path) -> dict[str, Any]:
    _, zero, accumulation = cut
    running = engine(FP32[zero], accumulation, seed=40)
    assert checkpoints.resume(running, folder, "origin") == 2
    return {"losses": steps(running, 2, STEPS), "weights": weights(running)}


def undisturbed(accumulation: int) -> dict[str, Any]:
    running = engine(FP32[0], accumulation)
    return {"losses": steps(running, 0, STEPS), "weights": weights(running)}


def on_two_ranks(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"exact": {case: resumed_and_straight(case, folder / f"two {case}") for case in CASES}}
    found["held"] = {stage: sum(f.weight.numel() for f in fragments(engine(FP32[stage]))) for stage in FP32}
    found["cut"] = undisturbed(2)
    found["second"] = {}
    for name, (before, after) in CHANGES.items():
        if before[0] == 2:
            first_part(before, folder / name)
        if after[0] == 2:
            found["second"][name] = second_part(after, folder / name)
    return found


def on_four_ranks(folder: Path) -> dict[str, Any]:
    return {"cut": undisturbed(1)}


@pytest.fixture(scope="module")
def ranks(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder of the checkpoints, and what each of two and of four ranks computed."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, (before, _) in CHANGES.items():
        if before[0] == 1:
            first_part(before, folder / name)
    two, four = run_ranks(on_two_ranks, 2, folder), run_ranks(on_four_ranks, 4, folder)
    return folder, {f"{len(of)}-{rank}": found for of in (two, four) for rank, found in enumerate(of)}


def assert_exact(found: dict[str, Any]) -> None:
    assert found["losses"][0] == found["losses"][1]
    ours, expected = found["weights"]
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert torch.equal(value, expected[name]), name


def assert_close(found: dict[str, Any], expected: dict[str, Any], first: int = 0) -> None:
    assert found["losses"] == pytest.approx(expected["losses"][first:], abs=1e-5)
    for name, value in expected["weights"].items():
        torch.testing.assert_close(
            found["weights"][name].reshape(value.shape), value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def straight(one_rank: None) -> dict[str, Any]:
    return undisturbed(1)


@pytest.mark.parametrize("case", CASES)
def test_one_rank_goes_on_bit_for_bit(case: str, one_rank: None, tmp_path: Path) -> None:
    assert_exact(resumed_and_straight(case, tmp_path))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_go_on_bit_for_bit(case: str, ranks: tuple[Path, dict[str, Any]]) -> None:
    for rank in range(2):
        assert_exact(ranks[1][f"2-{rank}"]["exact"][case])


@pytest.mark.parametrize("change", CHANGES)
def test_another_cut_goes_on_to_rounding(
    change: str, ranks: tuple[Path, dict[str, Any]], straight: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder, found = ranks
    after = CHANGES[change][1]
    if after[0] == 2:
        for rank in range(2):
            assert_close(found[f"2-{rank}"]["second"][change], straight, 2)
        return
    assert_close(second_part(after, folder / change), straight, 2)
    assert "another cut of the batch" in caplog.text


def test_the_cut_of_the_batch_does_not_matter(ranks: tuple[Path, dict[str, Any]], straight: dict[str, Any]) -> None:
    """1 rank of 4 micro-batches, 2 of 2, and 4 of 1: each micro-batch has two samples."""
    others = {"1 x 4": undisturbed(4), "2 x 2": ranks[1]["2-0"]["cut"], "4 x 1": ranks[1]["4-3"]["cut"]}
    for found in others.values():
        assert_close(found, straight)


def test_with_zero_each_rank_holds_a_part(ranks: tuple[Path, dict[str, Any]]) -> None:
    held = [ranks[1][f"2-{rank}"]["held"] for rank in range(2)]
    total = sum(p.numel() for p in tiny.setup("cmapkd", OF)[0].parameters() if p.requires_grad)
    assert held[0][0] == held[1][0] == total
    for stage in (1, 2, 3):
        assert held[0][stage] + held[1][stage] == total
        assert max(held[0][stage], held[1][stage]) < 0.6 * total


def test_ranks_share_the_writing(ranks: tuple[Path, dict[str, Any]]) -> None:
    """Also without ZeRO, where each of them holds everything."""
    files = sorted((ranks[0] / "two fp32, ZeRO 0").glob("step-*/rank-*"))
    sizes = [file.stat().st_size for file in files]
    assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)
