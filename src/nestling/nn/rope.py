"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, first: int | Tensor, base: float = 10_000.0) -> Tensor:
    """Turn each pair (xᵢ, xᵢ₊ₙ⸝₂) of the token at position p by the angle p · base^(-2i/n) (RoPE).

    ``x`` (..., T, n) with n even; its tokens stand at positions ``first``, ``first`` + 1, …  Scores of rotated queries and keys
    depend on differences of positions alone, so a stream may count from any origin. A tensor ``first`` (B, 1) is one for each
    row of ``x`` (B, H, T, n).

    >>> torch.allclose(rotate(torch.ones(1, 2), first=0), torch.ones(1, 2))
    True
    """
    half = x.shape[-1] // 2
    exponent = torch.arange(half, device=x.device, dtype=torch.float64) / half
    steps = torch.arange(x.shape[-2], device=x.device, dtype=torch.float64)
    position = first[..., None] + steps if isinstance(first, Tensor) else first + steps
    angle = position[..., None] * base**-exponent
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
