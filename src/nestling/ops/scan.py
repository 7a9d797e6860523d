"""``scan``: a memory written and read once per token, over (batch, heads, tokens, width)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

import nestling.ops.native.plan as native
import nestling.ops.periods as periods
import nestling.tree as tree
from nestling.core import Gates, KeyDecay, Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.ops.channels import BLOCK, by_channel
from nestling.ops.chunk import BlockState, Tokens, ahead, block, supported
from nestling.ops.compiled import compiled
from nestling.ops.door import check_memory, check_tokens, spread
from nestling.ops.drive import Chunk, begin, drive
from nestling.ops.formed import forms
from nestling.ops.kernels.path import Kernels, scan_kernels, takes
from nestling.ops.layout import Marks
from nestling.ops.periods import leading, scan_periods, whole
from nestling.ops.reference import scan_reference
from nestling.ops.single import scan_single, single


@dataclass(frozen=True)
class Reference:
    """Token by token: the definition, for any memory."""


@dataclass(frozen=True)
class Resumed:
    """A state to go on from, and the initial weights (H, out, in) at which documents begin on the way."""

    state: MemoryState
    initial: Weights


Path = Reference | Chunk | Kernels | Literal["auto"]


def scan(
    memory: Memory,
    state: MemoryState | Weights | Resumed,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    *,
    marks: Marks = Marks(),
    path: Path = "auto",
) -> tuple[Tensor, MemoryState]:
    """Write token t into the memory, then read it: yₜ = M(Wₜ, qₜ), for t = 1 … T (Titans eq. 15).

    ``q``, ``k`` (B, H, T, keys); ``v`` (B, H, T, values); gates broadcast to (B, H, T), one for all weights or one for each;
    retain of ``KeyDecay`` to (B, H, T, keys); rates and retentions of one weight may be by channel, (B, H, T, channels), its outputs
    or, where those are fewer, its inputs (MIRAS §5.3).
    ``state``: a state to go on from, or the initial weights (H, out, in) for a fresh start, or both as ``Resumed``.
    ``marks``: padding, and where documents begin: there the memory is reset to its initial weights.
    ``path``: "auto" takes the chunk-parallel form where the memory has one, never kernels; every path gives the same answer.

    Returns y (B, H, T, values) and the state after the last token. Any split of a stream into calls gives the same.

    >>> import torch
    >>> from nestling.core import Gates, Matrix, Memory
    >>> q = k = v = torch.nn.functional.normalize(torch.randn(1, 2, 5, 4), dim=-1)
    >>> y, state = scan(Memory(Matrix()), {"w1": torch.zeros(2, 4, 4)}, q, k, v, Gates(lr=1.0))
    >>> torch.allclose(y[:, :, 0], v[:, :, 0], atol=1e-6)
    True
    """
    check_tokens(q, k, v, marks)
    going, fresh = _parts(state)
    check_memory(memory, going, fresh, k, v)
    if marks.starts is not None and fresh is None:
        raise NestlingError(
            "documents begin inside the batch, but where their memories begin is not known: pass state=Resumed(state, weights)."
        )
    example = going.dual if going is not None else fresh
    assert example is not None
    dtype = next(iter(example.values())).dtype
    each = spread(gates, example, q, memory.retention)
    if isinstance(path, Kernels) and not takes(path, memory, (going, fresh), (q, v), each, marks):
        path = "auto"
    with torch.autocast(q.device.type, enabled=False):
        args = (q.to(dtype), k.to(dtype), v.to(dtype), each)
        match path if path != "auto" else _choose(memory, each):
            case Reference():
                origin = begin(memory, fresh, q.shape[0]) if fresh is not None else None
                y, after = scan_reference(memory, going or origin, origin, *args, marks)
            case Chunk() as chunk:
                if chunk.stride is None and forms(memory):
                    # What a block forms is far larger than the states between blocks.
                    chunk = replace(chunk, stride=1)
                if not supported(memory, each):
                    gated = " with gates by channel" if by_channel(each) else ""
                    raise NestlingError(
                        f"{memory!r}{gated} has no chunk-parallel form. Use path=Reference() or path='auto'."
                    )
                if by_channel(each) or isinstance(memory.retention, KeyDecay):
                    chunk = replace(chunk, block=min(chunk.block, BLOCK))
                y, after = _chunked(memory, (going, fresh), args, marks, chunk)
            case Kernels() as kernels:
                y, after = scan_kernels(kernels, memory, (going, fresh), (q, k, v, each))
            case other:
                raise NestlingError(f"unknown path {other!r}: use 'auto', Reference(), Chunk(...) or Kernels().")
    return y.to(q.dtype), after


Sequences = tuple[Tensor, Tensor, Tensor, Gates]
"""Queries, keys, values (B, H, T, ·), and gates"""


def _chunked(
    memory: Memory, states: tuple[MemoryState | None, Weights | None], tokens: Sequences, marks: Marks, chunk: Chunk
) -> tuple[Tensor, MemoryState]:
    """Whole periods as such where the memory has that form, and blocks."""
    going, fresh = states
    length, count = tokens[0].shape[2], 0
    if length == 1 and going is not None and single(memory, tokens[3], marks):
        return scan_single(memory, going, tokens)
    if marks == Marks() and chunk.stride != 0 and whole(memory, tokens[3]):
        count = leading(memory, going, length)
    if count:
        before = going if going is not None or fresh is None else begin(memory, fresh, tokens[0].shape[0])
        assert before is not None
        plan = native.planned if chunk.native else partial(periods.planned, compiling=chunk.compiled)
        y, going = scan_periods(memory, before, tree.map(lambda x: x[:, :, :count], tokens), chunk.stride, plan)
        if count == length:
            return y, going
        rest, after = _chunked(memory, (going, None), tree.map(lambda x: x[:, :, count:], tokens), marks, chunk)
        return torch.cat((y, rest), 2), after
    run = _compiled(memory) if chunk.compiled else _eager(memory)
    held, weights = (None if going is None else (going,)), (None if fresh is None else (fresh,))
    names = list(going.dual if going is not None else fresh or {})
    y, (after,) = drive((memory,), held, weights, tokens, marks, chunk, run, _tabled(memory, names))
    return y, after


def _parts(state: MemoryState | Weights | Resumed) -> tuple[MemoryState | None, Weights | None]:
    match state:
        case Resumed(going, fresh):
            return going, fresh
        case MemoryState():
            return state, None
        case _:
            return None, state


def _choose(memory: Memory, gates: Gates) -> Reference | Chunk:
    return Chunk() if supported(memory, gates) else Reference()


def _tabled(memory: Memory, names: list[str]) -> Any:
    def prepare(args: Any, filled: Tensor | None) -> Any:
        return args, ahead(memory, args[3], filled, names)

    return prepare


def _eager(memory: Memory) -> Any:
    def run(before: tuple[BlockState, ...], args: Any, filled: Tensor | None) -> Any:
        (q, k, v, gates), tables = args
        y, *wrote = block(memory, before[0], Tokens(q, k, v, gates, filled, tables))
        return y, (tuple(wrote),)

    return run


@lru_cache(maxsize=64)
def _compiled(memory: Memory) -> Any:
    return compiled(_eager(memory))
