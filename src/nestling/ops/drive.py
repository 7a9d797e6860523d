"""Blocks of tokens through one or several memories that share a context flow: laying out, committing, looping.

What one block does is the caller's ``work``; this room knows when anchors move, where documents begin, and what is padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Lag, Memory, MemoryState, Weights
from nestling.ops.chunk import BlockState, rule_state, traces
from nestling.ops.coefficients import once
from nestling.ops.layout import Marks, alike, arrange
from nestling.ops.loop import loop

Work = Callable[[tuple[BlockState, ...], Any, Tensor | None], tuple[Tensor, tuple[tuple[Any, ...], ...]]]
"""(states at the block's start, the block's inputs, filled) -> (output, (dual, trace, what the objective remembers) of each after it)"""


Prepare = Callable[[Any, Tensor | None], Any]
"""(all blocks' inputs (B, H, n, C, ...), filled) -> the inputs that ``work`` gets, where much can be computed for all at once"""


@dataclass(frozen=True)
class Chunk:
    """Blocks of tokens at once, fast weights never formed per token. None of the fields changes an answer.

    ``block``: at most this many tokens at once (a divisor of the memory's period is taken). ``stride``: blocks between the
    states that are stored for the backward pass; 0 stores all that was computed; None chooses. ``compiled``: run each block,
    or whole period, through ``torch.compile(fullgraph=True)``. ``native``: whole periods by a C program, on a processor
    that has a C compiler (``ops.native``); each memory has a thread, so that with fewer memories (batch × heads) than threads some wait.
    """

    block: int = 64
    stride: int | None = None
    compiled: bool = False
    native: bool = False


def begin(memory: Memory, weights: Weights, batch: int) -> MemoryState:
    """The state of ``batch`` memories that start at ``weights`` (H, out, in): every leaf has leading dimensions (B, H).

    >>> import torch
    >>> from nestling.core import Matrix, Memory
    >>> begin(Memory(Matrix()), {"w1": torch.zeros(4, 8, 8)}, batch=2).dual["w1"].shape
    torch.Size([2, 4, 8, 8])
    """
    one = torch.vmap(memory.init)(weights)
    return tree.map(lambda leaf: leaf.expand(batch, *leaf.shape), one)


def _own(state: MemoryState) -> MemoryState:
    """What is never written again shares nothing with the initial weights either."""
    return replace(state, origin=tree.map(torch.clone, state.origin))


def drive(
    memories: Sequence[Memory],
    states: Sequence[MemoryState] | None,
    fresh: Sequence[Weights] | None,
    inputs: Any,
    marks: Marks,
    chunk: Chunk,
    work: Work,
    prepare: Prepare = lambda inputs, filled: inputs,
) -> tuple[Tensor, tuple[MemoryState, ...]]:
    """Run ``work`` over blocks of ``inputs``, a tree of tensors (B, H, T, ...).

    ``states``: where the memories go on from; None begins at ``fresh``, their initial weights (H, out, in), which are needed
    too where documents begin inside the batch.
    """
    rows, heads, length = tree.leaves(inputs)[0].shape[:3]
    size = _block(memories, chunk.block if length > 1 or marks.starts is not None else 1)
    starting = None
    if fresh is not None and (states is None or marks.starts is not None):
        starting = tuple(_own(begin(m, w, rows)) for m, w in zip(memories, fresh, strict=True))
    ready = tuple(states) if states is not None else starting
    if ready is None:
        raise ValueError("drive needs states to go on from or fresh weights to begin at; got neither.")
    written = (0,) * len(ready) if states is None else _together(ready, size)
    if written is not None and marks == Marks():
        return _aligned(memories, (ready, written), inputs, size, chunk, (work, prepare))
    layout = arrange(ready[0].phase[:, 0] % size, marks, length, size)
    blocks = layout.filled.shape[1] // size

    def heads_too(mask: Tensor) -> Tensor:
        return mask[:, None].expand(rows, heads, -1)

    def step(index: int, carry: Any, given: Any, origin: Any) -> tuple[Tensor, Any]:
        now, filled, begins = given
        if begins is not None:
            carry = tree.where(begins, origin, carry)
        written = filled.sum(-1)
        before = tuple(_commit(m, held, phase, written) for m, (held, phase) in zip(memories, carry, strict=True))
        y, after = work(tuple(held for held, _ in before), now, filled)
        return y, _carry(after, before, written)

    placed = tree.map(lambda x: layout.place(x).unflatten(2, (blocks, size)), inputs)
    slots = heads_too(layout.filled).unflatten(2, (blocks, size))
    begins = None if layout.begins is None else heads_too(layout.begins)
    given = (prepare(placed, slots), slots, begins)
    origin = None if begins is None or starting is None else _opened(memories, starting)
    y, carry = loop(step, _opened(memories, ready), given, origin, blocks, chunk.stride)
    y = layout.take(y.flatten(2, 3))
    if marks.valid is not None:
        y = torch.where(marks.valid[:, None, :, None], y, torch.zeros_like(y))
    return y, _closed(memories, carry)


def _together(states: Sequence[MemoryState], size: int) -> tuple[int, ...] | None:
    """How many tokens of its period each memory has written, where that is alike in all rows and fills blocks evenly."""
    if torch.compiler.is_compiling():
        return None
    found = []
    for phase in (state.phase for state in states):
        first = alike(phase)
        if first is None or first % size:
            return None
        found.append(first)
    return tuple(found)


def _aligned(
    memories: Sequence[Memory],
    begun: tuple[tuple[MemoryState, ...], tuple[int, ...]],
    inputs: Any,
    size: int,
    chunk: Chunk,
    doing: tuple[Work, Prepare],
) -> tuple[Tensor, tuple[MemoryState, ...]]:
    """Without marks, from states that have written as much in all rows: blocks are where the tokens are, and commits are known beforehand."""
    (ready, written), (work, prepare) = begun, doing
    example = tree.leaves(inputs)[0]
    length = example.shape[2]
    blocks = -(-length // size)
    missing = blocks * size - length
    filled = None
    if missing:
        inputs = tree.map(lambda x: torch.cat((x, x[:, :, -1:].expand(*x.shape[:2], missing, *x.shape[3:])), 2), inputs)
        filled = (torch.arange(blocks * size, device=example.device) < length).expand(*example.shape[:2], -1)

    def step(index: int, carry: Any, given: Any, shared: Any) -> tuple[Tensor, Any]:
        now, filled = given
        first, last = index * size, min((index + 1) * size, length)
        before = tuple(
            _aligned_commit(m, held, n + first, n + last) for m, held, n in zip(memories, carry, written, strict=True)
        )
        y, wrote = work(before, now, filled)
        return y, tuple(_after(held, *each) for each, held in zip(wrote, before, strict=True))

    placed, slots = tree.map(lambda x: x.unflatten(2, (blocks, size)), (inputs, filled))
    given = (prepare(placed, slots), slots)
    y, carry = loop(step, tuple(state for state, _ in _opened(memories, ready)), given, None, blocks, chunk.stride)
    phases = (
        torch.full_like(state.phase, _within(m, n + length))
        for m, state, n in zip(memories, ready, written, strict=True)
    )
    # Before its first commit an anchor is the initial weights themselves; a state shares nothing with them.
    carry = tuple(
        replace(held, anchor=tree.map(torch.clone, held.anchor)) if n == 0 and length <= memory.period else held
        for memory, held, n in zip(memories, carry, written, strict=True)
    )
    return y.flatten(2, 3)[:, :, :length], _closed(memories, tuple(zip(carry, phases, strict=True)))


def _block(memories: Sequence[Memory], limit: int) -> int:
    """The largest block of at most ``limit`` tokens that fills every period evenly."""
    periods = [int(memory.period) for memory in memories if memory.period != math.inf]
    if not periods:
        return limit
    common = math.gcd(*periods)
    return next(size for size in range(min(limit, common), 0, -1) if common % size == 0)


def _commit(memory: Memory, held: BlockState, phase: Tensor, written: Tensor) -> tuple[BlockState, Tensor]:
    """Move the anchor in the rows whose period is full and that write something."""
    due = (phase >= memory.period) & (written > 0)
    anchor = tree.where(due, memory.primal(held.dual, held.origin), held.anchor)
    objective = tree.where(due, memory.objective.commit(held.objective), held.objective)
    phase = torch.where(due, 0, phase)
    opens = phase == 0 if _lags(memory) else None
    ends = (phase + written == memory.period) & (written > 0) if once(memory) else None
    return replace(held, anchor=anchor, objective=objective, opens=opens, ends=ends), phase


def _aligned_commit(memory: Memory, held: BlockState, written: int, after: int) -> BlockState:
    """``written``, ``after``: how many tokens were written before the block, and with it."""
    if once(memory) and after % memory.period == 0:
        held = replace(held, ends=_everywhere(held))
    if memory.period == math.inf or written % memory.period:
        return held
    if _lags(memory):
        held = replace(held, opens=_everywhere(held))
    if not written:
        return held
    objective = memory.objective.commit(held.objective)
    return replace(held, anchor=memory.primal(held.dual, held.origin), objective=objective)


def _everywhere(held: BlockState) -> Tensor:
    example = next(iter(held.dual.values()))
    return torch.ones(example.shape[:2], dtype=torch.bool, device=example.device)


def _lags(memory: Memory) -> bool:
    return isinstance(memory.retention, Lag) and memory.period != math.inf


def _within(memory: Memory, length: int) -> int:
    return length if memory.period == math.inf else (length - 1) % int(memory.period) + 1


def _carry(after: Any, before: Any, written: Tensor) -> Any:
    return tuple((_after(held, *wrote), phase + written) for wrote, (held, phase) in zip(after, before, strict=True))


def _after(
    held: BlockState, dual: Weights, trace: Weights, objective: Any = (), anchor: Weights | None = None
) -> BlockState:
    moved = held.anchor if anchor is None else anchor
    return replace(held, dual=dual, trace=trace, objective=objective, anchor=moved, opens=None, ends=None)


def _opened(memories: Sequence[Memory], states: Sequence[MemoryState]) -> tuple[tuple[BlockState, Tensor], ...]:
    return tuple(
        (BlockState(state.dual, state.anchor, traces(memory, state.rule), state.origin, state.objective), state.phase)
        for memory, state in zip(memories, states, strict=True)
    )


def _closed(memories: Sequence[Memory], carry: Any) -> tuple[MemoryState, ...]:
    return tuple(
        MemoryState(
            held.dual,
            held.anchor,
            rule_state(memory, held.dual, held.trace, phase),
            phase,
            held.origin,
            held.objective,
        )
        for memory, (held, phase) in zip(memories, carry, strict=True)
    )
