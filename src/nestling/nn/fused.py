"""A block whose memory and levels stand beside one another, fused by a gate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nestling.core import Level
from nestling.nn.block import Block
from nestling.nn.cms import CMS, Gated
from nestling.nn.mixer import UNMARKED, Mixer, State
from nestling.ops import Marks


class Fused(Block):
    """o = mixer(norm x); x ← x + g₀ o + Σ g_s MLP_s(norm(x + o)), with g = n softmax(W norm(x + o) + b) over the n branches.

    >>> import torch
    >>> from nestling.nn import Attention
    >>> block = Fused(32, Attention(32, heads=2, window=8), [Level("fast", 1), Level("slow", 16)])
    >>> block(torch.randn(1, 5, 32))[0].shape
    torch.Size([1, 5, 32])
    """

    def __init__(self, dim: int, mixer: Mixer, levels: Sequence[Level], expand: float = 4) -> None:
        """``expand``: width of all levels together, as in ``SwiGLU``."""
        super().__init__(dim, mixer, CMS(dim, levels, expand, Gated(others=1)))

    def forward(self, x: Tensor, state: State | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, State]:
        """(B, T, dim) -> (B, T, dim)"""
        of_mixer, _ = (None, None) if state is None else state
        o, of_mixer = self.mixer(self.mixer_norm(x), of_mixer, marks)
        assert isinstance(self.channel, CMS)
        return x + self.channel.fused(self.channel_norm(x + o), o), (of_mixer, ())
