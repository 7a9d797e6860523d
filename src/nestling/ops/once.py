"""Momentum that moves once a period: what the tokens of a period write is gathered, and taken in when the anchor is about to move.

With the momentum's gate η at the last token of a period (``Chain((Descend(), Every(C, Momentum())))`` of a memory with period C)::

    Uₜ = Uₜ₋₁ − θₜGₜ,    at the period's end  S ← ηS + U,  W ← W + S,  U ← 0         W decays with every token
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nestling.core import Gates, Memory, Weights
from nestling.ops.coefficients import ends
from nestling.ops.fold import fold

GATHERED = " gathered"
"""Behind the name of a weight: what is gathered for it, beside its momentum"""


def held(rule: dict[str, Any]) -> Weights:
    """The momenta inside a rule's state, and what is gathered for them."""
    inner = {name: state[1] for name, state in rule.items()}
    return {
        **{name: trace for name, (_, trace, _) in inner.items()},
        **{name + GATHERED: total for name, (total, _, _) in inner.items()},
    }


def state_of(weights: Weights, trace: Weights, phase: Tensor, period: float) -> dict[str, Any]:
    """The rule's state: the inverse of ``held``."""
    return {name: ((), (trace[name + GATHERED], trace[name], phase % int(period))) for name in weights}


def gathered(
    memory: Memory,
    before: tuple[Weights, Weights, Tensor | None],
    pairs: tuple[Weights, Weights],
    gates: Gates,
    filled: Tensor | None,
) -> tuple[Weights, Weights]:
    """(dual, trace) after a block of ``pairs``, from what they were and where (B, H) a period ends with the block; None: nowhere."""
    (weights, trace, due), (cotangents, inputs) = before, pairs
    dual, moved, totals = {}, {}, {}
    for name, weight in weights.items():
        row = ends(memory.rule, gates.of(name), filled)
        assert row.carried is not None
        one = torch.ones_like(row.start)
        total = fold(
            (one, trace[name + GATHERED]), None, row.carried.writes[..., None] * cotangents[name], inputs[name]
        )
        dual[name], moved[name], totals[name + GATHERED] = row.start[..., None, None] * weight, trace[name], total
        if due is not None:
            mark, now = due[..., None, None], row.carried.start[..., None, None] * trace[name] + total
            dual[name] = torch.where(mark, dual[name] + now, dual[name])
            moved[name] = torch.where(mark, now, trace[name])
            totals[name + GATHERED] = torch.where(mark, torch.zeros_like(total), total)
    # In the order of ``held``.
    return dual, {**moved, **totals}
