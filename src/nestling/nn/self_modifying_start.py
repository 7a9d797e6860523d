"""How the heads of self-modifying Titans begin. Values only; what they are good for is derived in docs/automata.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nestling.errors import NestlingError


@dataclass(frozen=True)
class Drawn:
    """All heads begin as they were drawn, entries of variance 1/in, gates where their range says."""

    def __call__(self, makers: Any, bias: Any) -> None:
        """Leave them as they are."""


@dataclass(frozen=True)
class Tracking:
    """Some heads begin where a state can be held for ever: ``additive`` ones count, ``reflecting`` ones tell odd from even.

    In an additive head keys lie in the first half of the channels, and what is written along them in the second, which no
    memory reads: v = 2.5 k before its bounds, so that u reaches c (``Within``). Then transitions I + η o kᵀ commute, and writes add
    up as in linear attention, whatever their order. In a reflecting head v is opposite to k, so that a write turns around what
    the key reads. Other heads keep what was drawn, with shorter values. M_α begins at zero: what is kept depends on no token.

    >>> k, v, made = torch.ones(3, 4, 4), torch.zeros(3, 4, 4), torch.ones(3, 1, 4)
    >>> Tracking(1, 1)({"k": {"w1": k}, "v": {"w1": v}, "η": {"w1": made}}, {"η": torch.zeros(3)})
    >>> k[0, :, 0], v[0, :, 0], v[1, 0, 0]
    (tensor([1., 1., 0., 0.]), tensor([2.5000, 2.5000, 0.0000, 0.0000]), tensor(-0.7000))
    """

    additive: int = 2
    reflecting: int = 1
    counting: float = -2.0
    """b of η in additive heads: η = 0.12 of its limit"""
    turning: float = 0.7
    """b of η in reflecting heads: λ = α - η (c - u) is near -1, from where (aa)* is learnt, and not near 0, from where it is not"""

    def __call__(self, makers: Any, bias: Any) -> None:
        """Write the starts into the first heads of the matrices that make k, v, η, …, (H, out, in), and into the bias of η, (H,)."""
        weights = {name: weight["w1"] for name, weight in makers.items()}
        heads, width = weights["k"].shape[:2]
        counts, turns = slice(0, self.additive), slice(self.additive, self.additive + self.reflecting)
        if min(self.additive, self.reflecting) < 0 or turns.stop > heads or width % 2:
            raise NestlingError(
                f"{self!r} is for at least {turns.stop} heads of even width, got {heads} of width {width}: use more heads."
            )
        half = width // 2
        with torch.no_grad():
            weights["v"][self.additive :] *= 0.4
            weights["v"][turns] -= 0.7 * weights["k"][turns]
            weights["k"][counts, half:] = 0
            weights["v"][counts, :half] = 2.5 * weights["k"][counts, :half]
            for each in weights.values():
                each[counts, :, half:] = 0
            if "α" in weights:
                weights["α"].zero_()
            bias["η"][counts] = self.counting
            bias["η"][turns] = self.turning
