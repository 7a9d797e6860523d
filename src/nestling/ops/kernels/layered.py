"""Memories of two layers as the kernels of ``mlp`` have them: which they are, and what becomes of their gates, states and periods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import nestling.tree as tree
from nestling.core import L2, Chain, Decay, Descend, Gates, Memory, MemoryState, Momentum
from nestling.core.architecture import GELU
from nestling.ops.chunk import rule_state, traces
from nestling.ops.coefficients import Table, momentum, table
from nestling.ops.kernels.decays_op import momentum_table
from nestling.ops.kernels.launch import LEAST
from nestling.ops.kernels.mlp import Held, LayerTokens, Two
from nestling.ops.kernels.mlp_op import layer_periods
from nestling.ops.layers import layers


def is_layered(memory: Memory) -> bool:
    """Is it an MLP of two layers with L2 and Decay, under gradient descent or with momentum by token?"""
    chain = layers(memory.architecture)
    known = isinstance(memory.objective, L2) and isinstance(memory.retention, Decay)
    rule = isinstance(memory.rule, Descend) or momentum(memory.rule) is not None
    return known and rule and chain is not None and len(chain.names) == 2 and isinstance(chain.activation, GELU)


def scan_layered(
    memory: Memory, before: MemoryState, tokens: tuple[Tensor, Tensor, Tensor, Gates], kind: torch.dtype
) -> tuple[Tensor, MemoryState]:
    """``scan`` of a memory of two layers from the start of a period, with products of numbers of that ``kind``."""
    q, k, v, gates = tokens
    rows, heads, length, _ = q.shape
    size = int(memory.period)
    chain, trace = layers(memory.architecture), traces(memory, before.rule)
    assert chain is not None
    start = Held(
        *(x.flatten(0, 1) for x in (before.dual["w1"], before.dual["w2"])),
        *(trace[name].flatten(0, 1) for name in ("w1", "w2") if name in trace),
    )
    given = LayerTokens(*(x.to(kind).flatten(0, 1) for x in (q, k, v)))
    two = Two(chain.residual, chain.eps, memory.read_at == "current", bool(trace))
    y, end, anchor = layer_periods(given, _tables(memory, gates, size, length), start, two)

    def named(first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"w1": first.unflatten(0, (rows, heads)), "w2": second.unflatten(0, (rows, heads))}

    dual, phase = named(end.w1, end.w2), torch.full_like(before.phase, (length - 1) % size + 1)
    moved = {} if end.s1 is None or end.s2 is None else named(end.s1, end.s2)
    rule = rule_state(memory, dual, moved, phase)
    state = MemoryState(dual, named(anchor.w1, anchor.w2), rule, phase, before.origin, before.objective)
    return y.unflatten(0, (rows, heads)), state


def _tables(memory: Memory, gates: Gates, size: int, length: int) -> tuple[Table, Table]:
    """Those of both weights, (N, n, C, …), with the last period filled up."""
    missing = -length % size
    placed = tree.map(lambda gate: F.pad(gate, (0, missing), value=1.0).flatten(0, 1).unflatten(-1, (-1, size)), gates)
    match memory.rule:
        case Chain((Descend(), Momentum(decay))):
            return _momentum(placed.of("w1"), decay, length), _momentum(placed.of("w2"), decay, length)
    device = next(iter(tree.leaves(gates))).device
    filled = (torch.arange(length + missing, device=device) < length).unflatten(0, (-1, size)) if missing else None
    return table(memory.rule, placed.of("w1"), filled), table(memory.rule, placed.of("w2"), filled)


def _momentum(gates: Gates, decay: float | None, length: int) -> Table:
    momentum = gates.momentum if decay is None else torch.full_like(gates.lr, decay)
    return momentum_table(gates.lr, gates.retain.clamp_min(LEAST).log(), momentum.clamp_min(LEAST).log(), length)
