"""A memory as a sequence layer: Titans' neural long-term memory, and any other ``Memory`` value in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.core import Memory, MemoryState
from nestling.errors import NestlingError
from nestling.nn.channels import ChannelRange
from nestling.nn.conv import ShortConv
from nestling.nn.features import Features, Unit
from nestling.nn.gating import FixedDecay, ImplicitRange, KeyDecayRange, RateDecayRange, RateRange
from nestling.nn.mixer import UNMARKED, LevelRow, Mixer
from nestling.nn.norm import RMSNorm, widened
from nestling.nn.project import GateRange
from nestling.nn.record import tell
from nestling.nn.share import ShareRange, ThresholdRange
from nestling.ops import Buffered, Marks, Path, Resumed, begin, scan, watch
from nestling.ops.buffered import buffer, scan_buffered, written
from nestling.tree import map as tree_map
from nestling.tree import replaced, state

Gating = (
    GateRange
    | ChannelRange
    | FixedDecay
    | KeyDecayRange
    | RateRange
    | ImplicitRange
    | RateDecayRange
    | ShareRange
    | ThresholdRange
)
"""How a layer makes its gates."""


T = TypeVar("T")


@dataclass(frozen=True)
class Learnt:
    """Memories start at weights of the layer, which the outer loop learns through the writes."""


@dataclass(frozen=True)
class Zeros:
    """Memories start empty, as in linear attention."""


@state
class MemoryLayerState:
    """The inputs that the convolution still sees, the memory of each head, and what the features count."""

    conv: Tensor
    memory: MemoryState | Buffered
    features: Any = ()


def buffered(state: T) -> T:
    """``state``, of any layer or model, for generating: tokens that come alone wait until what they write is read, and are written at once.

    It is the state of a stream still, and may be passed on as any other; memories that see every write are as they were. ``settled``
    gives the state that it stands for, which can be saved and compared.

    >>> from nestling.core import MLP
    >>> from nestling.nn import settled
    >>> layer = MemoryLayer(32, heads=2, memory=Memory(MLP(), period=16, read_at="commit"))
    >>> x, (_, start) = torch.randn(1, 3, 32), layer(torch.randn(1, 20, 32))
    >>> state = buffered(start)
    >>> with torch.no_grad():
    ...     for token in x.split(1, 1):
    ...         y, state = layer(token, state)
    >>> torch.allclose(settled(state).memory.dual["w1"], layer(x, start)[1].memory.dual["w1"], atol=1e-5)
    True
    """
    return replaced(state, MemoryLayerState, lambda held: replace(held, memory=buffer(held.memory)))


class MemoryLayer(Mixer):
    """x → q, k, v → short convolution → SiLU → ‖q‖ = ‖k‖ = 1 → memory → norm and gate → out (Titans §4.4).

    Each head of each sequence has a memory of its own, which starts at the layer's learnt initial weights and is written and
    read once per token (Titans eqs 11-15). The outer loop learns those initial weights through the writes.

    >>> from nestling.core import MLP
    >>> layer = MemoryLayer(32, heads=2, memory=Memory(MLP(), period=16))
    >>> y, state = layer(torch.randn(3, 20, 32))
    >>> y.shape, state.memory.dual["w1"].shape
    (torch.Size([3, 20, 32]), torch.Size([3, 2, 64, 16]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        memory: Memory,
        *,
        conv: int = 4,
        gates: Gating = GateRange(),
        features: Features = Unit(),
        start: Learnt | Zeros = Learnt(),
        path: Path = "auto",
    ) -> None:
        """``dim``: channels, ``heads`` memories of width dim / heads; ``conv``: taps; ``path``: see ``ops.scan``."""
        super().__init__()
        if dim % heads:
            raise NestlingError(f"a memory layer needs dim divisible by heads, got dim={dim}, heads={heads}.")
        self.heads, self.memory, self.path = heads, memory, path
        self.features = features.module(heads)
        width = dim // heads
        projected, seen = self.features.widths(width)
        self.widths = (heads * projected, heads * projected, dim)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = ShortConv(sum(self.widths), conv)
        self.shapes = memory.architecture.shapes(seen, width)
        self.gates = gates.module(dim, heads, self.shapes, width)
        self.initial = nn.ParameterDict()
        if isinstance(start, Learnt):
            each = [memory.architecture.init(seen, width) for _ in range(heads)]
            self.initial.update({n: nn.Parameter(torch.stack([w[n] for w in each])) for n in each[0]})
        self.norm = RMSNorm(width)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def weights(self) -> dict[str, Tensor]:
        """The weights at which every memory starts, (H, out, in), in the set that the retention allows; float32 or wider."""
        started = self.initial or {n: self.norm.gain.new_zeros(self.heads, *shape) for n, shape in self.shapes.items()}
        return {name: self.memory.retention.inside(widened(weight)) for name, weight in started.items()}

    def initial_state(self, batch: int) -> MemoryLayerState:
        """Empty convolution, initial memories."""
        started = begin(self.memory, self.weights(), batch)
        # Cloned: a state never shares its numbers with the parameters.
        return MemoryLayerState(
            self.conv.initial_state(batch),
            tree_map(lambda leaf: leaf.clone(), started),
            self.features.initial_state(self.norm.gain, batch),
        )

    def forward(
        self, x: Tensor, state: MemoryLayerState | None = None, marks: Marks = UNMARKED
    ) -> tuple[Tensor, MemoryLayerState]:
        """(B, T, dim) -> (B, T, dim)"""
        projected, conv = self.conv(self.qkv(x), None if state is None else state.conv, marks)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected.split(self.widths, -1))
        counted = self.features.initial_state(x, x.shape[0]) if state is None else state.features
        (q, k, v), counted = self.features((q, k, v), counted, marks)
        weights, gates = self.weights(), self.gates(x)
        before = None if state is None else state.memory
        tell(
            self,
            lambda: (
                *watch(self.memory, (None if before is None else written(before), weights), k, v, gates, marks),
                gates,
            ),
            marks,
        )
        memory: MemoryState | Buffered
        if isinstance(before, Buffered):
            y, memory = scan_buffered(self.memory, before, (q, k, v, gates), weights, marks, self.path)
        else:
            start = weights if before is None else before if marks.starts is None else Resumed(before, weights)
            y, memory = scan(self.memory, start, q, k, v, gates, marks=marks, path=self.path)
        y = self.norm(y).transpose(1, 2).flatten(-2)
        return self.out(y * F.silu(self.gate(x))), MemoryLayerState(conv, memory, counted)

    def frozen(self) -> None:
        """From now on nothing that is written takes effect: the memory never commits, and its initial weights are read."""
        self.memory = replace(self.memory, period=float("inf"), read_at="commit")

    def levels(self) -> list[LevelRow]:
        """One: the fast weights (and their momentum)."""
        with torch.device("meta"):
            started = self.initial_state(1)
        transfer = "initialisation (meta-learnt through the writes)"
        return [
            LevelRow.of_memory(
                "memory", self.memory, written(started.memory), "keys and values of tokens", transfer, started
            )
        ]
