"""Adaptive layer-selection network (ALSN): per sample, how much each level of either pyramid counts.

    h = ReLU(Linear([x_v; x_l] -> 512)); dropout 0.1; h = ReLU(Linear(512 -> 256))
    w = softmax(sigmoid(Linear(256 -> 4)) / tau), once for P2..P5 and once for L1..L4

Where a stage uses only some levels, the weights are renormalised over those.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd.models.pyramid import LANGUAGE, VISUAL


class ALSN(nn.Module):
    """Level weights from the pooled top levels of a sample."""

    def __init__(
        self,
        channels: int,
        text_channels: int,
        hidden: Sequence[int] = (512, 256),
        dropout: float = 0.1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        first, second = hidden
        self.temperature = temperature
        self.body = nn.Sequential(
            nn.Linear(channels + text_channels, first), nn.ReLU(), nn.Dropout(dropout), nn.Linear(first, second), nn.ReLU()
        )
        self.visual = nn.Linear(second, len(VISUAL))
        self.language = nn.Linear(second, len(LANGUAGE))

    def forward(
        self, visual: Tensor, language: Tensor, visual_levels: Sequence[str] = VISUAL, language_levels: Sequence[str] = LANGUAGE
    ) -> tuple[Tensor, Tensor]:
        """Weights (B, visual levels) and (B, language levels), rows summing to one.

        Args:
            visual: global average of P5, (B, C). Detached here: the weights must not be made small by moving features.
            language: L4, (B, D).
        """
        hidden = self.body(torch.cat([visual, language], dim=-1).detach())  # (B, 256)
        return (
            self._weights(self.visual(hidden), VISUAL, visual_levels),
            self._weights(self.language(hidden), LANGUAGE, language_levels),
        )

    def _weights(self, scores: Tensor, names: Sequence[str], active: Sequence[str]) -> Tensor:
        # A softmax over the active levels equals the full softmax renormalised over them.
        columns = [names.index(level) for level in names if level in active]
        return F.softmax(torch.sigmoid(scores[:, columns]) / self.temperature, dim=-1)


def entropy(weights: Tensor) -> Tensor:
    """Shannon entropy in nats of each row of ``weights`` (B, levels). (B,)"""
    # Not `torch.special.entr`: its derivative at a weight that underflowed to zero is infinite, and 0 x inf is NaN.
    return -(weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum(dim=-1)
