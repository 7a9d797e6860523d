"""Objectives, MIRAS' attentional biases: what a memory minimises when it is written, ℓ(v̂, v) -> one number an example.

They act on the last axis. ``threshold`` is one number an example, and broadcasts against the value; only the three readings of
Huber's loss look at it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.errors import NestlingError


class Objective(ABC):
    """The inner loss of a memory."""

    @abstractmethod
    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """``prediction``, ``value`` (..., v) -> (...)."""

    def raw(self) -> Objective:
        """The objective of one token, before anything is left out: what surprise is told in."""
        return self

    def init(self, example: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        """What it remembers before the first write, from a key and a value of the right shapes; most remember nothing."""
        return ()

    def commit(self, held: Any) -> Any:
        """What it remembers after a commit of the memory."""
        return held

    def bound(self, held: Any, threshold: Tensor | float) -> Tensor | float:
        """The threshold of a token whose gate says ``threshold``."""
        return threshold

    def learn(self, held: Any, loss: Tensor, live: Tensor | None) -> Any:
        """What it remembers after tokens of these surprises (..., n), where ``live`` (None: all are)."""
        return held


@dataclass(frozen=True)
class DotProduct(Objective):
    """ℓ = -⟨v̂, v⟩: Hebbian writing, as in linear attention and RetNet (NL eq. 17).

    >>> DotProduct()(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 1.0)
    tensor(-11.)
    """

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """-⟨v̂, v⟩"""
        return -(prediction * value).sum(-1)


@dataclass(frozen=True)
class L2(Objective):
    """ℓ = ½‖v̂ - v‖²: the delta rule and Titans (eq. 12, with the ½ of its appendix C).

    >>> L2()(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 1.0)
    tensor(4.)
    """

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """½‖v̂ - v‖²"""
        return 0.5 * (prediction - value).square().sum(-1)


@dataclass(frozen=True)
class Lp(Objective):
    """ℓ = ‖v̂ - v‖ₚᵖ (MIRAS eq. 10), with |x| = √(x² + ε) so that it is smooth at zero (MIRAS remark 5).

    >>> Lp(p=2.0, epsilon=0.0)(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 1.0)
    tensor(8.)
    """

    p: float = 3.0
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.p < 1:
            raise NestlingError(f"Lp needs p ≥ 1, got p={self.p}.")

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """Σ (r² + ε)^(p/2)"""
        return ((prediction - value).square() + self.epsilon).pow(self.p / 2).sum(-1)


@dataclass(frozen=True)
class Huber(Objective):
    """ℓ = Σ H(v̂ - v), H(r) = ½r² where |r| ≤ δ, else δ(|r| - ½δ), by coordinate (MIRAS eqs 13-14). δ is ``gates.threshold``.

    >>> Huber()(torch.tensor([0.5, 3.0]), torch.zeros(2), torch.tensor(1.0))
    tensor(2.6250)
    """

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """Σ c r - ½c², with c = r clipped to [-δ, δ]: both branches at once, and finite for δ = ∞."""
        r = prediction - value
        bound = torch.as_tensor(threshold, dtype=r.dtype, device=r.device)
        c = torch.minimum(torch.maximum(r, -bound), bound)
        return (c * r - 0.5 * c.square()).sum(-1)


@dataclass(frozen=True)
class NormHuber(Objective):
    """ℓ = H(‖v̂ - v‖), the same H of the length of the residual (MIRAS eq. 15): its slope is r, cut to the length δ.

    >>> NormHuber()(torch.tensor([3.0, 4.0]), torch.zeros(2), torch.tensor(1.0))
    tensor(4.5000)
    """

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """½‖r‖² where ‖r‖ ≤ δ, else δ(‖r‖ - ½δ)"""
        r = prediction - value
        square = r.square().sum(-1, keepdim=True)
        inside, bound = bounded(square, threshold)
        length = torch.where(inside, torch.ones_like(square), square).sqrt()
        return torch.where(inside, 0.5 * square, bound * (length - 0.5 * bound))[..., 0]


@dataclass(frozen=True)
class MixedHuber(Objective):
    """ℓ = ½‖r‖² where ‖r‖ ≤ δ, else δ(‖r‖₁ - ½δ): ℓ₂ or δ times ℓ₁, as the length of the residual says (MIRAS eqs 16 and 26, Yaad).

    The slope is r or δ Sign(r), and jumps between them where r has more than one entry. Sign is smooth as in ``Lp``.

    >>> MixedHuber()(torch.tensor([3.0, 4.0]), torch.zeros(2), torch.tensor(1.0))
    tensor(6.5000)
    """

    epsilon: float = 1e-6

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """½‖r‖² where ‖r‖ ≤ δ, else δ(Σ√(r² + ε) - ½δ)"""
        r = prediction - value
        square = r.square().sum(-1, keepdim=True)
        inside, bound = bounded(square, threshold)
        taxi = (r.square() + self.epsilon).sqrt().sum(-1, keepdim=True)
        return torch.where(inside, 0.5 * square, bound * (taxi - 0.5 * bound))[..., 0]


@dataclass(frozen=True)
class ValueShift(Objective):
    """ℓ = max over ‖s‖ ≤ Δ of ½‖v̂ - (v + s)‖² = ½(‖r‖ + Δ)²: the worst value near the one that is given (MIRAS §5.1).

    Its slope is r + Δ r/‖r‖: every write is longer by the same Δ. ‖r‖ = √(Σr² + ε) is smooth at zero.

    >>> ValueShift(1.0, epsilon=0.0)(torch.tensor([3.0, 4.0]), torch.zeros(2), 1.0)
    tensor(18.)
    """

    shift: float = 0.1
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise NestlingError(f"ValueShift needs shift ≥ 0, got {self.shift}.")

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """½‖r‖² + Δ‖r‖ + ½Δ²"""
        square = (prediction - value).square().sum(-1)
        return 0.5 * square + self.shift * (square + self.epsilon).sqrt() + 0.5 * self.shift**2


def bounded(square: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """Is ‖r‖² ≤ δ²? And δ, but 0 where it is: no branch of a Huber loss computes with a δ of ∞.

    >>> bounded(torch.tensor([1.0, 9.0]), 2.0)
    (tensor([ True, False]), tensor([0., 2.]))
    """
    bound = torch.as_tensor(threshold, dtype=square.dtype, device=square.device)
    inside = square <= bound.square()
    return inside, torch.where(inside, torch.zeros_like(bound), bound)
