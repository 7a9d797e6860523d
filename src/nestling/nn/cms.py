"""Continuum memory system: a chain of MLPs, from fast to slow (NL §7.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nestling.core import Level
from nestling.errors import NestlingError
from nestling.nn.mixer import UNMARKED, Mixer
from nestling.nn.mlp import SwiGLU
from nestling.nn.norm import RMSNorm
from nestling.ops import Marks


class CMS(Mixer):
    """y = MLP_k(… MLP_1(x)), a residual and a norm between the levels (NL eq. 70).

    ``levels_`` are ordered from fast to slow; each owns the parameters of one MLP, ``chain.<i>.*``. The block that holds the
    system adds the residual around the first level.

    >>> import torch
    >>> cms = CMS(32, [Level("fast", 1), Level("slow", 8)])
    >>> cms(torch.randn(1, 5, 32))[0].shape
    torch.Size([1, 5, 32])
    """

    def __init__(self, dim: int, levels: Sequence[Level], expand: float = 4) -> None:
        """``expand``: width of all levels together, as in ``SwiGLU``."""
        super().__init__()
        if not levels:
            raise NestlingError("a continuum memory system needs at least one level, got none.")
        self.schedule = tuple(levels)
        self.chain = nn.ModuleList(SwiGLU(dim, expand / len(self.schedule)) for _ in self.schedule)
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in self.schedule[1:])

    def initial_state(self, batch: int) -> tuple[()]:
        """None needed: levels are trained between steps."""
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, tuple[()]]:
        """(B, T, dim) -> (B, T, dim)"""
        y, _ = self.chain[0](x)
        for norm, mlp in zip(self.norms, list(self.chain)[1:], strict=True):
            y = y + mlp(norm(x + y))[0]
        return y, ()
