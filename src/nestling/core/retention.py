"""Retentions, MIRAS' retention gates: how a memory keeps what it knows while it is written.

A retention is a mirror map. The memory accumulates in a *dual* space A, and reads with the *primal* weights W = primal(A).
``decay`` is what one token does to A besides the write itself. Each acts on one weight of shape (..., out, in), with gates
that broadcast against it. Here are those whose map is the identity; others are in ``core.mirror`` and ``core.proximal``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.core.gates import Gates
from nestling.errors import NestlingError


class Retention:
    """The identity map with nothing forgotten; the base of the others."""

    def of(self, name: str) -> Retention:
        """What holds for the weight of that name."""
        return self

    def dual(self, weight: Tensor) -> Tensor:
        """A from W."""
        return weight

    def primal(self, dual: Tensor) -> Tensor:
        """W from A."""
        return dual

    def inside(self, weight: Tensor) -> Tensor:
        """W that a memory can start from, made from any weight."""
        return weight

    def seen(self, anchor: Tensor, gates: Gates) -> Tensor:
        """The weights at which the gradient of a token is taken."""
        return anchor

    def decay(self, dual: Tensor, gates: Gates, inputs: Tensor) -> Tensor:
        """A after one token's forgetting; ``inputs`` (..., in) is what the weight was applied to, (..., n, in) in n examples at once."""
        return gates.retain * dual

    def write(self, dual: Tensor, update: Tensor, gates: Gates, inputs: Tensor, first: Tensor) -> Tensor:
        """A after one token; ``first``: does a period begin with it? Bool, shape ()."""
        return self.decay(dual, gates, inputs) + update

    def anchored(self, anchor: Tensor, dual: Tensor, first: Tensor) -> Tensor:
        """The anchor after one token, which most retentions leave to commits."""
        return anchor

    def running(self, dual: Tensor, anchor: Tensor) -> Tensor:
        """The weights that are read between commits."""
        return self.primal(dual)


@dataclass(frozen=True)
class Decay(Retention):
    """A ← α A: L2 retention, weight decay (Titans eq. 13, MIRAS eq. 8).

    >>> Decay().decay(torch.ones(1, 1), Gates(retain=0.9), torch.ones(1))
    tensor([[0.9000]])
    """


@dataclass(frozen=True)
class Delta(Retention):
    """A ← A (α I - η x xᵀ): delta gradient descent, which erases what the input would have read (NL eqs 57 and 88).

    The gradient is taken before the decay. With ``L2`` the memory erases twice: one repeated unit key converges to v/2.

    >>> Delta().decay(torch.eye(2), Gates(lr=1.0), torch.tensor([1.0, 0.0]))
    tensor([[0., 0.],
            [0., 1.]])
    """

    def decay(self, dual: Tensor, gates: Gates, inputs: Tensor) -> Tensor:
        """α A - η (A x) xᵀ"""
        return gates.retain * dual - gates.lr * _said(dual, inputs)


@dataclass(frozen=True)
class UnitDelta(Retention):
    """A ← A (α I - η x̂ x̂ᵀ) with x̂ = x / ‖x‖: each weight of a deep memory erases along its own input at the same rate.

    NL eq. 88 for a memory of several layers, where the inputs of the later ones have any length (``Delta`` erases η‖x‖² of them).

    >>> UnitDelta().decay(torch.eye(2), Gates(lr=1.0), torch.tensor([5.0, 0.0])).round()
    tensor([[0., 0.],
            [0., 1.]])
    """

    eps: float = 1e-6

    def decay(self, dual: Tensor, gates: Gates, inputs: Tensor) -> Tensor:
        """α A - η (A x̂) x̂ᵀ"""
        return Delta().decay(dual, gates, inputs * torch.rsqrt(inputs.square().sum(-1, keepdim=True) + self.eps**2))


@dataclass(frozen=True)
class InputDelta(Retention):
    """``Delta`` for ``w1``, the weight that meets the key, and ``Decay`` for those behind it.

    The other reading of NL eq. 88 for a memory of several layers: k kᵀ has the shape of the input side alone.

    >>> InputDelta().of("w1"), InputDelta().of("w2")
    (Delta(), Decay())
    """

    def of(self, name: str) -> Retention:
        """Delta() or Decay()"""
        return Delta() if name == "w1" else Decay()


@dataclass(frozen=True)
class Returning(Retention):
    """What ``inner`` forgets or erases goes back to where the memory began, not to zero: A = W - W₀.

    ``inner`` acts on A alone; what is read is W₀ + A, and ``Memory`` keeps W₀ in its state. Weight decay is then the retention
    ‖W - W₀‖² in NL's definition 5, and a forgotten memory is the initial one, which the outer loop learns.

    >>> from nestling.core import Matrix, Memory
    >>> memory = Memory(Matrix(), retention=Returning(Decay()))
    >>> state = memory.init({"w1": torch.eye(2)})
    >>> state = memory.write(state, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), Gates(retain=0.0))
    >>> memory.read(state, torch.tensor([0.0, 2.0]))
    tensor([0., 2.])
    """

    inner: Retention

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Decay | Delta | UnitDelta | InputDelta):
            raise NestlingError(
                f"Returning acts on weights, not on another space: give it a Decay or a Delta, got {self.inner!r}."
            )

    def of(self, name: str) -> Retention:
        """That of the inner one"""
        return self.inner.of(name)


@dataclass(frozen=True)
class GatedDelta(Retention):
    """A ← α A, with the gradient taken at α A: Gated DeltaNet's order, which forgets before it looks.

    >>> GatedDelta().seen(torch.ones(1, 1), Gates(retain=0.5))
    tensor([[0.5000]])
    """

    def seen(self, anchor: Tensor, gates: Gates) -> Tensor:
        """α A"""
        return gates.retain * anchor


@dataclass(frozen=True)
class Erase(Retention):
    """A ← α A (I - η x xᵀ): forget, then erase what the input would have read.

    With ``DotProduct`` it is the gated delta rule, Sₜ = αₜSₜ₋₁(I - βₜkₜkₜᵀ) + βₜvₜkₜᵀ (Gated DeltaNet, arXiv 2412.06464, eq. 10),
    and DeltaNet where nothing is forgotten; nothing in it depends on an anchor, so many tokens go at once.

    >>> Erase().decay(torch.eye(2), Gates(lr=1.0, retain=0.5), torch.tensor([1.0, 0.0]))
    tensor([[0.0000, 0.0000],
            [0.0000, 0.5000]])
    """

    def decay(self, dual: Tensor, gates: Gates, inputs: Tensor) -> Tensor:
        """α (A - η (A x) xᵀ)"""
        return gates.retain * (dual - gates.lr * _said(dual, inputs))


@dataclass(frozen=True)
class KeyDecay(Retention):
    """A ← A diag(α): each input of the weight forgets at a rate of its own (GLA, arXiv 2312.06635, eq. 3; MIRAS table 1).

    ``gates.retain`` is a vector over the inputs (keys): (..., in) where ``Decay`` has one number.

    >>> KeyDecay().decay(torch.ones(1, 2), Gates(retain=torch.tensor([0.5, 1.0])), torch.ones(2))
    tensor([[0.5000, 1.0000]])
    """


def _said(dual: Tensor, inputs: Tensor) -> Tensor:
    """A x xᵀ, or its sum over n examples."""
    each = inputs if inputs.dim() == dual.dim() else inputs[..., None, :]
    return (dual @ each.mT) @ each
