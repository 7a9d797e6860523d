"""Rules that optimizers need beside those of the core: squares, roots, quotients and signs of what is remembered.

With ``core.Momentum`` and ``core.Scale`` they spell the named optimizers; a running mean is
``Chain((Scale(1 - β), Momentum(β)))``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.core.gates import Gates
from nestling.core.rule import Chain, Momentum, Rule, RuleState, Scale, Sum


@dataclass(frozen=True)
class Square(Rule):
    """u = g², by entry: what Adam's second memory is written with (NL eq. 102).

    >>> Square().update(torch.tensor([-3.0]), (), Gates())[0]
    tensor([9.])
    """

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """g²"""
        return signal.square(), state


@dataclass(frozen=True)
class Root(Rule):
    """u = √g + ε, by entry: the denominator of Adam and AdaGrad (NL eqs 105 and 111).

    >>> Root(eps=1.0).update(torch.tensor([9.0]), (), Gates())[0]
    tensor([4.])
    """

    eps: float = 1e-8

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """√g + ε"""
        return signal.sqrt() + self.eps, state


@dataclass(frozen=True)
class Unbiased(Rule):
    """u = g / (1 − βᵗ): a running mean that began at nothing, as if its weights added up to one (Kingma & Ba 2015).

    >>> rule = Unbiased(0.9)
    >>> rule.update(torch.tensor([0.1]), rule.init(torch.zeros(1)), Gates())[0]
    tensor([1.0000])
    """

    decay: float

    def init(self, weight: Tensor) -> RuleState:
        """t = 0"""
        return torch.zeros((), dtype=weight.dtype, device=weight.device)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """g / (1 − βᵗ)"""
        count = state + 1
        return signal / (1 - self.decay**count), count


@dataclass(frozen=True)
class Quotient(Rule):
    """u = top(g) / bottom(g), by entry: two memories of one gradient, which Adam divides (NL eq. 103).

    >>> Quotient(Scale(6.0), Scale(2.0)).update(torch.ones(1), ((), ()), Gates())[0]
    tensor([3.])
    """

    top: Rule
    bottom: Rule

    def init(self, weight: Tensor) -> RuleState:
        """The states of both"""
        return self.top.init(weight), self.bottom.init(weight)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """top(g) / bottom(g)"""
        over, top = self.top.update(signal, state[0], gates)
        under, bottom = self.bottom.update(signal, state[1], gates)
        return over / under, (top, bottom)


@dataclass(frozen=True)
class Sign(Rule):
    """u = sign(g), by entry: the read-out of SignSGD and Lion.

    >>> Sign().update(torch.tensor([-2.0, 0.0]), (), Gates())[0]
    tensor([-1.,  0.])
    """

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """sign(g)"""
        return signal.sign(), state


@dataclass(frozen=True)
class Before(Rule):
    """Momentum that is read before it is written: out comes S, then S ← β S + u. Lion reads so.

    >>> Before(0.5).update(torch.ones(1), torch.tensor([4.0]), Gates())
    (tensor([4.]), tensor([3.]))
    """

    decay: float

    def init(self, weight: Tensor) -> RuleState:
        """S₀ = 0"""
        return torch.zeros_like(weight)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """S, then β S + u"""
        return state, self.decay * state + signal


@dataclass(frozen=True)
class Stretch(Rule):
    """u = √max(1, out/in) g: Muon's longer step for tall matrices, so that outputs change alike for every shape.

    With ``rms`` ρ it is u = ρ √max(out, in) g: entries of an orthogonal g get the root mean square ρ (Liu et al. 2025).

    >>> Stretch().update(torch.ones(4, 1), (), Gates())[0].unique()
    tensor([2.])
    """

    rms: float | None = None

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """√max(1, out/in) g, or ρ √max(out, in) g"""
        if self.rms is not None:
            return self.rms * max(signal.shape[-2:]) ** 0.5 * signal, state
        return max(1.0, signal.shape[-2] / signal.shape[-1]) ** 0.5 * signal, state


@dataclass(frozen=True)
class Normalise(Rule):
    """u = ρ g / rms(g): an update whose entries have the root mean square ρ, whatever the scale of the gradient.

    >>> Normalise(0.5).update(torch.tensor([3.0, -3.0]), (), Gates())[0]
    tensor([ 0.5000, -0.5000])
    """

    size: float

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """ρ g / rms(g)"""
        floor = torch.finfo(signal.dtype).tiny
        return signal * (self.size / (signal.square().mean() + floor).sqrt()), state


def mean(decay: float) -> Chain:
    """S ← β S + (1 − β) g: a running mean, of the core's own parts.

    >>> mean(0.75)
    Chain(rules=(Scale(factor=0.25), Momentum(decay=0.75)))
    """
    return Chain((Scale(1 - decay), Momentum(decay)))


def unbiased(decay: float) -> Chain:
    """The running mean divided by 1 − βᵗ.

    >>> unbiased(0.75)
    Chain(rules=(Scale(factor=0.25), Momentum(decay=0.75), Unbiased(decay=0.75)))
    """
    return Chain((*mean(decay).rules, Unbiased(decay)))


def nesterov(memory: Rule, decay: float, fresh: float) -> Sum:
    """c g + β S: the gradient is looked at once more after it was written (Nesterov 1983, in the form of Sutskever 2013).

    >>> nesterov(Momentum(0.9), 0.9, 1.0).rules[0]
    Scale(factor=1.0)
    """
    return Sum((Scale(fresh), Chain((memory, Scale(decay)))))
