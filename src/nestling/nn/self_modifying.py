"""Self-modifying Titans with linear memories: a memory that makes its own keys, values, rates and targets (NL §8.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.core import L2, Delta, Descend, Gates, Matrix, Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.nn.conv import ShortConv
from nestling.nn.mixer import UNMARKED, LevelRow, Mixer
from nestling.nn.norm import RMSNorm, unit, widened
from nestling.ops import Chunk, Marks, begin
from nestling.ops.chunk import BlockState, Tokens, block
from nestling.ops.drive import drive
from nestling.tree import map as tree_map
from nestling.tree import nbytes, state


@dataclass(frozen=True)
class SelfRange:
    """What the generated gates can be: η = lr σ(· + b), b spread evenly over the heads; α = σ(· + retain).

    A period of C tokens takes its gradients at one anchor, and delta gradient descent with L2 erases twice; along a key that
    repeats, the memory is stable while η C ≲ 0.7. Heads that start at small rates are there, heads at large ones forget fast.
    """

    lr: float = 1.0
    slow: float = -6.0
    """b of the first head"""
    fast: float = -2.0
    """b of the last head"""
    retain: float = 6.0
    projections: float = 0.1
    """Scale of η and of 1 - α for the memories that make k, v, η and α (1 is the paper; below it trains stably)."""


@state
class SelfModifyingState:
    """The inputs that the convolution still sees, and the two groups of memories of each head."""

    conv: Tensor
    memory: MemoryState
    projections: MemoryState


class SelfModifying(Mixer):
    """y = M_t q_t, where everything that writes M comes from memories that are written too (NL eqs 83-93, linear, L2)::

        k, v, η, α = M_k x, M_v x, M_η x, M_α x          at the last commit c(t)
        v̂_□        = M_□ v                               each memory makes its own target
        M_□,t      = M_□,t-1 (α I - η k kᵀ) - η (M_□,c(t) k - v̂_□) kᵀ

    ``x`` is the short convolution of the input, by head; q = W_q x is static; q, k and v have unit length. y is read from the
    running memory (NL prints the last commit, which cannot track a state inside a period).

    >>> y, state = SelfModifying(32, heads=2, period=4)(torch.randn(3, 10, 32))
    >>> y.shape, state.memory.dual["w1"].shape, state.projections.dual["w1"].shape
    (torch.Size([3, 10, 32]), torch.Size([3, 2, 16, 16]), torch.Size([3, 2, 34, 16]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        period: int = 16,
        *,
        conv: int = 4,
        ranges: SelfRange = SelfRange(),
        path: Chunk = Chunk(),
    ) -> None:
        """``heads`` memories of width dim / heads; ``period``: tokens between commits."""
        super().__init__()
        if dim % heads:
            raise NestlingError(f"self-modifying Titans need dim divisible by heads, got dim={dim}, heads={heads}.")
        self.heads, self.ranges, self.path = heads, ranges, path
        self.memory = Memory(Matrix(), L2(), Delta(), Descend(), period)
        width = dim // heads
        self.conv = ShortConv(dim, conv)
        self.query = nn.Linear(dim, dim, bias=False)
        # The update is linear in M, so a main memory of zeros would stay zero.
        self.initial = nn.Parameter(torch.eye(width).expand(heads, -1, -1).clone())
        self.initial_projections = nn.Parameter(torch.randn(heads, 2 * width + 2, width) * width**-0.5)
        self.bias = nn.Parameter(
            torch.stack((torch.linspace(ranges.slow, ranges.fast, heads), torch.full((heads,), ranges.retain)), -1)
        )
        self.norm = RMSNorm(width)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def weights(self) -> tuple[Weights, Weights]:
        """The weights at which the memories start, (H, out, in)."""
        return {"w1": widened(self.initial)}, {"w1": widened(self.initial_projections)}

    def initial_state(self, batch: int) -> SelfModifyingState:
        """Empty convolution, initial memories."""
        started = (begin(self.memory, weights, batch) for weights in self.weights())
        return SelfModifyingState(
            self.conv.initial_state(batch), *(tree_map(lambda leaf: leaf.clone(), each) for each in started)
        )

    def forward(
        self, x: Tensor, state: SelfModifyingState | None = None, marks: Marks = UNMARKED
    ) -> tuple[Tensor, SelfModifyingState]:
        """(B, T, dim) -> (B, T, dim)"""
        seen, conv = self.conv(x, None if state is None else state.conv, marks)
        weights = self.weights()
        with torch.autocast(x.device.type, enabled=False):
            wide = widened(seen)
            heads = (wide, F.linear(wide, widened(self.query.weight)))
            inputs = tuple(each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in heads)
            bias = widened(self.bias)[:, None, :].expand(x.shape[0], -1, x.shape[1], -1)
            y, (memory, projections) = drive(
                (self.memory, self.memory),
                None if state is None else (state.memory, state.projections),
                weights,
                (*inputs, bias),
                marks,
                self.path,
                _compiled(self.memory, self.ranges) if self.path.compiled else _work(self.memory, self.ranges),
            )
        y = self.norm(y.to(x.dtype)).transpose(1, 2).flatten(-2)
        return self.out(y * F.silu(self.gate(x))), SelfModifyingState(conv, memory, projections)

    def frozen(self) -> None:
        """From now on nothing that is written takes effect: a static network with the initial memories (η = 0, α = 1)."""
        self.memory = replace(self.memory, period=float("inf"), read_at="commit")

    def levels(self) -> list[LevelRow]:
        """Two groups of equal frequency: the memory that is read, and those that make its keys, values and gates."""
        with torch.device("meta"):
            started = self.initial_state(1)
        groups = (("memory", self.initial, started.memory), ("k v η α", self.initial_projections, started.projections))
        return [
            LevelRow(
                name=name,
                period=self.memory.period,
                unit="token",
                context="keys and self-made values of tokens",
                objective=repr(self.memory.objective),
                rule=f"{self.memory.retention!r}, {self.memory.rule!r}",
                parameters=initial.numel(),
                state_bytes=nbytes(held),
                transfer="generation and initialisation (meta-learnt through the writes)",
            )
            for name, initial, held in groups
        ]


def _work(memory: Memory, ranges: SelfRange) -> Any:
    def work(before: tuple[BlockState, ...], inputs: Any, filled: Tensor | None) -> Any:
        main, projections = before
        x, q, bias = inputs
        width = x.shape[-1]
        made = x @ projections.anchor["w1"].mT
        k, v = unit(made[..., :width]), unit(made[..., width : 2 * width])
        # η = lr σ(M_η x + b), α = σ(M_α x + b)
        raw = made[..., 2 * width :] + bias
        lr, retain = ranges.lr * torch.sigmoid(raw[..., 0]), torch.sigmoid(raw[..., 1])
        softer = Gates(ranges.projections * lr, 1 - ranges.projections * (1 - retain))
        target = v @ main.anchor["w1"].mT
        y, *wrote = block(memory, main, Tokens(unit(q), k, target, Gates(lr, retain), filled))
        target = v @ projections.anchor["w1"].mT
        _, *made_anew = block(memory, projections, Tokens(k, k, target, softer, filled))
        return y, (tuple(wrote), tuple(made_anew))

    return work


@lru_cache(maxsize=64)
def _compiled(memory: Memory, ranges: SelfRange) -> Any:
    return torch.compile(_work(memory, ranges), fullgraph=True, dynamic=False)
