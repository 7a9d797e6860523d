"""One block of tokens at once, without ever forming a token's fast weights.

All gradients of a block are taken at the same anchor, so they are one batch of pairs Gⱼ = δⱼ ⊗ xⱼ, and a read at token t
applies Wₜ = βₜW₀ + fₜS₀ + ΣⱼΓₜⱼ δⱼxⱼᵀ (see ``ops.coefficients``) to a vector z as::

    Wₜ z = βₜ W₀z + fₜ S₀z + Σⱼ Γₜⱼ (xⱼ·z) δⱼ

That is a third interpreter of ``apply``: it holds for every architecture made of linear maps, and for any objective.
Delta retention erases along the inputs, Wₜ = Wₜ₋₁(αₜI − ηₜxₜxₜᵀ) − ηₜδₜxₜᵀ; then the pairs are pⱼ ⊗ xⱼ with p from one
triangular solve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import (
    Apply,
    Chain,
    Decay,
    Delta,
    Descend,
    Erase,
    Gates,
    KeyDecay,
    Memory,
    Momentum,
    Retention,
    Weights,
    linear,
)
from nestling.ops.coefficients import KeyTable, Table, key_table, ratios, table
from nestling.ops.fold import fold, through
from nestling.ops.surprise import pairs
from nestling.tree import state

Tables = dict[str, Table | KeyTable]
"""One for each weight, or one for all under the name ``""``."""

AHEAD = 256 * 2**20
"""Up to this many bytes of a table, those of all blocks are made at once: few large operations instead of many small ones."""


@state
class BlockState:
    """A memory between blocks."""

    dual: Weights
    anchor: Weights
    trace: Weights


@state
class Tokens:
    """What a scan is given, in blocks: (B, H, C, ·), gates (B, H, C) or a mapping of them."""

    query: Tensor
    key: Tensor
    value: Tensor
    gates: Gates
    filled: Tensor | None
    tables: Tables | None = None
    """Made ahead for many blocks at once; None: made here."""


def supported(memory: Memory) -> bool:
    """Does the chunk-parallel form exist for this memory?"""
    match memory:
        case Memory(
            retention=Decay(), rule=Descend() | Chain((Descend(), Momentum())) | Chain((Momentum(), Descend()))
        ):
            return True
        case Memory(retention=Delta() | Erase() | KeyDecay(), rule=Descend()):
            return True
        case _:
            return False


def traces(memory: Memory, rule: dict[str, Any]) -> Weights:
    """The momentum inside a rule's state."""
    match memory.rule:
        case Chain((Descend(), Momentum())):
            return {name: inner[1] for name, inner in rule.items()}
        case Chain((Momentum(), Descend())):
            return {name: inner[0] for name, inner in rule.items()}
        case _:
            return {}


def rule_state(memory: Memory, weights: Weights, trace: Weights) -> dict[str, Any]:
    """The rule's state around a momentum: the inverse of ``traces``."""
    match memory.rule:
        case Chain((Descend(), Momentum())):
            return {name: ((), held) for name, held in trace.items()}
        case Chain((Momentum(), Descend())):
            return {name: (held, ()) for name, held in trace.items()}
        case _:
            return dict.fromkeys(weights, ())


@dataclass(frozen=True)
class _Write:
    """What a block writes to one weight: pairs ⊗ inputs, weighted by the table."""

    table: Table | KeyTable
    pairs: Tensor
    inputs: Tensor


def block(memory: Memory, before: BlockState, tokens: Tokens) -> tuple[Tensor, Weights, Weights]:
    """Write and read one block: (B, H, C, values), and the weights and the momentum after it."""
    writes = _writes(memory, before, tokens)
    dual = {name: _folded(before.dual[name], before.trace.get(name), write) for name, write in writes.items()}
    trace = {name: _carried(before.trace[name], writes[name]) for name in before.trace}
    reader = linear(before.anchor) if memory.read_at == "commit" else _running(before, writes)
    return memory.architecture(reader, tokens.query), dual, trace


def _writes(memory: Memory, before: BlockState, tokens: Tokens) -> dict[str, _Write]:
    gates, filled = tokens.gates, tokens.filled
    threshold = gates.threshold[..., None] if isinstance(gates.threshold, Tensor) else gates.threshold
    cotangents, recorded = pairs(memory, before.anchor, tokens.key, tokens.value, threshold)
    tabled_by = tokens.tables or tables(memory, gates, filled, before.dual)
    writes = {}
    for name in before.dual:
        inputs, own = recorded[name], gates.of(name)
        tabled = tabled_by[name if name in tabled_by else ""]
        written = cotangents[name]
        if isinstance(memory.retention, Delta | Erase) and isinstance(tabled, Table):
            written = _erasing(memory.retention, before.dual[name], own, filled, tabled, written, inputs)
        writes[name] = _Write(tabled, written, inputs)
    return writes


