"""What an objective remembers of earlier tokens, block by block: the pairs of a window, a running threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nestling.core import Gates, Memory, Omega, Pairs, Weights, linear
from nestling.ops.coefficients import Table

Examples = tuple[Tensor, Tensor, Tensor | float]
"""Keys and values (B, H, n, ·), and thresholds that broadcast against the values"""


def extended(memory: Memory, held: Any, key: Tensor, value: Tensor, gates: Gates) -> Pairs | None:
    """The pairs of the window before a block, then those of the block; None without a window."""
    if not isinstance(memory.objective, Omega):
        return None
    return held[0].then(Pairs(key, value, gates.share, gates.threshold.clamp(max=torch.finfo(key.dtype).max)))


def examples(memory: Memory, held: Any, pairs: Pairs | None, key: Tensor, value: Tensor, gates: Gates) -> Examples:
    """What a block takes gradients of."""
    seen = (key, value, gates.threshold) if pairs is None else (pairs.key, pairs.value, pairs.threshold)
    threshold = memory.objective.bound(held, seen[2])
    return *seen[:2], threshold[..., None] if isinstance(threshold, Tensor) else threshold


def band(window: int, size: int, filled: Tensor | None, like: Tensor) -> Tensor:
    """Which of the window − 1 pairs before a block and of its ``size`` slots a slot's write sees: (..., C, window − 1 + C).

    >>> band(2, 3, None, torch.zeros(1))
    tensor([[1., 1., 0., 0.],
            [0., 1., 1., 0.],
            [0., 0., 1., 1.]])
    """
    before = torch.arange(1 - window, 0, device=like.device)
    if filled is None:
        rank = torch.arange(size, device=like.device)
        live = torch.ones_like(rank, dtype=torch.bool)
    else:
        rank, live = filled.cumsum(-1) - 1, filled
    known = torch.cat((before.expand(*rank.shape[:-1], -1), rank), -1)[..., None, :]
    there = torch.cat((torch.ones_like(before, dtype=torch.bool).expand(*rank.shape[:-1], -1), live), -1)[..., None, :]
    now = rank[..., None]
    return (there & live[..., None] & (known <= now) & (known > now - window)).to(like.dtype)


def banded(table: Table, window: int, filled: Tensor | None) -> Table:
    """The table of writes that see ``window`` pairs each: Γₜᵢ = Σₙ Γₜₙ [i in the window of n]."""
    seen = band(window, table.writes.shape[-1], filled, table.writes)
    trace = None if table.trace_writes is None else (table.trace_writes[..., None, :] @ seen)[..., 0, :]
    return replace(table, writes=table.writes @ seen, trace_writes=trace)


def remembered(
    memory: Memory, anchor: Weights, held: Any, pairs: Pairs | None, tokens: tuple[Tensor, Tensor, Gates, Tensor | None]
) -> Any:
    """What the objective remembers after a block of ``tokens``: keys, values, gates, and which slots are filled."""
    key, value, gates, filled = tokens
    after = memory.objective.learn(held, losses(memory, anchor, key, value, gates), filled)
    if pairs is None or not isinstance(memory.objective, Omega):
        return after
    count, keep = pairs.share.shape[-1], memory.objective.window - 1
    index = torch.arange(count, device=key.device).expand(pairs.share.shape)
    if filled is not None:
        # Empty slots to the left, the order of the others kept; the newest pairs are then the last.
        live = torch.cat((torch.ones_like(index[..., :keep], dtype=torch.bool), filled), -1)
        index = torch.sort(live.long(), dim=-1, stable=True).indices
    return pairs.at(index[..., count - keep :]), after[1]


def losses(memory: Memory, weights: Weights, key: Tensor, value: Tensor, gates: Gates) -> Tensor:
    """ℓ(M(W, k), v) (..., C) for tokens (..., C, ·) that share ``weights``: how surprising each is, written or not."""
    prediction = memory.architecture(linear(weights), key)
    threshold = gates.threshold[..., None] if isinstance(gates.threshold, Tensor) else gates.threshold
    return memory.objective.raw()(prediction, value, threshold)
