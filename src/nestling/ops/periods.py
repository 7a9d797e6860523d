"""Memories that are read at their commits, a whole period at once: the weights stand still in it, so nothing is made per token.

A period of C tokens costs one evaluation of queries and keys, the gradients of the keys, and a sum for each weight::

    W' = βW + fS + Σⱼ gⱼ δⱼxⱼᵀ,    S' = μS + Σⱼ nⱼ δⱼxⱼᵀ            or, with momentum once a period, W' = βW + S'

(``ops.coefficients.ends``). The derivative is written by hand over all periods (``ops.layers`` inside of one). What has the size of a
weight, states too, is changed in place: memory that is new costs more than what is computed in it. Stored are the states at the
periods' starts and what was computed there; where that is too much, the states at every √n-th start, from which those between are added
up again; and where it still is, only these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import L2, Decay, Descend, Gates, Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.ops.channels import by_channel
from nestling.ops.chunk import rule_state, traces
from nestling.ops.coefficients import Carried, Ends, ends, momentum, once
from nestling.ops.compiled import compiled
from nestling.ops.fold import dot
from nestling.ops.layers import Layers, Pulled, Seen, evaluate, layers, pull
from nestling.ops.once import GATHERED
from nestling.tree import state

LONGEST = 1024
"""Tokens of a period: momentum by token has a square of them for each head."""

STORED = 512 * 2**20
"""Up to this many bytes of what periods compute is stored, and a quarter of it of states: adding these up again costs what fetching them does."""


States = tuple[list[Tensor], list[Tensor]]
"""Weights (N, out, in), and momenta, or none"""


@state
class Given:
    """What periods are computed from; N stands for batch × heads."""

    weights: list[Tensor]
    """(N, out, in)"""
    traces: list[Tensor]
    """(N, out, in), or none"""
    inputs: Tensor
    """(n, N, 2C, keys): queries, then keys; or keys alone (n, N, C, keys)"""
    values: Tensor
    """(n, N, C, values)"""
    rows: list[Ends]
    """Of each weight, or one for all: (n, N), (n, N, C)"""


class Plan(Protocol):
    """How all periods are computed, and their derivative."""

    def forward(self, given: Given, keeps: bool) -> tuple[tuple[Tensor, ...], Any]:
        """What was read, the weights after, those before the last period, and the momenta; and a tree of what ``backward`` needs."""

    def backward(self, given: Given, kept: Any, read: Tensor, after: tuple[Tensor, ...]) -> Given:
        """The derivatives by what was given, from those by all that ``forward`` gave."""


Planned = Callable[[Layers, Given, int | None], Plan]
"""Of a chain of layers, what it is given, and the periods between stored states (None: chooses)"""


def whole(memory: Memory, gates: Gates) -> bool:
    """Has this memory, with these gates, a form by whole periods?"""
    plain = isinstance(memory.objective, L2) and isinstance(memory.retention, Decay) and not by_channel(gates)
    rule = isinstance(memory.rule, Descend) or momentum(memory.rule) is not None or once(memory)
    fixed = memory.read_at == "commit" and memory.period <= LONGEST
    return plain and fixed and rule and layers(memory.architecture) is not None


def leading(memory: Memory, going: MemoryState | None, length: int) -> int:
    """How many of ``length`` tokens lie in whole periods, from a state to go on from (None: from a fresh one); 0 inside of a period."""
    size = int(memory.period)
    if length < size or torch.compiler.is_compiling():
        return 0
    aligned = going is None or bool((going.phase % size == 0).all())
    return length // size * size if aligned else 0


def scan_periods(
    memory: Memory,
    before: MemoryState,
    tokens: tuple[Tensor | None, Tensor, Tensor, Gates],
    stride: int | None = None,
    plan: Planned | None = None,
) -> tuple[Tensor, MemoryState]:
    """``periods`` from a state to a state."""
    trace = {name: each for name, each in traces(memory, before.rule).items() if name in before.dual}
    y, dual, anchor, trace = periods(memory, before.dual, trace, tokens, stride, plan)
    phase = torch.full_like(before.phase, int(memory.period))
    empty = {name + GATHERED: torch.zeros_like(each) for name, each in trace.items()} if once(memory) else {}
    rule = rule_state(memory, dual, {**trace, **empty}, phase)
    return y, MemoryState(dual, anchor, rule, phase, before.origin, before.objective)


def periods(
    memory: Memory,
    weights: Weights,
    traces: Weights,
    tokens: tuple[Tensor | None, Tensor, Tensor, Gates],
    stride: int | None = None,
    plan: Planned | None = None,
) -> tuple[Tensor, Weights, Weights, Weights]:
    """Read and write T = nC tokens (B, H, T, ·), from weights and momenta (B, H, out, in) at a commit; without queries nothing is read.

    ``stride``: periods between stored states, and all else is computed again; None chooses. ``plan``: what computes them, by default
    ``planned`` here. Returns what was read, the weights after the last token, those at the start of the last period, and the momenta.
    """
    chain = layers(memory.architecture)
    assert chain is not None
    size = int(memory.period)
    query, key, value, gates = tree.map(lambda x: x.unflatten(2, (-1, size)), tokens)
    rows, heads = key.shape[:2]

    def columns(x: Tensor) -> Tensor:
        return x.movedim(2, 0).flatten(1, 2)

    def flat(each: Weights) -> list[Tensor]:
        return [each[name].flatten(0, 1) for name in chain.names] if each else []

    shared = not any(isinstance(gate, dict) for gate in (gates.lr, gates.retain, gates.momentum))
    table = [ends(memory.rule, gates.of(name), None) for name in ([""] if shared else chain.names)]
    given = Given(
        flat(weights),
        flat(traces),
        columns(key if query is None else torch.cat((query, key), -2)),
        columns(value).contiguous(),
        tree.map(lambda x: columns(x).contiguous(), table),
    )
    leaves, rebuild = tree.flatten(given)
    made = (plan or planned)(chain, given, stride)
    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
        y, *after = _Periods.apply(made, rebuild, *leaves)
    else:
        y, *after = made.forward(given, False)[0]

    def named(each: Sequence[Tensor]) -> Weights:
        return {name: x.unflatten(0, (rows, heads)) for name, x in zip(chain.names, each, strict=False)}

    width = len(chain.names)
    y = y.movedim(0, 1).unflatten(0, (rows, heads)).flatten(2, 3)
    return y, named(after[:width]), named(after[width : 2 * width]), named(after[2 * width :])


def planned(chain: Layers, given: Given, stride: int | None, compiling: bool = False) -> Plan:
    """By torch, a period of all memories after the other; ``compiling``: what has no weight's size through ``torch.compile``."""
    return _Plan(*_programs(chain, compiling), given.inputs.shape[0], *_stored(given, stride))


