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

from nestling.core import Chain, Descend, Gates, Momentum, Rule
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


def ratios(gate: Tensor, filled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Πᵣ≤ₜ gᵣ (..., C) and Π_{j<r≤t} gᵣ (..., C, C) for j ≤ t, zero above the diagonal."""
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
