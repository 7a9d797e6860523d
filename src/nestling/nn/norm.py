"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = g ⊙ x / √(mean(x²) + ε), over the last axis, computed in at least float32.

    >>> RMSNorm(2)(torch.tensor([3.0, 4.0])).square().mean().round(decimals=3).item()
    1.0
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        """``dim``: width of the last axis."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        return (F.rms_norm(widened(x), self.gain.shape, eps=self.eps) * self.gain).to(x.dtype)


class HeadNorm(nn.Module):
    """y = g ⊙ max(1, s) x / √(mean(x²) + s²), over the last axis, with a floor s for each head.

    Far above its floor only the direction of x is left (``RMSNorm`` is s = 10⁻³). Below a floor above 1 x stays as it is: then a
    difference of two counts is one number, however high they are.

    >>> norm = HeadNorm(2, floors=(1e-3, 10.0))
    >>> norm(torch.tensor([[[0.3, 0.4]], [[0.3, 0.4]]])).round(decimals=2)
    tensor([[[0.8500, 1.1300]],
    <BLANKLINE>
            [[0.3000, 0.4000]]], grad_fn=<RoundBackward1>)
    """

    floors: Tensor

    def __init__(self, dim: int, floors: Sequence[float]) -> None:
        """``dim``: width of the last axis; ``floors``: one for each head, the third axis from the end."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.register_buffer("floors", torch.tensor(floors)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, T, dim) -> (..., H, T, dim)"""
        wide = widened(x)
        # s / √(mean(x²) + s²) for s > 1
        scale = self.floors.clamp(min=1) * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.floors**2)
        return (wide * scale * self.gain).to(x.dtype)


def widened(x: Tensor) -> Tensor:
    """``x`` in float32, or wider where it is: sums over many tokens have no place in bfloat16.

    >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype, widened(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """X / ‖x‖₂ over the last axis, smooth at zero: x / √(‖x‖² + ε²).

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps**2)
