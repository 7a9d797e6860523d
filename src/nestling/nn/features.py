"""What a memory layer does to queries, keys and values before its memory sees them; each form is a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.errors import NestlingError
from nestling.nn.norm import unit
from nestling.nn.rope import rotate
from nestling.ops import Marks

Heads = tuple[Tensor, Tensor, Tensor]
"""q, k and v, each (B, H, T, d)"""


class _Stateless:
    """Features of each token by itself."""

    def initial_state(self, like: Tensor, batch: int) -> Any:
        """None needed."""
        return ()


@dataclass(frozen=True)
class Unit(_Stateless):
    """SiLU on all three, then ‖q‖ = ‖k‖ = 1; v as it is (Titans §4.4, DeltaNet, Gated DeltaNet)."""

    def __call__(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = (F.silu(each) for each in heads)
        return (unit(q), unit(k), v), state


@dataclass(frozen=True)
class Length(_Stateless):
    """‖q‖ = ‖k‖ = 1, no activation (TTT: three linear views of the token)."""

    def __call__(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = heads
        return (unit(q), unit(k), v), state


@dataclass(frozen=True)
class Scaled(_Stateless):
    """q / √d; keys and values as they are (GLA)."""

    def __call__(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = heads
        return (q * q.shape[-1] ** -0.5, k, v), state


@dataclass(frozen=True)
class Rotated:
    """q e^{inθ} and k e^{-inθ} / √d at position n: relative positions (RetNet eq. 5).

    The state is the number of tokens before, (B,) int64; scores depend on differences alone, so it counts through documents.
    """

    base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise NestlingError(f"Rotated needs base > 1, got {self.base}.")

    def initial_state(self, like: Tensor, batch: int) -> Any:
        """No token yet."""
        return torch.zeros(batch, dtype=torch.int64, device=like.device)

    def __call__(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = heads
        count = q.shape[2] if marks.valid is None else marks.valid.sum(1)
        first = state[:, None]
        turned = rotate(q, first, self.base), rotate(k, first, self.base) * k.shape[-1] ** -0.5
        return (*turned, v), state + count


Features = Unit | Length | Scaled | Rotated
