"""A linear memory over chunks of tokens, in plain torch: what the kernels compute, to be read and to compare them with.

Every linear memory with one rate and one retention a token is::

    pₜ = cₜ Wₜ₋₁kₜ + gₜ W₀kₜ − uₜ          Wₜ = αₜ Wₜ₋₁ − pₜ kₜᵀ

with W₀ the weights at the start of the chunk: c is what is erased or learnt of what the memory says now, g of what it said when the chunk
began (a gradient at the last commit), and u what is written. Titans without momentum has c = θ, u = θ v; delta gradient descent c = 2θ
token by token, or c = g = θ with a commit every chunk. Inside a chunk, with Dₜⱼ = αⱼ₊₁ … αₜ, βₜ = α₁ … αₜ, and ₋ one token earlier::

    (I + diag(c) (KKᵀ ⊙ D₋)) P = diag(c β₋ + g) K W₀ᵀ − U
    Y = β ⊙ (Q W₀ᵀ) − (QKᵀ ⊙ D) P          W_C = β_C W₀ − Pᵀ (D_C ⊙ K)

The triangular system is solved once for all of W₀: with A its inverse, P = (A diag(c β₋ + g) K) W₀ᵀ − A U, so that only two products of a
chunk wait for the chunk before it (Yang et al., arXiv 2406.06484, and with decay arXiv 2412.06464).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nestling.tree import state

Read = Literal["current", "before", "start"]
"""Of which weights a token reads: Wₜ, Wₜ₋₁, or those at the start of its chunk."""

READS: tuple[Read, ...] = ("current", "before", "start")


@state
class LinearTokens:
    """What a linear memory is given: N sequences of T tokens."""

    q: Tensor
    """(N, T, K)"""
    k: Tensor
    """(N, T, K)"""
    u: Tensor
    """(N, T, V)"""
    now: Tensor
    """c (N, T)"""
    frozen: Tensor
    """g (N, T)"""
    log: Tensor
    """log α (N, T), at least −30"""


@dataclass(frozen=True)
class Cut:
    """How tokens are cut into chunks, and what they read.

    ``lone``: the last token has a chunk of its own, so that the weights before it are known: the anchor of a memory that commits at
    every token.
    """

    chunk: int
    read: Read
    lone: bool

    def spans(self, length: int) -> list[range]:
        """The tokens of each chunk.

        >>> Cut(4, "current", lone=True).spans(6)
        [range(0, 4), range(4, 5), range(5, 6)]
        """
        body = length - self.lone
        spans = [range(first, min(first + self.chunk, body)) for first in range(0, body, self.chunk)]
        return [*spans, range(body, length)] if self.lone else spans

    def count(self, length: int) -> int:
        """How many chunks there are."""
        return -(-(length - self.lone) // self.chunk) + self.lone


def twin(tokens: LinearTokens, start: Tensor, cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (N, T, V), the weights after the last token and those at the start of the last chunk, (N, V, K)."""
    weight, anchor, outputs = start, start, []
    for span in cut.spans(tokens.q.shape[1]):
        part = slice(span.start, span.stop)
        anchor = weight
        y, weight = _chunk(LinearTokens(*(x[:, part] for x in vars(tokens).values())), weight, cut.read)
        outputs.append(y)
    return torch.cat(outputs, 1), weight, anchor


def _chunk(tokens: LinearTokens, weight: Tensor, read: Read) -> tuple[Tensor, Tensor]:
    q, k, u, now, frozen, log = vars(tokens).values()
    total = log.cumsum(-1)
    earlier = total - log
    kept, before = _table(total, total, 0), _table(earlier, total, -1)
    # (I + diag(c) (KKᵀ ⊙ D₋)) P = diag(c β₋ + g) K W₀ᵀ − U
    system = now[..., None] * (k @ k.mT) * before
    target = (now * earlier.exp() + frozen)[..., None] * (k @ weight.mT) - u
    pairs = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
    # W_C = β_C W₀ − Pᵀ (D_C ⊙ K)
    after = total[:, -1, None, None].exp() * weight - pairs.mT @ (kept[:, -1, :, None] * k)
    match read:
        case "start":
            return q @ weight.mT, after
        case "current":
            start, table = total.exp(), kept
        case "before":
            start, table = earlier.exp(), before
    # Y = β ⊙ (Q W₀ᵀ) − (QKᵀ ⊙ D) P
    return start[..., None] * (q @ weight.mT) - ((q @ k.mT) * table) @ pairs, after


def _table(rows: Tensor, columns: Tensor, diagonal: int) -> Tensor:
    """exp(rowsₜ − columnsⱼ) for j ≤ t + diagonal, zero elsewhere"""
    size = rows.shape[-1]
    inside = torch.ones(size, size, dtype=torch.bool, device=rows.device).tril(diagonal)
    return (rows[..., :, None] - columns[..., None, :]).masked_fill(~inside, float("-inf")).exp()
