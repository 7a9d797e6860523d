"""Mamba-2 (arXiv 2405.21060): a selective state space is a matrix memory that forgets by the length of a step."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling.tree as tree
from nestling.core import Memory, MemoryState
from nestling.errors import NestlingError
from nestling.nn.conv import ShortConv
from nestling.nn.gating import StepRange
from nestling.nn.mixer import UNMARKED, LevelRow, Mixer
from nestling.nn.norm import RMSNorm
from nestling.ops import Marks, Resumed, begin, scan
from nestling.tree import state


@state
class Mamba2State:
    """The inputs that the convolution still sees, and the memory of each head."""

    conv: Tensor
    memory: MemoryState


class Mamba2(Mixer):
    """u → z, x, B, C; x, B, C → short convolution → SiLU; then for each head, with its channels of x and the B, C of all::

        Sₜ = exp(−AΔₜ) Sₜ₋₁ + Δₜ xₜBₜᵀ,   yₜ = Sₜ Cₜ + D xₜ        Δ = softplus(w·u + b)
        out = W norm(y ⊙ SiLU(z))

    So it is a memory with keys B, values x and queries C, whose rate Δ and retention exp(−AΔ) hang together.

    >>> from nestling.core import Decay, Descend, DotProduct, Matrix
    >>> layer = Mamba2(32, heads=2, memory=Memory(Matrix(), DotProduct(), Decay(), Descend(), period=64), state=8)
    >>> y, state = layer(torch.randn(3, 20, 32))
    >>> y.shape, state.memory.dual["w1"].shape
    (torch.Size([3, 20, 32]), torch.Size([3, 2, 32, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        memory: Memory,
        *,
        state: int = 128,
        widen: int = 2,
        conv: int = 4,
        steps: StepRange = StepRange(),
    ) -> None:
        """``state``: width of B and C (the paper's N); ``widen`` · dim channels of x; ``conv``: taps; ``steps``: Δ and A."""
        super().__init__()
        self.inner = widen * dim
        if widen < 1 or state < 1 or self.inner % heads:
            raise NestlingError(
                f"Mamba-2 needs state ≥ 1 and widen · dim divisible by heads, got {state=}, {widen=}, {dim=}, {heads=}."
            )
        self.heads, self.memory, self.state = heads, memory, state
        self.project = nn.Linear(dim, 2 * self.inner + 2 * state, bias=False)
        self.conv = ShortConv(self.inner + 2 * state, conv)
        self.shapes = memory.architecture.shapes(state, self.inner // heads)
        self.gates = steps.module(dim, heads, self.shapes, state)
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(self.inner)
        self.out = nn.Linear(self.inner, dim, bias=False)

    def weights(self) -> dict[str, Tensor]:
        """Memories start empty: zeros (H, out, in), in float32 or wider."""
        wide = torch.promote_types(self.skip.dtype, torch.float32)
        return {name: self.skip.new_zeros(self.heads, *shape, dtype=wide) for name, shape in self.shapes.items()}

    def initial_state(self, batch: int) -> Mamba2State:
        """Empty convolution, empty memories."""
        started = begin(self.memory, self.weights(), batch)
        return Mamba2State(self.conv.initial_state(batch), tree.map(torch.clone, started))

    def forward(
        self, x: Tensor, state: Mamba2State | None = None, marks: Marks = UNMARKED
    ) -> tuple[Tensor, Mamba2State]:
        """(B, T, dim) -> (B, T, dim)"""
        gate, mixed = self.project(x).split((self.inner, self.inner + 2 * self.state), -1)
        mixed, conv = self.conv(mixed, None if state is None else state.conv, marks)
        values, keys, queries = F.silu(mixed).split((self.inner, self.state, self.state), -1)
        v = values.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, q = (each[:, None].expand(-1, self.heads, -1, -1) for each in (keys, queries))
        weights = self.weights()
        start = weights if state is None else Resumed(state.memory, weights)
        y, memory = scan(self.memory, start, q, k, v, self.gates(x), marks=marks)
        # y = S C + D x
        y = (y + self.skip.to(y.dtype)[:, None, None] * v).transpose(1, 2).flatten(-2)
        return self.out(self.norm(y * F.silu(gate))), Mamba2State(conv, memory)

    def frozen(self) -> None:
        """From now on nothing that is written takes effect."""
        self.memory = replace(self.memory, period=float("inf"), read_at="commit")

    def levels(self) -> list[LevelRow]:
        """One: the state space."""
        with torch.device("meta"):
            started = self.initial_state(1)
        transfer = "projections and steps (meta-learnt through the writes)"
        return [LevelRow.of_memory("memory", self.memory, started.memory, "B and x of tokens", transfer, started)]
