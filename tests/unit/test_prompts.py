"""Deep prompts: hooks on open_clip's blocks against a forward pass written out here, and what they leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd.errors import UserError
from cmapkd.models import towers
from cmapkd.models.projector import GlobalBatchNorm, Projector
from cmapkd.models.prompts import Prompts, grown_mask

MODELS = {"CLIP": tiny.student, "CustomTextCLIP": tiny.teacher_model}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> towers.Tapped:
    return MODELS[request.param]().eval()


def prompts_for(model: towers.Tapped, count: int, layers: int, scale: float = 1.0) -> Prompts:
    prompts = Prompts(model.shapes(), count, layers)
    for index, parameter in enumerate(prompts.parameters()):
        torch.nn.init.normal_(parameter, std=scale, generator=torch.Generator().manual_seed(index))
    return prompts


def test_without_prompts_the_towers_do_what_they_did(model: towers.Tapped) -> None:
    images, tokens = tiny.images(5), tiny.tokens(5, longest=tiny.CONTEXT - 2)
    plain, prompted = model(images, tokens, taps=False), Prompts(model.shapes(), 0, 9)(model, images, tokens)
    assert torch.equal(prompted.image, plain.image) and torch.equal(prompted.text, plain.text)
    assert torch.equal(prompted.logit_scale, plain.logit_scale)


def test_hooks_are_gone_after_a_call_also_after_one_that_failed(model: towers.Tapped) -> None:
    images, tokens = tiny.images(3), tiny.tokens(3)
    before = model(images, tokens, taps=False)
    prompts = prompts_for(model, 2, 9)
    prompts(model, images, tokens)
    with pytest.raises(RuntimeError):
        prompts.encode_image(model, images[:, :2])
    after = model(images, tokens, taps=False)
    assert torch.equal(before.image, after.image) and torch.equal(before.text, after.text)


def prompted_image(model: Any, prompts: Tensor, images: Tensor) -> Tensor:
    """[CLS, patches, P] through the blocks, written out."""
    visual, (layers, count, _) = model.visual, prompts.shape
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1) + visual.positional_embedding
    own = len(x[0])
    x = visual.ln_pre(torch.cat([x, prompts[0].expand(len(images), -1, -1)], dim=1))
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer < layers:
            x = torch.cat([x[:, :own], prompts[layer].expand(len(images), -1, -1)], dim=1)
        assert x.shape[1] == own + count
        x = block(x)
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def prompted_text(model: Any, prompts: Tensor, tokens: Tensor) -> Tensor:
    """[SOT, P, words, EOT] through the blocks, one sentence after the other and without padding."""
    tower = getattr(model, "text", model)
    layers, count, _ = prompts.shape
    rows = []
    for sentence in tokens:
        length = int(sentence.argmax()) + 1
        words = tower.token_embedding(sentence[:length]) + tower.positional_embedding[:length]
        x = torch.cat([words[:1], prompts[0], words[1:]])[None]
        mask = torch.full((length + count, length + count), -torch.inf).triu(1)  # each sees what is before it, prompts too
        for layer, block in enumerate(tower.transformer.resblocks):
            if 0 < layer < layers:
                x = torch.cat([x[:, :1], prompts[layer][None], x[:, 1 + count :]], dim=1)
            x = block(x, attn_mask=mask)
        rows.append(tower.ln_final(x)[0, -1] @ tower.text_projection)
    return F.normalize(torch.stack(rows), dim=-1)


@pytest.mark.parametrize("layers", [1, 3, 9])
def test_prompts_are_where_the_papers_put_them(model: towers.Tapped, layers: int) -> None:
    images, tokens = tiny.images(4), tiny.tokens(4)
    prompts = prompts_for(model, 3, layers)
    assert prompts.vision is not None and prompts.text is not None
    depth = model.shapes().image_layers, model.shapes().text_layers
    assert (len(prompts.vision), len(prompts.text)) == tuple(min(layers, d) for d in depth)
    found = prompts(model, images, tokens)
    torch.testing.assert_close(found.image, prompted_image(model.model, prompts.vision, images), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.text, prompted_text(model.model, prompts.text, tokens), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found.image, model(images, tokens, taps=False).image, atol=1e-2)


def test_every_prompt_gets_a_gradient_and_padding_does_not_matter(model: towers.Tapped) -> None:
    tokens = tiny.tokens(4, longest=4)
    prompts = prompts_for(model, 2, 9, scale=0.02)
    outputs = prompts(model, tiny.images(4), tokens)
    (outputs.image[:, 0].sum() + outputs.text[:, 0].sum()).backward()
    for parameter in prompts.parameters():
        assert parameter.grad is not None and bool((parameter.grad.abs().amax(dim=-1) > 0).all())
    padded = torch.where(tokens == 0, torch.full_like(tokens, 5), tokens)  # what follows end-of-text
    torch.testing.assert_close(prompts.encode_text(model, padded), outputs.text)


def test_a_mask_grows_by_the_prompts() -> None:
    inf = -torch.inf
    causal = torch.full((3, 3), inf).triu(1)
    assert torch.equal(grown_mask(causal, 2, causal=True), torch.full((5, 5), inf).triu(1))
    padding = torch.tensor([[0.0, 0.0, inf]]).expand(2, 3, 3)  # the last token is padding, of both sentences
    assert torch.equal(grown_mask(padding, 2, causal=False), torch.tensor([[0.0] * 4 + [inf]]).expand(2, 5, 5))


@pytest.mark.parametrize("text", [{"pool_type": "last", "no_causal_mask": True}, {"embed_cls": True, "pool_type": "last"}])
def test_other_text_towers_of_open_clip_take_prompts_too(text: dict[str, Any]) -> None:
    """Without causal mask, and with a [CLS] token at the end and a padding mask for each sentence."""
    model = tiny.model(name="tiny-other", custom_text=True, **text).eval()
    tokens = tiny.tokens(4)
    prompts = prompts_for(model, 2, 3)
    assert not torch.allclose(prompts.encode_text(model, tokens), model(tiny.images(4), tokens, taps=False).text, atol=1e-2)
    rows = [prompts.encode_text(model, row[None])[0] for row in tokens]
    torch.testing.assert_close(torch.stack(rows), prompts.encode_text(model, tokens), atol=1e-5, rtol=1e-4)


def test_a_text_tower_without_blocks_of_open_clip_is_refused() -> None:
    model = tiny.student()
    del model.model.transformer
    with pytest.raises(UserError, match="blocks of open_clip's own text tower"):
        Prompts(tiny.student().shapes(), 2, 9).encode_text(model, tiny.tokens(2))


# --- projector -------------------------------------------------------------------------------------------------------


def test_the_projector_is_that_of_torch() -> None:
    """1x1 convolution, BatchNorm, ReLU, 1x1 convolution, also its running statistics and their use in evaluation."""
    ours = Projector(5, 7)
    norm = torch.nn.BatchNorm2d(7)
    first, second = torch.nn.Conv2d(5, 7, 1, bias=False), torch.nn.Conv2d(7, 7, 1)
    theirs = torch.nn.Sequential(first, norm, torch.nn.ReLU(), second)
    with torch.no_grad():
        ours.norm.weight.normal_(), ours.norm.bias.normal_()
        for mine, its in ((ours.first, first), (ours.norm, norm), (ours.second, second)):
            for name, value in mine.named_parameters():
                its.get_parameter(name).copy_(value.view_as(its.get_parameter(name)))
    for step in range(3):
        rows = tiny.images(6, seed=step).flatten(1)[:, :5] + step
        torch.testing.assert_close(ours(rows), theirs(rows[..., None, None])[..., 0, 0])
    torch.testing.assert_close(ours.norm.running_mean, norm.running_mean)
    torch.testing.assert_close(ours.norm.running_var, norm.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(rows), theirs(rows[..., None, None])[..., 0, 0])


def test_statistics_stay_in_full_precision_when_weights_do_not() -> None:
    projector = Projector(5, 7).to(torch.bfloat16)
    assert projector.norm.running_var.dtype == torch.float32 and projector.norm.weight.dtype == torch.bfloat16
    assert projector(torch.randn(4, 5)).dtype == torch.float32


def test_one_row_gives_no_nan() -> None:
    norm = GlobalBatchNorm(3)
    assert bool(torch.isfinite(norm(torch.randn(1, 3))).all()) and bool(torch.isfinite(norm.running_var).all())
