"""Linear memories as the kernels of ``delta`` have them: which they are, and what becomes of their gates, states and periods."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nestling.core import L2, Decay, Delta, Descend, DotProduct, Erase, GatedDelta, Gates, Matrix, Memory, MemoryState
from nestling.ops.kernels.delta import Cut, LinearTokens
from nestling.ops.kernels.delta_op import linear_chunks
from nestling.ops.kernels.launch import LEAST


def is_linear(memory: Memory) -> bool:
    """Is it a matrix with L2 or a dot product, under gradient descent, with Decay or a delta retention?"""
    known = isinstance(memory.objective, L2 | DotProduct) and isinstance(
        memory.retention, Decay | Delta | Erase | GatedDelta
    )
    return known and isinstance(memory.architecture, Matrix) and isinstance(memory.rule, Descend)


def scan_linear(
    memory: Memory, before: MemoryState, tokens: tuple[Tensor, Tensor, Tensor, Gates], block: int, kind: torch.dtype
) -> tuple[Tensor, MemoryState]:
    """``scan`` of a linear memory from the start of a period, with products of numbers of that ``kind``."""
    q, k, v, gates = tokens
    rows, heads, length, _ = q.shape
    ((name, weight),) = before.dual.items()
    own = gates.of(name)
    now, frozen = _rates(memory, own)
    # u = η v
    written = own.lr[..., None] * v
    given = (q.to(kind), k.to(kind), written.to(kind), now, frozen, own.retain.clamp_min(LEAST).log())
    each = LinearTokens(*(x.flatten(0, 1) for x in given))
    y, end, anchor = linear_chunks(each, weight.flatten(0, 1), _cut(memory, block))
    within = (length - 1) % int(memory.period) + 1
    dual, held = ({name: x.unflatten(0, (rows, heads))} for x in (end, anchor))
    after = replace(before, dual=dual, anchor=held, phase=torch.full_like(before.phase, within))
    return y.unflatten(0, (rows, heads)), after


def _cut(memory: Memory, block: int) -> Cut:
    if memory.period == 1:
        return Cut(block, "before" if memory.read_at == "commit" else "current", lone=True)
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
