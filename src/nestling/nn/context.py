"""Memory as context: attention within a segment that also reads what a long-term memory held before it (Titans eqs 21-25)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling.tree as tree
from nestling.core import Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.nn.memory import MemoryLayer, MemoryLayerState
from nestling.nn.mixer import UNMARKED, LevelRow, Mixer
from nestling.nn.norm import RMSNorm
from nestling.nn.rope import rotate
from nestling.ops import Buffered, Marks, settled
from nestling.ops.buffered import last_read, written
from nestling.ops.events import Eventful, between, left, resumed
from nestling.ops.layers import read
from nestling.ops.layout import alike, arrange
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
class ContextState(Eventful):
    """What the next token of the segment still attends to, the memory at the segment's start, and the memory now."""

    key: Tensor
    """(B, H, C, d): of the segment's tokens, rotated to their places; zeros where nothing is yet"""
    value: Tensor
    """(B, H, C, d)"""
    memory_key: Tensor
    """(B, H, C / pool, d): of the memory tokens whose reads are all made"""
    memory_value: Tensor
    """(B, H, C / pool, d)"""
    reads: Tensor
    """(B, dim): the sum of the reads of the memory token that is not there yet"""
    filled: Tensor
    """(B,) int64: tokens of the segment, below C"""
    before: Weights
    """(B, H, out, in)"""
    memory: MemoryLayerState
    quiet: bool = False
    """In a program: the segment does not end with this token"""

    def left(self) -> int | None:
        """Until the token with which the segment ends, or an event of the memory."""
        filled, memory = alike(self.filled), left(self.memory)
        return None if filled is None or memory is None else min(self.key.shape[2] - 1 - filled, memory)

    def between(self, quiet: bool) -> ContextState:
        """The same, and told."""
        return replace(self, quiet=quiet, memory=between(self.memory, quiet))

    def resumed(self, after: ContextState) -> ContextState:
        """With what waited in the memory before."""
        return replace(after, quiet=False, memory=resumed(self.memory, after.memory))


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
    >>> y.shape, state.key.shape, state.filled
    (torch.Size([1, 19, 32]), torch.Size([1, 2, 8, 16]), tensor([3]))
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
        form, heads, dim = self.segment, self.memory.heads, self.out.in_features
        width = dim // heads

        def empty(*shape: int) -> Tensor:
            return self.out.weight.new_zeros(batch, *shape)

        filled = torch.zeros(batch, dtype=torch.int64, device=self.out.weight.device)
        memory = self.memory.initial_state(batch)
        tokens, recalled = (heads, form.length, width), (heads, form.length // form.pool, width)
        return ContextState(
            empty(*tokens),
            empty(*tokens),
            empty(*recalled),
            empty(*recalled),
            empty(dim),
            filled,
            tree.map(torch.clone, written(memory.memory).anchor),
            memory,
        )

    def forward(
        self, x: Tensor, state: ContextState | None = None, marks: Marks = UNMARKED
    ) -> tuple[Tensor, ContextState]:
        """(B, T, dim) -> (B, T, dim)"""
        rows, length = x.shape[:2]
        size = self.segment.length
        state = state if marks == UNMARKED else settled(state)
        fresh = self.initial_state(rows) if state is None or marks.starts is not None else state
        carry = fresh if state is None else state
        if length == 1:
            begun = carry if marks.starts is None else tree.where(marks.starts[:, 0], fresh, carry)
            return self._token(x, begun, marks)
        whole, outputs = length // size if marks == UNMARKED and _empty(state) else 0, []
        for segment in x[:, : whole * size].split(size, 1) if whole else ():
            y, carry = self._whole(segment, carry)
            outputs.append(y)
        if whole and whole * size == length:
            return torch.cat(outputs, 1), carry
        x, length = x[:, whole * size :], length - whole * size
        layout = arrange(carry.filled, marks, length, size)
        inputs = layout.place(x[:, None])[:, 0].unflatten(1, (-1, size))
        new = layout.filled.unflatten(1, (-1, size))
        placed = []
        for i in range(inputs.shape[1]):
            if layout.begins is not None:
                carry = tree.where(layout.begins[:, i], fresh, carry)
            y, carry = self._one(inputs[:, i], new[:, i], carry)
            placed.append(y)
        y = layout.take(torch.cat(placed, 1)[:, None])[:, 0]
        if marks.valid is not None:
            y = torch.where(marks.valid[..., None], y, torch.zeros_like(y))
        return torch.cat((*outputs, y), 1), carry

    def _whole(self, x: Tensor, before: ContextState) -> tuple[Tensor, ContextState]:
        """A segment that begins and ends with its tokens: nothing was kept, and nothing is."""
        q, k, v = (self._heads(part) for part in self.qkv(x).chunk(3, -1))
        first, slots = self._places(), torch.arange(self.segment.length, device=x.device)
        reads = self._recall(before.before, x).unflatten(1, (-1, self.segment.pool)).mean(2)
        memory_k, memory_v = self._keys_and_values(reads)
        recalled = rotate(memory_k, self.segment.persistent), memory_v
        persistent = self._keys_and_values(self.persistent.to(x.dtype))
        y = self._attend(rotate(q, first), slots[None], (rotate(k, first), v), recalled, persistent)
        m, memory = self.memory(y, before.memory)
        read = tree.map(torch.clone, self._readable(memory.memory))
        return self._gated(y, m), replace(before, before=read, memory=memory)

    def _one(self, x: Tensor, new: Tensor, before: ContextState) -> tuple[Tensor, ContextState]:
        """One segment, whose slots are ``new`` (B, C), filled by earlier calls, or still empty."""
        size, pool, count = self.segment.length, self.segment.pool, new.sum(1)
        slots, first = torch.arange(size, device=x.device), self._places()
        q, k, v = (self._heads(part) for part in self.qkv(x).chunk(3, -1))
        own = new[:, None, :, None]
        tokens = (torch.where(own, rotate(k, first), before.key), torch.where(own, v, before.value))
        h = self._recall(before.before, x) * new[..., None]
        sums = h.unflatten(1, (-1, pool)).sum(2)
        number = torch.arange(1, sums.shape[1] + 1, device=x.device)
        open_now = (number - 1 == (before.filled // pool)[:, None])[..., None]
        sums = sums + open_now * before.reads[:, None].to(sums.dtype)
        made = (number * pool <= before.filled[:, None])[:, None, :, None]
        k, v = self._keys_and_values(sums / pool)
        recalled = (
            torch.where(made, before.memory_key, rotate(k, self.segment.persistent)),
            torch.where(made, before.memory_value, v),
        )
        persistent = self._keys_and_values(self.persistent.to(x.dtype))
        y = self._attend(rotate(q, first), slots[None], tokens, recalled, persistent)
        # The new tokens to the left end and back: the memory layer has padding at the right.
        forth = (before.filled[:, None] + slots).clamp_max(size - 1)[..., None].expand_as(y)
        back = (slots - before.filled[:, None]).clamp_min(0)[..., None].expand_as(y)
        m, memory = self.memory(y.gather(1, forth), before.memory, Marks(slots < count[:, None]))
        done = before.filled + count
        kept = (number * pool <= done[:, None])[:, None, :, None]
        pending = (number - 1 == (done // pool)[:, None])[..., None]
        state = self._after(
            before, done, tokens, tuple(each * kept for each in recalled), (sums * pending).sum(1), memory
        )
        return self._gated(y, m.gather(1, back)), state

    def _token(self, x: Tensor, before: ContextState, marks: Marks) -> tuple[Tensor, ContextState]:
        """One token of each row, against what the state has kept: O(C), where the segment as a whole is O(C²)."""
        pool, slot = self.segment.pool, _slot(before)
        rows, dim = x.shape[0], x.shape[2]
        # The weights come from memory once, for the token and the persistent ones.
        both, values = self.qkv(torch.cat((x[:, 0], self.persistent.to(x.dtype)))).split((2 * dim, dim), -1)
        queries, kept = self._heads(both[:rows, None], 2), both[rows:, dim:]
        q, k = rotate(queries, self._places() + slot).chunk(2, 1)
        tokens = (_put(before.key, k, slot), _put(before.value, self._heads(values[:rows, None]), slot))
        sums, recalled = before.reads + self._recall(before.before, x)[:, 0], (before.memory_key, before.memory_value)
        number, made = slot // pool, (slot + 1) % pool == 0
        if made is not False:
            k, v = self._keys_and_values(sums[:, None] / pool)
            k = rotate(k, self.segment.persistent + number)
            recalled = (_put(recalled[0], k, number, made), _put(recalled[1], v, number, made))
            sums = torch.zeros_like(sums) if made is True else sums * ~made
        y = self._attend(q, slot, tokens, recalled, (self._heads(kept), self._heads(values[rows:])))
        m, memory = self.memory(y, before.memory, Marks(marks.valid))
        o = self._gated(y, m)
        state = self._after(before, slot + 1, tokens, recalled, sums, memory)
        if marks.valid is None:
            return o, state
        return o * marks.valid[..., None], tree.where(marks.valid[:, 0], state, before)

    def _after(
        self,
        before: ContextState,
        filled: Tensor | int,
        tokens: tuple[Tensor, ...],
        recalled: tuple[Tensor, ...],
        reads: Tensor,
        memory: MemoryLayerState,
    ) -> ContextState:
        """The state after a segment has ``filled`` (B, ·) tokens; where it is full the next one begins."""
        kept = (*tokens, *recalled, reads)
        names = ("key", "value", "memory_key", "memory_value", "reads")
        dtype = self.out.weight.dtype
        held: dict[str, Any] = {name: leaf.to(dtype) for name, leaf in zip(names, kept, strict=True)}
        now = torch.full_like(before.filled, filled) if isinstance(filled, int) else filled.view_as(before.filled)
        if before.quiet or (isinstance(filled, int) and filled < self.segment.length):
            return ContextState(**held, filled=now, before=before.before, memory=memory, quiet=before.quiet)
        if isinstance(filled, int):
            # Every row's segment ends.
            held, now = tree.map(torch.zeros_like, (held, now))
            return ContextState(**held, filled=now, before=self._readable(memory.memory), memory=memory)
        full = now == self.segment.length
        held = tree.where(full, tree.map(torch.zeros_like, held), held)
        read = before.before
        if torch.compiler.is_compiling() or bool(full.any()):
            read = tree.where(full, self._readable(memory.memory), read)
        return ContextState(**held, filled=torch.where(full, 0, now), before=read, memory=memory)

    def _gated(self, y: Tensor, m: Tensor) -> Tensor:
        return self.out(self.attention_norm(y) * torch.sigmoid(self.memory_norm(m)))

    def _places(self) -> int:
        """The position of the segment's first token: after persistent and memory tokens."""
        return self.segment.persistent + self.segment.length // self.segment.pool

    def _heads(self, x: Tensor, parts: int = 1) -> Tensor:
        """(..., n, parts · dim) -> (..., parts · H, n, d)"""
        return x.unflatten(-1, (parts * self.memory.heads, -1)).transpose(-3, -2)

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = F.linear(x, self.qkv.weight[self.out.in_features :]).chunk(2, -1)
        return self._heads(k), self._heads(v)

    def _readable(self, memory: MemoryState | Buffered) -> Weights:
        value: Memory = self.memory.memory
        return last_read(memory) if value.read_at == "commit" else value.primal(written(memory).dual)

    def _recall(self, weights: Weights, x: Tensor) -> Tensor:
        """h = M(q(x)) (B, C, dim), with the query projection of the memory and nothing written."""
        heads = self.memory.heads
        q = F.linear(x, self.memory.qkv.weight[: self.memory.widths[0]]).unflatten(-1, (heads, -1)).transpose(1, 2)
        (q, _, _), _ = self.memory.features((q, q, q), self.memory.features.initial_state(x, x.shape[0]), UNMARKED)
        with torch.autocast(x.device.type, enabled=False):
            wide = q.to(next(iter(weights.values())).dtype)
            h = read(self.memory.memory.architecture, weights, wide).to(x.dtype)
        return self.memory.norm(h).transpose(1, 2).flatten(-2)

    def _attend(
        self,
        q: Tensor,
        slot: Tensor | int,
        tokens: tuple[Tensor, Tensor],
        recalled: tuple[Tensor, Tensor],
        persistent: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Softmax attention of the tokens at ``slot`` (B, n) or (1, n) over [p ‖ h ‖ x] (B, n, dim), h and x rotated to their places."""
        form, rows = self.segment, q.shape[0]
        k, v = (part.expand(rows, -1, -1, -1) for part in (rotate(persistent[0], 0), persistent[1]))
        mask = None
        if isinstance(slot, int):
            # One token of every row, and all that is there is visible.
            made = (slot + 1) // form.pool
            recalled = recalled[0][:, :, :made], recalled[1][:, :, :made]
            tokens = tokens[0][:, :, : slot + 1], tokens[1][:, :, : slot + 1]
        else:
            row = slot[..., None]
            # A memory token is there once the last of its reads is made.
            ready = torch.arange(1, recalled[0].shape[2] + 1, device=q.device) * form.pool - 1
            own = torch.arange(form.length, device=q.device)
            there = row.new_ones(*slot.shape, form.persistent).bool()
            mask = torch.cat((there, ready <= row, own <= row), -1)[:, None]
        keys = torch.cat((k, recalled[0].to(q.dtype), tokens[0].to(q.dtype)), 2)
        values = torch.cat((v, recalled[1].to(q.dtype), tokens[1].to(q.dtype)), 2)
        return _merged(F.scaled_dot_product_attention(q, keys, values, attn_mask=mask))

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
        tokens = (started.key, started.value, started.memory_key, started.memory_value, started.reads)
        window = replace(
            stored,
            name="segment",
            period=1,
            context="keys and values of the segment",
            objective="Nadaraya-Watson (softmax)",
            parameters=sum(leaf.numel() for leaf in tokens),
            state_bytes=tree.nbytes(tokens),
        )
        return [memory, copy, window]


def _slot(state: ContextState) -> Tensor | int:
    """Where the next token stands: one number where rows are alike, which is not asked for while a program is compiled; or (B, 1)."""
    same = None if torch.compiler.is_compiling() else alike(state.filled)
    return state.filled[:, None] if same is None else same


def _put(cache: Tensor, new: Tensor, at: Tensor | int, where: Tensor | bool = True) -> Tensor:
    """``cache`` (B, H, n, d) with ``new`` (B, H, 1, d) at its place in each row ``where`` it is to be put."""
    if isinstance(at, int):
        return cache.slice_scatter(new.to(cache.dtype), 2, at, at + 1)
    here = (torch.arange(cache.shape[2], device=cache.device) == at) & where
    return torch.where(here[:, None, :, None], new, cache)


def _merged(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(-2)


def _empty(state: ContextState | None) -> bool:
    """Does a segment begin in every row? Not asked for while a program is compiled."""
    return state is None or not (torch.compiler.is_compiling() or bool(state.filled.any()))
