"""Normalisations."""

from __future__ import annotations

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


class BoundedNorm(nn.Module):
    """y = g ⊙ x / √(1 + mean(x²)/b²), over the last axis, computed in at least float32.

    Far above the bound b only the direction of x is left, at the r.m.s. b. Far below it x stays as it is: then a difference of two
    counts is one number, however high they are.

    >>> norm = BoundedNorm(2, bound=10.0)
    >>> norm(torch.tensor([[0.3, 0.4], [300.0, 400.0]])).round(decimals=1)
    tensor([[ 0.3000,  0.4000],
            [ 8.5000, 11.3000]], grad_fn=<RoundBackward1>)
    """

    def __init__(self, dim: int, bound: float) -> None:
        """``dim``: width of the last axis."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        wide = widened(x)
        scale = torch.rsqrt(1 + wide.square().mean(-1, keepdim=True) / self.bound**2)
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