def ahead(memory: Memory, gates: Gates, filled: Tensor | None, names: Iterable[str]) -> Tables | None:
    """The tables of all blocks, for gates (B, H, n, C); None where they are too large to hold."""
    example = next(iter(tree.leaves(gates)))
    if isinstance(memory.retention, KeyDecay) or tree.nbytes(example) * example.shape[-1] > AHEAD:
        return None
    return tables(memory, gates, filled, names)


def tables(memory: Memory, gates: Gates, filled: Tensor | None, names: Iterable[str]) -> Tables:
    """The table of each weight, or the one of all."""
    shared = not any(isinstance(gate, dict) for gate in (gates.lr, gates.retain, gates.momentum))
    return {name: _table(memory, gates.of(name), filled) for name in ([""] if shared else names)}


def _table(memory: Memory, gates: Gates, filled: Tensor | None) -> Table | KeyTable:
    if isinstance(memory.retention, KeyDecay):
        return key_table(gates, filled)
    if isinstance(memory.retention, Delta | Erase):
        # Wₜ = βₜW₀ − Σⱼ Dₜⱼ pⱼxⱼᵀ: the rates are in the pairs.
        start, kept = ratios(gates.retain, filled)
        return Table(start, -kept, None, None, None)
    return table(memory.rule, gates, filled)


def _erasing(
    retention: Retention,
    dual: Tensor,
    gates: Gates,
    filled: Tensor | None,
    tabled: Table,
    cotangents: Tensor,
    inputs: Tensor,
) -> Tensor:
    """Solve (I + diag(η) (XXᵀ ⊙ D₋)) P = η (β₋ ⊙ XW₀ᵀ + δ), where ₋ is the table one token earlier (``Erase``: now)."""
    lr = gates.lr if filled is None else gates.lr * filled
    earlier, start = -tabled.writes, tabled.start
    if isinstance(retention, Delta):
        # D₋ and β₋ are the rows above; dividing the retention out would lose gates of zero.
        earlier = torch.cat((torch.zeros_like(earlier[..., :1, :]), earlier[..., :-1, :]), -2)
        start = torch.cat((torch.ones_like(start[..., :1]), start[..., :-1]), -1)
    system = lr[..., None] * ((inputs @ inputs.mT) * earlier)
    target = lr[..., None] * (start[..., None] * through(dual, inputs) + cotangents)
    eye = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    return torch.linalg.solve_triangular(system.tril(-1) + eye, target, upper=False, unitriangular=True)


def _running(before: BlockState, writes: dict[str, _Write]) -> Apply:
    def apply(name: str, z: Tensor) -> Tensor:
        write = writes[name]
        if isinstance(write.table, KeyTable):
            y = (z * write.table.start.mT) @ before.dual[name].mT
            return y + torch.einsum("bhti,bhitj,bhji->bhtj", z, write.table.writes, write.inputs) @ write.pairs
        y = write.table.start[..., None] * through(before.dual[name], z)
        if write.table.trace is not None:
            y = y + write.table.trace[..., None] * through(before.trace[name], z)
        return y + ((z @ write.inputs.mT) * write.table.writes) @ write.pairs

    return apply


def _folded(dual: Tensor, trace: Tensor | None, write: _Write) -> Tensor:
    """W_C = β_C W₀ + f_C S₀ + Σⱼ Γ_Cⱼ δⱼxⱼᵀ"""
    table = write.table
    if isinstance(table, KeyTable):
        # The same with a β and a Γ for each column of W.
        kept = table.writes[..., -1, :].mT * write.inputs
        return table.start[..., -1][..., None, :] * dual + write.pairs.mT @ kept
    carried = None if trace is None or table.trace is None else (table.trace[..., -1], trace)
    return fold((table.start[..., -1], dual), carried, table.writes[..., -1, :, None] * write.pairs, write.inputs)


def _carried(trace: Tensor, write: _Write) -> Tensor:
    """S_C"""
    table = write.table
    # Only rules with momentum have traces, and their tables have these.
    assert isinstance(table, Table)
    assert table.trace_start is not None
    assert table.trace_writes is not None
    return fold((table.trace_start, trace), None, table.trace_writes[..., None] * write.pairs, write.inputs)
