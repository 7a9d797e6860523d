"""Objectives, MIRAS' attentional biases: what a memory minimises when it is written, ℓ(v̂, v) -> one number an example.

They act on the last axis. ``threshold`` broadcasts against the value; only ``Huber`` looks at it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.errors import NestlingError


class Objective(ABC):
    """The inner loss of a memory."""

    @abstractmethod
    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """``prediction``, ``value`` (..., v) -> (...)."""


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
