"""Objectives of more than the token at hand: a window of pairs (Omega), and only what is surprising enough (Above)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.core.objective import L2, Objective
from nestling.errors import NestlingError
from nestling.tree import state


@state
class Pairs:
    """Keys and values of n tokens, how much each counts, and each one's threshold; any leading dimensions."""

    key: Tensor
    """(..., n, keys)"""
    value: Tensor
    """(..., n, values)"""
    share: Tensor
    """γ (..., n); 0 where nothing is"""
    threshold: Tensor
    """δ (..., n)"""

    def then(self, later: Pairs) -> Pairs:
        """These, and after them ``later``."""
        return Pairs(
            torch.cat((self.key, later.key), -2),
            torch.cat((self.value, later.value), -2),
            torch.cat((self.share, later.share), -1),
            torch.cat((self.threshold, later.threshold), -1),
        )

    def at(self, index: Tensor) -> Pairs:
        """The pairs of these numbers (..., m)."""
        return Pairs(
            *(
                each.gather(-2, index[..., None].expand(*index.shape, each.shape[-1]))
                for each in (self.key, self.value)
            ),
            *(each.gather(-1, index) for each in (self.share, self.threshold)),
        )


@dataclass(frozen=True)
class Omega(Objective):
    """ℓₜ(W) = Σ γᵢ ℓ(M(W, kᵢ), vᵢ) over the last ``window`` tokens i ≤ t (Atlas eqs 8-11, NL eq. 68).

    Every write takes the gradients of all pairs of the window at the *present* anchor, so the last ``window`` − 1 pairs are part
    of the memory's state. γ is ``gates.share``, a gate of the token that is seen again; ``window=1`` is the inner objective.
    With ``Decay`` and ``Descend``: Mₜ = αₜMₜ₋₁ − θₜ Σᵢ γᵢ∇ℓ(M; kᵢ, vᵢ), that is γₜ,ᵢ = θₜγᵢ.

    >>> Omega(L2(), window=4)
    Omega(objective=L2(), window=4)
    """

    objective: Objective = L2()
    window: int = 4

    def __post_init__(self) -> None:
        if not (isinstance(self.window, int) and self.window >= 1):
            raise NestlingError(f"Omega's window is a number of tokens ≥ 1, got {self.window!r}.")
        if isinstance(self.objective, Omega):
            raise NestlingError(f"Omega holds the objective of one token, got {self.objective!r}. Give one window.")

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """That of one token"""
        return self.objective(prediction, value, threshold)

    def raw(self) -> Objective:
        """That of one token"""
        return self.objective.raw()

    def init(self, example: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        """An empty window, and what the inner objective remembers"""
        key, value = (torch.zeros_like(each).expand(self.window - 1, -1).clone() for each in example())
        none = key.new_zeros(self.window - 1)
        return Pairs(key, value, none, none.clone()), self.objective.init(example)

    def commit(self, held: Any) -> Any:
        """The inner objective's"""
        return held[0], self.objective.commit(held[1])

    def bound(self, held: Any, threshold: Tensor | float) -> Tensor | float:
        """The inner objective's"""
        return self.objective.bound(held[1], threshold)

    def learn(self, held: Any, loss: Tensor, live: Tensor | None) -> Any:
        """The inner objective's"""
        return held[0], self.objective.learn(held[1], loss, live)


@state
class Bound:
    """log τ, (..., 1): at the last commit, where tokens are judged, and running."""

    anchor: Tensor
    running: Tensor


@dataclass(frozen=True)
class Quantile:
    """A threshold τ that follows the surprise so that about ``share`` of the tokens exceed it::

        log τ ← log τ + step (1[ℓ > τ_c] − share)        τ_c: at the last commit

    The stochastic approximation of the 1 − share quantile, in logarithms since surprise has no scale known beforehand.
    """

    share: float = 0.25
    step: float = 0.1
    start: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and self.step > 0 and self.start > 0):
            raise NestlingError(f"Quantile needs 0 < share < 1, step > 0 and start > 0, got {self!r}.")


@dataclass(frozen=True)
class Above(Objective):
    """Only what is surprising is written: ∇ℓ̃ = 1[ℓ > τ] ∇ℓ, the gradient of ℓ̃ = max(ℓ − τ, 0).

    ``threshold``: τ as a number, as a running ``Quantile``, or None for ``gates.threshold``, which a layer can learn. A step
    has no slope, so a learnt τ needs ``softness`` s > 0: ℓ̃ = s softplus((ℓ − τ)/s), with the gradient σ((ℓ − τ)/s) ∇ℓ.
    A token that is not written still decays the memory and counts in its period.

    >>> Above(L2(), 1.0)(torch.tensor([1.0, 3.0]), torch.zeros(2), 0.0)
    tensor(4.)
    """

    objective: Objective = L2()
    threshold: float | Quantile | None = None
    softness: float = 0.0

    def __post_init__(self) -> None:
        if self.softness < 0:
            raise NestlingError(f"Above needs softness ≥ 0, got {self.softness}.")
        if isinstance(self.objective, Omega | Above):
            raise NestlingError(f"Above judges one token, got {self.objective!r}. Write Omega(Above(L2()), window).")

    def __call__(self, prediction: Tensor, value: Tensor, threshold: Tensor | float) -> Tensor:
        """max(ℓ − τ, 0), or s softplus((ℓ − τ)/s)"""
        over = self._over(self.objective(prediction, value, threshold), threshold)
        # torch's softplus is linear from 20 on; −log σ(−x) has the slope σ(x) everywhere.
        return -self.softness * F.logsigmoid(-over / self.softness) if self.softness else F.relu(over)

    def weight(self, loss: Tensor, threshold: Tensor | float) -> Tensor:
        """1[ℓ > τ] or σ((ℓ − τ)/s): how much of its gradient a token writes."""
        over = self._over(loss, threshold)
        return torch.sigmoid(over / self.softness) if self.softness else (over > 0).to(loss.dtype)

    def _over(self, loss: Tensor, threshold: Tensor | float) -> Tensor:
        """ℓ − τ, where τ comes with the last dimension of a value"""
        bound = self.threshold if isinstance(self.threshold, int | float) else threshold
        return (loss[..., None] - bound)[..., 0]

    def raw(self) -> Objective:
        """ℓ"""
        return self.objective

    def init(self, example: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        """log τ, where it runs"""
        if not isinstance(self.threshold, Quantile):
            return ()
        key, _ = example()
        return Bound(*(key.new_full((1,), math.log(self.threshold.start)) for _ in range(2)))

    def commit(self, held: Any) -> Any:
        """From now on tokens are judged by the running threshold"""
        return Bound(held.running, held.running) if isinstance(self.threshold, Quantile) else held

    def bound(self, held: Any, threshold: Tensor | float) -> Tensor | float:
        """τ at the last commit, where it runs"""
        return held.anchor.exp() if isinstance(self.threshold, Quantile) else threshold

    def learn(self, held: Any, loss: Tensor, live: Tensor | None) -> Any:
        """log τ ← log τ + step Σ (1[ℓ > τ_c] − share), the sum over the ``live`` tokens of ``loss`` (..., n)"""
        match self.threshold:
            case Quantile(share, step):
                moves = (loss > held.anchor.exp()).to(loss.dtype) - share
                moves = moves if live is None else moves * live
                return Bound(held.anchor, held.running + step * moves.sum(-1, keepdim=True))
            case _:
                return held
