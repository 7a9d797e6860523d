"""A memory beside or before attention: Titans' memory as a gate (MAG) and as a layer (MAL)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nestling.nn.mixer import UNMARKED, LevelRow, Mixer, State
from nestling.nn.norm import RMSNorm
from nestling.ops import Marks


class Identity(Mixer):
    """y = x: the memory that adds nothing.

    >>> Identity()(torch.ones(1, 2, 3))[0].sum()
    tensor(6.)
    """

    def initial_state(self, batch: int) -> tuple[()]:
        """None needed."""
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, tuple[()]]:
        """(B, T, dim) -> (B, T, dim)"""
        return x, ()


class _Two(Mixer):
    """Two mixers in one; the state is a pair."""

    def __init__(self, memory: Mixer, attention: Mixer) -> None:
        super().__init__()
        self.memory, self.attention = memory, attention

    def initial_state(self, batch: int) -> State:
        """Those of the two."""
        return self.memory.initial_state(batch), self.attention.initial_state(batch)

    def levels(self) -> list[LevelRow]:
        """Those of the two, named after their part."""
        parts = (("long", self.memory), ("short", self.attention))
        return [replace(row, name=f"{part}.{row.name}") for part, mixer in parts for row in mixer.levels()]


class MemoryAsGate(_Two):
    """o = norm_a(y) ⊗ σ(norm_b(m)), with y = SW-Attn*(x) and m = M(x) side by side (Titans eqs 26-28).

    Both sides are normed with gains that are learnt, one for each channel, before the nonlinearity σ, a sigmoid on the side of
    the memory; ⊗ is the product of channels. What the paper leaves open about ⊗ is docs/recipes.md's.

    >>> from nestling.nn import Attention
    >>> MemoryAsGate(32, Identity(), Attention(32, heads=2, window=8))(torch.randn(1, 5, 32))[0].shape
    torch.Size([1, 5, 32])
    """

    def __init__(self, dim: int, memory: Mixer, attention: Mixer) -> None:
        """``memory`` for what is long ago, ``attention`` for the window."""
        super().__init__(memory, attention)
        self.memory_norm, self.attention_norm = RMSNorm(dim), RMSNorm(dim)

    def forward(self, x: Tensor, state: State | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, State]:
        """(B, T, dim) -> (B, T, dim)"""
        of_memory, of_attention = (None, None) if state is None else state
        m, of_memory = self.memory(x, of_memory, marks)
        y, of_attention = self.attention(x, of_attention, marks)
        return self.attention_norm(y) * torch.sigmoid(self.memory_norm(m)), (of_memory, of_attention)


class MemoryAsLayer(_Two):
    """o = SW-Attn(M(x)): attention over what the memory says (Titans eqs 29-31, the H3-like form).

    >>> from nestling.nn import Attention
    >>> MemoryAsLayer(Identity(), Attention(32, heads=2, window=8))(torch.randn(1, 5, 32))[0].shape
    torch.Size([1, 5, 32])
    """

    def forward(self, x: Tensor, state: State | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, State]:
        """(B, T, dim) -> (B, T, dim)"""
        of_memory, of_attention = (None, None) if state is None else state
        y, of_memory = self.memory(x, of_memory, marks)
        o, of_attention = self.attention(y, of_attention, marks)
        return o, (of_memory, of_attention)
