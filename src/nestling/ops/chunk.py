"""One block of tokens at once, without ever forming a token's fast weights.

All gradients of a block are taken at the same anchor, so they are one batch of pairs Gⱼ = δⱼ ⊗ xⱼ, and a read at token t
applies Wₜ = βₜW₀ + fₜS₀ + ΣⱼΓₜⱼ δⱼxⱼᵀ (see ``ops.coefficients``) to a vector z as::

    Wₜ z = βₜ W₀z + fₜ S₀z + Σⱼ Γₜⱼ (xⱼ·z) δⱼ

That is a third interpreter of ``apply``: it holds for every architecture made of linear maps, and for any objective.
Delta retention erases along the inputs, Wₜ = Wₜ₋₁(αₜI − ηₜxₜxₜᵀ) − ηₜδₜxₜᵀ; then the pairs are pⱼ ⊗ xⱼ with p from one
triangular solve. With momentum they stand beside the δⱼ, which other coefficients weight. Where a memory returns to the weights
it began with (``Returning``), W above is what differs from them, and a read adds theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
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
    HeldLq,
    InputDelta,
    KeyDecay,
    Lag,
    Memory,
    Momentum,
    Omega,
    Returning,
    UnitDelta,
    Weights,
)
from nestling.ops.channels import ChannelTable, by_channel, channel_table, folded, seen
from nestling.ops.coefficients import Table, momentum, once, table
from nestling.ops.fold import fold, through
from nestling.ops.formed import MirrorMap, applied, formed, forms
from nestling.ops.lag import lagging, opened
from nestling.ops.once import gathered, held, state_of
from nestling.ops.surprise import Pairs, pairs, reading
from nestling.ops.window import banded, examples, extended, remembered
from nestling.tree import state

Tables = dict[str, Table | ChannelTable]
"""One for each weight, or one for all under the name ``""``."""

AHEAD = 256 * 2**20
"""Up to this many bytes of a table, those of all blocks are made at once: few large operations instead of many small ones."""


@state
class BlockState:
    """A memory between blocks."""

    dual: Weights
    anchor: Weights
    trace: Weights
    origin: Weights = field(default_factory=dict)
    objective: Any = ()
    opens: Tensor | None = None
    """(B, H): does a period begin with the block? Of a memory with a lag token, while the block runs."""
    ends: Tensor | None = None
    """(B, H): does a period end with it? Of a memory whose momentum moves once a period, while the block runs."""


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
    seen: Pairs | None = None
    """The gradients, where the caller has them already; None: found here, from ``value``."""


def supported(memory: Memory, gates: Gates = Gates()) -> bool:
    """Does the chunk-parallel form exist for this memory, with these gates?"""
    if by_channel(gates):
        linear = isinstance(memory.retention, Decay | MirrorMap | Lag) and not forms(memory)
        if not linear or not isinstance(memory.rule, Descend) or isinstance(memory.objective, Omega):
            return False
    if forms(memory):
        return True
    if isinstance(memory.objective, Omega) and not isinstance(memory.retention, Decay | Returning):
        return False
    linear_in_signal = isinstance(memory.rule, Descend) or momentum(memory.rule) is not None
    match memory.retention:
        case Decay() | Returning(Decay()) if once(memory):
            return memory.read_at == "commit" and not isinstance(memory.objective, Omega)
        case Lag():
            return lagging(memory)
        case HeldLq():
            return linear_in_signal
        case retention if isinstance(retention, MirrorMap):
            return linear_in_signal and memory.read_at == "commit"
        case Decay() | Delta() | UnitDelta() | InputDelta() | Returning():
            return linear_in_signal
        case Erase() | KeyDecay():
            return isinstance(memory.rule, Descend)
        case _:
            return False


def traces(memory: Memory, rule: dict[str, Any]) -> Weights:
    """The momentum inside a rule's state."""
    if once(memory):
        return held(rule)
    place = _place(memory)
    return {} if place is None else {name: inner[place] for name, inner in rule.items()}


