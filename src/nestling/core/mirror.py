"""Retentions with a mirror map: the memory accumulates A, and what is read is W = primal(A) (MIRAS §5.2).

With a convex R and primal = (∇R)⁻¹, a write without forgetting is a mirror step::

    Aₜ = Aₜ₋₁ - η∇ℓ,  Wₜ = primal(Aₜ)    ⇔    Wₜ = argmin over W of η⟨∇ℓ, W⟩ + D_R(W, Wₜ₋₁)

where D_R is the Bregman divergence of R; from A₀ = 0, it is the FTRL step argmin ⟨-A, W⟩ + R(W) too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nestling.core.gates import Gates
from nestling.core.retention import Retention
from nestling.errors import NestlingError

Measure = Literal["sum", "mean"]
"""A norm or a row as the papers have it, summed over its entries; or their mean, so that one value suits weights of any width."""


def _check_measure(by: str) -> None:
    if by not in ("sum", "mean"):
        raise NestlingError(f"by is 'sum' or 'mean', got {by!r}.")


@dataclass(frozen=True)
class KL(Retention):
    """W = c softmax(A) along each row: W ← c softmax(α log W - η∇ℓ) (MIRAS eqs 21 and 27, Memora).

    R = Σ W log W on the simplex: rows are positive with sum ``scale`` (mean, where ``by="mean"``). Weights below ``floor`` × c
    are taken as that: what else was written to a row may have made them negative.

    >>> KL().primal(torch.zeros(1, 4))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    scale: float = 1.0
    by: Measure = "sum"
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_measure(self.by)
        if not (self.scale > 0 and 0 <= self.floor < 1):
            raise NestlingError(f"KL needs scale > 0 and 0 ≤ floor < 1, got {self!r}.")

    def dual(self, weight: Tensor) -> Tensor:
        """Log W"""
        return torch.log((weight / self.scale).clamp_min(max(self.floor, torch.finfo(weight.dtype).tiny)))

    def primal(self, dual: Tensor) -> Tensor:
        """C softmax(A)"""
        return self.scale * (1 if self.by == "sum" else dual.shape[-1]) * torch.softmax(dual, -1)

    def inside(self, weight: Tensor) -> Tensor:
        """C softmax"""
        return self.primal(weight)


@dataclass(frozen=True)
class ElasticNet(Retention):
    """W = S_γ(A), soft thresholding: R = ½‖W‖² + γ‖W‖₁, what stays small is not read (MIRAS eq. 23, the FTRL reading).

    In the dual nothing is lost: a small weight comes back when enough is written to it. See ``SoftThreshold`` for the other reading.

    >>> ElasticNet(threshold=1.0).primal(torch.tensor([[-3.0, 0.5, 2.0]]))
    tensor([[-2.,  0.,  1.]])
    """

    threshold: float = 1e-3

    def dual(self, weight: Tensor) -> Tensor:
        """W + γ sign(W)"""
        return weight + self.threshold * weight.sign()

    def primal(self, dual: Tensor) -> Tensor:
        """sign(A) max(|A| - γ, 0), as A minus A clipped to [-γ, γ]"""
        return dual - dual.clamp(-self.threshold, self.threshold)


@dataclass(frozen=True)
class Logistic(Retention):
    """W = σ(A), each weight in (0, 1): W ← σ(logit W - η∇ℓ), the Bregman divergence of f'(τ) = ln(τ/(1-τ)) (MIRAS §5.2).

    >>> Logistic().primal(torch.zeros(1, 1))
    tensor([[0.5000]])
    """

    def dual(self, weight: Tensor) -> Tensor:
        """Ln(W/(1-W))"""
        return torch.logit(weight, eps=torch.finfo(weight.dtype).eps)

    def primal(self, dual: Tensor) -> Tensor:
        """σ(A)"""
        return torch.sigmoid(dual)

    def inside(self, weight: Tensor) -> Tensor:
        """σ"""
        return self.primal(weight)


@dataclass(frozen=True)
class Lq(Retention):
    """W = A / ‖A‖_q^(q-2), the norm over the whole weight (MIRAS eq. 24, Moneta). q = 3 has no inverse.

    Printed without the factor |A|^(q-2) by entry that the minimiser has (``LqLink``); so it is no mirror map but for q = 2, where
    it is the identity. For q > 3 large A are small W. ``by="mean"`` takes (mean |A|^q)^(1/q): η times √(out·in) for q = 4.

    >>> map = Lq(q=4.0)
    >>> torch.allclose(map.primal(map.dual(torch.ones(2, 2))), torch.ones(2, 2))
    True
    """

    q: float = 4.0
    by: Measure = "sum"

    def __post_init__(self) -> None:
        _check_measure(self.by)
        if self.q <= 1 or self.q == 3:
            raise NestlingError(f"Lq needs q > 1 and q ≠ 3 (where the map has no inverse), got q={self.q}.")

    def dual(self, weight: Tensor) -> Tensor:
        """W ‖W‖_q^((q-2)/(3-q))"""
        return weight * self._stretch(weight)

    def primal(self, dual: Tensor) -> Tensor:
        """A / ‖A‖_q^(q-2)"""
        return dual / _norm(dual, self.q, self.by) ** (self.q - 2)

    def _stretch(self, weight: Tensor) -> Tensor:
        """‖A‖_q^(q-2) for the A of a W"""
        return _norm(weight, self.q, self.by) ** ((self.q - 2) / (3 - self.q))


