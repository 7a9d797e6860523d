"""Rules, MIRAS' memory algorithms: how the surprise becomes an update. An (init, update) pair as a value, for one weight.

``update(signal, state, gates) -> (update, state)``. The same values drive memories along tokens and optimizers along steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.core.gates import Gates
from nestling.errors import NestlingError
from nestling.tree import map as tree_map

RuleState = Any


class Rule(ABC):
    """A transformation of gradients, with a state that is a tree of tensors."""

    def init(self, weight: Tensor) -> RuleState:
        """The state before the first update; stateless rules have an empty one."""
        return ()

    @abstractmethod
    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """One step: what comes out for ``signal``, and the state after it."""


@dataclass(frozen=True)
class Descend(Rule):
    """u = -θ g: gradient descent (Titans eq. 8).

    >>> Descend().update(torch.ones(1), (), Gates(lr=0.5))
    (tensor([-0.5000]), ())
    """

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """-θ g"""
        return -gates.lr * signal, state


@dataclass(frozen=True)
class Momentum(Rule):
    """S ← η S + u; out comes S (Titans eq. 10). η is ``decay``, or ``gates.momentum`` where that is None.

    >>> Momentum(decay=0.5).update(torch.ones(1), torch.ones(1), Gates())
    (tensor([1.5000]), tensor([1.5000]))
    """

    decay: float | None = None

    def init(self, weight: Tensor) -> RuleState:
        """S₀ = 0"""
        return torch.zeros_like(weight)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """η S + u"""
        trace = (gates.momentum if self.decay is None else self.decay) * state + signal
        return trace, trace


@dataclass(frozen=True)
class Scale(Rule):
    """u = c g.

    >>> Scale(2.0).update(torch.ones(1), (), Gates())
    (tensor([2.]), ())
    """

    factor: float

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """C g"""
        return self.factor * signal, state


@dataclass(frozen=True)
class Clip(Rule):
    """u = g min(1, c/‖g‖): no weight moves by more than ``norm`` (Frobenius) at once.

    >>> Clip(1.0).update(torch.tensor([[3.0, 4.0]]), (), Gates())[0]
    tensor([[0.6000, 0.8000]])
    """

    norm: float

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """g min(1, c/‖g‖)"""
        floor = torch.finfo(signal.dtype).tiny
        length = (signal.square().sum((-2, -1), keepdim=True) + floor).sqrt()
        return signal * (self.norm / length).clamp(max=1.0), state


@dataclass(frozen=True)
class NewtonSchulz(Rule):
    """u ≈ U Vᵀ for g = U Σ Vᵀ: the quintic Newton-Schulz iteration of Muon (NL eqs 42-44), for weights of any batch shape.

    >>> u, _ = NewtonSchulz(steps=5).update(torch.diag(torch.tensor([3.0, 1.0])), (), Gates())
    >>> bool(((u.diagonal() > 0.6) & (u.diagonal() < 1.3)).all())
    True
    """

    steps: int = 5
    eps: float = 1e-7

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """X ← aX + (bA + cA²)X with A = XXᵀ, from X = g/‖g‖"""
        a, b, c = 3.4445, -4.7750, 2.0315
        wide = signal.shape[-2] <= signal.shape[-1]
        x = signal if wide else signal.mT
        x = x / (x.square().sum((-2, -1), keepdim=True) + self.eps**2).sqrt()
        for _ in range(self.steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return (x if wide else x.mT), state


@dataclass(frozen=True)
class Adaptive(Rule):
    """u = g / (√v̂ + ε), v ← β₂ v + (1-β₂) g², v̂ = v/(1-β₂ᵗ): Adam's second memory (NL eq. 105).

    >>> rule = Adaptive()
    >>> rule.update(torch.tensor([4.0]), rule.init(torch.zeros(1)), Gates())[0]
    tensor([1.0000])
    """

    b2: float = 0.999
    eps: float = 1e-8

    def init(self, weight: Tensor) -> RuleState:
        """v₀ = 0, and the number of updates so far"""
        return torch.zeros_like(weight), torch.zeros((), dtype=weight.dtype, device=weight.device)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """g / (√v̂ + ε)"""
        second, count = state
        second, count = self.b2 * second + (1 - self.b2) * signal.square(), count + 1
        corrected = second / (1 - self.b2**count)
        # √ has no derivative at 0, and an entry that never saw a gradient stands there.
        root = corrected.clamp_min(torch.finfo(signal.dtype).tiny).sqrt()
        return signal / (root + self.eps), (second, count)


@dataclass(frozen=True)
class Chain(Rule):
    """One rule after the other. ``Chain((Descend(), Momentum()))`` is Titans, ``Chain((Momentum(), Descend()))`` torch's SGD.

    >>> rule = Chain((Scale(2.0), Descend()))
    >>> rule.update(torch.ones(1), rule.init(torch.zeros(1)), Gates(lr=0.5))[0]
    tensor([-1.])
    """

    rules: tuple[Rule, ...]

    def init(self, weight: Tensor) -> RuleState:
        """The state of each"""
        return tuple(rule.init(weight) for rule in self.rules)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """What comes out of one goes into the next"""
        after = []
        for rule, before in zip(self.rules, state, strict=True):
            signal, new = rule.update(signal, before, gates)
            after.append(new)
        return signal, tuple(after)


@dataclass(frozen=True)
class Sum(Rule):
    """Several rules side by side, their updates added.

    >>> rule = Sum((Scale(2.0), Scale(3.0)))
    >>> rule.update(torch.ones(1), rule.init(torch.zeros(1)), Gates())[0]
    tensor([5.])
    """

    rules: tuple[Rule, ...]

    def init(self, weight: Tensor) -> RuleState:
        """The state of each"""
        return tuple(rule.init(weight) for rule in self.rules)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """Σ uᵢ"""
        pairs = [rule.update(signal, before, gates) for rule, before in zip(self.rules, state, strict=True)]
        return torch.stack([update for update, _ in pairs]).sum(0), tuple(new for _, new in pairs)


@dataclass(frozen=True)
class Every(Rule):
    """Gathers the signal over ``period`` updates, then passes the sum to ``rule``; between commits comes zero (NL eq. 71).

    >>> rule = Every(2, Scale(1.0)); state = rule.init(torch.zeros(1))
    >>> first, state = rule.update(torch.ones(1), state, Gates())
    >>> second, state = rule.update(torch.ones(1), state, Gates())
    >>> first.item(), second.item()
    (0.0, 2.0)
    """

    period: int
    rule: Rule

    def __post_init__(self) -> None:
        _check_period(self.period)

    def init(self, weight: Tensor) -> RuleState:
        """The sum so far, the inner state, the updates since the last commit"""
        return (
            torch.zeros_like(weight),
            self.rule.init(weight),
            torch.zeros((), dtype=torch.int64, device=weight.device),
        )

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """Σg through the rule when due, zero otherwise"""
        gathered, inner, phase = state
        gathered, phase = gathered + signal, phase + 1
        due = phase == self.period
        update, after = self.rule.update(gathered, inner, gates)
        inner = tree_map(lambda new, old: torch.where(due, new, old), after, inner)
        keep = torch.where(due, torch.zeros_like(gathered), gathered)
        return torch.where(due, update, torch.zeros_like(update)), (keep, inner, torch.where(due, 0, phase))


@dataclass(frozen=True)
class Hold(Rule):
    """Like ``Every``, but between commits the last output is repeated: the slow memory of M3 (NL Algorithm 1).

    What a commit computes is used from the next update on.

    >>> rule = Hold(1, Scale(1.0)); state = rule.init(torch.zeros(1))
    >>> first, state = rule.update(torch.ones(1), state, Gates())
    >>> second, state = rule.update(torch.zeros(1), state, Gates())
    >>> first.item(), second.item()
    (0.0, 1.0)
    """

    period: int
    rule: Rule

    def __post_init__(self) -> None:
        _check_period(self.period)

    def init(self, weight: Tensor) -> RuleState:
        """The held output, and the state of ``Every``"""
        return torch.zeros_like(weight), Every(self.period, self.rule).init(weight)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """The output of the last commit"""
        held, every = state
        due = every[2] + 1 == self.period
        fresh, every = Every(self.period, self.rule).update(signal, every, gates)
        return held, (torch.where(due, fresh, held), every)


def _check_period(period: int) -> None:
    if not (period >= 1 and (period == float("inf") or period % 1 == 0)):
        raise NestlingError(f"a period is a whole number of updates ≥ 1, got {period}.")