def _stored(given: Given, stride: int | None) -> tuple[int, bool]:
    """(periods between stored states, is what the periods compute stored?)"""
    count = given.inputs.shape[0]
    hidden = sum(weight.shape[-2] for weight in given.weights[:-1])
    active = 2 * given.inputs.numel() + given.values[..., 0].numel() * (6 * hidden + 2 * given.values.shape[-1])
    if stride is not None:
        return stride, False
    few = count * tree.nbytes((given.weights, given.traces)) <= STORED // 4
    return 1 if few else math.isqrt(count), active * given.values.element_size() <= STORED


@dataclass(frozen=True)
class _Period:
    """What one period is given; the rows of each weight with dimensions as the weights have: (N, 1, 1), (N, C, 1)."""

    inputs: Tensor
    values: Tensor
    rows: list[Ends]


def _split(given: Given) -> list[_Period]:
    """All periods; their tensors are views, made at once."""
    rows = []
    for row in given.rows:
        leaves, rebuild = tree.flatten(row)
        columns = [(leaf[..., None, None] if leaf.dim() == 2 else leaf[..., None]).unbind(0) for leaf in leaves]
        rows.append([rebuild(each) for each in zip(*columns, strict=True)])
    rows *= len(given.weights) if len(rows) == 1 else 1
    given_to = zip(given.inputs.unbind(0), given.values.unbind(0), zip(*rows, strict=True), strict=True)
    return [_Period(inputs, values, list(each)) for inputs, values, each in given_to]


def _joined(rows: list[list[Ends]], shared: bool) -> list[Ends]:
    """The derivatives by the rows of each weight (one for all, where they are ``shared``), from those of each period, last first."""
    joined = [tree.map(lambda *leaves: torch.stack(leaves[::-1]), *each) for each in zip(*rows, strict=True)]
    return [tree.map(lambda *leaves: torch.stack(leaves).sum(0), *joined)] if shared else joined


