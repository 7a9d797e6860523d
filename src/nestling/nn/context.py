"""Memory as context: attention within a segment that also reads what a long-term memory held before it (Titans eqs 21-25)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling.tree as tree
from nestling.core import Memory, MemoryState, Weights, linear
from nestling.errors import NestlingError
from nestling.nn.memory import MemoryLayer, MemoryLayerState
from nestling.nn.mixer import UNMARKED, LevelRow, Mixer
from nestling.nn.norm import RMSNorm
from nestling.nn.rope import rotate
from nestling.ops import Marks
from nestling.ops.layout import arrange
from nestling.tree import state


@dataclass(frozen=True)
class Segment:
    """``length``: tokens that attend to each other (C); ``persistent``: learnt tokens before them (N_p).

    ``pool``: reads of the memory that make one memory token; there are N_l = C / pool of them.

    >>> Segment(512, persistent=128, pool=2)
    Segment(length=512, persistent=128, pool=2)
    """

    length: int = 64
    persistent: int = 16
    pool: int = 2

    def __post_init__(self) -> None:
        if self.persistent < 0 or self.pool < 1 or self.length < 1 or self.length % self.pool:
            raise NestlingError(
                f"a segment needs persistent ≥ 0 and a length that is a multiple of pool, got {self!r}."
            )


@state
class ContextState:
    """The inputs of the segment that is not yet full, how many they are, the memory at its start, and the memory now."""

    inputs: Tensor
    """(B, C, dim); zeros where nothing is yet"""
    filled: Tensor
    """(B,) int64, below C"""
    before: Weights
    """(B, H, out, in)"""
    memory: MemoryLayerState


class MemoryAsContext(Mixer):
    """For the tokens of segment t, with M_t,i the memory after token i of it::

        h_i = M_t-1(q(x_i))                                    eq. 21, read the old memory
        y_i = Attn([p_1 … p_N] ‖ h_1 … h_i ‖ x_1 … x_i)        eqs 22-23
        M_t,i = M_t,i-1 written with y_i                       eq. 24
        o_i = norm(y_i) ⊗ σ(norm(M_t,i(y_i)))                  eq. 25

    As printed (M after the whole segment in eq. 25, all h visible in Fig. 3a) tokens would see the future; here memories are per
    token, and a token sees only reads made up to it. ``pool`` reads in a row are one memory token, visible after the last.

    >>> from nestling.core import MLP
    >>> layer = MemoryAsContext(MemoryLayer(32, 2, Memory(MLP(), period=4)), Segment(8, persistent=2))
    >>> y, state = layer(torch.randn(1, 19, 32))
    >>> y.shape, state.inputs.shape, state.filled
    (torch.Size([1, 19, 32]), torch.Size([1, 8, 32]), tensor([3]))
    """

    def __init__(self, memory: MemoryLayer, segment: Segment) -> None:
        """``memory``: what is read, written and gates."""
        super().__init__()
        dim = memory.out.in_features
        if dim % (2 * memory.heads):
            raise NestlingError(f"attention needs dim divisible by 2 · heads, got dim={dim}, heads={memory.heads}.")
        self.memory, self.segment = memory, segment
        self.persistent = nn.Parameter(torch.randn(segment.persistent, dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_norm, self.memory_norm = RMSNorm(dim), RMSNorm(dim)
        self.out = nn.Linear(dim, dim, bias=False)

    def initial_state(self, batch: int) -> ContextState:
        """An empty segment, initial memories."""
        empty = self.out.weight.new_zeros(batch, self.segment.length, self.out.in_features)
        filled = torch.zeros(batch, dtype=torch.int64, device=empty.device)
        memory = self.memory.initial_state(batch)
        return ContextState(empty, filled, tree.map(torch.clone, memory.memory.anchor), memory)

    def forward(
        self, x: Tensor, state: ContextState | None = None, marks: Marks = UNMARKED
    ) -> tuple[Tensor, ContextState]:
        """(B, T, dim) -> (B, T, dim)"""
        rows, length = x.shape[:2]
        size = self.segment.length
        fresh = self.initial_state(rows)
        carry = fresh if state is None else state
        layout = arrange(carry.filled, marks, length, size)
        inputs = layout.place(x[:, None])[:, 0].unflatten(1, (-1, size))
        new = layout.filled.unflatten(1, (-1, size))
        outputs = []
        for i in range(inputs.shape[1]):
            if layout.begins is not None:
                carry = tree.where(layout.begins[:, i], fresh, carry)
            y, carry = self._one(inputs[:, i], new[:, i], carry)
            outputs.append(y)
        y = layout.take(torch.cat(outputs, 1)[:, None])[:, 0]
        if marks.valid is not None:
            y = torch.where(marks.valid[..., None], y, torch.zeros_like(y))
        return y, carry

    def _one(self, x: Tensor, new: Tensor, before: ContextState) -> tuple[Tensor, ContextState]:
        """One segment, whose slots are ``new`` (B, C), filled by earlier calls, or still empty."""
        size, count = self.segment.length, new.sum(1)
        inputs = torch.where(new[..., None], x, before.inputs.to(x.dtype))
        y = self._attend(inputs, self._recall(before.before, inputs))
        # The new tokens to the left end and back: the memory layer has padding at the right.
        slots = torch.arange(size, device=x.device)
        forth = (before.filled[:, None] + slots).clamp_max(size - 1)[..., None].expand_as(y)
        back = (slots - before.filled[:, None]).clamp_min(0)[..., None].expand_as(y)
        m, memory = self.memory(y.gather(1, forth), before.memory, Marks(slots < count[:, None]))
        o = self.out(self.attention_norm(y) * torch.sigmoid(self.memory_norm(m.gather(1, back))))
        filled = before.filled + count
        full = filled == size
        kept = torch.where(full[:, None, None], torch.zeros_like(inputs), inputs).to(before.inputs.dtype)
        read = tree.where(full, self._readable(memory.memory), before.before)
        return o, ContextState(kept, torch.where(full, 0, filled), read, memory)

    def _readable(self, memory: MemoryState) -> Weights:
        value: Memory = self.memory.memory
        return memory.anchor if value.read_at == "commit" else value.primal(memory.dual)

    def _recall(self, weights: Weights, x: Tensor) -> Tensor:
        """h = M(q(x)) (B, C, dim), with the query projection of the memory and nothing written."""
        heads = self.memory.heads
        q = F.linear(x, self.memory.qkv.weight[: self.memory.widths[0]]).unflatten(-1, (heads, -1)).transpose(1, 2)
        (q, _, _), _ = self.memory.features((q, q, q), self.memory.features.initial_state(x, x.shape[0]), UNMARKED)
        with torch.autocast(x.device.type, enabled=False):
            wide = q.to(next(iter(weights.values())).dtype)
            h = self.memory.memory.architecture(linear(weights), wide).to(x.dtype)
        return self.memory.norm(h).transpose(1, 2).flatten(-2)

    def _attend(self, x: Tensor, h: Tensor) -> Tensor:
        """Softmax attention over [p ‖ h ‖ x] (B, C, dim), positions counted through all of it."""
        form, heads = self.segment, self.memory.heads
        h = h.unflatten(1, (-1, form.pool)).mean(2)
        persistent = self.persistent.to(x.dtype).expand(x.shape[0], -1, -1)
        seen = torch.cat((persistent, h.to(x.dtype), x), 1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in self.qkv(seen).chunk(3, -1))
        first = form.persistent + h.shape[1]
        row = torch.arange(form.length, device=x.device)[:, None]
        # A memory token is there once the last of its reads is made.
        ready = torch.arange(1, h.shape[1] + 1, device=x.device) * form.pool - 1
        mask = torch.cat((row.new_ones(form.length, form.persistent).bool(), ready <= row, row.mT <= row), 1)
        y = F.scaled_dot_product_attention(rotate(q[:, :, first:], first), rotate(k, 0), v, attn_mask=mask)
        return y.transpose(1, 2).flatten(-2)

    def levels(self) -> list[LevelRow]:
        """The memory, its copy from the segment's start, and the tokens of the segment."""
        (memory,) = self.memory.levels()
        with torch.device("meta"):
            started = self.initial_state(1)
        stored = replace(memory, rule="store", transfer="direct, non-parametric")
        copy = replace(
            stored,
            name="context",
            period=self.segment.length,
            context="the memory at the start of the segment",
            state_bytes=tree.nbytes(started.before),
        )
        window = replace(
            stored,
            name="segment",
            period=1,
            context="tokens of the segment",
            objective="Nadaraya-Watson (softmax)",
            parameters=started.inputs.numel(),
            state_bytes=tree.nbytes(started.inputs),
        )
        return [memory, copy, window]
