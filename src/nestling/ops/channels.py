"""Gates by channel: each input, or each output, of a weight has a rate and a retention of its own (MIRAS §5.3, GLA).

By outputs, Wₜ = diag(αₜ) Wₜ₋₁ − diag(θₜ) δₜxₜᵀ; by inputs the diagonals stand on the right. Within a block both are tables with one
more dimension, and a weight is still never formed::

    Wₜz [o] = βₜ[o] (W₀z)[o] + Σⱼ Γₜⱼ[o] (xⱼ·z) δⱼ[o]          by outputs
    Wₜz     = W₀(βₜ ⊙ z) + Σⱼ (Σᵢ Γₜⱼ[i] xⱼ[i] z[i]) δⱼ        by inputs
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nestling.core import Gates
from nestling.errors import NestlingError
from nestling.ops.coefficients import KeyTable, ratios
from nestling.ops.fold import through
from nestling.tree import state


@state
class RowTable:
    """Coefficients where each output of the weight forgets and is written at rates of its own; leading dimensions (B, H)."""

    start: Tensor
    """β (..., out, C): of the rows of W₀ in Wₜ"""
    writes: Tensor
    """Γ (..., out, C, C), lower triangular: of the rows of Gⱼ in Wₜ"""


ChannelTable = KeyTable | RowTable


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


def channel_table(gates: Gates, filled: Tensor | None) -> ChannelTable:
    """The table of gradient descent for gates of one weight, of which some are by channel and some (..., C)."""
    by_output = any(wide(gate) and gate.shape[-1] == 1 for gate in (gates.lr, gates.retain))
    lr, retain = (_channels(gate, by_output) for gate in (gates.lr, gates.retain))
    live = None if filled is None else filled[..., None, :]
    start, kept = ratios(retain, live)
    writes = -kept * (lr if live is None else lr * live)[..., None, :]
    channels = max(lr.shape[-2], retain.shape[-2])
    start = start.expand(*start.shape[:-2], channels, -1)
    return RowTable(start, writes) if by_output else KeyTable(start, writes)


def _channels(gate: Tensor, by_output: bool) -> Tensor:
    """(..., channels or 1, C)"""
    if not wide(gate):
        return gate[..., None, :]
    return (gate[..., 0] if by_output else gate[..., 0, :]).mT


def seen(table: ChannelTable, weight: Tensor, pairs: Tensor, inputs: Tensor, z: Tensor) -> Tensor:
    """Wₜ zₜ for tokens z (..., C, in)."""
    if isinstance(table, KeyTable):
        y = through(weight, z * table.start.mT)
        # Σᵢ z[t, i] Γ[i, t, j] x[j, i]
        overlaps = (z.mT[..., :, None] * table.writes * inputs.mT[..., None, :]).sum(-3)
        return y + overlaps @ pairs
    y = table.start.mT * through(weight, z)
    overlaps = (z @ inputs.mT)[..., None, :, :]
    return y + ((overlaps * table.writes) @ pairs.mT[..., None])[..., 0].mT


def folded(table: ChannelTable, weight: Tensor, pairs: Tensor, inputs: Tensor) -> Tensor:
    """W_C"""
    start, writes = table.start[..., -1], table.writes[..., -1, :].mT
    if isinstance(table, KeyTable):
        return start[..., None, :] * weight + pairs.mT @ (writes * inputs)
    return start[..., None] * weight + (writes * pairs).mT @ inputs


def formed(table: ChannelTable, weight: Tensor, pairs: Tensor, inputs: Tensor) -> Tensor:
    """All Wₜ (..., C, out, in)"""
    if isinstance(table, KeyTable):
        # Σⱼ δ[j, o] (Γ[i, t, j] x[j, i])
        written = pairs.mT[..., None, :, :] @ (table.writes * inputs.mT[..., None, :]).movedim(-3, -1)
        return table.start.mT[..., None, :] * weight[..., None, :, :] + written
    written = (table.writes * pairs.mT[..., None, :]).movedim(-3, -2) @ inputs[..., None, :, :]
    return table.start.mT[..., None] * weight[..., None, :, :] + written
