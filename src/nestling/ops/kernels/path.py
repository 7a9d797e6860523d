"""The kernels as a path of ``scan``: which memories they are, and what they make of states, gates and periods."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nestling.core import (
    L2,
    Decay,
    Delta,
    Descend,
    DotProduct,
    Erase,
    GatedDelta,
    Gates,
    Matrix,
    Memory,
    MemoryState,
    Weights,
)
from nestling.errors import NestlingError
from nestling.ops.channels import by_channel
from nestling.ops.drive import begin
from nestling.ops.kernels.delta import Cut, LinearTokens
from nestling.ops.kernels.delta_op import LONGEST, WIDEST, linear_chunks
from nestling.ops.kernels.launch import check
from nestling.ops.layout import Marks

_LEAST = math.exp(-30.0)
"""A gate of zero is taken as this, as in ``ops.coefficients``."""


@dataclass(frozen=True)
class Kernels:
    """Kernels on a GPU, for linear memories (``Matrix``) under gradient descent: written every token, in chunks all the same.

    ``block``: at most this many tokens at once, where the memory commits at every token; else a chunk is a period. ``products``: the
    type of the factors of matrix products, whose sums are float32; None takes that of the queries. Rows with padding, or that begin
    documents or go on inside a period, take the path that "auto" does.
    """

    block: int = 64
    products: torch.dtype | None = None


States = tuple[MemoryState | None, Weights | None]
"""A state to go on from, and initial weights"""


def takes(path: Kernels, memory: Memory, states: States, q: Tensor, gates: Gates, marks: Marks) -> bool:
    """Are these rows that ``scan_kernels`` takes: do they all begin with a period, and go on to the end?

    Raises:
        NestlingError: There are no kernels for this memory, these gates, or where they lie.
    """
    _check(path, memory, states, q, gates)
    going = states[0]
    if marks != Marks():
        return False
    return going is None or memory.period == 1 or bool((going.phase % int(memory.period) == 0).all())


def _check(path: Kernels, memory: Memory, states: States, q: Tensor, gates: Gates) -> None:
    otherwise = "Use path='auto'."
    if not _linear(memory):
        raise NestlingError(
            f"kernels are for Matrix() with L2 or DotProduct, Decay or a delta retention and Descend(), got {memory!r}. {otherwise}"
        )
    if by_channel(gates):
        raise NestlingError(f"kernels need one gate for a token, got gates by channel. {otherwise}")
    if not memory.period <= LONGEST:
        raise NestlingError(f"kernels need a period of at most {LONGEST} tokens, got {memory.period}. {otherwise}")
    if not 1 <= path.block <= LONGEST:
        raise NestlingError(f"Kernels takes a block of 1 to {LONGEST} tokens, got {path.block}.")
    if q.shape[-1] > WIDEST:
        raise NestlingError(f"kernels need keys of at most {WIDEST} numbers, got {q.shape[-1]}. {otherwise}")
    if _dual(states).dtype != torch.float32:
        raise NestlingError(f"kernels need float32 states, got {_dual(states).dtype}. {otherwise}")
    check(q.device)


def _dual(states: States) -> Tensor:
    going, fresh = states
    return next(iter(((fresh or {}) if going is None else going.dual).values()))


def _linear(memory: Memory) -> bool:
    known = isinstance(memory.objective, L2 | DotProduct) and isinstance(
        memory.retention, Decay | Delta | Erase | GatedDelta
    )
    return known and isinstance(memory.architecture, Matrix) and isinstance(memory.rule, Descend)


def scan_kernels(
    path: Kernels, memory: Memory, states: States, tokens: tuple[Tensor, Tensor, Tensor, Gates]
) -> tuple[Tensor, MemoryState]:
    """``scan`` by kernels, of rows that ``takes`` takes."""
    q, k, v, gates = tokens
    rows, heads, length, _ = q.shape
    going, fresh = states
    before = begin(memory, fresh, rows) if going is None and fresh is not None else going
    assert before is not None
    ((name, weight),) = before.dual.items()
    own, kind = gates.of(name), path.products or q.dtype
    now, frozen = _rates(memory, own)
    # u = η v
    written = own.lr[..., None] * v
    given = (q.to(kind), k.to(kind), written.to(kind), now, frozen, own.retain.clamp_min(_LEAST).log())
    each = LinearTokens(*(x.flatten(0, 1) for x in given))
    y, end, anchor = linear_chunks(each, weight.flatten(0, 1), _cut(memory, path))
    within = (length - 1) % int(memory.period) + 1
    dual, held = ({name: x.unflatten(0, (rows, heads))} for x in (end, anchor))
    after = replace(before, dual=dual, anchor=held, phase=torch.full_like(before.phase, within))
    return y.unflatten(0, (rows, heads)), after


def _cut(memory: Memory, path: Kernels) -> Cut:
    if memory.period == 1:
        return Cut(path.block, "before" if memory.read_at == "commit" else "current", lone=True)
    return Cut(int(memory.period), "start" if memory.read_at == "commit" else "current", lone=False)


def _rates(memory: Memory, gates: Gates) -> tuple[Tensor, Tensor]:
    """(c, g): of what the memory says now, and of what it said at the start of the period, what is taken away."""
    lr, retain = gates.lr, gates.retain
    none = torch.zeros_like(lr)
    # A delta retention erases what the weights say now, Erase and GatedDelta after they have forgotten.
    match memory.retention:
        case Delta():
            erased = lr
        case Erase():
            erased = retain * lr
        case _:
            erased = none
    if isinstance(memory.objective, DotProduct):
        return erased, none
    # ∇ℓ = (W k − v) kᵀ at the anchor
    learnt = retain * lr if isinstance(memory.retention, GatedDelta) else lr
    return (erased + learnt, none) if memory.period == 1 else (erased, learnt)
