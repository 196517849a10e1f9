"""Deep prompts: learned tokens that replace some tokens before each of a tower's first blocks, its weights frozen.

Jia et al., "Visual Prompt Tuning", ECCV 2022 (vision); Khattak et al., "MaPLe", CVPR 2023 (text), without the coupling of
the two: the independent vision-language prompts of PromptSRC and PromptKD.

    vision   [CLS, patches, P]      appended; the first ones pass `ln_pre`, as the other tokens do, and no position is added
    text     [SOT, P, words, EOT]   after start-of-text, with the positions there; the context keeps its length

Before block i the prompts of layer i take the place of what is left of those of layer i - 1; after the last prompted layer
they stay in the sequence as they are. In text the place is made among the tokens, as the templates of those papers do
("X X X X a photo ..."), so that positions, causal mask and pooling are open_clip's own. Words beyond the context are cut
off, end-of-text is kept. Adapted: text prompts start from random values, not from the words "a photo of a".

No forward code is copied: the tokens are exchanged by hooks on open_clip's blocks that live during one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cmapkd.errors import UserError
from cmapkd.models.towers import Tapped, TapShapes, TowerOutputs, text_tower

_DEVIATION = 0.02  # of the initial values, as in the three papers


class Prompts(nn.Module):
    """Prompts of one model; they are called with it, and do not own it.

    Args:
        shapes: of the model.
        tokens: prompts per layer and modality; with 0 the towers do what they do without prompts.
        layers: blocks that get prompts, from the first one on; a tower with fewer gets them in all.
        text: also for the text tower.
    """

    vision: nn.Parameter | None
    text: nn.Parameter | None

    def __init__(self, shapes: TapShapes, tokens: int, layers: int, text: bool = True) -> None:
        super().__init__()
        if text and tokens > shapes.context_length - 3:  # start, end and a word
            raise UserError(
                key="teacher_prompts.tokens",
                value=tokens,
                reason=f"leaves no place for words in a context of {shapes.context_length} tokens",
                fix="use fewer",
            )
        depth = min(layers, shapes.image_layers), min(layers, shapes.text_layers)
        self.vision = nn.Parameter(_DEVIATION * torch.randn(depth[0], tokens, shapes.image_width))
        self.text = nn.Parameter(_DEVIATION * torch.randn(depth[1], tokens, shapes.text_width)) if text else None

    def forward(self, model: Tapped, images: Tensor, tokens: Tensor | None) -> TowerOutputs:
        """Prompted embeddings of ``images`` (B, 3, H, W) and ``tokens`` (B, N), without taps; None leaves ``text`` empty."""
        text = images.new_zeros(len(images), 0) if tokens is None else self.encode_text(model, tokens)
        return TowerOutputs(self.encode_image(model, images), text, model.model.logit_scale.exp())

    def encode_image(self, model: Tapped, images: Tensor, normalize: bool = True) -> Tensor:
        """Prompted image embeddings, (B, E)."""
        assert self.vision is not None
        visual = model.model.visual
        with _appended(visual.transformer.resblocks, self.vision, visual.ln_pre):
            return model.model.encode_image(images, normalize=normalize)

    def encode_text(self, model: Tapped, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Prompted text embeddings of ``tokens`` (B, N), (B, E); the un-prompted ones where there are no text prompts.

        Raises:
            UserError: the text tower is not one of open_clip's own that reads from start-of-text to end-of-text.
        """
        if self.text is None:
            return model.model.encode_text(tokens, normalize=normalize)
        tower = text_tower(model.model)
        _check(tower)
        count = self.text.shape[1]
        tokens = make_room(tokens, count, model.summary(tokens)[0])
        with _inserted(tower.transformer.resblocks, self.text, tower.positional_embedding[1 : 1 + count]):
            return model.model.encode_text(tokens, normalize=normalize)


def make_room(tokens: Tensor, count: int, end: Tensor) -> Tensor:
    """Free the ``count`` places after start-of-text.

    Args:
        tokens: (B, N).
        end: position of end-of-text, (B,).

    Returns:
        (B, N): start-of-text repeated in the free places, as any token would do that is no padding and no end; then the
        text, cut off so that its end-of-text still fits in.
    """
    start, rest = tokens[:, :1], tokens[:, 1 : tokens.shape[1] - count]
    moved = torch.cat([start, start.expand(-1, count), rest], dim=1)  # (B, N)
    last = tokens.gather(1, end[:, None])[:, 0]  # (B,)
    moved[:, -1] = torch.where(end + count >= tokens.shape[1] - 1, last, moved[:, -1])
    return moved


def _check(tower: Any) -> None:
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    if not hasattr(getattr(tower, "transformer", None), "resblocks") or pool not in ("argmax", "eos"):
        raise UserError(
            key="teacher.model",
            value=type(tower).__name__,
            reason="text prompts take the places after start-of-text, which this text tower does not have",
            fix="choose a teacher whose text tower is that of CLIP, or leave PromptKD out",
        )


@contextmanager
def _hooks(blocks: Any, prompts: Tensor, exchange: Any, restore: Any = None) -> Iterator[None]:
    """Before the first blocks, ``exchange(tokens, prompts of the layer, layer)``; after the last one, ``restore(tokens)``."""
    handles = []
    if prompts.shape[1]:
        for layer, (block, own) in enumerate(zip(blocks, prompts, strict=False)):

            def before(module: nn.Module, inputs: Any, own: Tensor = own, layer: int = layer) -> Any:
                return exchange(inputs[0], own.to(inputs[0].dtype), layer), *inputs[1:]

            handles.append(block.register_forward_pre_hook(before))
        if restore is not None:
            handles.append(blocks[-1].register_forward_hook(lambda module, inputs, output: restore(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _appended(blocks: Any, prompts: Tensor, first: nn.Module) -> Any:
    """Prompts at the end of the sequence; they are taken off after the last block, so pooling never sees them."""
    count = prompts.shape[1]

    def exchange(x: Tensor, own: Tensor, layer: int) -> Tensor:
        own = (first(own) if layer == 0 else own).expand(len(x), -1, -1)  # (B, count, D)
        return torch.cat([x if layer == 0 else x[:, :-count], own], dim=1)

    return _hooks(blocks, prompts, exchange, lambda x: x[:, :-count])


def _inserted(blocks: Any, prompts: Tensor, positions: Tensor) -> Any:
    """Prompts in the places 1 .. count of a sequence whose length stays the same."""
    count = prompts.shape[1]

    def exchange(x: Tensor, own: Tensor, layer: int) -> Tensor:
        own = (own + positions.to(own.dtype) if layer == 0 else own).expand(len(x), -1, -1)  # (B, count, D)
        return torch.cat([x[:, :1], own, x[:, 1 + count :]], dim=1)

    return _hooks(blocks, prompts, exchange)
