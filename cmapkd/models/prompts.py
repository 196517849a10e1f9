"""Deep prompts: learned tokens that replace some tokens before each of a tower's first blocks, its weights frozen.

Jia et al., "Visual Prompt Tuning", ECCV 2022 (vision); Khattak et al., "MaPLe", CVPR 2023 (text), without the coupling of
the two: the independent vision-language prompts of PromptSRC and PromptKD.

    vision   [CLS, patches, P]      appended; the first ones pass `ln_pre`, as the other tokens do
    text     [SOT, P, words, EOT]   after start-of-text; the causal mask grows with the sequence

Before block i the prompts of layer i take the place of what is left of those of layer i - 1; after the last prompted layer
they stay in the sequence as they are, and after the last block they are taken out, so pooling never sees them.

Adapted, in text: those papers put prompts in the place of a template ("a photo of a"), from which they start and whose
positions they get, and the class name follows. A caption has no template: here prompts start from random values and have no
positions (as in vision), and the words keep those they were trained with. So no caption is cut off, and a tower with new
prompts is close to the one without, also where the context is short.

No forward code is copied: the tokens are exchanged by hooks on open_clip's blocks that live during one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
            UserError: the text tower is not one of open_clip's own.
        """
        if self.text is None:
            return model.model.encode_text(tokens, normalize=normalize)
        tower = text_tower(model.model)
        if not hasattr(getattr(tower, "transformer", None), "resblocks"):
            raise UserError(
                key="teacher.model",
                value=type(tower).__name__,
                reason="text prompts are put before the blocks of open_clip's own text tower, which this model does not have",
                fix="choose a teacher whose text tower is that of CLIP, or leave PromptKD out",
            )
        with _inserted(tower.transformer.resblocks, self.text, causal=tower.attn_mask is not None):
            return model.model.encode_text(tokens, normalize=normalize)


_Exchange = Callable[[Tensor, Tensor, int], Tensor]  # tokens, prompts of the layer, layer


@contextmanager
def _hooks(
    blocks: Any, prompts: Tensor, exchange: _Exchange, restore: Callable[[Tensor], Tensor], mask: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """``exchange`` the tokens before the prompted blocks, ``mask`` attention in all, ``restore`` after the last."""
    if not prompts.shape[1]:
        yield
        return
    grown: list[Tensor] = []  # the mask is the same for all blocks

    def before(layer: int, module: nn.Module, inputs: Any, options: Any) -> Any:
        x = inputs[0]
        if layer < len(prompts):
            x = exchange(x, prompts[layer].to(x.dtype), layer)
        if options.get("attn_mask") is not None:
            if not grown:
                grown.append(mask(options["attn_mask"]))
            options = {**options, "attn_mask": grown[0]}
        return (x, *inputs[1:]), options

    handles = [block.register_forward_pre_hook(partial(before, layer), with_kwargs=True) for layer, block in enumerate(blocks)]
    handles.append(blocks[-1].register_forward_hook(lambda module, inputs, output: restore(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _appended(blocks: Any, prompts: Tensor, first: nn.Module) -> Any:
    """Prompts at the end of the sequence."""
    count = prompts.shape[1]

    def exchange(x: Tensor, own: Tensor, layer: int) -> Tensor:
        own = (first(own) if layer == 0 else own).expand(len(x), -1, -1)  # (B, count, D)
        return torch.cat([x if layer == 0 else x[:, :-count], own], dim=1)

    return _hooks(blocks, prompts, exchange, lambda x: x[:, :-count], lambda mask: mask)  # no image tower has a mask


def _inserted(blocks: Any, prompts: Tensor, causal: bool) -> Any:
    """Prompts after the first token."""
    count = prompts.shape[1]

    def exchange(x: Tensor, own: Tensor, layer: int) -> Tensor:
        rest = x[:, 1:] if layer == 0 else x[:, 1 + count :]
        return torch.cat([x[:, :1], own.expand(len(x), -1, -1), rest], dim=1)

    def grow(mask: Tensor) -> Tensor:
        return grown_mask(mask, count, causal)

    return _hooks(blocks, prompts, exchange, lambda x: torch.cat([x[:, :1], x[:, 1 + count :]], dim=1), grow)


def grown_mask(mask: Tensor, count: int, causal: bool) -> Tensor:
    """An additive attention mask for ``count`` prompts after the first token, (..., N, N) -> (..., N + count, N + count).

    To the others, a prompt is what the first token is; among themselves and the first token they are causal or not.
    """
    places = torch.arange(mask.shape[-1], device=mask.device)
    places = torch.cat([places.new_zeros(count), places])  # (N + count,)
    grown = mask[..., places, :][..., places]
    if causal:
        grown[..., : 1 + count, : 1 + count] = torch.full((1 + count, 1 + count), -torch.inf).triu(1)
    return grown
