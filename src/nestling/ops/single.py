"""One token after another, as a stream that is generated comes: no blocks, no tables, no graph.

What a block of C tokens needs beside the memory itself (tables of tokens × tokens, places, masks) costs a single token more than all
of its products. Here is what the definition says (``core.Memory``) and nothing else, for memories that are chains of linear maps::

    Wₜ = αₜWₜ₋₁ − θₜδₜxₜᵀ                                Titans eq. 8
    Sₜ = ηₜSₜ₋₁ − θₜδₜxₜᵀ,  Wₜ = αₜWₜ₋₁ + Sₜ            with momentum (Titans eqs 13-14)
    Uₜ = Uₜ₋₁ − θₜδₜxₜᵀ,    Wₜ = αₜWₜ₋₁                once a period; at its end S ← ηS + U, W ← W + S, U ← 0
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import L2, Chain, Decay, Descend, Gates, Memory, MemoryState, Momentum, Weights
from nestling.ops.channels import by_channel
from nestling.ops.chunk import rule_state, traces
from nestling.ops.coefficients import once, per_period
from nestling.ops.layers import evaluate, layers, read
from nestling.ops.layout import Marks, alike
from nestling.ops.once import GATHERED

T = TypeVar("T")

Carried = tuple[Tensor, Tensor | None, Tensor | None]
"""W; S of a rule with momentum; U of one that moves once a period: each (B, H, out, in)"""


def single(memory: Memory, gates: Gates, marks: Marks) -> bool:
    """Has this memory, with these gates, a form for one token? Not while a graph is kept."""
    if torch.is_grad_enabled() or marks != Marks():
        return False
    plain = isinstance(memory.objective, L2) and isinstance(memory.retention, Decay) and not by_channel(gates)
    rule = memory.read_at == "commit" if once(memory) else _momentum(memory) or isinstance(memory.rule, Descend)
    return plain and bool(rule) and layers(memory.architecture) is not None


def scan_single(
    memory: Memory, before: MemoryState, tokens: tuple[Tensor, Tensor, Tensor, Gates], quiet: bool = False
) -> tuple[Tensor, MemoryState]:
    """``ops.scan`` of one token (B, H, 1, ·) from a state; ``quiet``: at which no commit falls due."""
    chain, phase = layers(memory.architecture), _phase(before)
    assert chain is not None
    query, key, value = (x.flatten(0, 1) for x in tokens[:3])
    # The write after the one that fills the period commits.
    due = False if quiet else phase >= memory.period
    anchor, phase = _either(due, before.dual, before.anchor), _either(due, 0 * phase, phase) + 1
    at_commit = memory.read_at == "commit"
    started = [anchor[name].flatten(0, 1) for name in chain.names]
    y, seen = evaluate(chain, started, torch.cat((query, key), 1) if at_commit else key, value)
    held = traces(memory, before.rule)
    dual: Weights = {}
    trace: Weights = {}
    for i, name in enumerate(chain.names):
        names = (name, name + GATHERED)
        carried = before.dual[name], held.get(names[0]), held.get(names[1])
        pair = seen.cotangents[i], seen.inputs[i][:, -1:]
        dual[name], *moved = _written(memory, carried, pair, tokens[3].of(name), phase == memory.period)
        trace |= {n: each for n, each in zip(names, moved, strict=True) if each is not None}
    y = y.unflatten(0, before.phase.shape) if at_commit else read(memory.architecture, dual, tokens[0])
    now = phase if isinstance(phase, Tensor) else torch.full_like(before.phase, phase)
    rule = rule_state(memory, dual, trace, now)
    return y, MemoryState(dual, anchor, rule, now, before.origin, before.objective)


def _phase(before: MemoryState) -> Tensor | int:
    """Tokens since the last commit: one number where memories are alike, which is not asked for while a program is compiled."""
    same = None if torch.compiler.is_compiling() else alike(before.phase)
    return before.phase if same is None else same


def _either(condition: Tensor | bool, yes: T, no: T) -> T:
    """One of two trees; of tensors (B, H, ...) where the condition is one for each memory."""
    if isinstance(condition, bool):
        return yes if condition else no
    return tree.where(condition, yes, no)


def _momentum(memory: Memory) -> Momentum | None:
    """The momentum, in Titans' order, by token or once a period."""
    match memory.rule:
        case Chain((Descend(), Momentum() as found)):
            return found
        case rule:
            return per_period(rule) if once(memory) else None


def _written(
    memory: Memory, carried: Carried, pair: tuple[Tensor, Tensor], gates: Gates, ends: Tensor | bool
) -> Carried:
    """What is carried after the token, from its cotangent δ and input x (N, 1, ·), N = B · H; gates (B, H, 1)."""
    weight, trace, gathered = carried
    lr, retain, decay = (gate[..., None] for gate in (gates.lr, gates.retain, gates.momentum))
    cotangent, inputs = (each.view(*weight.shape[:2], 1, -1) for each in pair)
    # −θₜδₜ, as a column
    pushed = (cotangent * -lr).mT
    if trace is None:
        return (weight * retain).addcmul_(pushed, inputs), None, None
    found = _momentum(memory)
    decay = decay if found is None or found.decay is None else torch.full_like(retain, found.decay)
    if gathered is None:
        trace = (trace * decay).addcmul_(pushed, inputs)
        return torch.addcmul(trace, weight, retain), trace, None
    weight, gathered = weight * retain, torch.addcmul(gathered, pushed, inputs)
    open_ = weight, trace, gathered
    if ends is False:
        return open_
    moved = torch.addcmul(gathered, trace, decay)
    return _either(ends, (weight + moved, moved, torch.zeros_like(gathered)), open_)
