"""Rules over many weights at once, in place: what ``Rule.update`` computes one by one, with few passes over memory.

Each kernel is pinned to the rule of the core by a test. A rule without a kernel runs weight by weight, as it is. Factors
(rates, corrections of bias) are carried as numbers and multiplied where a tensor is written anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.distributed.tensor import DTensor

from nestling import tree
from nestling.core.architecture import Constant
from nestling.core.gates import Gates
from nestling.core.memory import Memory
from nestling.core.objective import DotProduct
from nestling.core.retention import Decay
from nestling.core.rule import Chain, Descend, Every, Hold, Momentum, NewtonSchulz, Rule, Scale, Sum
from nestling.optim.gradient_memory import GradientMemory
from nestling.optim.rules import Before, Quotient, Root, Sign, Square, Unbiased
from nestling.optim.sharding import part, whole
from nestling.optim.streams import Gradient, Preconditioned

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]

BATCH = 2**22
"""The most entries of weights of one shape that are computed as one batch: beyond, a batch saves nothing and takes memory."""


class Column(list[Tensor]):
    """One quantity of the state, for each weight: a leaf of the state of many."""


@dataclass(frozen=True)
class Signals:
    """cᵢ gᵢ, or cᵢ gᵢ² with ``power`` 2: tensors that are not to be written to, and numbers that wait to be multiplied."""

    tensors: Tensors
    factors: tuple[float, ...]
    power: int = 1

    @classmethod
    def of(cls, tensors: Tensors) -> Signals:
        """The tensors as they are."""
        return cls(tensors, (1.0,) * len(tensors))

    def times(self, *factors: float) -> Signals:
        """Multiplied by one number, or by one for each."""
        each = factors * len(self.factors) if len(factors) == 1 else factors
        return Signals(self.tensors, tuple([a * b for a, b in zip(self.factors, each, strict=True)]), self.power)

    def whole(self) -> Tensors:
        """The tensors with everything multiplied out."""
        tensors = torch._foreach_mul(self.tensors, self.tensors) if self.power == 2 else self.tensors
        return tensors if set(self.factors) == {1.0} else torch._foreach_mul(tensors, self.factors)

    def pick(self, indices: Sequence[int]) -> Signals:
        """Those of some weights."""
        return Signals([self.tensors[i] for i in indices], tuple([self.factors[i] for i in indices]), self.power)

    def add_to(self, targets: Tensors) -> None:
        """targets ← targets + this"""
        match self.power, set(self.factors):
            case 2, factors if len(factors) == 1:
                torch._foreach_addcmul_(targets, self.tensors, self.tensors, value=factors.pop())
            case 1, factors if len(factors) == 1:
                torch._foreach_add_(targets, self.tensors, alpha=factors.pop())
            case _:
                torch._foreach_add_(targets, self.whole())

    def blend_into(self, targets: Tensors, kept: float) -> None:
        """targets ← kept · targets + this, in one pass over memory where there is a kernel for it."""
        match self.power, set(self.factors):
            case 1, factors if factors == {1 - kept}:
                torch._foreach_lerp_(targets, self.tensors, 1 - kept)
            case 1, factors if factors == {1.0} and _on_processor(targets):
                for target, tensor in zip(targets, self.tensors, strict=True):
                    torch.add(tensor, target, alpha=kept, out=target)
            case _:
                torch._foreach_mul_(targets, kept)
                self.add_to(targets)


def _on_processor(tensors: Tensors) -> bool:
    return {(type(tensor), tensor.device.type) for tensor in tensors} == {(Tensor, "cpu")}


@lru_cache(maxsize=64)
def layout(rule: Rule) -> tuple[tuple[str, ...], Any]:
    """The names of what a rule remembers, and the shape of the tree that holds it."""
    state = rule.init(torch.zeros(2, 2))
    return tuple(name for name, _ in tree.items(state)), pytree.tree_structure(state)


def step(rule: Rule, weights: Tensors, signals: Signals, state: Any, gates: Gates) -> None:
    """weights ← weights + rule(signals), and the state moves on, both in place."""
    match rule:
        case Chain((*first, Quotient() as last, Descend())):
            # W ← W − θ top/bottom, without the quotient ever being stored.
            given = _through(first, signals, state, gates)
            over, under = _sides(last, given, state[len(first)], gates)
            over = over if over.power == 1 else Signals.of(over.whole())
            scalars = [-gates.lr * factor for factor in over.factors]
            torch._foreach_addcdiv_(weights, over.tensors, under.whole(), scalars)
        case _:
            update(rule, signals, state, gates).add_to(weights)


def update(rule: Rule, signals: Signals, state: Any, gates: Gates) -> Signals:
    """What ``rule.update`` gives for each weight; ``state``, a tree of columns, moves on in place.

    >>> state = Column([torch.ones(1)])
    >>> update(Momentum(decay=0.5), Signals.of([torch.ones(1)]), state, Gates()).whole()
    [tensor([1.5000])]
    """
    match rule:
        case Descend():
            return signals.times(-float(gates.lr))
        case Scale(factor):
            return signals.times(factor)
        case Momentum(decay):
            signals.blend_into(state, float(gates.momentum if decay is None else decay))
            return Signals.of(state)
        case Before(decay):
            before = torch._foreach_mul(state, 1.0)
            signals.blend_into(state, decay)
            return Signals.of(before)
        case Square() if signals.power == 1:
            return Signals(signals.tensors, tuple(factor**2 for factor in signals.factors), 2)
        case Root(eps) if signals.power == 1:
            roots = torch._foreach_sqrt(signals.tensors)
            torch._foreach_mul_(roots, [factor**0.5 for factor in signals.factors])
            torch._foreach_add_(roots, eps)
            return Signals.of(roots)
        case Unbiased(decay):
            torch._foreach_add_(state, 1)
            return signals.times(*[1 / (1 - decay ** float(count)) for count in state])
        case Sign():
            return Signals.of(torch._foreach_sign(signals.whole()))
        case NewtonSchulz():
            return _by_shape(rule, signals.whole(), gates)
        case Quotient():
            over, under = _sides(rule, signals, state, gates)
            return Signals(torch._foreach_div(over.whole(), under.whole()), (1.0,) * len(over.factors))
        case Chain(rules):
            return _through(rules, signals, state, gates)
        case Sum(rules):
            first, *rest = [update(each, signals, of, gates) for each, of in zip(rules, state, strict=True)]
            total = torch._foreach_mul(
                Signals(first.tensors, (1.0,) * len(first.factors), first.power).whole(), first.factors
            )
            for each in rest:
                each.add_to(total)
            return Signals.of(total)
        case GradientMemory(Memory(Constant(), DotProduct(), Decay(), Descend(), period=1)):
            return _momentum(rule, signals, state, gates)
        case GradientMemory():
            return _in_batches(rule, signals, state, gates)
        case Every():
            return _every(rule, signals, state, gates)
        case Hold():
            return _hold(rule, signals, state, gates)
        case _:
            return _one_by_one(rule, signals, state, gates)


def _through(rules: Sequence[Rule], signals: Signals, state: Any, gates: Gates) -> Signals:
    for rule, of in zip(rules, state, strict=False):
        signals = update(rule, signals, of, gates)
    return signals


def _sides(rule: Quotient, signals: Signals, state: Any, gates: Gates) -> tuple[Signals, Signals]:
    return update(rule.top, signals, state[0], gates), update(rule.bottom, signals, state[1], gates)


def _by_shape(rule: Rule, tensors: Tensors, gates: Gates) -> Signals:
    """A stateless rule on matrices: those of one shape as one batch."""
    after = list(tensors)
    for indices in _alike(tensors):
        batch, _ = rule.update(torch.stack([whole(tensors[i]) for i in indices]), (), gates)
        for i, one in zip(indices, batch.unbind(), strict=True):
            after[i] = part(one, tensors[i])
    return Signals.of(after)


def _alike(tensors: Tensors, most: float = math.inf) -> list[list[int]]:
    """Which tensors are of one shape, type and device, at most ``most`` entries together (but one tensor at least)."""
    kinds: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        kinds.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(index)
    lengths = {kind: max(1, int(min(most, 2**62) // max(1, kind[0].numel()))) for kind in kinds}
    return [
        found[at : at + lengths[kind]] for kind, found in kinds.items() for at in range(0, len(found), lengths[kind])
    ]


def _momentum(rule: GradientMemory, signals: Signals, state: Any, gates: Gates) -> Signals:
    """A memory without keys: m ← α m − η P(g), for all weights at once."""
    kept, (_, values, _) = state
    if any(isinstance(tensor, DTensor) for tensor in signals.tensors):
        return _in_batches(rule, signals, state, gates)  # the memory is a column, which is not sharded as the weight is
    match rule.value:
        case Gradient():
            given = signals
        case Preconditioned(by):
            given = update(by, signals, values, gates)
        case _:
            return _in_batches(rule, signals, state, gates)
    memory = [m.view(g.shape) for m, g in zip(kept.dual["w1"], signals.tensors, strict=True)]
    given.times(-float(gates.lr)).blend_into(memory, float(gates.retain))
    return Signals.of(memory)


def _in_batches(rule: Rule, signals: Signals, state: Any, gates: Gates) -> Signals:
    """The rule on batches of weights of one shape; it must not branch on values."""
    given = signals.whole()
    after = list(given)
    for indices in _alike(given, BATCH):
        if len(indices) == 1:
            (after[indices[0]],) = _one_by_one(
                rule, Signals.of([given[indices[0]]]), _pick(state, indices), gates
            ).tensors
            continue
        columns = _pick(state, indices)
        old = pytree.tree_map(lambda column: torch.stack([whole(leaf) for leaf in column]), columns)
        batched = torch.vmap(lambda signal, one: rule.update(signal, one, gates))
        out, new = batched(torch.stack([whole(given[i]) for i in indices]), old)
        for i, one in zip(indices, out.unbind(), strict=True):
            after[i] = part(one, given[i])
        for column, value in zip(pytree.tree_leaves(columns), tree.leaves(new), strict=True):
            for to, one in zip(column, value.unbind(), strict=True):
                to.copy_(part(one, to))
    return Signals.of(after)


def _every(rule: Every, signals: Signals, state: Any, gates: Gates) -> Signals:
    """Only what is due is computed."""
    gathered, inner, phases = state
    signals.add_to(gathered)
    torch._foreach_add_(phases, 1)
    after = [torch.zeros_like(tensor) for tensor in gathered]
    if due := [i for i, phase in enumerate(phases) if float(phase) >= rule.period]:
        given = Signals.of([gathered[i] for i in due])
        for i, one in zip(due, update(rule.rule, given, _pick(inner, due), gates).whole(), strict=True):
            after[i] = one.clone()  # it may be what the rule remembers, or the sum that is cleared below
            gathered[i].zero_()
            phases[i].zero_()
    return Signals.of(after)


def _hold(rule: Hold, signals: Signals, state: Any, gates: Gates) -> Signals:
    """What is held now; what a commit computes replaces it afterwards."""
    held, every = state
    due = [i for i, phase in enumerate(every[2]) if float(phase) + 1 >= rule.period]
    before = [tensor.clone() if i in due else tensor for i, tensor in enumerate(held)]
    fresh = _every(Every(rule.period, rule.rule), signals, every, gates).whole()
    for i in due:
        held[i].copy_(fresh[i])
    return Signals.of(before)


def _one_by_one(rule: Rule, signals: Signals, state: Any, gates: Gates) -> Signals:
    """The rule itself, for each weight."""
    after = []
    for i, signal in enumerate(signals.whole()):
        kept = pytree.tree_map(lambda column, i=i: column[i], state)
        old = tree.map(whole, kept)
        out, new = rule.update(whole(signal), old, gates)
        out = out.clone() if any(out is leaf for leaf in tree.leaves(old)) else out
        after.append(part(out, signal))
        for to, value in zip(tree.leaves(kept), tree.leaves(new), strict=True):
            to.copy_(part(value, to))
    return Signals.of(after)


def _pick(state: Any, indices: Sequence[int]) -> Any:
    return pytree.tree_map(lambda column: Column(column[i] for i in indices), state)
