"""Gates by channel: each input, or each output, of a weight has a rate and a retention of its own (MIRAS §5.3, GLA).

By outputs, Wₜ = diag(αₜ) Wₜ₋₁ − diag(θₜ) δₜxₜᵀ; by inputs the diagonals stand on the right. What was written at token j is in the
weights after token t by exp(Lₜ − Lⱼ) θⱼ, with L the cumulated log α of a channel. That is a product of a factor of t and one of j, so
that in a block it goes into the vectors, and a weight is still never formed::

    Wₜz = βₜ ⊙ W₀z + aₜ ⊙ Σⱼ (xⱼ·z) (bⱼ ⊙ δⱼ)                 by outputs
    Wₜz = W₀(βₜ ⊙ z) + Σⱼ ((bⱼ ⊙ xⱼ)·(aₜ ⊙ z)) δⱼ             by inputs
    aₜ = exp(Lₜ + c),  bⱼ = −θⱼ exp(−c − Lⱼ)

The constant c and the least gate that is told from zero keep both factors within the numbers of the type. (A c made from the block's
own L would have room for more, and would let the rounding of a token depend on later ones.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nestling.core import Gates
from nestling.errors import NestlingError
from nestling.ops.fold import through
from nestling.tree import state

BLOCK = 16
"""The most tokens of a block with such gates."""


@state
class ChannelTable:
    """Factors of the channels of one weight in one block, each (B, H, C, channels, or 1 where all are alike), or (B, H, n, C, ·)."""

    start: Tensor
    """β: of W₀ in Wₜ"""
    after: Tensor
    """a: of what was written, at t"""
    before: Tensor
    """b: of what is written, at j"""
    by_output: bool


def wide(gate: Any, dims: int = 5) -> bool:
    """Is it a gate by channel, (B, H, C, 1, in) or (B, H, C, out, 1)? ``dims=6`` asks of those of all blocks."""
    return isinstance(gate, Tensor) and gate.dim() == dims


def by_channel(gates: Gates, dims: int = 5) -> bool:
    """Is any gate by channel?"""
    each = (gates.lr, gates.retain, gates.momentum)
    return any(wide(one, dims) for gate in each for one in (gate.values() if isinstance(gate, dict) else (gate,)))


def sided(name: str, gate: Tensor, weight: Tensor) -> Tensor:
    """A gate (B, H, T, channels) so that it broadcasts against the weight, over its narrower side: its outputs, if both are as wide."""
    out, width = weight.shape[-2:]
    if gate.shape[-1] != min(out, width):
        raise NestlingError(
            f"gate {name} has {gate.shape[-1]} channels: give {min(out, width)}, the narrower side of ({out}, {width})."
        )
    return gate[..., None] if out <= width else gate[..., None, :]


def channel_table(gates: Gates, filled: Tensor | None, dims: int = 5) -> ChannelTable:
    """The table of gradient descent for gates of one weight, of which some are by channel and some (..., C)."""
    by_output = any(wide(gate, dims) and gate.shape[-1] == 1 for gate in (gates.lr, gates.retain))
    lr, retain = (_channels(gate, by_output, dims) for gate in (gates.lr, gates.retain))
    # exp(±80) is a float32, and 16 tokens of exp(-7.5) are exp(-120); exp(±480) is a float64.
    least, middle = (-7.5, 40.0) if retain.dtype == torch.float32 else (-30.0, 0.0)
    log = retain.clamp_min(math.exp(least)).log()
    if filled is not None:
        log, lr = torch.where(filled[..., None], log, torch.zeros_like(log)), lr * filled[..., None]
    total = log.cumsum(-2)
    # exp(L + c) in three factors: a sum with c would round L as coarsely as c.
    half, inverse, centre = (0.5 * total).exp(), (-0.5 * total).exp(), math.exp(middle)
    return ChannelTable(total.exp(), half * centre * half, -lr * (inverse / centre * inverse), by_output)


def _channels(gate: Tensor, by_output: bool, dims: int) -> Tensor:
    """(..., C, channels or 1)"""
    if not wide(gate, dims):
        return gate[..., None]
    return gate[..., 0] if by_output else gate[..., 0, :]


def seen(table: ChannelTable, weight: Tensor, pairs: Tensor, inputs: Tensor, z: Tensor) -> Tensor:
    """Wₜ zₜ for tokens z (..., C, in)."""
    if table.by_output:
        written = (z @ inputs.mT).tril() @ (table.before * pairs)
        return table.start * through(weight, z) + table.after * written
    overlaps = (table.after * z) @ (table.before * inputs).mT
    return through(weight, table.start * z) + overlaps.tril() @ pairs


def folded(table: ChannelTable, weight: Tensor, pairs: Tensor, inputs: Tensor) -> Tensor:
    """W_C"""
    start, after = table.start[..., -1, :], table.after[..., -1, :]
    if table.by_output:
        return start[..., None] * weight + after[..., None] * ((table.before * pairs).mT @ inputs)
    return start[..., None, :] * weight + after[..., None, :] * (pairs.mT @ (table.before * inputs))