def rule_state(memory: Memory, weights: Weights, trace: Weights, phase: Tensor) -> dict[str, Any]:
    """The rule's state around a momentum: the inverse of ``traces``."""
    if once(memory):
        return state_of(weights, trace, phase, memory.period)
    rules, place = memory.rule.rules if isinstance(memory.rule, Chain) else (), _place(memory)
    empty: Any = tuple(() for _ in rules)
    if place is None:
        return dict.fromkeys(weights, empty)
    return {name: (*empty[:place], held, *empty[place + 1 :]) for name, held in trace.items()}


def _place(memory: Memory) -> int | None:
    """Where in the chain the momentum stands."""
    rules = memory.rule.rules if isinstance(memory.rule, Chain) else ()
    return next((i for i, rule in enumerate(rules) if isinstance(rule, Momentum)), None)


@dataclass(frozen=True)
class Write:
    """What a block writes to one weight: pairs ⊗ inputs, weighted by the table."""

    table: Table | ChannelTable
    pairs: Tensor
    inputs: Tensor
    erased: tuple[Tensor, Tensor] | None = None
    """(D, P): what a delta retention takes away beside a momentum, −Σⱼ Dₜⱼ pⱼxⱼᵀ"""
    said: Tensor | None = None
    """What the weight at the block's start says to the inputs, where it is known."""

    def seen(self, overlaps: Tensor) -> Tensor:
        """Σⱼ Γₜⱼ (xⱼ·zₜ) δⱼ − Σⱼ Dₜⱼ (xⱼ·zₜ) pⱼ for overlaps (..., C, C) of z with x."""
        assert isinstance(self.table, Table)
        y = (overlaps * self.table.writes) @ self.pairs
        return y if self.erased is None else y - (overlaps * self.erased[0]) @ self.erased[1]

    def last(self) -> Tensor:
        """The weighted pairs at the block's end."""
        assert isinstance(self.table, Table)
        weighted = self.table.writes[..., -1, :, None] * self.pairs
        return weighted if self.erased is None else weighted - self.erased[0][..., -1, :, None] * self.erased[1]


def block(memory: Memory, before: BlockState, tokens: Tokens) -> tuple[Any, ...]:
    """Write and read one block: (B, H, C, values), and the weights, the momentum and what the objective remembers after it."""
    if isinstance(memory.retention, Lag):
        return _lagged(memory, before, tokens)
    if forms(memory):
        reader, then = _formed(memory, before, tokens)
    elif once(memory):
        start, seen = (before.dual, before.trace, before.ends), _gradients(memory, before, tokens)
        reader, then = reading(before.anchor), gathered(memory, start, seen, tokens.gates, tokens.filled)
    else:
        written = writes(memory, before, tokens)
        reader, then = _running(memory, before, written), after(before, written)
    reader = reading(before.anchor) if memory.read_at == "commit" else reader
    remembers = before.objective
    if tree.leaves(remembers):
        key, value, gates = tokens.key, tokens.value, tokens.gates
        window = extended(memory, remembers, key, value, gates)
        remembers = remembered(memory, before.anchor, remembers, window, (key, value, gates, tokens.filled))
    return memory.architecture(reader, tokens.query), *then, remembers


def after(before: BlockState, written: dict[str, Write]) -> tuple[Weights, Weights]:
    """The weights and the momentum after a block."""
    dual = {name: _folded(before.dual[name], before.trace.get(name), write) for name, write in written.items()}
    return dual, {name: _carried(before.trace[name], written[name]) for name in before.trace}


def writes(memory: Memory, before: BlockState, tokens: Tokens) -> dict[str, Write]:
    """What a block writes to each weight."""
    gates, filled = tokens.gates, tokens.filled
    said: Weights = {}
    cotangents, recorded = _gradients(memory, before, tokens, said)
    tabled_by = tokens.tables or tables(memory, gates, filled, before.dual)
    written = {}
    for name in before.dual:
        # A block that begins with a commit starts at the weights whose gradient is taken.
        known = said.get(name) if before.dual[name] is before.anchor[name] else None
        plain = Write(tabled_by[name if name in tabled_by else ""], cotangents[name], recorded[name], said=known)
        retention = memory.retention.of(name)
        erases = isinstance(retention, Delta | UnitDelta | Erase) and isinstance(plain.table, Table)
        written[name] = _erasing(memory, name, before, gates.of(name), filled, plain) if erases else plain
    return written


