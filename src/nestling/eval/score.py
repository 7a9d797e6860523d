"""What an evaluation finds: the cost of every predicted token, and where in its stream it stood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from nestling.errors import NestlingError
from nestling.stream import Surprisal


@dataclass(frozen=True)
class Bucket:
    """The tokens at positions ``low`` ≤ p < ``high`` of their streams, and what they cost."""

    low: int
    high: int
    surprisal: Surprisal

    @property
    def bits_per_byte(self) -> float:
        """NaN where no token lies."""
        return self.surprisal.bits_per_byte


@dataclass(frozen=True, eq=False)
class Score:
    """One entry for each predicted token, in the order of the text.

    >>> import math, torch
    >>> nats = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) * math.log(2)
    >>> found = Score(nats, sizes=torch.ones(3, dtype=int), positions=torch.tensor([1, 2, 3]))
    >>> round(found.bits_per_byte, 3)
    1.667
    >>> [(bucket.low, bucket.high, bucket.bits_per_byte) for bucket in found.by_position(log_edges(found.length))]
    [(1, 2, 1.0), (2, 4, 2.0)]
    """

    nats: Tensor
    """(N,) float64: −ln p(token | what was read before it)"""
    sizes: Tensor
    """(N,) int64: the bytes that it stands for"""
    positions: Tensor
    """(N,) int64: tokens read before it, in its stream"""

    @property
    def total(self) -> Surprisal:
        """All of it."""
        return self._cost(slice(None))

    @property
    def nats_per_token(self) -> float:
        """The mean negative log likelihood."""
        return self.total.nats_per_token

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return self.total.perplexity

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.total.bits_per_byte

    @property
    def length(self) -> int:
        """Tokens of the longest stream."""
        return int(self.positions.max()) + 1

    def by_position(self, edges: Sequence[int]) -> list[Bucket]:
        """The curve of cost against position: one bucket between each two neighbours of ``edges``.

        Positions outside the edges are in no bucket. ``even_edges`` and ``log_edges`` make edges.
        """
        if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
            raise NestlingError(
                f"edges must be two or more growing positions, got {list(edges)}. Use even_edges or log_edges."
            )
        buckets = []
        for low, high in pairwise(edges):
            inside = (self.positions >= low) & (self.positions < high)
            buckets.append(Bucket(low, high, self._cost(inside)))
        return buckets

    def _cost(self, which: Tensor | slice) -> Surprisal:
        nats = self.nats[which]
        return Surprisal(nats.numel(), int(self.sizes[which].sum()), float(nats.sum()))


def even_edges(length: int, buckets: int) -> list[int]:
    """Edges of at most ``buckets`` buckets of equal width (the last may be narrower) that hold positions 0 to ``length`` − 1.

    >>> even_edges(10, 3)
    [0, 4, 8, 10]
    """
    if length < 1 or buckets < 1:
        raise NestlingError(f"length and buckets must be at least 1, got {length} and {buckets}.")
    width = -(-length // buckets)
    return [*range(0, length, width), length]


def log_edges(length: int) -> list[int]:
    """Edges that double, 1, 2, 4, …, and hold positions 1 to ``length`` − 1; position 0 is never predicted.

    >>> log_edges(10)
    [1, 2, 4, 8, 10]
    """
    if length < 2:
        raise NestlingError(f"length must be at least 2, got {length}.")
    return [*(2**power for power in range((length - 1).bit_length())), length]
