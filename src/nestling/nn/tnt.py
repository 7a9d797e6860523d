"""TNT (arXiv 2511.07343): a slow memory of the whole stream beside fast ones that begin anew after every shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling.tree as tree
from nestling.core import Decay, Descend, DotProduct, Gates, Level, Matrix, Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.nn.conv import ShortConv
from nestling.nn.features import Unit
from nestling.nn.memory import Gating
from nestling.nn.mixer import UNMARKED, LevelRow, Mixer
from nestling.nn.norm import RMSNorm, widened
from nestling.nn.project import GateRange
from nestling.nn.record import tell
from nestling.ops import Marks, Path, begin, watch
from nestling.ops.shards import positions, resets, scan_anew
from nestling.tree import state


@state
class TNTState:
    """The convolution's inputs, a memory for each level, Σ kkᵀ for each local one, and the tokens of the document so far."""

    conv: Tensor
    memories: tuple[MemoryState, ...]
    projections: tuple[MemoryState, ...]
    count: Tensor
    """(B,) int64"""


class TNT(Mixer):
    """o_t = V_c(q_t) + Σᵢ W⁽ⁱ⁾_t(P_t q_t),  P_t = Σ kkᵀ/‖k‖² over the local chunk up to t (TNT eqs 7 and 15).

    Each of ``schedule`` is a memory of every head: a level without ``reset`` is the global one, V, whose gradients are taken and
    whose weights are read at the last commit, every ``period`` tokens; one with ``reset`` is local, W, with a small period, and
    begins anew at its learnt initial weights every ``reset`` tokens of a document. So shards depend on each other by
    V alone, and are computed side by side. ``rule`` of a level is that of its memory; the rest is ``memory``'s.

    >>> from nestling.core import MLP
    >>> levels = (Level("global", 16), Level("local", 4, reset=8))
    >>> y, state = TNT(32, 2, Memory(MLP()), levels)(torch.randn(3, 20, 32))
    >>> y.shape, state.memories[1].phase[0], state.count
    (torch.Size([3, 20, 32]), tensor([4, 4]), tensor([20, 20, 20]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        memory: Memory,
        schedule: Sequence[Level],
        *,
        conv: int = 4,
        gates: Gating = GateRange(),
        path: Path = "auto",
    ) -> None:
        """``dim``: channels, ``heads`` memories of width dim / heads for each level; ``conv``: taps."""
        super().__init__()
        if dim % heads or not schedule:
            raise NestlingError(
                f"TNT needs levels, and dim divisible by heads, got {schedule!r}, dim={dim}, heads={heads}."
            )
        if len({level.name for level in schedule}) < len(schedule):
            raise NestlingError(f"the levels of TNT need names of their own, got {[level.name for level in schedule]}.")
        self.heads, self.schedule, self.features, self.path = heads, tuple(schedule), Unit(), path
        self.memories = tuple(_memory(memory, level) for level in self.schedule)
        self.projections = tuple(_projection(level) for level in self.schedule if level.reset is not None)
        self.width = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = ShortConv(3 * dim, conv)
        shapes = memory.architecture.shapes(self.width, self.width)
        self.gates = nn.ModuleList(gates.module(dim, heads, shapes, self.width) for _ in self.schedule)
        self.initial = nn.ModuleList()
        for _ in self.schedule:
            each = [memory.architecture.init(self.width, self.width) for _ in range(heads)]
            self.initial.append(nn.ParameterDict({n: torch.stack([w[n] for w in each]) for n in shapes}))
        self.norm = RMSNorm(self.width)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def weights(self) -> list[Weights]:
        """The weights at which the memories of each level begin, (H, out, in)."""
        return [
            {name: memory.retention.inside(widened(weight)) for name, weight in initial.named_parameters()}
            for memory, initial in zip(self.memories, self.initial, strict=True)
        ]

    def _empty(self) -> Weights:
        return {"w1": widened(self.norm.gain).new_zeros(self.heads, self.width, self.width)}

    def initial_state(self, batch: int) -> TNTState:
        """Empty convolution, initial memories, nothing projected."""
        memories = zip(self.memories, self.weights(), strict=True)
        started = tuple(begin(memory, weights, batch) for memory, weights in memories)
        empty = tuple(begin(memory, self._empty(), batch) for memory in self.projections)
        count = torch.zeros(batch, dtype=torch.int64, device=self.norm.gain.device)
        return TNTState(self.conv.initial_state(batch), *tree.map(torch.clone, (started, empty)), count)

    def forward(self, x: Tensor, state: TNTState | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, TNTState]:
        """(B, T, dim) -> (B, T, dim)"""
        projected, conv = self.conv(self.qkv(x), None if state is None else state.conv, marks)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected.chunk(3, -1))
        (q, k, v), _ = self.features((q, k, v), (), marks)
        count = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device) if state is None else state.count
        position, count = positions(count, marks, x.shape[1])
        places = iter(range(len(self.projections)))
        y, memories, projections = torch.zeros_like(v), [], []
        for i, (level, memory, weights) in enumerate(zip(self.schedule, self.memories, self.weights(), strict=True)):
            query, gates = q, self.gates[i](x)
            if level.reset is not None:
                place = next(places)
                held = None if state is None else state.projections[place]
                # P_t q_t: a memory of keys that answers with keys, and begins anew with the chunk
                given, chunk = (q, k, k, Gates()), int(level.period)
                args = (held, self._empty()), given, chunk, (marks, position), self.path
                query, held = scan_anew(self.projections[place], *args)
                projections.append(held)
            going = None if state is None else state.memories[i]
            again = marks if level.reset is None else resets(position, level.reset, marks)
            watched = partial(_watched, memory, (going, weights), (k, v, gates), again)
            tell(self, watched, marks, level.name)
            read, held = scan_anew(
                memory, (going, weights), (query, k, v, gates), level.reset, (marks, position), self.path
            )
            y = y + read
            memories.append(held)
        y = self.norm(y).transpose(1, 2).flatten(-2)
        return self.out(y * F.silu(self.gate(x))), TNTState(conv, tuple(memories), tuple(projections), count)

    def frozen(self) -> None:
        """From now on nothing that is written takes effect, in the projections of queries neither: local memories see zeros."""
        shut = [
            tuple(replace(memory, period=float("inf"), read_at="commit") for memory in group)
            for group in (self.memories, self.projections)
        ]
        self.memories, self.projections = shut

    def levels(self) -> list[LevelRow]:
        """A memory for each level, and the keys that queries are projected on."""
        with torch.device("meta"):
            started = self.initial_state(1)
        learnt = "initialisation (meta-learnt through the writes)"
        rows = [
            LevelRow.of_memory(
                level.name,
                memory,
                held,
                "keys and values of tokens" if level.reset is None else f"those of {level.reset:,} tokens",
                learnt,
            )
            for level, memory, held in zip(self.schedule, self.memories, started.memories, strict=True)
        ]
        local = [level for level in self.schedule if level.reset is not None]
        return rows + [
            LevelRow.of_memory(f"{level.name}.keys", memory, held, "keys of the chunk", "none: begins empty")
            for level, memory, held in zip(local, self.projections, started.projections, strict=True)
        ]


def _watched(
    memory: Memory, states: tuple[MemoryState | None, Weights], inputs: tuple[Tensor, Tensor, Gates], marks: Marks
) -> tuple[Tensor, Tensor, Gates]:
    return *watch(memory, states, *inputs, marks), inputs[2]


def _memory(memory: Memory, level: Level) -> Memory:
    return replace(memory, rule=level.rule, period=level.period, read_at="commit" if level.reset is None else "current")


def _projection(level: Level) -> Memory:
    return Memory(Matrix(), DotProduct(), Decay(), Descend(), level.period)