def _gradients(
    memory: Memory, before: BlockState, tokens: Tokens, said: Weights | None = None
) -> tuple[Weights, Weights]:
    """(cotangents, inputs) at the anchor, of the pairs of a window before the block too; ``said`` as in ``pairs``."""
    if tokens.seen is not None:
        return tokens.seen
    given = tokens.key, tokens.value, tokens.gates
    seen = extended(memory, before.objective, *given)
    cotangents, recorded = pairs(memory, before.anchor, *examples(memory, before.objective, seen, *given), said)
    if seen is not None:
        cotangents = {name: seen.share[..., None] * each for name, each in cotangents.items()}
    return cotangents, recorded


def _formed(memory: Memory, before: BlockState, tokens: Tokens) -> tuple[Apply, tuple[Weights, Weights]]:
    cotangents, recorded = _gradients(memory, before, tokens)
    each, trace = {}, {}
    for name, weight in before.dual.items():
        pair, own = (cotangents[name], recorded[name]), tokens.gates.of(name)
        each[name], carried = formed(memory, weight, before.trace.get(name), pair, own, tokens.filled)
        if carried is not None:
            trace[name] = carried
    read = {name: memory.retention.primal(weights) for name, weights in each.items()}
    return applied(read), ({name: weights[..., -1, :, :].clone() for name, weights in each.items()}, trace)


def _lagged(memory: Memory, before: BlockState, tokens: Tokens) -> tuple[Any, ...]:
    """A block whose first token may begin a period: that token by itself, and the others after it as with ``Decay``."""
    assert isinstance(memory.retention, Lag)
    first, rest = (_some(tokens, part) for part in (slice(0, 1), slice(1, None)))
    pair = pairs(memory, before.anchor, *examples(memory, before.objective, None, first.key, first.value, first.gates))
    start = before.dual, before.anchor
    dual, anchor = opened(memory.retention, before.opens, start, pair, first.gates, first.filled)
    read = anchor if memory.read_at == "commit" else dual
    y = memory.architecture(reading(read), first.query)
    held = replace(before, dual=dual, anchor=anchor)
    if tokens.key.shape[-2] > 1:
        later, dual, *_ = block(replace(memory, retention=Decay()), held, rest)
        y = torch.cat((y, later), -2)
    return y, dual, {}, before.objective, anchor


def _some(tokens: Tokens, part: slice) -> Tokens:
    """Some of the tokens of a block, without the tables of all."""
    cut = replace(tokens, tables=None)
    return tree.map(lambda each: each[:, :, part], cut)


def ahead(memory: Memory, gates: Gates, filled: Tensor | None, names: Iterable[str]) -> Tables | None:
    """The tables of all blocks, for gates (B, H, n, C); None where they are too large to hold."""
    example = next(iter(tree.leaves(gates)))
    if (
        forms(memory)
        or once(memory)
        or isinstance(memory.retention, Lag)
        or tree.nbytes(example) * example.shape[-1] > AHEAD
    ):
        return None
    return tables(memory, gates, filled, names, 6)


def tables(memory: Memory, gates: Gates, filled: Tensor | None, names: Iterable[str], dims: int = 5) -> Tables:
    """The table of each weight, or the one of all; ``dims`` of a gate by channel, one more where all blocks are given."""
    shared = not any(isinstance(gate, dict) for gate in (gates.lr, gates.retain, gates.momentum))
    return {name: _table(memory, gates.of(name), filled, dims) for name in ([""] if shared else names)}


def _table(memory: Memory, gates: Gates, filled: Tensor | None, dims: int) -> Table | ChannelTable:
    if isinstance(memory.retention, KeyDecay):
        gates = replace(gates, retain=gates.retain[..., None, :])
    if by_channel(gates, dims):
        return channel_table(gates, filled, dims)
    tabled = table(memory.rule, gates, filled)
    return banded(tabled, memory.objective.window, filled) if isinstance(memory.objective, Omega) else tabled


