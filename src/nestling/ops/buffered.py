"""Tokens that are not written yet because nothing reads what they write: a memory that is read at its commits, token by token.

Until the period ends every query meets the same weights, so a token costs one read of them; at the end all its tokens are written at
once, as a block. Whoever wants the state before that calls ``settled``, which writes what waits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Gates, Memory, MemoryState, Weights
from nestling.ops.door import check_tokens, spread
from nestling.ops.events import ALWAYS, Eventful
from nestling.ops.layers import read
from nestling.ops.layout import Marks, alike
from nestling.ops.periods import leading, scan_periods, whole
from nestling.ops.scan import Path, Resumed, scan
from nestling.ops.single import scan_single, single
from nestling.tree import state

T = TypeVar("T")

MOST = 128
"""Tokens that wait at most: a block of more costs no less a token."""

NEVER = -1
"""The room where a memory's tokens do not wait: its reads see each write, or its form or its rows do not allow it."""

SHORT = 4
"""Periods of fewer tokens commit within a program: what it leaves out must be rare."""

Waiting = tuple[Tensor, Tensor, Gates]
"""Key, value and gates (B, H, 1, ·)"""


@state
class Buffered(Eventful):
    """A memory's state, and tokens after it that wait to be written."""

    written: MemoryState
    read: Weights | None = None
    """What all of them meet, the weights at the last commit"""
    tokens: tuple[Waiting, ...] = ()
    memory: Memory | None = None
    """Whose tokens they are; None: not known, or one that has no form for a token, or rows differ, or ``SHORT`` periods"""
    room: int = 0
    """How many may wait; ``NEVER``; 0: not known before a token comes"""
    quiet: bool = False
    """In a program: no commit falls due at this token"""

    def left(self) -> int | None:
        """What waits is written outside of a program."""
        if self.memory is None or self.read is not None:
            return ALWAYS if self.room else 0
        phase = alike(self.written.phase)
        return None if phase is None else int(self.memory.period - phase)

    def between(self, quiet: bool) -> Buffered:
        """Of one form, however many tokens wait, with what a token meets of it."""
        if self.read is None:
            return replace(self, quiet=quiet and self.memory is not None)
        return Buffered(replace(self.written, dual={}, anchor={}, rule={}, origin={}, objective=()), self.read, room=1)

    def resumed(self, after: Buffered) -> Buffered:
        """With the tokens that waited before."""
        return _appended(self, after.tokens[0]) if after.tokens else replace(after, quiet=False)


def scan_buffered(
    memory: Memory,
    before: Buffered,
    tokens: tuple[Tensor, Tensor, Tensor, Gates],
    initial: Weights,
    marks: Marks = Marks(),
    path: Path = "auto",
) -> tuple[Tensor, Buffered]:
    """``ops.scan`` from a state in which tokens wait. One token that may wait does; otherwise all is written."""
    q, k, v, gates = tokens
    alone = q.shape[2] == 1 and marks == Marks() and not torch.is_grad_enabled()
    if alone and (before.room != NEVER or before.quiet):
        check_tokens(q, k, v, marks)
        example = before.written.dual if before.read is None else before.read
        dtype = next(iter(example.values())).dtype
        each = spread(gates, example, q, memory.retention)
        # A compiled program has one form for all tokens, and is told which.
        if not (before.room or torch.compiler.is_compiling()):
            before = _opened(memory, before.written, each)
        if before.read is not None:
            with torch.autocast(q.device.type, enabled=False):
                # yₜ = M(W_c, qₜ)
                y = read(memory.architecture, before.read, q.to(dtype))
            return y.to(q.dtype), _appended(before, (k.to(dtype), v.to(dtype), each))
        if before.quiet:
            with torch.autocast(q.device.type, enabled=False):
                y, after = scan_single(
                    memory, before.written, (q.to(dtype), k.to(dtype), v.to(dtype), each), quiet=True
                )
            return y.to(q.dtype), replace(before, written=after)
    y, after = scan(memory, Resumed(written(before), initial), q, k, v, gates, marks=marks, path=path)
    return y, replace(before, written=after, tokens=()) if alone and before.room == NEVER else Buffered(after)


def _opened(memory: Memory, before: MemoryState, gates: Gates) -> Buffered:
    formed = single(memory, gates, Marks())
    phase = alike(before.phase) if formed else None
    if phase is None or memory.read_at != "commit":
        return Buffered(before, memory=None if phase is None or memory.period < SHORT else memory, room=NEVER)
    moved = phase >= memory.period
    room = int(min(MOST, memory.period - (0 if moved else phase)))
    return Buffered(before, before.dual if moved else before.anchor, (), memory, room)


def _appended(held: Buffered, token: Waiting) -> Buffered:
    """With one token more, or with all written and room again."""
    held = replace(held, tokens=(*held.tokens, token))
    if held.memory is None or len(held.tokens) < held.room:
        return held
    return _opened(held.memory, written(held), token[2])


def written(held: MemoryState | Buffered) -> MemoryState:
    """The state of a memory with all that waits written."""
    if isinstance(held, MemoryState):
        return held
    if held.memory is None or not held.tokens:
        return held.written
    key, value, gates = tree.map(lambda *x: torch.cat(x, 2), *held.tokens)
    with torch.no_grad(), torch.autocast(key.device.type, enabled=False):
        if whole(held.memory, gates) and leading(held.memory, held.written, key.shape[2]) == key.shape[2]:
            return scan_periods(held.memory, held.written, (None, key, value, gates))[1]
        return scan(held.memory, held.written, key, key, value, gates)[1]


def last_read(memory: MemoryState | Buffered) -> Weights:
    """What the last token met, in a memory that is read at its commits."""
    if isinstance(memory, MemoryState):
        return memory.anchor
    return memory.read if memory.tokens and memory.read is not None else memory.written.anchor


def buffer(memory: MemoryState | Buffered) -> Buffered:
    """The same state, in which tokens may wait from now on."""
    return memory if isinstance(memory, Buffered) else Buffered(memory)


def settled(state: T) -> T:
    """``state`` of a layer or model with all that waits in it written: the state that it stands for."""
    return tree.replaced(state, Buffered, written)


def without_waiting(state: T) -> T:
    """``state`` as it was before what waits in it."""
    return tree.replaced(state, Buffered, lambda held: held.written)
