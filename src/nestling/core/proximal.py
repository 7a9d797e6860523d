"""Retentions that solve a small problem at every token, so that what they do is no sum in any dual space (MIRAS §5.2).

Wₜ = argmin over W of ⟨W, η∇ℓ⟩ + Ret(W, Wₜ₋₁), the learning-retaining viewpoint. They run token by token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.core.gates import Gates
from nestling.core.mirror import KL
from nestling.core.retention import Retention
from nestling.errors import NestlingError


@dataclass(frozen=True)
class SoftThreshold(Retention):
    """W ← S_γ(αW - η∇ℓ), γ = η × ``sparsity``: elastic net in the learning-retaining reading (MIRAS eq. 22).

    It minimises ⟨W, ∇ℓ⟩ + ‖W - Wₜ₋₁‖²/2θ + ‖W‖²/2b + s‖W‖₁ with α = b/(b+θ), η = αθ: soft forgetting by α and hard forgetting by γ.
    Unlike ``ElasticNet``, what is forgotten is lost.

    >>> one = torch.tensor(True)
    >>> SoftThreshold(1.0).write(torch.tensor([[3.0, 0.4]]), torch.zeros(1, 2), Gates(lr=0.5), torch.ones(2), one)
    tensor([[2.5000, 0.0000]])
    """

    sparsity: float = 1e-2

    def __post_init__(self) -> None:
        if self.sparsity < 0:
            raise NestlingError(f"SoftThreshold needs sparsity ≥ 0, got {self.sparsity}.")

    def write(self, dual: Tensor, update: Tensor, gates: Gates, inputs: Tensor, first: Tensor) -> Tensor:
        """Z - Z clipped to [-γ, γ], Z = αW - η∇ℓ"""
        z = gates.retain * dual + update
        bound = torch.as_tensor(self.sparsity * gates.lr, dtype=z.dtype, device=z.device)
        return z - torch.minimum(torch.maximum(z, -bound), bound)


class Divergence(ABC):
    """D(W, W') = Σ W' f(W/W'), for a convex f with f(1) = f'(1) = 0."""

    @abstractmethod
    def of(self, ratio: Tensor) -> Tensor:
        """f"""

    @abstractmethod
    def ratio(self, slope: Tensor) -> Tensor:
        """g = (f')⁻¹, ∞ where f' does not reach."""

    @abstractmethod
    def spread(self, slope: Tensor) -> Tensor:
        """g', where g is finite"""


@dataclass(frozen=True)
class Hellinger(Divergence):
    """f(τ) = 2(√τ - 1)², g(x) = 1/(1 - x/2)².

    >>> Hellinger().ratio(torch.tensor([0.0, 1.0, 3.0]))
    tensor([1., 4., inf])
    """

    def of(self, ratio: Tensor) -> Tensor:
        """2(√τ - 1)²"""
        return 2 * (ratio.sqrt() - 1).square()

    def ratio(self, slope: Tensor) -> Tensor:
        """1/(1 - x/2)²"""
        return (1 - 0.5 * slope).clamp_min(0).pow(-2)

    def spread(self, slope: Tensor) -> Tensor:
        """1/(1 - x/2)³"""
        return (1 - 0.5 * slope).pow(-3)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """f(τ) = τ - 1 - ln τ, g(x) = 1/(1 - x): Σ W' ln(W'/W), which holds on to every weight that it has.

    >>> ReverseKL().ratio(torch.tensor([0.0, 0.5, 3.0]))
    tensor([1., 2., inf])
    """

    def of(self, ratio: Tensor) -> Tensor:
        """τ - 1 - ln τ"""
        return ratio - 1 - ratio.log()

    def ratio(self, slope: Tensor) -> Tensor:
        """1/(1 - x)"""
        return (1 - slope).clamp_min(0).reciprocal()

    def spread(self, slope: Tensor) -> Tensor:
        """1/(1 - x)²"""
        return (1 - slope).pow(-2)


@dataclass(frozen=True)
class ChiSquared(Divergence):
    """f(τ) = ½(τ - 1)², g(x) = max(1 + x, 0): Pearson's χ².

    >>> ChiSquared().ratio(torch.tensor([0.0, 0.5, -3.0]))
    tensor([1.0000, 1.5000, 0.0000])
    """

    def of(self, ratio: Tensor) -> Tensor:
        """½(τ - 1)²"""
        return 0.5 * (ratio - 1).square()

    def ratio(self, slope: Tensor) -> Tensor:
        """max(1 + x, 0)"""
        return (1 + slope).clamp_min(0)

    def spread(self, slope: Tensor) -> Tensor:
        """1 where 1 + x > 0"""
        return (slope > -1).to(slope.dtype)


_HALVINGS = 80
"""Of the interval in which ζ lies; float64 has no more of them to give."""


@dataclass(frozen=True)
class FDivergence(Retention):
    """W ← W' ⊙ g(-ζ - η∇ℓ), ζ such that each row has the sum ``scale`` (MIRAS eq. 18); W' = c softmax(α log W) is what is retained.

    f = τ ln τ gives ``KL``, which needs no search for ζ and whose forgetting is used for all.

    >>> one = torch.tensor(True)
    >>> kept = FDivergence(ChiSquared()).write(torch.zeros(1, 2), torch.tensor([[0.1, 0.3]]), Gates(), torch.ones(2), one)
    >>> FDivergence().primal(kept)
    tensor([[0.4500, 0.5500]])
    """

    divergence: Divergence = Hellinger()
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.divergence, Divergence) and self.scale > 0):
            raise NestlingError(f"FDivergence needs a Divergence, such as Hellinger(), and scale > 0, got {self!r}.")

    def dual(self, weight: Tensor) -> Tensor:
        """Log W"""
        return KL(self.scale).dual(weight)

    def primal(self, dual: Tensor) -> Tensor:
        """C softmax(A)"""
        return KL(self.scale).primal(dual)

    def inside(self, weight: Tensor) -> Tensor:
        """C softmax"""
        return self.primal(weight)

    def write(self, dual: Tensor, update: Tensor, gates: Gates, inputs: Tensor, first: Tensor) -> Tensor:
        """Log (W' ⊙ g(u - ζ))"""
        share = torch.softmax(gates.retain * dual, -1)
        grown = share * self.divergence.ratio(update - self._level(share, update))
        return grown.clamp_min(torch.finfo(dual.dtype).tiny).log()

    def _level(self, share: Tensor, update: Tensor) -> Tensor:
        """ζ, the root of Σ w' g(u - ζ) = 1, by halving; a last step of Newton gives it its derivatives."""
        low, high = update.detach().amin(-1, keepdim=True), update.detach().amax(-1, keepdim=True)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            above = (share.detach() * self.divergence.ratio(update.detach() - middle)).sum(-1, keepdim=True) > 1
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        slope = update - high
        total = (share * self.divergence.ratio(slope)).sum(-1, keepdim=True)
        return high + (total - 1) / (share * self.divergence.spread(slope)).sum(-1, keepdim=True).detach()
