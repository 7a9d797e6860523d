"""The gates of a block of C tokens as tables: how much of what was written at token j is in the weights after token t.

For every rule here the weights inside a block are linear in the weights W₀ and the trace S₀ at its start and in the
gradients Gⱼ, which are all taken at the same anchor::

    Wₜ = βₜ W₀ + fₜ S₀ + Σ_{j≤t} Γₜⱼ Gⱼ          S_C = μ_C S₀ + Σⱼ pⱼ Gⱼ

The tables are products of ratios of cumulated gates, built as exponentials of masked differences of cumulative sums: no
division, no overflow (a gate of zero is taken as e⁻³⁰).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nestling.core import Chain, Descend, Every, Gates, Memory, Momentum, Rule
from nestling.tree import state

_FLOOR = math.exp(-30.0)


@state
class Table:
    """Coefficients of one weight in one block, or in each of n; leading dimensions (B, H) or (B, H, n)."""

    start: Tensor
    """β (..., C): of W₀ in Wₜ"""
    writes: Tensor
    """Γ (..., C, C), lower triangular: of Gⱼ in Wₜ"""
    trace: Tensor | None
    """f (..., C): of S₀ in Wₜ; None without momentum"""
    trace_start: Tensor | None
    """μ_C (...): of S₀ in S_C"""
    trace_writes: Tensor | None
    """p (..., C): of Gⱼ in S_C"""
    kept: Tensor
    """D (..., C, C), lower triangular: how much of Wⱼ is left in Wₜ"""


def table(rule: Rule, gates: Gates, filled: Tensor | None) -> Table:
    """The table of ``rule`` for gates of shape (..., C). Slots that are not ``filled`` (..., C) change nothing."""
    lr = gates.lr if filled is None else gates.lr * filled
    start, kept = ratios(gates.retain, filled)
    match rule:
        case Descend():
            return Table(start, -kept * lr[..., None, :], None, None, None, kept)
        case Chain((Descend(), Momentum(decay))):
            # Sₜ = ηₜSₜ₋₁ − θₜGₜ,  Wₜ = αₜWₜ₋₁ + Sₜ        Titans eqs 13-14
            begin, carried = _carried(decay, gates, filled)
            live = kept if filled is None else kept * filled[..., None, :]
            written = -carried * lr[..., None, :]
            return Table(start, live @ written, _times(live, begin), begin[..., -1], written[..., -1, :], kept)
        case Chain((Momentum(decay), Descend())):
            # Sₜ = ηₜSₜ₋₁ + Gₜ,  Wₜ = αₜWₜ₋₁ − θₜSₜ        torch.optim.SGD's order
            begin, carried = _carried(decay, gates, filled)
            carried = carried if filled is None else carried * filled[..., None, :]
            written = -kept * lr[..., None, :]
            return Table(start, written @ carried, _times(written, begin), begin[..., -1], carried[..., -1, :], kept)
        case _:
            raise TypeError(f"no table for {rule!r}")


@state
class Carried:
    """What a block leaves of a momentum."""

    start: Tensor
    """μ (...): of S₀ in S_C"""
    writes: Tensor
    """n (..., C): of Gⱼ in S_C"""


@state
class Ends:
    """What a block leaves, where nothing is read in between; leading dimensions (B, H) or (B, H, n)."""

    start: Tensor
    """β (...): of W₀ in W_C"""
    writes: Tensor | None
    """g (..., C): of Gⱼ in W_C; None where W_C = βW₀ + S_C"""
    trace: Tensor | None = None
    """f (...): of S₀ in W_C"""
    carried: Carried | None = None
    """Of a rule with momentum"""


def ends(rule: Rule, gates: Gates, filled: Tensor | None) -> Ends:
    """The last row of ``table``, without making the others; and for momentum once a period, S_C = μS₀ − Σⱼ θⱼGⱼ."""
    lr = gates.lr if filled is None else gates.lr * filled
    if (every := per_period(rule)) is not None:
        # Wₜ = αₜWₜ₋₁, and + S_C at the last token, whose gate is the momentum's
        kept = _last(gates.retain, filled)[0]
        decay = gates.momentum[..., -1] if every.decay is None else torch.full_like(kept, every.decay)
        return Ends(kept, None, None, Carried(decay, -lr))
    start, kept = _last(gates.retain, filled)
    if isinstance(rule, Descend):
        return Ends(start, -kept * lr)
    found = momentum(rule)
    if found is None:
        raise TypeError(f"no ends for {rule!r}")
    begin, carried = _carried(found.decay, gates, filled)
    live = kept if filled is None else kept * filled
    if isinstance(rule, Chain) and isinstance(rule.rules[0], Descend):
        row, written = live, -carried * lr[..., None, :]
    else:
        row, written = -kept * lr, carried if filled is None else carried * filled[..., None, :]
    # Γ_C = D_C E
    writes = (row[..., None, :] @ written)[..., 0, :]
    return Ends(start, writes, (row * begin).sum(-1), Carried(begin[..., -1], written[..., -1, :]))


def momentum(rule: Rule) -> Momentum | None:
    """The momentum by token of a rule, in Titans' order or in SGD's; None of another rule."""
    match rule:
        case Chain((Descend(), Momentum() as found)) | Chain((Momentum() as found, Descend())):
            return found
        case _:
            return None


def per_period(rule: Rule) -> Momentum | None:
    """The momentum of a rule that gathers what is written, and moves once in a while; None of another rule."""
    match rule:
        case Chain((Descend(), Every(_, Momentum() as found))):
            return found
        case _:
            return None


def once(memory: Memory) -> bool:
    """Does the memory's momentum move once a period, when its anchor is about to?"""
    match memory.rule:
        case Chain((Descend(), Every(period, Momentum()))):
            return period == memory.period
        case _:
            return False


def _last(gate: Tensor, filled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Π gᵣ (...) and Π_{j<r≤C} gᵣ (..., C)"""
    log = gate.clamp_min(_FLOOR).log()
    if filled is not None:
        log = torch.where(filled, log, torch.zeros_like(log))
    total = log.cumsum(-1)
    return total[..., -1].exp(), (total[..., -1:] - total).exp()


def ratios(gate: Tensor, filled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Πᵣ≤ₜ gᵣ (..., C) and Π_{j<r≤t} gᵣ (..., C, C) for j ≤ t, zero above the diagonal."""
    if gate.shape[-1] == 1 and filled is None:
        return gate.clamp_min(_FLOOR), torch.ones_like(gate)[..., None]
    log = gate.clamp_min(_FLOOR).log()
    if filled is not None:
        log = torch.where(filled, log, torch.zeros_like(log))
    total = log.cumsum(-1)
    size = total.shape[-1]
    above = torch.ones(size, size, dtype=torch.bool, device=gate.device).triu(1)
    return total.exp(), (total[..., :, None] - total[..., None, :]).masked_fill(above, float("-inf")).exp()


def _carried(decay: float | None, gates: Gates, filled: Tensor | None) -> tuple[Tensor, Tensor]:
    return ratios(gates.momentum if decay is None else torch.full_like(gates.lr, decay), filled)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]
