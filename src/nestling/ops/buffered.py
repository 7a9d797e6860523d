"""Tokens that are not written yet because nothing reads what they write: a memory that is read at its commits, token by token.

Until the period ends every query meets the same weights, so a token costs one read of them; at the end all its tokens are written at
once, as a block. Whoever wants the state before that calls ``settled``, which writes what waits.
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Gates, Memory, MemoryState, Weights
from nestling.ops.door import check_tokens, spread
from nestling.ops.layers import read
from nestling.ops.layout import Marks, alike
from nestling.ops.scan import Path, Resumed, scan
from nestling.ops.single import single
from nestling.tree import state

T = TypeVar("T")

MOST = 128
"""Tokens that wait at most: a block of more costs no less a token."""


@state
class Buffered:
    """A memory's state, and tokens after it that wait to be written: keys, values and gates (B, H, 1, ·)."""

    written: MemoryState
    tokens: tuple[tuple[Tensor, Tensor, Gates], ...] = ()
    memory: Memory | None = None
    """Whose tokens they are; None while there are none"""
    moved: bool = False
    """Did a period end with ``written``, so that its weights are read and no longer its anchor?"""
    room: int = 0
    """Tokens that may wait"""


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
    check_tokens(q, k, v, marks)
    example = before.written.dual
    dtype = next(iter(example.values())).dtype
    each = spread(gates, example, q, memory.retention)
    held = _room(memory, before) if q.shape[2] == 1 and single(memory, each, marks) else None
    if held is None:
        y, after = scan(memory, Resumed(_written(before), initial), q, k, v, gates, marks=marks, path=path)
        return y, Buffered(after)
    with torch.autocast(q.device.type, enabled=False):
        # yₜ = M(W_c, qₜ)
        y = read(memory.architecture, held.written.dual if held.moved else held.written.anchor, q.to(dtype))
    waiting = (*held.tokens, (k.to(dtype), v.to(dtype), each))
    held = Buffered(held.written, waiting, memory, held.moved, held.room)
    return y.to(q.dtype), held if len(waiting) < held.room else Buffered(_written(held))


def _room(memory: Memory, before: Buffered) -> Buffered | None:
    """``before`` with room for a token; None where none may wait: reads that see each write, rows that are not alike."""
    if before.tokens:
        return before
    # A compiled program has one form for all tokens.
    if memory.read_at != "commit" or torch.compiler.is_compiling():
        return None
    phase = alike(before.written.phase)
    if phase is None:
        return None
    moved = phase >= memory.period
    return Buffered(before.written, (), memory, moved, int(min(MOST, memory.period - (0 if moved else phase))))


def _written(held: Buffered) -> MemoryState:
    if held.memory is None or not held.tokens:
        return held.written
    key, value, gates = tree.map(lambda *x: torch.cat(x, 2), *held.tokens)
    with torch.no_grad():
        return scan(held.memory, held.written, key, key, value, gates)[1]


def buffer(memory: MemoryState | Buffered) -> Buffered:
    """The same state, in which tokens may wait from now on."""
    return memory if isinstance(memory, Buffered) else Buffered(memory)


@overload
def settled(state: MemoryState | Buffered) -> MemoryState: ...


@overload
def settled(state: T) -> T: ...


def settled(state: Any) -> Any:
    """``state`` of a memory, layer or model with all that waits in it written: the state that it stands for."""
    return tree.replaced(state, Buffered, _written)


def without_waiting(state: T) -> T:
    """``state`` as it was before what waits in it."""
    return tree.replaced(state, Buffered, lambda held: held.written)
