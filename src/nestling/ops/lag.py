"""The lag token: a block whose first token may begin a period, and then takes the step of the mirror map (MIRAS eqs 30-32)."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.core import Above, Descend, Gates, Lag, Memory, Omega, Weights

Pairs = tuple[Weights, Weights]
"""(cotangents, inputs) of the one token, (B, H, 1, ·)"""


def lagging(memory: Memory) -> bool:
    """Has this memory a lag token that a block can take?"""
    objective = isinstance(memory.objective, Omega | Above)
    return isinstance(memory.retention, Lag) and isinstance(memory.rule, Descend) and not objective


def opened(
    lag: Lag,
    opens: Tensor | None,
    start: tuple[Weights, Weights],
    pair: Pairs,
    gates: Gates,
    filled: Tensor | None,
) -> tuple[Weights, Weights]:
    """(W, anchor) after the first token of a block, from what they were; ``opens`` (B, H): where a period begins with it."""
    live = None if filled is None else filled[..., 0]
    dual, anchor = {}, {}
    for name, before in start[0].items():
        own = gates.of(name)
        now = Gates(lr=_one(own.lr), retain=_one(own.retain))
        update = -now.lr * (pair[0][name].mT @ pair[1][name])
        after = now.retain * before + update
        if opens is not None:
            after = torch.where(_spread(opens), lag.opened(before, update, now), after)
        dual[name] = after if live is None else torch.where(_spread(live), after, before)
        moves = opens if opens is None or live is None else opens & live
        anchor[name] = start[1][name] if moves is None else torch.where(_spread(moves), dual[name], start[1][name])
    return dual, anchor


def _one(gate: Tensor) -> Tensor:
    """(B, H, 1) or by channel, to what broadcasts against a weight"""
    return gate[:, :, 0] if gate.dim() == 5 else gate[..., None]


def _spread(mark: Tensor) -> Tensor:
    return mark[..., None, None]