@dataclass(frozen=True)
class _Plan:
    evaluate: Callable[..., tuple[Tensor, Seen]]
    """``ops.layers.evaluate``"""
    derive: Callable[..., tuple[Pulled, list[tuple[Tensor | None, Tensor | None]]]]
    """``_derived``"""
    count: int
    stride: int
    keeps: bool
    """Is what the periods compute stored?"""

    def groups(self) -> list[range]:
        return [range(i, min(i + self.stride, self.count)) for i in range(0, self.count, self.stride)]

    def forward(self, given: Given, keeps: bool) -> tuple[tuple[Tensor, ...], tuple[list[States], list[Seen]]]:
        """See ``Plan``."""
        kept: tuple[list[States], list[Seen]] = ([], [])
        reads, states = given.inputs.shape[-2] - given.values.shape[-2], (given.weights, given.traces)
        y = given.values.new_empty(self.count, given.values.shape[1], reads, given.weights[-1].shape[-2])
        anchor = given.weights
        for c, period in enumerate(_split(given)):
            stays = c == 0 or c == self.count - 1
            if keeps and c % self.stride == 0:
                stays = True
                kept[0].append(states)
            anchor = states[0]
            y[c], one = self.evaluate(anchor, period.inputs, period.values)
            if keeps and self.keeps:
                kept[1].append(one)
            # What nobody needs any more is written over.
            states = _advanced(period.rows, states, one, _like(states) if stays else states)
        # What goes out must be neither what came in nor what is kept.
        anchor = [each.clone() for each in anchor] if keeps else anchor
        return (y, *states[0], *anchor, *states[1]), kept

    def backward(
        self, given: Given, kept: tuple[list[States], list[Seen]], read: Tensor, after: tuple[Tensor, ...]
    ) -> Given:
        """See ``Plan``."""
        width, (starts, seen) = len(given.weights), kept
        grads = [each.clone() for each in after]
        by, anchors = (grads[:width], grads[2 * width :]), grads[width : 2 * width]
        inputs, values = torch.empty_like(given.inputs), torch.empty_like(given.values)
        periods, rows = _split(given), []
        room = [_like(starts[0]) for _ in range(min(self.stride, self.count) - 1)]
        for i, row in enumerate(periods[-1].rows):
            if row.carried is not None and row.writes is None:
                # W' = βW + S': what meets W' meets S'.
                by[1][i].add_(by[0][i])
        for start, group in reversed(list(zip(starts, self.groups(), strict=True))):
            found = self.again(periods, start, seen, group, room)
            for c in reversed(group):
                states, one = found.pop()
                pulled, shares = self.derive(periods[c].rows, states[0], by, one, read[c])
                inputs[c], values[c] = pulled.inputs, pulled.values
                rows.append(_totals(periods[c].rows, states, by, shares))
                # The anchor that is handed on is the weights of the last period.
                _retreat(periods[c].rows, by, pulled.pairs, anchors if c == self.count - 1 else [], c == 0)
        return Given(*by, inputs, values, _joined(rows, len(given.rows) < width))

    def again(
        self, periods: list[_Period], states: States, seen: list[Seen], group: range, room: list[States]
    ) -> list[tuple[States, Seen]]:
        """The states at the starts of the periods of a group, in ``room``, and what the periods computed."""
        found = []
        for i, c in enumerate(group):
            one = seen[c] if seen else self.evaluate(states[0], periods[c].inputs, periods[c].values)[1]
            found.append((states, one))
            if c + 1 < group.stop:
                states = _advanced(periods[c].rows, states, one, room[i])
        return found


