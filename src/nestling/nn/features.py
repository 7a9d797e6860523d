"""What a memory layer does to queries, keys and values before its memory sees them; each form is a value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.errors import NestlingError
from nestling.nn.norm import unit
from nestling.nn.rope import rotate
from nestling.ops import Marks

Heads = tuple[Tensor, Tensor, Tensor]
"""q, k and v, each (B, H, T, d)"""


Apart = Callable[[Heads, Any, Marks], tuple[Heads, Any]]
"""(q, k, v), a state and marks -> what the memory sees, and the state after it"""


class _Plain:
    """Features without parameters, as wide as the head."""

    def widths(self, head: int) -> tuple[int, int]:
        """How wide keys are projected to, and how wide the memory sees them."""
        return head, head

    def module(self, heads: int) -> Any:
        """What a layer calls: the value itself."""
        return self


class _Stateless(_Plain):
    """Features of each token by itself."""

    def initial_state(self, like: Tensor, batch: int) -> Any:
        """None needed."""
        return ()


@dataclass(frozen=True)
class Unit(_Stateless):
    """SiLU on all three, then ‖q‖ = ‖k‖ = 1; v as it is (Titans §4.4, DeltaNet, Gated DeltaNet)."""

    def __call__(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = (F.silu(each) for each in heads)
        return (unit(q), unit(k), v), state


@dataclass(frozen=True)
class Length(_Stateless):
    """‖q‖ = ‖k‖ = 1, no activation (TTT: three linear views of the token)."""

    def __call__(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = heads
        return (unit(q), unit(k), v), state


@dataclass(frozen=True)
class Scaled(_Stateless):
    """q / √d; keys and values as they are (GLA)."""

    def __call__(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = heads
        return (q * q.shape[-1] ** -0.5, k, v), state


@dataclass(frozen=True)
class Rotated(_Plain):
    """q e^{inθ} and k e^{-inθ} / √d at position n: relative positions (RetNet eq. 5).

    The state is the number of tokens before, (B,) int64; scores depend on differences alone, so it counts through documents.
    """

    base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise NestlingError(f"Rotated needs base > 1, got {self.base}.")

    def initial_state(self, like: Tensor, batch: int) -> Any:
        """No token yet."""
        return torch.zeros(batch, dtype=torch.int64, device=like.device)

    def __call__(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = heads
        count = q.shape[2] if marks.valid is None else marks.valid.sum(1)
        first = state[:, None]
        turned = rotate(q, first, self.base), rotate(k, first, self.base) * k.shape[-1] ** -0.5
        return (*turned, v), state + count


@dataclass(frozen=True)
class Polynomial:
    """φ(x) = [√(aᵢ n!/β!) x^β], all monomials of degree i = |β| ≤ ``degree``, of q and k (Atlas §3, proposition 2)::

        φ(q)·φ(k) = Σᵢ aᵢ (q·k)ⁱ,   aᵢ = 1/i! before training

    so that a matrix holds O(dᵖ) pairs instead of O(d). ``keys`` is the width d of a head's queries and keys before φ, which are of
    unit length after SiLU; the memory sees C(d + p, p) features. ``coefficients``: a₀ … a_p as numbers; None: learnt by each head.

    >>> features = Polynomial(degree=2, keys=3, coefficients=(1.0, 1.0, 0.5)).module(heads=1)
    >>> q, k, v = torch.nn.functional.normalize(torch.randn(3, 1, 1, 5, 3), dim=-1)
    >>> (a, b, _), _ = features((q, k, v), (), Marks())
    >>> a.shape, features.widths(48)
    (torch.Size([1, 1, 5, 10]), (3, 10))
    """

    degree: int = 2
    keys: int = 8
    coefficients: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.degree < 1 or self.keys < 1:
            raise NestlingError(f"Polynomial needs degree ≥ 1 and keys ≥ 1, got {self!r}.")
        if self.coefficients is not None and (len(self.coefficients) != self.degree + 1 or min(self.coefficients) <= 0):
            raise NestlingError(
                f"Polynomial of degree {self.degree} needs {self.degree + 1} positive coefficients, got {self.coefficients}."
            )

    def widths(self, head: int) -> tuple[int, int]:
        """d, and C(d + p, p)"""
        return self.keys, math.comb(self.keys + self.degree, self.degree)

    def module(self, heads: int) -> _Monomials:
        """With the coefficients as parameters, where they are learnt."""
        return _Monomials(self, heads)


class _Monomials(nn.Module, _Stateless):
    """``Polynomial`` for a layer of ``heads``."""

    def __init__(self, form: Polynomial, heads: int) -> None:
        super().__init__()
        self.form = form
        powers = [list(combinations_with_replacement(range(form.keys), i)) for i in range(form.degree + 1)]
        # The variable d + 1 is the constant 1: all monomials are products of ``degree`` entries.
        self.entries = [(*beta, *[form.keys] * (form.degree - len(beta))) for each in powers for beta in each]
        self.counts = [len(each) for each in powers]
        self.scales = [
            math.factorial(len(b)) / math.prod(map(math.factorial, Counter(b).values())) for p in powers for b in p
        ]
        # aᵢ = exp(log aᵢ) > 0
        start = (
            [-math.lgamma(i + 1) for i in range(form.degree + 1)]
            if form.coefficients is None
            else list(map(math.log, form.coefficients))
        )
        logs = torch.tensor(start).expand(heads, -1).clone()
        self.logs = nn.Parameter(logs) if form.coefficients is None else logs

    def widths(self, head: int) -> tuple[int, int]:
        """Those of the form"""
        return self.form.widths(head)

    def forward(self, heads: Heads, state: Any, marks: Marks) -> tuple[Heads, Any]:
        """(q, k, v) -> what the memory sees"""
        q, k, v = (F.silu(each) for each in heads)
        return (self.mapped(unit(q)), self.mapped(unit(k)), v), state

    def mapped(self, x: Tensor) -> Tensor:
        """φ(x) (B, H, T, C(d + p, p)) of x (B, H, T, d)"""
        x = torch.cat((x, torch.ones_like(x[..., :1])), -1)
        index = torch.tensor(self.entries, device=x.device).unbind(-1)
        product = x[..., index[0]]
        for each in index[1:]:
            product = product * x[..., each]
        counts = torch.tensor(self.counts, device=x.device)
        size = torch.tensor(self.scales, device=x.device, dtype=x.dtype).sqrt()
        # √a of the degree of each monomial
        weight = torch.exp(self.logs.to(x) / 2).repeat_interleave(counts, -1, output_size=len(self.entries))
        return product * (size * weight)[:, None, :]


Features = Unit | Length | Scaled | Rotated | Polynomial
