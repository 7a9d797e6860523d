"""Surprise in closed form: what ``core.memory.surprise`` asks of automatic differentiation, written out by hand.

A memory's gradient by a weight is a pair, cotangent ⊗ input, so one pass down an architecture (keep each weight's input) and one pass
up (keep each weight's cotangent) are the whole gradient::

    y = W x          x̄ = Wᵀ ȳ,  the pair of W is (ȳ, x)
    y = σ(x)         x̄ = σ'(x) ⊙ ȳ
    y = LN(x)        x̄ = (ȳ − mean ȳ − y mean(ȳ ⊙ y)) / s,  s² = var x + ε

The passes are made of ordinary differentiable operations, so the outer gradient goes through them. An architecture or objective
that has no rule here is differentiated as in ``core``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nestling.core import (
    L2,
    MLP,
    Above,
    Apply,
    Beside,
    DotProduct,
    GatedMLP,
    Huber,
    Lp,
    Matrix,
    Memory,
    MixedHuber,
    Normed,
    NormHuber,
    Omega,
    Residual,
    ValueShift,
    Weights,
)
from nestling.core.architecture import Architecture, within
from nestling.core.memory import surprise
from nestling.core.objective import Objective, bounded
from nestling.ops.fold import through
from nestling.ops.layers import bent

Pairs = tuple[Weights, Weights]
"""(cotangents, inputs): ∂ℓ/∂W = cotangent ⊗ input for each weight."""

Down = tuple[Tensor, Callable[[Tensor], Pairs]]
"""(prediction, its cotangent -> the pairs)"""


def pairs(
    memory: Memory,
    weights: Weights,
    key: Tensor,
    value: Tensor,
    threshold: Tensor | float,
    said: Weights | None = None,
) -> Pairs:
    """∇ℓ(M(W, k), v) by every weight, for tokens (..., C, keys) that share ``weights`` (..., out, in).

    Into ``said`` goes W x for each weight, where it comes by.
    """
    if not (_passes(memory.architecture) and _slopes(memory.objective)):
        seen = surprise(memory.architecture, memory.objective, weights, key, value, threshold)
        return seen.cotangents, seen.inputs
    read = reading(weights)

    def apply(name: str, x: Tensor) -> Tensor:
        y = read(name, x)
        if said is not None:
            said[name] = y
        return y

    prediction, up = _down(memory.architecture, apply, weights, key)
    return up(_slope(memory.objective, prediction, value, threshold))


def own(memory: Memory, weights: Weights, key: Tensor, value: Tensor) -> Pairs:
    """∇ℓ(M(W, k), v̂) where the memory makes its own target, v̂ = M(W, v), which stands still (NL eqs 87, 88)."""
    if isinstance(memory.objective, L2) and _linear(memory.architecture):
        # M(k) − M(v) = M(k − v)
        slope, up = _down(memory.architecture, reading(weights), weights, key - value)
        return up(slope)[0], {"w1": key}
    target = memory.architecture(reading(weights), value)
    return pairs(memory, weights, key, target, math.inf)


def _linear(architecture: Architecture) -> bool:
    match architecture:
        case Residual(inner):
            return _linear(inner)
        case Beside(parts):
            return all(_linear(inner) for _, inner, _ in parts)
        case _:
            return isinstance(architecture, Matrix)


def reading(weights: Weights) -> Apply:
    """W x, for tokens (..., C, in) that share ``weights``: ``core.linear`` with the derivative of ``fold.through``."""
    return lambda name, x: through(weights[name], x)


def _slopes(objective: Objective) -> bool:
    match objective:
        case Omega(inner) | Above(inner):
            return _slopes(inner)
        case _:
            return isinstance(objective, L2 | DotProduct | Lp | Huber | NormHuber | MixedHuber | ValueShift)


def _passes(architecture: Architecture) -> bool:
    match architecture:
        case Residual(inner) | Normed(inner):
            return _passes(inner)
        case Beside(parts):
            return all(_passes(inner) for _, inner, _ in parts)
        case _:
            return isinstance(architecture, Matrix | MLP | GatedMLP)


def _down(architecture: Architecture, apply: Apply, weights: Weights, key: Tensor) -> Down:
    match architecture:
        case Residual(inner):
            # y = k + inner(k): the key does not depend on the weights.
            prediction, up = _down(inner, apply, weights, key)
            return key + prediction, up
        case Normed(inner, eps):
            return _normed(*_down(inner, apply, weights, key), eps)
        case MLP():
            return _mlp(architecture, apply, weights, key)
        case GatedMLP():
            return _gated(architecture, apply, weights, key)
        case Beside():
            return _beside(architecture, apply, weights, key)
        case _:
            return apply("w1", key), lambda back: ({"w1": back}, {"w1": key})


def _beside(architecture: Beside, apply: Apply, weights: Weights, key: Tensor) -> Down:
    parts = architecture.parts
    firsts = apply("w1", key).split(architecture.firsts(key.shape[-1]), -1)
    down = [
        _down(inner, within(apply, part, first), _named(weights, part), key)
        for (part, inner, _), first in zip(parts, firsts, strict=True)
    ]

    def up(back: Tensor) -> Pairs:
        each = {
            part: up(own)
            for (part, _, _), (_, up), own in zip(
                parts, down, back.split([width for *_, width in parts], -1), strict=True
            )
        }
        inputs = {f"{part}.{name}": x for part, (_, own) in each.items() for name, x in own.items() if name != "w1"}
        # The cotangents of w1 stand beside one another, as its rows do; its input is the key of all.
        cotangents = {f"{part}.{name}": x for part, (own, _) in each.items() for name, x in own.items() if name != "w1"}
        wide = torch.cat([own["w1"] for own, _ in each.values()], -1)
        return {"w1": wide, **cotangents}, {"w1": key, **inputs}

    return torch.cat([prediction for prediction, _ in down], -1), up


def _named(weights: Weights, part: str) -> Weights:
    """The weights of a part that stand behind the first."""
    return {name.removeprefix(f"{part}."): weight for name, weight in weights.items() if name.startswith(f"{part}.")}


def _normed(x: Tensor, inner: Callable[[Tensor], Pairs], eps: float) -> Down:
    # torch.var_mean goes number by number.
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = centred * scale

    def up(back: Tensor) -> Pairs:
        # x̄ = (ȳ − mean ȳ − y mean(ȳ ⊙ y)) / s
        return inner(scale * (back - back.mean(-1, keepdim=True) - y * (back * y).mean(-1, keepdim=True)))

    return y, up


def _mlp(architecture: MLP, apply: Apply, weights: Weights, key: Tensor) -> Down:
    names = [f"w{i + 1}" for i in range(architecture.depth)]
    inputs, outputs = {}, {}
    x = key
    for name in names:
        inputs[name] = x
        outputs[name] = apply(name, x)
        x = architecture.activation(outputs[name]) if name != names[-1] else outputs[name]

    def up(back: Tensor) -> Pairs:
        cotangents = {names[-1]: back}
        for below, name in zip(names[-2::-1], names[:0:-1], strict=True):
            # z̄ = σ'(z) ⊙ Wᵀ ȳ
            cotangents[below] = bent(architecture.activation, cotangents[name] @ weights[name], outputs[below])
        return cotangents, inputs

    return x, up


def _gated(architecture: GatedMLP, apply: Apply, weights: Weights, key: Tensor) -> Down:
    x, gate = apply("w1", key), apply("w3", key)
    active = architecture.activation(x)
    hidden = active * gate

    def up(back: Tensor) -> Pairs:
        below = back @ weights["w2"]
        cotangents = {"w1": bent(architecture.activation, below * gate, x), "w2": back, "w3": below * active}
        return cotangents, {"w1": key, "w2": hidden, "w3": key}

    return apply("w2", hidden), up


def _slope(objective: Objective, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
    """∂ℓ/∂v̂"""
    if isinstance(objective, Omega):
        return _slope(objective.objective, prediction, value, threshold)
    if isinstance(objective, Above):
        # ℓ̃' = 1[ℓ > τ] ℓ'
        weight = objective.weight(objective.objective(prediction, value, threshold), threshold)
        return weight[..., None] * _slope(objective.objective, prediction, value, threshold)
    if isinstance(objective, DotProduct):
        # ℓ = -⟨v̂, v⟩
        return -value
    r = prediction - value
    match objective:
        case Lp(p, epsilon):
            # ℓ = Σ (r² + ε)^(p/2)
            return p * r * (r.square() + epsilon).pow(p / 2 - 1)
        case Huber():
            # ℓ' is the residual, clipped to [-δ, δ]
            bound = torch.as_tensor(threshold, dtype=r.dtype, device=r.device)
            return torch.minimum(torch.maximum(r, -bound), bound)
        case NormHuber():
            # r, cut to the length δ
            square = r.square().sum(-1, keepdim=True)
            inside, bound = bounded(square, threshold)
            return torch.where(inside, r, r * bound / torch.where(inside, torch.ones_like(square), square).sqrt())
        case MixedHuber(epsilon):
            # r, or δ Sign(r)
            inside, bound = bounded(r.square().sum(-1, keepdim=True), threshold)
            return torch.where(inside, r, bound * r * (r.square() + epsilon).rsqrt())
        case ValueShift(shift, epsilon):
            # r + Δ r/‖r‖
            return r + shift * r * (r.square().sum(-1, keepdim=True) + epsilon).rsqrt()
        case _:
            # ℓ = ½‖r‖²
            return r
