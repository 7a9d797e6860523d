"""A block: a token mixer and a channel mixer, each with a norm before and a residual around it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from nestling.nn.mixer import UNMARKED, LevelRow, Mixer, State
from nestling.nn.norm import RMSNorm
from nestling.ops import Marks


class Block(Mixer):
    """x ← x + mixer(norm x); x ← x + channel(norm x). The state is a pair.

    >>> import torch
    >>> from nestling.nn import Attention, SwiGLU
    >>> block = Block(32, Attention(32, heads=2, window=8), SwiGLU(32))
    >>> block(torch.randn(1, 5, 32))[0].shape
    torch.Size([1, 5, 32])
    """

    def __init__(self, dim: int, mixer: Mixer, channel: Mixer) -> None:
        """``mixer`` mixes tokens, ``channel`` mixes channels; both may keep state."""
        super().__init__()
        self.mixer_norm, self.mixer = RMSNorm(dim), mixer
        self.channel_norm, self.channel = RMSNorm(dim), channel

    def initial_state(self, batch: int) -> State:
        """Those of the two."""
        return self.mixer.initial_state(batch), self.channel.initial_state(batch)

    def forward(self, x: Tensor, state: State | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, State]:
        """(B, T, dim) -> (B, T, dim)"""
        of_mixer, of_channel = (None, None) if state is None else state
        y, of_mixer = self.mixer(self.mixer_norm(x), of_mixer, marks)
        x = x + y
        y, of_channel = self.channel(self.channel_norm(x), of_channel, marks)
        return x + y, (of_mixer, of_channel)

    def levels(self) -> list[LevelRow]:
        """Those of the two, named after their place."""
        parts = (("mixer", self.mixer), ("channel", self.channel))
        return [replace(row, name=f"{place}.{row.name}") for place, part in parts for row in part.levels()]
