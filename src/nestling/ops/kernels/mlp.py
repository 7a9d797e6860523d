"""A memory of two layers over periods of tokens, in plain torch: what the kernels compute, to be read and to compare them with.

M(x) = [x +] [LN](W₂ σ(W₁ x)) under ½‖M(k) − v‖², with the gradients of a period of C tokens taken at its start. As rows::

    Z = K W₁ᵀ   H = σ(Z)   O = H W₂ᵀ        Δ₂ = ∂ℓ/∂O        Δ₁ = (Δ₂ W₂) ⊙ σ'(Z)

and a token reads the weights that it left, or those at the period's start; with Γ, β, f of ``ops.coefficients`` for each layer::

    Zq = β ⊙ (Q W₁ᵀ) + f ⊙ (Q S₁ᵀ) + (QKᵀ ⊙ Γ) Δ₁        Oq = β ⊙ (Hq W₂ᵀ) + f ⊙ (Hq S₂ᵀ) + (HqHᵀ ⊙ Γ) Δ₂
    W' = β_C W + f_C S + (Γ_C ⊙ Δ)ᵀ X                       S' = μ S + (p ⊙ Δ)ᵀ X

This is the table of any rule that is linear in the gradients, with or without momentum, and no token's weights are ever formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import nestling.tree as tree
from nestling.core.architecture import GELU
from nestling.ops.coefficients import Table
from nestling.ops.layers import bent, unnormed
from nestling.tree import state


@dataclass(frozen=True)
class Two:
    """What memory it is: σ is the exact GELU; ``eps`` of LN, None without it; ``current``: a token reads what it left."""

    residual: bool
    eps: float | None
    current: bool
    momentum: bool


@state
class LayerTokens:
    """N sequences of T tokens"""

    q: Tensor
    """(N, T, K)"""
    k: Tensor
    """(N, T, K)"""
    v: Tensor
    """(N, T, V)"""


@state
class Held:
    """Weights (N, H, K) and (N, V, H), and their momenta, if they have any."""

    w1: Tensor
    w2: Tensor
    s1: Tensor | None = None
    s2: Tensor | None = None


def twin(tokens: LayerTokens, tables: tuple[Table, Table], start: Held, memory: Two) -> tuple[Tensor, Held, Held]:
    """Outputs (N, T, V), the state after the last token and at the start of the last period; tables are of n periods (N, n, C)."""
    size, length = tables[0].start.shape[-1], tokens.q.shape[1]
    held, before, outputs = start, start, []
    for n in range(tables[0].start.shape[1]):
        part = [x[:, n * size : (n + 1) * size] for x in vars(tokens).values()]
        part = [F.pad(x, (0, 0, 0, size - x.shape[1])) for x in part]
        before = held
        y, held = _period(LayerTokens(*part), (_at(tables[0], n), _at(tables[1], n)), held, memory)
        outputs.append(y)
    return torch.cat(outputs, 1)[:, :length], held, before


def _at(table: Table, n: int) -> Table:
    at: Table = tree.map(lambda x: x[:, n], table)
    return at


def _period(tokens: LayerTokens, tables: tuple[Table, Table], held: Held, memory: Two) -> tuple[Tensor, Held]:
    q, k, v = vars(tokens).values()
    one, two = tables
    z = k @ held.w1.mT
    h = F.gelu(z)
    o = h @ held.w2.mT
    d2 = _slope(o, k, v, memory)
    d1 = bent(GELU(), d2 @ held.w2, z)
    if memory.current:
        hq = F.gelu(_seen(one, q, k, d1, held.w1, held.s1))
        oq = _seen(two, hq, h, d2, held.w2, held.s2)
    else:
        oq = F.gelu(q @ held.w1.mT) @ held.w2.mT
    w1, s1 = _carried(one, held.w1, held.s1, d1, k)
    w2, s2 = _carried(two, held.w2, held.s2, d2, h)
    return _said(oq, q, memory), Held(w1, w2, s1, s2)


def _said(o: Tensor, x: Tensor, memory: Two) -> Tensor:
    y = o if memory.eps is None else F.layer_norm(o, o.shape[-1:], eps=memory.eps)
    return x + y if memory.residual else y


def _slope(o: Tensor, k: Tensor, v: Tensor, memory: Two) -> Tensor:
    # ∂ℓ/∂M = M(k) − v
    error = _said(o, k, memory) - v
    if memory.eps is None:
        return error
    _, mean, scale = torch.native_layer_norm(o, o.shape[-1:], None, None, memory.eps)
    return unnormed(error, o, mean, scale)


def _seen(table: Table, x: Tensor, inputs: Tensor, pairs: Tensor, weight: Tensor, trace: Tensor | None) -> Tensor:
    y = table.start[..., None] * (x @ weight.mT) + ((x @ inputs.mT) * table.writes) @ pairs
    return y if trace is None or table.trace is None else y + table.trace[..., None] * (x @ trace.mT)


def _carried(
    table: Table, weight: Tensor, trace: Tensor | None, pairs: Tensor, inputs: Tensor
) -> tuple[Tensor, Tensor | None]:
    after = table.start[:, -1, None, None] * weight + (table.writes[:, -1, :, None] * pairs).mT @ inputs
    if trace is None or table.trace is None or table.trace_start is None or table.trace_writes is None:
        return after, None
    moved = table.trace_start[:, None, None] * trace + (table.trace_writes[..., None] * pairs).mT @ inputs
    return after + table.trace[:, -1, None, None] * trace, moved
