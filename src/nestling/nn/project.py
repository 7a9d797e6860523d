"""Projections that a memory layer puts before its memory: keys, values, queries, and gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nestling.core import Gates

Shapes = Mapping[str, tuple[int, int]]
"""The weights of a memory by name, (out, in): what a form of gates needs to know of them."""


@dataclass(frozen=True)
class GateRange:
    """What the gates of a layer can be, and what they are before training: value = limit · sigmoid(w·x + bias).

    The papers give no functional form. A chunk of C tokens sums C gradients at one anchor, and momentum multiplies the sum by
    1/(1-η); the rate that counts is about θ C / (1-η) along a direction that all keys share. The defaults keep it near one
    for C = 16.
    """

    lr: float = 0.2
    """The largest θ"""
    lr_start: float = 0.02
    """θ before training"""
    forget_start: float = 0.001
    """1 - retain before training; it can become anything between 0 and 1"""
    momentum_start: float = 0.6
    """η before training; it can become anything between 0 and 1"""

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """The projection that makes them from tokens."""
        return GateProjection(dim, heads, tuple(shapes), self)


class GateProjection(nn.Module):
    """Gates as functions of the token: for each head and each weight of the memory a rate, a forgetting and a momentum.

    θ = limit σ(·), retain = 1 - σ(·), η = σ(·); linear in x, one set for each memory layer (the NeurIPS version of Titans, App. B.3).

    >>> gates = GateProjection(32, heads=2, names=("w1", "w2"))(torch.randn(3, 5, 32))
    >>> gates.of("w1").lr.shape
    torch.Size([3, 2, 5])
    """

    def __init__(self, dim: int, heads: int, names: tuple[str, ...], gates: GateRange = GateRange()) -> None:
        """``names``: the weights of the memory."""
        super().__init__()
        self.heads, self.names, self.limit = heads, names, gates.lr
        self.linear = nn.Linear(dim, 3 * heads * len(names))
        starts = (gates.lr_start / gates.lr, gates.forget_start, gates.momentum_start)
        with torch.no_grad():
            self.linear.weight.normal_(std=0.1 * dim**-0.5)
            self.linear.bias.copy_(torch.tensor([_logit(p) for p in starts]).repeat_interleave(heads * len(names)))

    def forward(self, x: Tensor) -> Gates:
        """(B, T, dim) -> gates (B, H, T) for each weight"""
        # In the type of the parameters: a retention of 0.999 has no bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            raw = self.linear(x.to(self.linear.weight.dtype)).unflatten(-1, (3, len(self.names), self.heads))
            lr, forget, momentum = raw.permute(2, 3, 0, 4, 1).unbind(0)
            # 1 - σ(z) as σ(-z): no cancellation.
            values = (self.limit * torch.sigmoid(lr), torch.sigmoid(-forget), torch.sigmoid(momentum))
        return Gates(*(dict(zip(self.names, each.unbind(0), strict=True)) for each in values))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
