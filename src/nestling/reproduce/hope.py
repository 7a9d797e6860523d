"""Hope as it counts and tracks states: committed after every token, each write bounded, heads that begin where this happens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nestling.core import Delta, Level, Matrix
from nestling.errors import NestlingError
from nestling.models import LM
from nestling.nn import CMS, Block, SelfModifying, SelfRange
from nestling.nn.mixer import UNMARKED
from nestling.nn.norm import widened
from nestling.nn.self_modifying import SelfModifyingState
from nestling.nn.self_modifying_form import SelfForm
from nestling.nn.self_modifying_tokens import Within, by_token
from nestling.ops import Marks, begin
from nestling.recipes import configure

FORM = SelfForm(memory=Matrix(), projections=Matrix(), retention=Delta())
"""NL eqs 83-88 as printed, with matrices: nothing returns, nothing is skipped."""
RANGES = SelfRange(lr=1.0, slow=0.0, fast=0.0, retain=14.0, projections=0.01)
ADDITIVE, REFLECTING = -2.0, 0.7
"""b of η in heads that begin so"""


class TokenExact(SelfModifying):
    """Self-modifying Titans at period 1, their values ``Within`` bounds.

    In the first ``additive`` heads keys begin in one half of the channels, and what is written along them in the other, which
    the memories do not read: transitions I + η o kᵀ then commute, and writes add up as in linear attention. In the next
    ``reflecting`` heads values begin opposite to keys, so that writes turn around what the key reads. Others begin at random.
    """

    def __init__(self, dim: int, heads: int, additive: int, reflecting: int, value: Within = Within()) -> None:
        """``additive`` and ``reflecting``: how many of the ``heads`` begin so."""
        super().__init__(dim, heads, 1, form=FORM, ranges=RANGES)
        self.value = value
        with torch.no_grad():
            made = {name: part["w1"] for name, part in self.initial_projections.items()}  # type: ignore[index]
            half, turned = dim // heads // 2, slice(additive, additive + reflecting)
            made["v"][additive:] *= 0.4
            made["v"][turned] -= 0.7 * made["k"][turned]
            made["k"][:additive, half:] = 0
            made["v"][:additive, :half] = 2.5 * made["k"][:additive, :half]
            for each in made.values():
                each[:additive, :, half:] = 0
            made["α"].zero_()
            self.bias["η"][:additive] = ADDITIVE
            self.bias["η"][turned] = REFLECTING

    def forward(
        self, x: Tensor, state: SelfModifyingState | None = None, marks: Marks = UNMARKED
    ) -> tuple[Tensor, SelfModifyingState]:
        """(B, T, dim) -> (B, T, dim)"""
        if marks != UNMARKED:
            raise NestlingError(f"words are read without marks, got {marks!r}: read one word a row.")
        seen, conv = self.conv(x, None if state is None else state.conv, marks)
        memories, wide = (self.memory, self.projections), widened(seen)
        if state is None:
            main, made = (
                begin(memory, weights, x.shape[0]) for memory, weights in zip(memories, self.weights(), strict=True)
            )
        else:
            main, made = state.memory, state.projections
        y, after = by_token(
            memories, (main, made), self.form, self.ranges, self._by_head(wide), self._static(wide), self.value
        )
        y = self.norm(y.to(x.dtype)).transpose(1, 2).flatten(-2)
        return self.out(y * nn.functional.silu(self.gate(x))), SelfModifyingState(conv, *after)


def token_exact(vocab_size: int, additive: int = 2, reflecting: int = 1, **shape: Any) -> LM:
    """Hope of ``shape`` with ``TokenExact`` memories; ``additive`` and ``reflecting``: heads that begin so.

    >>> token_exact(2, dim=16, heads=4, layers=1)(torch.zeros(1, 5, dtype=torch.int64))[0].shape
    torch.Size([1, 5, 2])
    """
    levels = (Level("fast", 1), Level("slow", 1))
    config = configure("hope", vocab_size=vocab_size, period=1, ranges=RANGES, levels=levels, **shape)
    return LM(
        config,
        [
            Block(
                config.dim,
                TokenExact(config.dim, config.heads, additive, reflecting),
                CMS(config.dim, levels, config.expand),
            )
            for _ in range(config.layers)
        ],
    )
