"""ALSN: weights are distributions over the active levels, and the entropy has its closed form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cmapkd.models.alsn import ALSN, entropy
from cmapkd.models.pyramid import LANGUAGE, VISUAL
from cmapkd.training.stages import seeded

subsets = st.lists(st.booleans(), min_size=3, max_size=3)


def network(temperature: float = 0.5, dropout: float = 0.0) -> ALSN:
    with seeded(0):
        return ALSN(6, 5, (16, 8), dropout, temperature)


def inputs(batch: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 6, generator=generator), torch.randn(batch, 5, generator=generator)


def test_weights_follow_the_formula() -> None:
    net, (x_v, x_l) = network(), inputs()
    x = torch.cat([x_v, x_l], dim=1)
    first, second = net.body[0], net.body[3]
    hidden = torch.relu(second(torch.relu(first(x))))
    visual, language = net(x_v, x_l)
    torch.testing.assert_close(visual, torch.softmax(torch.sigmoid(net.visual(hidden)) / 0.5, dim=1))
    torch.testing.assert_close(language, torch.softmax(torch.sigmoid(net.language(hidden)) / 0.5, dim=1))


@given(batch=st.integers(1, 5), keep_v=subsets, keep_l=subsets, temperature=st.sampled_from([0.01, 1.0, 50.0]))
def test_weights_over_active_levels_are_the_full_softmax_renormalised(
    batch: int, keep_v: list[bool], keep_l: list[bool], temperature: float
) -> None:
    net, given_inputs = network(temperature), inputs(batch)
    visual_levels = [level for level, keep in zip(VISUAL, [*keep_v, True], strict=True) if keep]
    language_levels = [level for level, keep in zip(LANGUAGE, [*keep_l, True], strict=True) if keep]
    parts, fulls = net(*given_inputs, visual_levels, language_levels), net(*given_inputs)
    kept = ((VISUAL, visual_levels), (LANGUAGE, language_levels))
    for part, full, (names, active) in zip(parts, fulls, kept, strict=True):
        assert part.shape == (batch, len(active)) and bool((part >= 0).all())
        torch.testing.assert_close(part.sum(dim=1), torch.ones(batch))
        chosen = full[:, [names.index(level) for level in active]]
        torch.testing.assert_close(part, chosen / chosen.sum(dim=1, keepdim=True), atol=1e-6, rtol=1e-4)


def test_the_order_in_which_active_levels_are_named_does_not_matter() -> None:
    net = network()
    assert torch.equal(net(*inputs(), ["P5", "P3"], ["L4", "L2"])[0], net(*inputs(), ["P3", "P5"], ["L2", "L4"])[0])


def test_input_is_detached_and_every_parameter_is_trained() -> None:
    net, (x_v, x_l) = network(), inputs()
    x_v.requires_grad_(), x_l.requires_grad_()
    visual, language = net(x_v, x_l)
    (visual[:, 0].sum() + language[:, 1].sum()).backward()
    assert x_v.grad is None and x_l.grad is None
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in net.parameters())


def test_weights_are_per_sample() -> None:
    net, (x_v, x_l) = network(0.1), inputs()
    together = net(x_v, x_l)[0]
    torch.testing.assert_close(together[2], net(x_v[2:3], x_l[2:3])[0][0])
    assert float((together[0] - together[1]).detach().abs().max()) > 1e-3


def test_dropout_acts_in_training_alone() -> None:
    net = network(dropout=0.5)
    assert not torch.equal(net(*inputs())[0], net(*inputs())[0])
    net.eval()
    assert torch.equal(net(*inputs())[0], net(*inputs())[0])


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_entropy_of_uniform_weights_is_the_logarithm_of_their_number(levels: int) -> None:
    torch.testing.assert_close(entropy(torch.full((3, levels), 1 / levels)), torch.full((3,), math.log(levels)))


def test_entropy_of_known_rows() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    expected = [0.0, math.log(2), -sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4))]
    torch.testing.assert_close(entropy(weights), torch.tensor(expected))


def test_entropy_of_a_collapsed_softmax_has_finite_gradients() -> None:
    scores = torch.tensor([[0.0, 1.0, 0.0, 0.0]], requires_grad=True)
    entropy(F.softmax(scores / 0.005, dim=1)).sum().backward()
    assert scores.grad is not None and bool(torch.isfinite(scores.grad).all())