def _erasing(memory: Memory, name: str, before: BlockState, gates: Gates, filled: Tensor | None, plain: Write) -> Write:
    """Solve (I + diag(ε) (XXᵀ ⊙ D₋)) P = ε ⊙ (what xₜ read before), where ₋ is the table one token earlier (``Erase``: now).

    ε is the rate of erasing, η, or η/‖x‖² along a unit input. Without momentum Γ = −D diag(η), and P takes in the gradients.
    """
    retention, inputs, tabled = memory.retention.of(name), plain.inputs, plain.table
    assert isinstance(tabled, Table)
    lr = gates.lr if filled is None else gates.lr * filled
    rate = lr / (inputs.square().sum(-1) + retention.eps**2) if isinstance(retention, UnitDelta) else lr
    earlier, start = tabled.kept, tabled.start
    if not isinstance(retention, Erase):
        # D₋ and β₋ are the rows above; dividing the retention out would lose gates of zero.
        earlier, start = _above(tabled.kept), F.pad(start[..., :-1], (1, 0), value=1.0)
    overlaps = inputs @ inputs.mT
    target = start[..., None] * (through(before.dual[name], inputs) if plain.said is None else plain.said)
    if tabled.trace is not None:
        # e = β₋XW₀ᵀ + f₋XS₀ᵀ + (XXᵀ ⊙ Γ₋)Δ − (XXᵀ ⊙ D₋)P
        trace = F.pad(tabled.trace[..., :-1], (1, 0))
        moved = (
            trace[..., None] * through(before.trace[name], inputs) + (overlaps * _above(tabled.writes)) @ plain.pairs
        )
        target = rate[..., None] * (target + moved)
    elif rate is lr:
        target = lr[..., None] * (target + plain.pairs)
    else:
        target = rate[..., None] * target + lr[..., None] * plain.pairs
    # Only what stands below the diagonal is looked at.
    system = rate[..., None] * (overlaps * earlier)
    erased = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
    if tabled.trace is not None:
        return Write(tabled, plain.pairs, inputs, (tabled.kept, erased))
    return Write(Table(tabled.start, -tabled.kept, None, None, None, tabled.kept), erased, inputs)


def _above(rows: Tensor) -> Tensor:
    """Each row of a table one token later, zeros first."""
    return F.pad(rows[..., :-1, :], (0, 0, 1, 0))


def _running(memory: Memory, before: BlockState, written: dict[str, Write]) -> Apply:
    held = memory.retention

    def apply(name: str, z: Tensor) -> Tensor:
        y = linear(name, z)
        return held.running(y, before.anchor[name]) if isinstance(held, HeldLq) else y

    def linear(name: str, z: Tensor) -> Tensor:
        write = written[name]
        if isinstance(write.table, ChannelTable):
            return seen(write.table, before.dual[name], write.pairs, write.inputs, z)
        y = write.table.start[..., None] * through(before.dual[name], z)
        if write.table.trace is not None:
            y = y + write.table.trace[..., None] * through(before.trace[name], z)
        if name in before.origin:
            # What is carried is the way from where the memory began.
            y = y + through(before.origin[name], z)
        return y + write.seen(z @ write.inputs.mT)

    return apply


def _folded(dual: Tensor, trace: Tensor | None, write: Write) -> Tensor:
    """W_C = β_C W₀ + f_C S₀ + Σⱼ Γ_Cⱼ δⱼxⱼᵀ"""
    table = write.table
    if isinstance(table, ChannelTable):
        return folded(table, dual, write.pairs, write.inputs)
    carried = None if trace is None or table.trace is None else (table.trace[..., -1], trace)
    return fold((table.start[..., -1], dual), carried, write.last(), write.inputs)


def _carried(trace: Tensor, write: Write) -> Tensor:
    """S_C"""
    table = write.table
    # Only rules with momentum have traces, and their tables have these.
    assert isinstance(table, Table)
    assert table.trace_start is not None
    assert table.trace_writes is not None
    return fold((table.trace_start, trace), None, table.trace_writes[..., None] * write.pairs, write.inputs)
