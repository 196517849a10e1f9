"""The pyramid: sizes, padding, windows, independence of samples, and active levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmapkd.models.pyramid import LANGUAGE, VISUAL, LanguageHierarchy, Pyramid, Smoothing, VisualPyramid, masked_mean
from cmapkd.models.towers import TapShapes, TowerOutputs
from cmapkd.training.stages import seeded

WIDTH, CHANNELS = 6, 8
SMOOTHING = get_args(Smoothing)


def visual(smoothing: str = "dense") -> VisualPyramid:
    with seeded(0):
        return VisualPyramid(WIDTH, CHANNELS, smoothing)  # type: ignore[arg-type]


def hierarchy(width: int = 8, window: int = 3) -> LanguageHierarchy:
    with seeded(0):
        return LanguageHierarchy(width, CHANNELS, window, heads=2)


def maps(height: int, width: int | None = None, batch: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, WIDTH, height, width or height, generator=generator) for _ in range(4)]


def texts(batch: int = 3, count: int = 9, width: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, count, width, generator=generator) for _ in range(4)]


def mask_of(lengths: Sequence[int], count: int = 9) -> Tensor:
    return torch.arange(count) < torch.tensor(lengths)[:, None]


@given(height=st.integers(1, 7), width=st.integers(1, 7), batch=st.integers(1, 3), kind=st.sampled_from(SMOOTHING))
def test_level_sizes(height: int, width: int, batch: int, kind: str) -> None:
    levels = visual(kind)(maps(height, width, batch))
    sizes = {"P5": (-(-height // 2), -(-width // 2)), "P4": (height, width)}
    sizes |= {"P3": (2 * height, 2 * width), "P2": (4 * height, 4 * width)}
    assert {level: tuple(value.shape) for level, value in levels.items()} == {
        level: (batch, CHANNELS, *sizes[level]) for level in VISUAL
    }
    assert list(levels) == list(VISUAL)
    assert all(bool(torch.isfinite(value).all()) for value in levels.values())


def test_sizes_of_b16_and_l14_at_224_px() -> None:
    for grid, expected in ((14, [56, 28, 14, 7]), (16, [64, 32, 16, 8])):
        assert [value.shape[-1] for value in visual()(maps(grid, batch=1)).values()] == expected


def test_levels_follow_the_formula_written_with_laterals_on_the_large_grid() -> None:
    """The specification upsamples a tap's lateral; here it runs on the small grid, which must be the same."""
    net, taps = visual(), maps(4)

    def up(value: Tensor, scale: int) -> Tensor:
        return value.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)

    p5 = net.lateral["P5"](taps[3]).unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean(dim=(3, 5))  # (2, C, 2, 2)
    p4 = net.smooth["P4"](net.lateral["P4"](taps[2]) + up(p5, 2))
    p3 = net.smooth["P3"](net.lateral["P3"](up(taps[1], 2)) + up(p4, 2))
    p2 = net.smooth["P2"](net.lateral["P2"](up(taps[0], 4)) + up(p3, 2))
    levels = net(taps)
    for level, expected in {"P5": p5, "P4": p4, "P3": p3, "P2": p2}.items():
        torch.testing.assert_close(levels[level], expected, atol=1e-5, rtol=1e-5)


def test_pooling_of_an_odd_grid_averages_the_cells_there_are() -> None:
    net, taps = visual(), maps(3)
    lateral = net.lateral["P5"](taps[3])
    p5 = net(taps, ["P5"])["P5"]
    torch.testing.assert_close(p5[:, :, 0, 0], lateral[:, :, :2, :2].mean(dim=(2, 3)))
    torch.testing.assert_close(p5[:, :, 0, 1], lateral[:, :, :2, 2].mean(dim=2))
    torch.testing.assert_close(p5[:, :, 1, 1], lateral[:, :, 2, 2])


@pytest.mark.parametrize("grid", [3, 4])
@pytest.mark.parametrize("levels", [("P5",), ("P4", "P5"), ("P2", "P5"), ("P3", "P4", "P5")])
def test_active_visual_levels_are_those_of_the_whole_pyramid(grid: int, levels: tuple[str, ...]) -> None:
    net, taps = visual(), maps(grid)
    whole, part = net(taps), net(taps, levels)
    assert tuple(part) == levels
    assert all(torch.equal(part[level], whole[level]) for level in levels)