@lru_cache(maxsize=64)
def _programs(chain: Layers, compiling: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``evaluate`` and ``_derived`` of a chain, compiled or not."""
    work = partial(evaluate, chain), partial(_derived, chain)
    return (compiled(work[0]), compiled(work[1])) if compiling else work


def _like(states: States) -> States:
    weights, traces = states
    return [torch.empty_like(each) for each in weights], [torch.empty_like(each) for each in traces]


def _advanced(rows: list[Ends], states: States, seen: Seen, into: States) -> States:
    """The states after a period, in the place of ``into``, which may be the states themselves."""
    (weights, traces), (after, moved) = states, into
    for i, (row, weight, pairs) in enumerate(zip(rows, weights, seen.cotangents, strict=True)):
        inputs = seen.inputs[i][:, -pairs.shape[-2] :]
        if row.writes is not None:
            # W' = βW + fS + Σⱼ gⱼ δⱼxⱼᵀ
            torch.mul(weight, row.start, out=after[i])
            if traces and row.trace is not None:
                after[i].addcmul_(traces[i], row.trace)
            after[i].baddbmm_((row.writes * pairs).mT, inputs)
        if row.carried is not None:
            # S' = μS + Σⱼ nⱼ δⱼxⱼᵀ
            torch.mul(traces[i], row.carried.start, out=moved[i]).baddbmm_((row.carried.writes * pairs).mT, inputs)
        if row.writes is None:
            # W' = βW + S'
            torch.addcmul(moved[i], weight, row.start, out=after[i])
    return into


def _derived(
    chain: Layers, rows: list[Ends], weights: list[Tensor], by: States, seen: Seen, read: Tensor
) -> tuple[Pulled, list[tuple[Tensor | None, Tensor | None]]]:
    """What a period's derivatives have that is of no weight's size: (ḡ, n̄) of each weight, and all of ``pull``."""
    cotangents, inputs, shares = [], [], []
    for i, (row, pairs) in enumerate(zip(rows, seen.cotangents, strict=True)):
        given, found = seen.inputs[i][:, -pairs.shape[-2] :], []
        if row.writes is not None:
            found.append(_pulled(pairs, given, by[0][i], row.writes))
        if row.carried is not None:
            found.append(_pulled(pairs, given, by[1][i], row.carried.writes))
        cotangent, below, _ = found[0]
        for more, further, _ in found[1:]:
            cotangent, below = cotangent + more, below + further
        cotangents.append(cotangent)
        inputs.append(below)
        shares.append((None if row.writes is None else found[0][-1], None if row.carried is None else found[-1][-1]))
    return pull(chain, weights, seen, read, cotangents, inputs), shares


def _pulled(pairs: Tensor, inputs: Tensor, back: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Through Σⱼ gⱼ δⱼxⱼᵀ, with p = g ⊙ δ:  p̄ = x W̄'ᵀ;  δ̄ = g ⊙ p̄,  x̄ = p W̄',  ḡ = ⟨δ, p̄⟩."""
    pulled = torch.bmm(inputs, back.mT)
    by_share = (pulled * pairs).sum(-1)
    return pulled.mul_(share), torch.bmm(share * pairs, back), by_share


def _totals(
    rows: list[Ends], states: States, by: States, shares: list[tuple[Tensor | None, Tensor | None]]
) -> list[Ends]:
    """The derivatives by the rows: β̄ = ⟨W̄', W⟩,  f̄ = ⟨W̄', S⟩,  μ̄ = ⟨S̄', S⟩, and the ``shares``."""
    found = []
    for i, (row, (writes, carried)) in enumerate(zip(rows, shares, strict=True)):
        trace = None if row.trace is None else dot(by[0][i], states[1][i])
        start = dot(by[0][i], states[0][i])
        found.append(
            Ends(start, writes, trace, None if carried is None else Carried(dot(by[1][i], states[1][i]), carried))
        )
    return found


def _retreat(rows: list[Ends], by: States, pairs: list[tuple[Tensor, Tensor]], more: list[Tensor], first: bool) -> None:
    """W̄ = βW̄' + rowsᵀ inputs (and ``more``),  S̄ = μS̄' + fW̄', in place; where W' = βW + S', S̄ is then what S' meets in all."""
    for i, (row, weight, (back, inputs)) in enumerate(zip(rows, by[0], pairs, strict=True)):
        if row.carried is not None and row.trace is not None:
            by[1][i].mul_(row.carried.start).addcmul_(weight, row.trace)
        weight.mul_(row.start).baddbmm_(back.mT, inputs)
        if more:
            weight.add_(more[i])
        if row.carried is not None and row.writes is None:
            trace = by[1][i]
            if first:
                trace.mul_(row.carried.start)
            else:
                torch.addcmul(weight, trace, row.carried.start, out=trace)


class _Periods(torch.autograd.Function):
    """All periods as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, rebuild: Callable[[Sequence[Tensor]], Given], *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        given = rebuild(leaves)
        found, kept = plan.forward(given, True)
        stored, ctx.restore = tree.flatten(kept)
        ctx.plan, ctx.rebuild, ctx.leaves = plan, rebuild, len(leaves)
        ctx.save_for_backward(*leaves, *stored)
        return found

    @staticmethod
    def backward(ctx: Any, read: Tensor, *after: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # `once_differentiable` would let a second derivative pass as zero.
            raise NestlingError("periods have no second derivative: differentiate blocks, with path=Chunk(stride=0).")
        plan, saved = ctx.plan, ctx.saved_tensors
        given, kept = ctx.rebuild(saved[: ctx.leaves]), ctx.restore(saved[ctx.leaves :])
        with torch.autocast(read.device.type, enabled=False):
            return None, None, *tree.leaves(plan.backward(given, kept, read, after))
