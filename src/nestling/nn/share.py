"""Gates of the objective, beside those of the write: how much a pair counts later, and from where on it is surprising."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nestling.core import Gates
from nestling.errors import NestlingError
from nestling.nn.project import GateRange, Shapes


@dataclass(frozen=True)
class ShareRange:
    """γ = σ(w·x + b) for each head, how much a pair counts in the windows that see it (Atlas eq. 9); the rest as ``gates``.

    >>> ShareRange(start=0.9).module(32, 2, {"w1": (16, 16)}, 16)(torch.zeros(1, 1, 32)).share.flatten()
    tensor([0.9000, 0.9000], grad_fn=<ViewBackward0>)
    """

    gates: GateRange = GateRange()
    start: float = 0.9
    """γ before training"""

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise NestlingError(f"ShareRange needs 0 < start < 1, got {self.start}.")

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """One projection more."""
        return _More(dim, heads, self.gates.module(dim, heads, shapes, width), self)

    def put(self, gates: Gates, raw: Tensor) -> Gates:
        """``gates`` with γ from ``raw`` (B, H, T), zero where it starts"""
        return replace(gates, share=torch.sigmoid(raw + math.log(self.start / (1 - self.start))))


@dataclass(frozen=True)
class ThresholdRange:
    """τ = exp(w·x + b) > 0 for each head, the surprise from which on ``Above(threshold=None)`` writes; the rest as ``gates``.

    >>> ThresholdRange(start=0.5).module(32, 2, {"w1": (16, 16)}, 16)(torch.zeros(1, 1, 32)).threshold.flatten()
    tensor([0.5000, 0.5000], grad_fn=<ViewBackward0>)
    """

    gates: GateRange = GateRange()
    start: float = 1.0
    """τ before training"""

    def __post_init__(self) -> None:
        if self.start <= 0:
            raise NestlingError(f"ThresholdRange needs start > 0, got {self.start}.")

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """One projection more."""
        return _More(dim, heads, self.gates.module(dim, heads, shapes, width), self)

    def put(self, gates: Gates, raw: Tensor) -> Gates:
        """``gates`` with τ from ``raw`` (B, H, T), zero where it starts"""
        return replace(gates, threshold=torch.exp(raw + math.log(self.start)))


class _More(nn.Module):
    def __init__(self, dim: int, heads: int, inner: nn.Module, form: ShareRange | ThresholdRange) -> None:
        super().__init__()
        self.inner, self.form = inner, form
        self.linear = nn.Linear(dim, heads)
        with torch.no_grad():
            self.linear.weight.normal_(std=0.1 * dim**-0.5)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Gates:
        gates = self.inner(x)
        with torch.autocast(x.device.type, enabled=False):
            raw = self.linear(x.to(self.linear.weight.dtype)).mT
            return self.form.put(gates, raw)
