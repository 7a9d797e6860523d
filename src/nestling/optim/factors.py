"""Rules that remember outer products of gradients, L of the outputs and R of the inputs, and whiten or rotate with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.core.gates import Gates
from nestling.core.rule import Rule, RuleState
from nestling.optim.roots import power
from nestling.tree import state


@state
class Factors:
    """What is remembered of the two sides of a matrix; a side that is too wide has (0, 0)."""

    left: Tensor
    """L, (out, out): the memory of g gᵀ."""
    right: Tensor
    """R, (in, in): the memory of gᵀ g."""
    left_map: Tensor
    """What is made of L once in a period: its root, or its eigenvectors."""
    right_map: Tensor
    """What is made of R."""
    count: Tensor
    """Updates so far, ()."""


@dataclass(frozen=True)
class Sides:
    """L ← α L + (1 − α) g gᵀ and R ← α R + (1 − α) gᵀ g; sums with α = 1. Sides of more than ``widest`` entries are left out."""

    retain: float
    period: int
    widest: tuple[float, float]

    def init(self, weight: Tensor) -> Factors:
        """Nothing is remembered yet"""
        sizes = [n if n <= most else 0 for n, most in zip(weight.shape, self.widest, strict=True)]
        left, right = (torch.zeros(n, n, dtype=weight.dtype, device=weight.device) for n in sizes)
        count = torch.zeros((), dtype=weight.dtype, device=weight.device)
        return Factors(left, right, left.clone(), right.clone(), count)

    def write(self, factors: Factors, gradient: Tensor) -> Factors:
        """One more gradient"""
        fresh = 1.0 if self.retain == 1 else 1 - self.retain
        pairs = ((factors.left, gradient, gradient.mT), (factors.right, gradient.mT, gradient))
        left, right = (
            torch.addmm(known, a, b, beta=self.retain, alpha=fresh) if known.numel() else known for known, a, b in pairs
        )
        return Factors(left, right, factors.left_map, factors.right_map, factors.count + 1)

    def due(self, factors: Factors) -> bool:
        """Are the maps to be made anew at this update? At the first, and then once in a period."""
        return (int(factors.count) - 1) % self.period == 0

    def unbiased(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """L and R, as if the weights of a running mean added up to one"""
        known = 1.0 if self.retain == 1 else 1 - self.retain ** int(factors.count)
        return factors.left / known, factors.right / known


@dataclass(frozen=True)
class Whiten(Rule):
    """u = (L + ε)ᵖ top(g) (R + ε)ᵖ, with p = −¼, or −½ where one side is left out (Shampoo; NL eq. 111).

    The roots are made anew once in ``period`` updates. It branches on its count, and is no rule for ``torch.vmap``.

    >>> from nestling.core import Scale
    >>> rule = Whiten(Scale(1.0), Sides(1.0, 1, (8, 8)), eps=0.0)
    >>> g = torch.diag(torch.tensor([5.0, 0.2]))
    >>> rule.update(g, rule.init(g), Gates())[0].round(decimals=3)
    tensor([[1., 0.],
            [0., 1.]])
    """

    top: Rule
    sides: Sides
    eps: float = 1e-8

    def init(self, weight: Tensor) -> RuleState:
        """What is remembered of g, and of its outer products"""
        return self.top.init(weight), self.sides.init(weight)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """Lᵖ top(g) Rᵖ"""
        out, top = self.top.update(signal, state[0], gates)
        factors = self.sides.write(state[1], signal)
        if self.sides.due(factors):
            known = self.sides.unbiased(factors)
            exponent = -0.5 / max(1, sum(each.numel() > 0 for each in known))
            left, right = (self._root(each, exponent) if each.numel() else each for each in known)
            factors = Factors(factors.left, factors.right, left, right, factors.count)
        return _between(factors.left_map, out, factors.right_map), (top, factors)

    def _root(self, known: Tensor, exponent: float) -> Tensor:
        return power(known + self.eps * torch.eye(len(known), dtype=known.dtype, device=known.device), exponent)


@dataclass(frozen=True)
class Rotate(Rule):
    """u = Q_L N Q_Rᵀ, N = Q_Lᵀ top(g) Q_R / bottom(Q_Lᵀ g Q_R), with Q the eigenvectors of L and R (SOAP).

    ``bottom`` remembers in the rotated space, and keeps what it knew when the eigenvectors change. They are made by a full
    decomposition at first, and by one power iteration each ``period`` updates from then on.

    >>> from nestling.core import Scale
    >>> rule = Rotate(Scale(6.0), Scale(2.0), Sides(1.0, 1, (0, 0)))
    >>> rule.update(torch.ones(1, 1), rule.init(torch.ones(1, 1)), Gates())[0]
    tensor([[3.]])
    """

    top: Rule
    bottom: Rule
    sides: Sides

    def init(self, weight: Tensor) -> RuleState:
        """The states of both, and of the sides"""
        return self.top.init(weight), self.bottom.init(weight), self.sides.init(weight)

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """Q_L (Q_Lᵀ top(g) Q_R / bottom(Q_Lᵀ g Q_R)) Q_Rᵀ"""
        factors = self.sides.write(state[2], signal)
        if self.sides.due(factors):
            known = ((factors.left, factors.left_map), (factors.right, factors.right_map))
            left, right = (_basis(each, old, int(factors.count) == 1) if each.numel() else each for each, old in known)
            factors = Factors(factors.left, factors.right, left, right, factors.count)
        q, p = factors.left_map, factors.right_map
        over, top = self.top.update(signal, state[0], gates)
        under, bottom = self.bottom.update(_between(q.mT, signal, p), state[1], gates)
        return _between(q, _between(q.mT, over, p) / under, p.mT), (top, bottom, factors)


def _basis(known: Tensor, old: Tensor, first: bool) -> Tensor:
    return torch.linalg.eigh(known).eigenvectors if first else torch.linalg.qr(known @ old).Q


def _between(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """left · middle · right, where an empty side is none."""
    middle = left @ middle if left.numel() else middle
    return middle @ right if right.numel() else middle
