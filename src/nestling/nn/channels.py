"""Gates by channel, from a low-rank projection of the token (MIRAS §5.3, as in RWKV-7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.core import Gates
from nestling.errors import NestlingError
from nestling.nn.project import Shapes


@dataclass(frozen=True)
class ChannelRange:
    """η and α for each channel of each weight of a memory, δ for each head: W₂W₁x + b, W₁ of ``rank`` rows, then the ranges.

    η = ``lr`` σ(·), α = 1 - σ(·), δ = softplus(·), a positive threshold made from the token. The channels of a weight are those of
    its narrower side: inputs of the first map of an MLP, outputs of the last. The papers give no form and no range.

    >>> gates = ChannelRange(threshold=1.0).module(32, 2, {"w1": (64, 16), "w2": (16, 64)}, 16)(torch.randn(3, 5, 32))
    >>> gates.lr["w1"].shape, gates.threshold.shape
    (torch.Size([3, 2, 5, 16]), torch.Size([3, 2, 5]))
    """

    rank: int = 32
    lr: float = 0.2
    """The largest η"""
    lr_start: float = 0.02
    """η before training"""
    forget_start: float = 0.001
    """1 - α before training; it can become anything between 0 and 1"""
    threshold: float | None = None
    """δ before training; None: no threshold, for objectives without one"""

    def __post_init__(self) -> None:
        inside = 0 < self.lr_start < self.lr and 0 < self.forget_start < 1
        if self.rank < 1 or not inside or (self.threshold is not None and self.threshold <= 0):
            raise NestlingError(
                f"ChannelRange needs rank ≥ 1, 0 < lr_start < lr, 0 < forget_start < 1 and threshold > 0 or None, got {self!r}."
            )

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """Two projections and a bias."""
        return _Channels(dim, heads, {name: min(shape) for name, shape in shapes.items()}, self)


class _Channels(nn.Module):
    def __init__(self, dim: int, heads: int, widths: dict[str, int], form: ChannelRange) -> None:
        super().__init__()
        self.heads, self.widths, self.form = heads, widths, form
        each = heads * sum(widths.values())
        self.parts = (each, each, 0 if form.threshold is None else heads)
        self.down_to = nn.Linear(dim, form.rank, bias=False)
        self.up_from = nn.Linear(form.rank, sum(self.parts))
        starts = [_logit(form.lr_start / form.lr), _logit(form.forget_start)]
        if form.threshold is not None:
            # softplus⁻¹(δ)
            starts.append(form.threshold + math.log(-math.expm1(-form.threshold)))
        with torch.no_grad():
            self.up_from.weight.normal_(std=0.1 * form.rank**-0.5)
            filled = (torch.full((size,), start) for size, start in zip(self.parts, starts, strict=False))
            self.up_from.bias.copy_(torch.cat(list(filled)))

    def forward(self, x: Tensor) -> Gates:
        """(B, T, dim) -> gates (B, H, T, channels) for each weight, and the threshold (B, H, T)"""
        # In the type of the parameters: a retention of 0.999 has no bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            lr, forget, threshold = self.up_from(self.down_to(x.to(self.up_from.weight.dtype))).split(self.parts, -1)
            # 1 - σ(z) as σ(-z): no cancellation.
            rate, retain = self._named(self.form.lr * torch.sigmoid(lr)), self._named(torch.sigmoid(-forget))
            if self.form.threshold is None:
                return Gates(rate, retain)
            return Gates(rate, retain, threshold=F.softplus(threshold).mT)

    def _named(self, values: Tensor) -> dict[str, Tensor]:
        each = values.unflatten(-1, (self.heads, -1)).transpose(1, 2).split(list(self.widths.values()), -1)
        return dict(zip(self.widths, each, strict=True))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
