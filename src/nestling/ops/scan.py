"""``scan``: a memory written and read once per token, over (batch, heads, tokens, width)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Gates, Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.ops.chunk import BlockState, Tokens, block, rule_state, supported, traces
from nestling.ops.layout import arrange
from nestling.ops.loop import loop
from nestling.ops.reference import scan_reference


@dataclass(frozen=True)
class Reference:
    """Token by token: the definition, for any memory."""


@dataclass(frozen=True)
class Chunk:
    """Blocks of tokens at once, fast weights never formed per token. None of the fields changes an answer.

    ``block``: at most this many tokens at once (a divisor of the memory's period is taken). ``stride``: blocks between the
    states that are stored for the backward pass; 0 stores all that was computed; None chooses. ``compiled``: run each block
    through ``torch.compile(fullgraph=True)``.
    """

    block: int = 64
    stride: int | None = None
    compiled: bool = False


Path = Reference | Chunk | Literal["auto"]


def begin(memory: Memory, weights: Weights, batch: int) -> MemoryState:
    """The state of ``batch`` memories that start at ``weights`` (H, out, in): every leaf has leading dimensions (B, H).

    >>> import torch
    >>> from nestling.core import Matrix, Memory
    >>> begin(Memory(Matrix()), {"w1": torch.zeros(4, 8, 8)}, batch=2).dual["w1"].shape
    torch.Size([2, 4, 8, 8])
    """
    one = torch.vmap(memory.init)(weights)
    return tree.map(lambda leaf: leaf.expand(batch, *leaf.shape), one)


def scan(
    memory: Memory,
    state: MemoryState | Weights,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    *,
    initial: Weights | None = None,
    marks: tuple[Tensor | None, Tensor | None] = (None, None),
    path: Path = "auto",
) -> tuple[Tensor, MemoryState]:
    """Write token t into the memory, then read it: yₜ = M(Wₜ, qₜ), for t = 1 … T (Titans eq. 15).

    ``q``, ``k`` (B, H, T, keys); ``v`` (B, H, T, values); gates broadcast to (B, H, T), one for all weights or one for each.
    ``state``: a state to go on from, or the initial weights (H, out, in) for a fresh start.
    ``marks``: (valid, starts), each (B, T) or None: tokens that are no padding (padding writes nothing and reads zero), and
    tokens that begin a document (the memory is reset to ``initial`` there; by default to the weights given as ``state``).
    ``path``: "auto" takes the chunk-parallel form where the memory has one; every path gives the same answer.

    Returns y (B, H, T, values) and the state after the last token. Any split of a stream into calls gives the same.

    >>> import torch
    >>> from nestling.core import Gates, Matrix, Memory
    >>> q = k = v = torch.nn.functional.normalize(torch.randn(1, 2, 5, 4), dim=-1)
    >>> y, state = scan(Memory(Matrix()), {"w1": torch.zeros(2, 4, 4)}, q, k, v, Gates(lr=1.0))
    >>> torch.allclose(y[:, :, 0], v[:, :, 0], atol=1e-6)
    True
    """
    _check(q, k, v)
    fresh = initial if isinstance(state, MemoryState) else state
    if marks[1] is not None and fresh is None:
        raise NestlingError("documents begin inside the batch, but the memory has no initial weights: pass initial=weights.")
    example = state.dual if isinstance(state, MemoryState) else state
    dtype = next(iter(example.values())).dtype
    spread = _spread(gates, q.shape[:3], dtype, q.device)
    with torch.autocast(q.device.type, enabled=False):
        args = (q.to(dtype), k.to(dtype), v.to(dtype), spread)
        match path if path != "auto" else _choose(memory):
            case Reference():
                rows = q.shape[0]
                origin = begin(memory, fresh, rows) if fresh is not None else None
                ready = state if isinstance(state, MemoryState) else begin(memory, state, rows)
                y, after = scan_reference(memory, ready, origin, *args, *marks)
            case Chunk() as chunk:
                if not supported(memory):
                    raise NestlingError(f"{memory!r} has no chunk-parallel form. Use path=Reference() or path='auto'.")
                y, after = _scan_chunks(memory, state, fresh, args, marks, chunk)
            case other:
                raise NestlingError(f"unknown path {other!r}: use 'auto', Reference() or Chunk(...).")
    return y.to(q.dtype), after


def _choose(memory: Memory) -> Reference | Chunk:
    return Chunk() if supported(memory) else Reference()


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 4 or q.shape != k.shape or v.shape[:3] != k.shape[:3]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise NestlingError(f"scan needs q and k (B, H, T, keys) and v (B, H, T, values), got {shapes}.")
    if q.shape[2] == 0:
        raise NestlingError("scan needs at least one token, got T = 0.")


def _spread(gates: Gates, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Gates:
    """Every gate as a tensor (B, H, T), or a mapping of them."""

    def one(name: str, gate: Any) -> Any:
        if isinstance(gate, Mapping):
            return {weight: one(f"{name}[{weight!r}]", each) for weight, each in gate.items()}
        tensor = torch.as_tensor(gate, dtype=dtype, device=device)
        try:
            return tensor.expand(shape)
        except RuntimeError:
            raise NestlingError(
                f"gate {name} has shape {tuple(tensor.shape)}: it must broadcast to (B, H, T) = {tuple(shape)}."
            ) from None

    return Gates(*(one(n, g) for n, g in vars(gates).items()))


def _divisor(period: float, limit: int) -> int:
    """The largest block of at most ``limit`` tokens that fills a period evenly."""
    if period == float("inf"):
        return limit
    return next(size for size in range(min(limit, int(period)), 0, -1) if period % size == 0)


def _scan_chunks(
    memory: Memory,
    state: MemoryState | Weights,
    fresh: Weights | None,
    args: tuple[Tensor, Tensor, Tensor, Gates],
    marks: tuple[Tensor | None, Tensor | None],
    chunk: Chunk,
) -> tuple[Tensor, MemoryState]:
    rows, heads, length = args[0].shape[:3]
    size = _divisor(memory.period, chunk.block if length > 1 or marks[1] is not None else 1)
    if not isinstance(state, MemoryState) and marks == (None, None):
        return _aligned(memory, begin(memory, state, rows), args, size, chunk)
    ready = state if isinstance(state, MemoryState) else begin(memory, state, rows)
    layout = arrange(ready.phase[:, 0] % size, *marks, length, size)
    blocks = layout.filled.shape[1] // size
    placed = tree.map(layout.place, args)
    filled = layout.filled[:, None].expand(rows, heads, -1)
    begins = None if layout.begins is None else layout.begins[:, None].expand(rows, heads, -1)
    origin = None if begins is None or fresh is None else _carry(memory, begin(memory, fresh, rows))
    work = _runner(memory, chunk.compiled)

    def step(index: int, carry: Any, inputs: Any, shared: Any) -> tuple[Tensor, Any]:
        now, starting = inputs
        if starting is not None:
            carry = tree.where(starting, shared, carry)
        before, phase = carry
        # A commit where the period is full and something is written.
        written = now.filled.sum(-1)
        due = (phase >= memory.period) & (written > 0)
        anchor = tree.where(due, memory.primal(before.dual), before.anchor)
        y, dual, trace = work(BlockState(before.dual, anchor, before.trace), now)
        return y, (BlockState(dual, anchor, trace), torch.where(due, 0, phase) + written)

    inputs = (Tokens(*tree.map(lambda x: _blocked(x, blocks), placed), _blocked(filled, blocks)), begins)
    y, (after, phase) = loop(step, _carry(memory, ready), inputs, origin, blocks, chunk.stride)
    y = layout.take(y.flatten(2, 3))
    if marks[0] is not None:
        y = torch.where(marks[0][:, None, :, None], y, torch.zeros_like(y))
    return y, MemoryState(after.dual, after.anchor, rule_state(memory, after.dual, after.trace), phase)


def _aligned(
    memory: Memory, ready: MemoryState, args: tuple[Tensor, Tensor, Tensor, Gates], size: int, chunk: Chunk
) -> tuple[Tensor, MemoryState]:
    """From a fresh start without marks: blocks are where the tokens are, and commits are known beforehand."""
    length = args[0].shape[2]
    blocks = -(-length // size)
    missing = blocks * size - length
    filled = None
    if missing:
        args = tree.map(lambda x: torch.cat((x, x[:, :, -1:].expand(*x.shape[:2], missing, *x.shape[3:])), 2), args)
        filled = (torch.arange(blocks * size, device=args[0].device) < length).expand(*args[0].shape[:3])
    work = _runner(memory, chunk.compiled)

    def step(index: int, carry: Any, inputs: Any, shared: Any) -> tuple[Tensor, Any]:
        anchor = memory.primal(carry.dual) if index and index * size % memory.period == 0 else carry.anchor
        y, dual, trace = work(BlockState(carry.dual, anchor, carry.trace), inputs)
        return y, BlockState(dual, anchor, trace)

    inputs = Tokens(*tree.map(lambda x: _blocked(x, blocks), args), None if filled is None else _blocked(filled, blocks))
    before = BlockState(ready.dual, ready.anchor, traces(memory, ready.rule))
    y, after = loop(step, before, inputs, None, blocks, chunk.stride)
    within = length if memory.period == float("inf") else (length - 1) % int(memory.period) + 1
    phase = torch.full_like(ready.phase, within)
    state = MemoryState(after.dual, after.anchor, rule_state(memory, after.dual, after.trace), phase)
    return y.flatten(2, 3)[:, :, :length], state


def _carry(memory: Memory, state: MemoryState) -> tuple[BlockState, Tensor]:
    return BlockState(state.dual, state.anchor, traces(memory, state.rule)), state.phase


def _blocked(x: Tensor, blocks: int) -> Tensor:
    return x.unflatten(2, (blocks, -1))


def _runner(memory: Memory, compiled: bool) -> Any:
    return _compiled(memory) if compiled else lambda before, tokens: block(memory, before, tokens)


@lru_cache(maxsize=64)
def _compiled(memory: Memory) -> Any:
    def run(before: BlockState, tokens: Tokens) -> tuple[Tensor, Weights, Weights]:
        return block(memory, before, tokens)

    return cast(Any, torch.compile(run, fullgraph=True, dynamic=False))