@dataclass(frozen=True)
class HeldLq(Lq):
    """``Lq`` whose norm moves at commits alone: between them W = A / n, with n = ‖A‖_q^(q-2) at the last one.

    MIRAS §5.4 applies the norm at the end of a chunk, so that within it all is linear.

    >>> held = HeldLq(q=4.0)
    >>> anchor = torch.ones(2, 2)
    >>> torch.allclose(held.running(2 * held.dual(anchor), anchor), 2 * anchor)
    True
    """

    def running(self, dual: Tensor, anchor: Tensor) -> Tensor:
        """A / n"""
        return dual / self._stretch(anchor)


@dataclass(frozen=True)
class LqLink(Retention):
    """W = ∇½‖B‖_p², B = (q-1)A, 1/p + 1/q = 1: the minimiser of ⟨-A, W⟩ + ‖W‖_q²/(2(q-1)) (MIRAS §5.2, L_q stability).

    By entry W = sign(B) |B|^(p-1) ‖B‖_p^(2-p), the link function of p-norm algorithms.

    >>> map = LqLink(q=1.5)
    >>> torch.allclose(map.primal(map.dual(torch.ones(2, 2))), torch.ones(2, 2))
    True
    """

    q: float = 1.5

    def __post_init__(self) -> None:
        if self.q <= 1:
            raise NestlingError(f"LqLink needs q > 1, got q={self.q}.")

    def dual(self, weight: Tensor) -> Tensor:
        """∇‖W‖_q² / (2(q-1))"""
        return _half_square_slope(weight, self.q) / (self.q - 1)

    def primal(self, dual: Tensor) -> Tensor:
        """∇½‖(q-1)A‖_p²"""
        return _half_square_slope((self.q - 1) * dual, self.q / (self.q - 1))


@dataclass(frozen=True)
class Lag(Retention):
    """The mirror step at the first token of each period, the lag token; linear writes to W in the rest (MIRAS eqs 30-32, Memora).

    With W₀ the weights at the end of the last period, and the anchor of the others being W₁::

        W₁ = primal(α₁ dual(W₀) - η₁∇ℓ(W₀)),   Wₜ = αₜ Wₜ₋₁ - ηₜ∇ℓ(W₁)

    A memory with ``period=inf`` begins no period, and has no lag token.

    >>> lag = Lag(KL())
    >>> lag.write(torch.full((1, 2), 0.5), torch.tensor([[0.0, 1.0]]), Gates(), torch.ones(2), torch.tensor(True))
    tensor([[0.2689, 0.7311]])
    >>> lag.write(torch.full((1, 2), 0.5), torch.tensor([[0.0, 1.0]]), Gates(), torch.ones(2), torch.tensor(False))
    tensor([[0.5000, 1.5000]])
    """

    map: KL | ElasticNet | Logistic | Lq | LqLink = KL()

    def __post_init__(self) -> None:
        if not isinstance(self.map, KL | ElasticNet | Logistic | Lq | LqLink):
            raise NestlingError(f"Lag takes a mirror map, such as Lag(KL()), got {self.map!r}.")

    def inside(self, weight: Tensor) -> Tensor:
        """What its map allows"""
        return self.map.inside(weight)

    def opened(self, weight: Tensor, update: Tensor, gates: Gates) -> Tensor:
        """W₁"""
        return self.map.primal(gates.retain * self.map.dual(weight) + update)

    def write(self, dual: Tensor, update: Tensor, gates: Gates, inputs: Tensor, first: Tensor) -> Tensor:
        """W₁ or Wₜ"""
        return torch.where(first, self.opened(dual, update, gates), gates.retain * dual + update)

    def anchored(self, anchor: Tensor, dual: Tensor, first: Tensor) -> Tensor:
        """W₁, once it is there"""
        return torch.where(first, dual, anchor)


def _norm(weight: Tensor, q: float, by: Measure = "sum") -> Tensor:
    magnitude = weight.abs().clamp_min(torch.finfo(weight.dtype).tiny ** (1 / q))
    count = 1 if by == "sum" else weight.shape[-2] * weight.shape[-1]
    return (magnitude.pow(q).sum((-2, -1), keepdim=True) / count) ** (1 / q)


def _half_square_slope(weight: Tensor, q: float) -> Tensor:
    """∇½‖W‖_q² = sign(W) |W|^(q-1) ‖W‖_q^(2-q), in shares of the norm: no power of a large number."""
    norm = _norm(weight, q)
    share = (weight.abs() / norm).clamp_min(torch.finfo(weight.dtype).tiny)
    return weight.sign() * share.pow(q - 1) * norm
