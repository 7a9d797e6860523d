"""The kernels as a path of ``scan``: for which memories, gates and rows there are some."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.core import Gates, Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.ops.channels import by_channel
from nestling.ops.drive import begin
from nestling.ops.kernels.launch import LONGEST, MOST, WIDEST, check
from nestling.ops.kernels.layered import is_layered, scan_layered
from nestling.ops.kernels.linear import is_linear, scan_linear
from nestling.ops.layout import Marks


@dataclass(frozen=True)
class Kernels:
    """Kernels on a GPU: linear memories, exact at every token and in chunks all the same, and memories of two layers.

    ``block``: at most this many tokens at once, where a linear memory commits at every token; else a chunk is a period. ``products``:
    the type of the factors of matrix products, whose sums are float32; None takes that of the queries. Rows with padding, or that begin
    documents or go on inside a period, take the path that "auto" does; where there are marks or a state to go on from, a look at these
    waits for the device.
    """

    block: int = 64
    products: torch.dtype | None = None


States = tuple[MemoryState | None, Weights | None]
"""A state to go on from, and initial weights"""


def takes(
    path: Kernels, memory: Memory, states: States, tokens: tuple[Tensor, Tensor], gates: Gates, marks: Marks
) -> bool:
    """Are these rows, of queries and values, such as ``scan_kernels`` takes: do all begin with a period, and go on to the end?

    Raises:
        NestlingError: There are no kernels for this memory, these gates, or where they lie.
    """
    _check(path, memory, states, tokens, gates)
    going = states[0]
    if marks.starts is not None or not (marks.valid is None or bool(marks.valid.all())):
        return False
    return going is None or memory.period == 1 or bool((going.phase % int(memory.period) == 0).all())


def _check(path: Kernels, memory: Memory, states: States, tokens: tuple[Tensor, Tensor], gates: Gates) -> None:
    otherwise = "Use path='auto'."
    if not (is_linear(memory) or is_layered(memory)):
        raise NestlingError(
            "kernels are for Matrix() with L2 or DotProduct, Decay or a delta retention and Descend(), and for an MLP of depth 2 with "
            f"L2, Decay and at most a momentum, got {memory!r}. {otherwise}"
        )
    if by_channel(gates):
        raise NestlingError(f"kernels need one gate for a token, got gates by channel. {otherwise}")
    if not memory.period <= LONGEST:
        raise NestlingError(f"kernels need a period of at most {LONGEST} tokens, got {memory.period}. {otherwise}")
    if not 1 <= path.block <= LONGEST:
        raise NestlingError(f"Kernels takes a block of 1 to {LONGEST} tokens, got {path.block}.")
    widest = max(x.shape[-1] for x in tokens[: 1 if is_linear(memory) else 2])
    if widest > WIDEST:
        raise NestlingError(f"kernels need heads of at most {WIDEST} numbers, got {widest}. {otherwise}")
    memories = tokens[0].shape[0] * tokens[0].shape[1]
    if memories > MOST:
        raise NestlingError(
            f"kernels take at most {MOST:,} memories at once, got {memories:,}: use fewer rows, or path='auto'."
        )
    dual = _dual(states)
    if dual.dtype != torch.float32:
        raise NestlingError(f"kernels need float32 states, got {dual.dtype}. {otherwise}")
    check(dual.device)


def _dual(states: States) -> Tensor:
    going, fresh = states
    return next(iter(((fresh or {}) if going is None else going.dual).values()))


def scan_kernels(
    path: Kernels, memory: Memory, states: States, tokens: tuple[Tensor, Tensor, Tensor, Gates]
) -> tuple[Tensor, MemoryState]:
    """``scan`` by kernels, of rows that ``takes`` takes."""
    going, fresh = states
    q = tokens[0]
    before = begin(memory, fresh, q.shape[0]) if going is None and fresh is not None else going
    assert before is not None
    kind = path.products or q.dtype
    if is_linear(memory):
        return scan_linear(memory, before, tokens, path.block, kind)
    return scan_layered(memory, before, tokens, kind)
