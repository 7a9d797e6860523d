"""One block of tokens where the weights after each token are formed.

For rules that are not linear in the gradients (Atlas §5), and for retentions that read a function of what is accumulated (MIRAS'
mirror maps).

All gradients of a block are taken at one anchor, and neither momentum nor what follows it knows the weights; so the updates
Uₜ of all tokens are made at once, NewtonSchulz and all, and are then taken in: Wₜ = βₜW₀ + Σⱼ Dₜⱼ Uⱼ. This costs C times the memory of a
weight, where the linear rules of ``ops.chunk`` never form one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.core import (
    KL,
    Apply,
    Chain,
    Clip,
    Decay,
    Descend,
    ElasticNet,
    Gates,
    HeldLq,
    Logistic,
    Lq,
    LqLink,
    Memory,
    Momentum,
    NewtonSchulz,
    Omega,
    Rule,
    Scale,
    Weights,
)
from nestling.ops.coefficients import ratios
from nestling.ops.window import band

Pair = tuple[Tensor, Tensor]
"""(cotangents (B, H, n, out), inputs (B, H, n, in)), with the tokens of a window before the block's"""


MirrorMap = KL | ElasticNet | Logistic | Lq | LqLink
"""What is read is a function of the weights that are accumulated, and no linear one."""


def forms(memory: Memory) -> bool:
    """Are the weights of this memory formed token by token in a block?"""
    rules = _rules(memory)
    kinds = all(isinstance(rule, Descend | Scale | Clip | NewtonSchulz | Momentum) for rule in rules)
    if not kinds or sum(isinstance(rule, Momentum) for rule in rules) > 1:
        return False
    match memory.retention:
        case HeldLq():
            return False
        case KL() | ElasticNet() | Logistic() | Lq() | LqLink():
            # A memory that is read at its commits only needs the sum of what is written.
            return not (_linear(rules) and memory.read_at == "commit")
        case Decay():
            return not _linear(rules)
        case _:
            return False


def _rules(memory: Memory) -> tuple[Rule, ...]:
    return memory.rule.rules if isinstance(memory.rule, Chain) else (memory.rule,)


def _linear(rules: tuple[Rule, ...]) -> bool:
    """Is it gradient descent, or one of the two orders that ``ops.chunk`` knows?"""
    match rules:
        case (Descend(),) | (Descend(), Momentum()) | (Momentum(), Descend()):
            return True
        case _:
            return False


def formed(
    memory: Memory, weight: Tensor, trace: Tensor | None, pair: Pair, gates: Gates, filled: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Wₜ (B, H, C, out, in) after each token of a block, and the momentum after the last."""
    cotangents, inputs = pair
    signals = cotangents[..., :, None] * inputs[..., None, :]
    size = gates.lr.shape[-1]
    if isinstance(memory.objective, Omega):
        signals = _mixed(band(memory.objective.window, size, filled, signals), signals)
    updates = signals
    for rule in _rules(memory):
        if isinstance(rule, Momentum):
            assert trace is not None
            updates = _traced(rule, updates, trace, gates, filled)
            # Copied: a view would keep the updates of all tokens alive.
            trace = updates[..., -1, :, :].clone()
        else:
            each = Gates(lr=gates.lr[..., None, None])
            updates, _ = rule.update(updates, (), each)
    start, kept = ratios(gates.retain, filled)
    kept = kept if filled is None else kept * filled[..., None, :]
    # Wₜ = βₜW₀ + Σⱼ Dₜⱼ Uⱼ
    return start[..., None, None] * weight[..., None, :, :] + _mixed(kept, updates), trace


def _traced(rule: Momentum, signals: Tensor, trace: Tensor, gates: Gates, filled: Tensor | None) -> Tensor:
    """Sₜ = ηₜSₜ₋₁ + Gₜ for all tokens"""
    decay = gates.momentum if rule.decay is None else torch.full_like(gates.lr, rule.decay)
    begin, carried = ratios(decay, filled)
    carried = carried if filled is None else carried * filled[..., None, :]
    return begin[..., None, None] * trace[..., None, :, :] + _mixed(carried, signals)


def _mixed(table: Tensor, each: Tensor) -> Tensor:
    """Σⱼ tableₜⱼ Xⱼ for X (..., n, out, in)"""
    return (table @ each.flatten(-2)).unflatten(-1, each.shape[-2:])


def applied(weights: Weights) -> Apply:
    """Apply weights (B, H, C, out, in), one for each token."""
    return lambda name, z: (weights[name] @ z[..., None])[..., 0]