@pytest.mark.parametrize("levels", [("L4",), ("L3", "L4"), ("L1", "L4"), ("L2", "L3", "L4")])
def test_active_language_levels_are_those_of_the_whole_hierarchy(levels: tuple[str, ...]) -> None:
    net, taps = hierarchy(), texts()
    mask, summary = mask_of([9, 4, 2]), torch.tensor([8, 3, 1])
    whole, part = net(taps, mask, summary), net(taps, mask, summary, levels)
    assert torch.equal(part, whole[:, [LANGUAGE.index(level) for level in levels]])


@given(longer=st.integers(1, 6), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_longer_padding_changes_no_level(longer: int, lengths: list[int], seed: int) -> None:
    net, taps = hierarchy(), texts(len(lengths), seed=seed)
    padded = [torch.cat([tap, 100 * torch.randn(len(lengths), longer, 8)], dim=1) for tap in taps]
    summary = torch.tensor(lengths) - 1
    before = net(taps, mask_of(lengths), summary)
    after = net(padded, mask_of(lengths, 9 + longer), summary)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_what_stands_in_the_padding_is_never_read() -> None:
    net, taps = hierarchy(), texts()
    mask, summary = mask_of([9, 4, 2]), torch.tensor([8, 3, 1])
    other = [torch.where(mask[..., None], tap, 1e4) for tap in taps]
    torch.testing.assert_close(net(other, mask, summary), net(taps, mask, summary))


def test_each_level_depends_on_its_own_tap_alone() -> None:
    net, taps = hierarchy(), texts()
    mask, summary = mask_of([9, 4, 2]), torch.tensor([8, 3, 1])
    before = net(taps, mask, summary)
    for index in range(4):
        changed = [tap + (1.0 if place == index else 0.0) * torch.randn_like(tap) for place, tap in enumerate(taps)]
        differs = (net(changed, mask, summary) != before).any(dim=2).any(dim=0).tolist()
        assert differs == [place == index for place in range(4)]


def test_the_token_level_is_the_masked_mean_and_the_global_level_the_summary_token() -> None:
    net, taps = hierarchy(), texts()
    levels = net(taps, mask_of([9, 4, 2]), torch.tensor([8, 3, 0]))
    torch.testing.assert_close(levels[1, 0], net.project["L1"](taps[0][1, :4].mean(dim=0)))
    torch.testing.assert_close(levels[1, 3], net.project["L4"](taps[3][1, 3]))
    torch.testing.assert_close(levels[2, 3], net.project["L4"](taps[3][2, 0]))


@pytest.mark.parametrize("window", [1, 3, 5])
def test_the_phrase_window_reaches_exactly_half_a_window_to_each_side(window: int) -> None:
    net, tokens = hierarchy(window=window), texts(1)[0]
    mask = mask_of([9])
    changed = tokens.clone()
    changed[0, 4] += torch.randn(8)
    differs = (net._attend("L2", changed, mask) != net._attend("L2", tokens, mask)).any(dim=2)[0]
    assert differs.nonzero().flatten().tolist() == list(range(4 - window // 2, 5 + window // 2))


def test_the_sentence_level_attends_everywhere() -> None:
    net, tokens = hierarchy(), texts(1)[0]
    changed = tokens.clone()
    changed[0, 4] += torch.randn(8)
    assert bool((net._attend("L3", changed, mask_of([9])) != net._attend("L3", tokens, mask_of([9]))).any(dim=2).all())


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window = 4 must be odd"):
        LanguageHierarchy(8, 8, window=4)


def test_a_row_of_nothing_but_padding_is_finite_and_has_finite_gradients() -> None:
    net, taps = hierarchy(), [tap.requires_grad_() for tap in texts()]
    levels = net(taps, mask_of([9, 0, 2]), torch.tensor([8, 0, 1]))
    levels.square().sum().backward()
    assert bool(torch.isfinite(levels).all())
    assert all(bool(torch.isfinite(tap.grad).all()) for tap in taps)
    for level in ("L1", "L2", "L3"):
        assert torch.equal(levels[1, LANGUAGE.index(level)], net.project[level].bias)  # the mean of nothing is zero


def test_masked_mean() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [50.0]], [[1.0], [2.0], [6.0]], [[7.0], [7.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    assert masked_mean(tokens, mask).tolist() == [[2.0], [3.0], [0.0]]


def whole(smoothing: str = "dense") -> Pyramid:
    with seeded(0):
        return Pyramid(TapShapes(WIDTH, 8, (3, 3), 9, 4, 4, 6), CHANNELS, 12, smoothing, 3, 2)  # type: ignore[arg-type]


def outputs(lengths: Sequence[int] = (9, 4, 2), grid: int = 3, seed: int = 0) -> TowerOutputs:
    batch, unused = len(lengths), torch.zeros(len(lengths), 4)
    return TowerOutputs(
        unused, unused, torch.tensor(1.0), tuple(maps(grid, batch=batch, seed=seed)), tuple(texts(batch, seed=seed)),
        mask_of(lengths), torch.tensor(lengths) - 1,
    )  # fmt: skip


def take(of: TowerOutputs, rows: Tensor) -> TowerOutputs:
    assert of.text_mask is not None and of.summary is not None
    taps = tuple(tap[rows] for tap in of.image_taps), tuple(tap[rows] for tap in of.text_taps)
    return TowerOutputs(of.image[rows], of.text[rows], of.logit_scale, *taps, of.text_mask[rows], of.summary[rows])


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_no_sample_sees_another(smoothing: str) -> None:
    net, given_outputs = whole(smoothing), outputs()
    together = tiny.pyramid_tensors(net(given_outputs))
    for row in range(3):
        alone = tiny.pyramid_tensors(net(take(given_outputs, torch.tensor([row]))))
        for name, value in together.items():
            torch.testing.assert_close(alone[name][0], value[row], atol=1e-5, rtol=1e-5)


@given(order=st.permutations(range(4)))
def test_permuting_the_batch_permutes_the_levels(order: list[int]) -> None:
    net, given_outputs, rows = whole(), outputs((9, 4, 2, 6)), torch.tensor(order)
    before, after = (tiny.pyramid_tensors(net(o)) for o in (given_outputs, take(given_outputs, rows)))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value[rows], atol=1e-5, rtol=1e-5)


def test_bridge_and_pooling() -> None:
    net = whole()
    levels = net(outputs())
    assert levels.pooled.shape == (3, 4, CHANNELS) and levels.language.shape == (3, 4, 12)
    for index, level in enumerate(VISUAL):
        torch.testing.assert_close(levels.pooled[:, index], F.adaptive_avg_pool2d(levels.maps[level], 1)[:, :, 0, 0])
    torch.testing.assert_close(levels.visual_as_language, net.visual_to_language(levels.pooled))
    torch.testing.assert_close(levels.language_as_visual, net.language_to_visual(levels.language))
    assert levels.visual_as_language.shape == (3, 4, 12) and levels.language_as_visual.shape == (3, 4, CHANNELS)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_active_levels_of_both_pyramids(count: int) -> None:
    net, given_outputs = whole(), outputs()
    every = net(given_outputs)
    part = net(given_outputs, VISUAL[4 - count :], LANGUAGE[4 - count :])
    for name in ("pooled", "language", "visual_as_language", "language_as_visual"):
        torch.testing.assert_close(getattr(part, name), getattr(every, name)[:, 4 - count :])


def test_evaluation_mode_gives_what_training_mode_gives() -> None:
    """PyTorch has another code path for attention without gradients; a frozen teacher runs on it."""
    net, given_outputs = whole(), outputs()
    trained = tiny.pyramid_tensors(net(given_outputs))
    with torch.no_grad():
        frozen = tiny.pyramid_tensors(net.eval()(given_outputs))
    for name, value in trained.items():
        torch.testing.assert_close(frozen[name], value, atol=1e-5, rtol=1e-5)


def test_parameters_of_a_level_are_known_by_name() -> None:
    """`Pyramid.uses` must say of each parameter whether it has a gradient: one without would still decay."""
    for visual_levels, language_levels in (
        (("P5",), ("L4",)),
        (("P4", "P5"), ("L3", "L4")),
        (("P2", "P5"), ("L2", "L4")),
        (VISUAL, LANGUAGE),
    ):
        net = whole()
        levels = net(outputs(), visual_levels, language_levels)
        sum(value.square().sum() for value in tiny.pyramid_tensors(levels).values()).backward()  # type: ignore[union-attr]
        for name, parameter in net.named_parameters():
            assert Pyramid.uses(name, visual_levels, language_levels) == (parameter.grad is not None), name


def test_outputs_without_taps_are_refused() -> None:
    plain = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="taps=True"):
        whole()(TowerOutputs(plain, plain, torch.tensor(1.0)))
