"""Rotary position embedding."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

FEW = 256
"""Angles of up to so many tokens are kept"""


def rotate(x: Tensor, first: int | Tensor, base: float = 10_000.0) -> Tensor:
    """Turn each pair (xᵢ, xᵢ₊ₙ⸝₂) of the token at position p by the angle p · base^(-2i/n) (RoPE).

    ``x`` (..., T, n) with n even; its tokens stand at positions ``first``, ``first`` + 1, …  Scores of rotated queries and keys
    depend on differences of positions alone, so a stream may count from any origin. A tensor ``first`` (B, 1) is one for each
    row of ``x`` (B, H, T, n).

    >>> torch.allclose(rotate(torch.ones(1, 2), first=0), torch.ones(1, 2))
    True
    """
    half, length = x.shape[-1] // 2, x.shape[-2]
    new = isinstance(first, Tensor) or length > FEW or type(x) is not Tensor or torch.compiler.is_compiling()
    cos, sin = (_turns if new else _known)(first, length, half, base, x.device, x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _turns(
    first: int | Tensor, length: int, half: int, base: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles, (length, half) or (B, 1, length, half)"""
    exponent = torch.arange(half, device=device, dtype=torch.float64) / half
    steps = torch.arange(length, device=device, dtype=torch.float64)
    position = first[..., None] + steps if isinstance(first, Tensor) else first + steps
    angle = position[..., None] * base**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


@lru_cache(maxsize=64)
def _known(*what: Any) -> tuple[Tensor, Tensor]:
    """``_turns``, which all layers share: as ordinary tensors, whoever asked for them first."""
    with torch.inference_mode(False), torch.no_grad():
        return _turns(*what)
