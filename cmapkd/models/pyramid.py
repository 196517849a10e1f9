"""Unified cross-modal pyramid (UCMP): P2-P5 from a ViT's taps, L1-L4 from a text tower's, and the bridge between them.

The visual side is a feature pyramid network (Lin et al., CVPR 2017) over one resolution of tokens: the laterals are
resized to a half, one, two and four times the grid, then merged top-down. Adapted: P5 is pooled, so the coarsest level
differs from the last block's map; odd grids round up, and every merge resizes to the exact target size.
For late interaction a level is not only its average: P2-P4 keep their cells on a coarse grid, L1 and L2 their tokens.
The pyramid is a training device: it is dropped at inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd.models.towers import TapShapes, TowerOutputs

VISUAL = ("P2", "P3", "P4", "P5")
LANGUAGE = ("L1", "L2", "L3", "L4")
CELLED = ("P2", "P3", "P4")  # levels that are cells, and
TOKENED = ("L1", "L2")  # levels that are tokens, in late interaction; the others are one vector each
Smoothing = Literal["dense", "low-rank", "separable", "depthwise"]


@dataclass
class PyramidOutputs:
    """Levels of one batch; only the active ones are present, in the order P2..P5 and L1..L4.

    Attributes:
        maps: visual level -> (B, C, h, w).
        pooled: global average of the active maps, (B, levels, C).
        language: active language levels, (B, levels, D).
        visual_as_language: `f_v2l(pooled)`, (B, levels, D).
        language_as_visual: `f_l2v(language)`, (B, levels, C).
        cells: for late interaction, `f_v2l` of the cells of all active visual levels, (B, R, D); else None. A level of
            `CELLED` has grid x grid cells, the others one.
        tokens: for late interaction, the tokens of all active language levels, (B, S, D). A level of `TOKENED` has the N
            of the text, the others one.
        token_mask: True where `tokens` are not padding, (B, S).
    """

    maps: dict[str, Tensor]
    pooled: Tensor
    language: Tensor
    visual_as_language: Tensor
    language_as_visual: Tensor
    cells: Tensor | None = None
    tokens: Tensor | None = None
    token_mask: Tensor | None = None

    def rows(self, chosen: Tensor) -> PyramidOutputs:
        """The samples that ``chosen`` (B,) boolean, or indices, picks."""
        picked = {field.name: value[chosen] for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)}
        return PyramidOutputs(maps={level: value[chosen] for level, value in self.maps.items()}, **picked)


def smoothing_of(kind: Smoothing, channels: int) -> nn.Module:
    """A 3x3 convolution of (B, C, h, w) to the same shape.

    Operations per cell: ``dense`` 9 C C; ``low-rank``, through C/4 channels, 5/2 C C; ``separable``, each channel alone and
    then a 1x1 convolution, 9 C + C C; ``depthwise``, each channel alone, 9 C.
    """
    if kind == "low-rank":
        rank = rank_of(channels)
        return nn.Sequential(nn.Conv2d(channels, rank, 3, padding=1, bias=False), nn.Conv2d(rank, channels, 1))
    if kind == "dense":
        return nn.Conv2d(channels, channels, 3, padding=1)
    alone = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    return alone if kind == "depthwise" else nn.Sequential(alone, nn.Conv2d(channels, channels, 1))


def rank_of(channels: int) -> int:
    """Channels in the middle of a ``low-rank`` convolution."""
    return max(1, channels // 4)


class VisualPyramid(nn.Module):
    """Feature pyramid over four maps of one grid g: P5 g/2, P4 g, P3 2g, P2 4g (g/2 rounded up)."""

    def __init__(self, width: int, channels: int, smoothing: Smoothing = "dense") -> None:
        super().__init__()
        self.lateral = nn.ModuleDict({level: nn.Conv2d(width, channels, 1) for level in VISUAL})
        self.smooth = nn.ModuleDict({level: smoothing_of(smoothing, channels) for level in VISUAL[:3]})

    def forward(self, taps: Sequence[Tensor], levels: Sequence[str] = VISUAL) -> dict[str, Tensor]:
        """Build the active ``levels`` from ``taps`` of blocks d/4, d/2, 3d/4, d, each (B, W, g, g)."""
        return self.merge(self.laterals(taps, levels), levels)

    def laterals(self, taps: Sequence[Tensor], levels: Sequence[str] = VISUAL) -> dict[str, Tensor]:
        """What `merge` needs of the taps for ``levels``: those levels and all coarser ones, each (B, C, g, g)."""
        # A 1x1 convolution commutes with nearest upsampling, so it runs on the small grid.
        return {level: self.lateral[level](taps[VISUAL.index(level)]) for level in needed_laterals(levels)}

    def merge(self, laterals: Mapping[str, Tensor], levels: Sequence[str] = VISUAL) -> dict[str, Tensor]:
        """The active ``levels`` from their `laterals`, top-down; their channels lie side by side in memory.

        So a depthwise convolution needs no copies in an order of its own, and what sums over channels reads them in a row.
        """
        rows = {level: laterals[level].contiguous(memory_format=torch.channels_last) for level in needed_laterals(levels)}
        height, width = rows["P5"].shape[-2:]
        # P5: pooled 2x2; ceil_mode keeps the last row of an odd grid, averaged over the cells it has.
        top = F.avg_pool2d(rows["P5"], 2, ceil_mode=True, count_include_pad=False)  # (B, C, g/2, g/2)
        built = {"P5": top}
        for level in reversed(needed_laterals(levels)[:-1]):
            scale = 2 ** (2 - VISUAL.index(level))
            size = (height * scale, width * scale)
            if scale > 1:  # both are upsampled: they are added first, on the smaller grid
                merged = _nearest(_nearest(rows[level], top.shape[-2:]) + top, size)
            else:
                merged = rows[level] + _nearest(top, size)
            built[level] = top = self.smooth[level](merged)  # (B, C, scale*g, scale*g)
        return {level: built[level] for level in VISUAL if level in levels}


class LanguageHierarchy(nn.Module):
    """Token, phrase, sentence and global level of a caption, each a D-vector; padding never takes part."""

    def __init__(self, width: int, channels: int, window: int = 3, heads: int = 4) -> None:
        super().__init__()
        if window % 2 == 0:
            raise ValueError(f"window = {window} must be odd, to be centred on a token")
        self.window, self.heads = window, heads
        self.attention = nn.ModuleDict({level: nn.MultiheadAttention(width, heads, batch_first=True) for level in ("L2", "L3")})
        self.project = nn.ModuleDict({level: nn.Linear(width, channels) for level in LANGUAGE})

    def forward(self, taps: Sequence[Tensor], mask: Tensor, summary: Tensor, levels: Sequence[str] = LANGUAGE) -> Tensor:
        """(B, levels, D) from ``taps`` (B, N, W) each, ``mask`` (B, N) True on tokens and ``summary`` (B,) positions."""
        return self.with_tokens(taps, mask, summary, levels, keep=False)[0]

    def with_tokens(
        self, taps: Sequence[Tensor], mask: Tensor, summary: Tensor, levels: Sequence[str] = LANGUAGE, keep: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """The same and, if ``keep``, of each level the tokens before they are averaged, (B, N, D), or its vector, (B, 1, D)."""
        built, parts = [], []
        for level in LANGUAGE:
            if level not in levels:
                continue
            tokens = taps[LANGUAGE.index(level)]  # (B, N, W)
            if level in self.attention:
                tokens = self._attend(level, tokens, mask)
            if level == "L4":
                vector = tokens[torch.arange(len(tokens), device=tokens.device), summary]  # (B, W)
            else:
                vector = masked_mean(tokens, mask)  # (B, W)
            built.append(self.project[level](vector))  # (B, D)
            if keep:
                parts.append(self.project[level](tokens) if level in TOKENED else built[-1][:, None])
        return torch.stack(built, dim=1), parts

    def _attend(self, level: str, tokens: Tensor, mask: Tensor) -> Tensor:
        count = tokens.shape[1]
        position = torch.arange(count, device=tokens.device)
        allowed = mask[:, None, :].expand(-1, count, -1)  # (B, N, N) a query sees tokens, not padding
        if level == "L2":
            allowed = allowed & ((position[:, None] - position[None, :]).abs() <= self.window // 2)
        # Every position sees itself: a softmax over nothing would be NaN, and padding's output is masked out later.
        allowed = allowed | torch.eye(count, dtype=torch.bool, device=tokens.device)
        blocked = (~allowed).repeat_interleave(self.heads, dim=0)  # (B * heads, N, N)
        return self.attention[level](tokens, tokens, tokens, attn_mask=blocked, need_weights=False)[0]


class Pyramid(nn.Module):
    """Both pyramids of one model and the cross-modal bridge `f_v2l: C -> D`, `f_l2v: D -> C`."""

    def __init__(
        self,
        shapes: TapShapes,
        channels: int = 256,
        text_channels: int = 256,
        smoothing: Smoothing = "dense",
        phrase_window: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.channels, self.text_channels = channels, text_channels
        self.visual = VisualPyramid(shapes.image_width, channels, smoothing)
        self.language = LanguageHierarchy(shapes.text_width, text_channels, phrase_window, heads)
        self.visual_to_language = nn.Linear(channels, text_channels)
        self.language_to_visual = nn.Linear(text_channels, channels)

    def forward(
        self,
        outputs: TowerOutputs,
        visual_levels: Sequence[str] = VISUAL,
        language_levels: Sequence[str] = LANGUAGE,
        grid: int | None = None,
    ) -> PyramidOutputs:
        """The active levels of a batch whose ``outputs`` carry taps.

        With ``grid`` also the cells and tokens for late interaction: every map of `CELLED` is averaged over ``grid`` x
        ``grid`` areas, or as many as the model has patches along an axis.
        """
        if outputs.text_mask is None or outputs.summary is None:
            raise ValueError("a pyramid needs outputs with taps: call the model with taps=True")
        maps = self.visual(outputs.image_taps, visual_levels)
        read = outputs.text_taps, outputs.text_mask, outputs.summary, language_levels
        language, parts = self.language.with_tokens(*read, keep=grid is not None)
        levels = self.bridged(maps, language)
        if grid is not None:
            rows, columns = (min(grid, patches) for patches in outputs.image_taps[-1].shape[-2:])
            sizes = {level: (rows, columns) if level in CELLED else (1, 1) for level in maps}
            cells = [F.adaptive_avg_pool2d(maps[level], size).flatten(2).transpose(1, 2) for level, size in sizes.items()]
            levels.cells = self.visual_to_language(torch.cat(cells, dim=1))  # (B, R, D)
            levels.tokens = torch.cat(parts, dim=1)  # (B, S, D)
            single = outputs.text_mask.new_ones(len(language), 1)
            masks = [outputs.text_mask if level in TOKENED else single for level in LANGUAGE if level in language_levels]
            levels.token_mask = torch.cat(masks, dim=1)
        return levels

    def bridged(self, maps: dict[str, Tensor], language: Tensor) -> PyramidOutputs:
        """The levels of a batch from their ``maps``, (B, C, h, w) each, and the ``language`` levels, (B, levels, D)."""
        pooled = torch.stack([_average(level) for level in maps.values()], dim=1)  # (B, levels, C)
        return PyramidOutputs(maps, pooled, language, self.visual_to_language(pooled), self.language_to_visual(language))

    @staticmethod
    def uses(parameter: str, visual_levels: Sequence[str], language_levels: Sequence[str]) -> bool:
        """Whether a parameter (by its name in this module) takes part in the given levels."""
        level = next((part for part in parameter.split(".") if part in (*VISUAL, *LANGUAGE)), None)
        if level in VISUAL:  # a level is built on all that are coarser
            return level in needed_laterals(visual_levels)
        return level is None or level in language_levels


def needed_laterals(levels: Sequence[str]) -> tuple[str, ...]:
    """Visual levels whose laterals take part in ``levels``: each is built on all that are coarser."""
    return VISUAL[min(VISUAL.index(level) for level in levels) :]


def segments(
    cells: int, tokens: int, visual_levels: Sequence[str], language_levels: Sequence[str]
) -> tuple[list[int], list[int]]:
    """How many of ``cells`` rows and ``tokens`` rows of `PyramidOutputs` belong to each of the active levels."""
    return _counts(cells, visual_levels, CELLED), _counts(tokens, language_levels, TOKENED)


def _counts(total: int, levels: Sequence[str], many: Sequence[str]) -> list[int]:
    sets = sum(level in many for level in levels)
    each = (total - (len(levels) - sets)) // max(1, sets)
    return [each if level in many else 1 for level in levels]


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``tokens`` (B, N, W) where ``mask`` (B, N) is True; zero for a row without any token. (B, W)"""
    weight = mask.to(tokens.dtype)[..., None]  # (B, N, 1)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _average(maps: Tensor) -> Tensor:
    """Global average (B, C). The gradient of `mean` would be written out for every cell, this one's is not."""
    return (maps.sum(dim=(2, 3), dtype=torch.float32) / maps[0, 0].numel()).to(maps.dtype)


def _nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    return maps if tuple(maps.shape[-2:]) == tuple(size) else F.interpolate(maps, size=size, mode="nearest")
