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
        wide = x if x.dtype == torch.float64 else x.float()
        return (F.rms_norm(wide, self.gain.shape, eps=self.eps) * self.gain).to(x.dtype)


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """X / ‖x‖₂ over the last axis, smooth at zero: x / √(‖x‖² + ε²).

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps**2)
