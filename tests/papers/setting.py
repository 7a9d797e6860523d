"""What the papers' tests share: random problems in float64, and one memory per row and head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Gates, Memory
from nestling.ops import Chunk, Reference, scan

PATHS = [Chunk(), Reference()]


@dataclass(frozen=True)
class Problem:
    """(B, H, T, d) inputs with unit keys and queries; (B, H, T) gates; initial weights (H, out, in)."""

    q: Tensor
    k: Tensor
    v: Tensor
    rate: Tensor
    keep: Tensor
    momentum: Tensor


def problem(length: int, width: int = 4, batch: int = 2, heads: int = 2, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(batch, heads, length, width, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, heads, length, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(), dim=-1) for _ in range(2))
    return Problem(q, k, normal(), uniform(0.05, 0.3), uniform(0.8, 1.0), uniform(0.3, 0.9))


def weights(heads: int, *shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads, *shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5


def each(given: Problem, loop: Callable[[int, Problem], Tensor]) -> Tensor:
    """``loop(head, its (T, ·) inputs) -> (T, d)`` for every row and head, stacked to (B, H, T, d)."""
    rows, heads = given.q.shape[:2]
    parts = (
        torch.stack([loop(h, Problem(*(x[b, h] for x in vars(given).values()))) for h in range(heads)])
        for b in range(rows)
    )
    return torch.stack(list(parts))


def run(memory: Memory, initial: dict[str, Tensor], given: Problem, gates: Gates, path: Any) -> tuple[Tensor, Any]:
    y, state = scan(memory, initial, given.q, given.k, given.v, gates, path=path)
    return y.detach(), tree.detach(state)


def same(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))
