"""How the heads of self-modifying Titans begin. Values only; what they are good for is derived in docs/automata.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.errors import NestlingError


@dataclass(frozen=True)
class Starts:
    """What a start writes into: parameters, heads first, (H, out, in), and biases, (H,)."""

    memory: Tensor
    makers: Mapping[str, Tensor]
    queries: Tensor
    """The rows of the static projection that make each head's queries, or M_q"""
    bias: Mapping[str, Tensor]


@dataclass(frozen=True)
class Drawn:
    """All heads begin as they were drawn, entries of variance 1/in, gates where their range says."""


@dataclass(frozen=True)
class Tracking:
    """Some heads begin where a state can be held for ever: ``additive`` ones count, ``reflecting`` ones tell odd from even.

    In an additive head keys and queries lie in the first half of the channels, and what is written along keys in the second,
    which no memory reads. v = 10 k before its bounds, so that u is at c for every token (``Within``), and the memory begins empty
    along keys. Then transitions I + η o kᵀ commute, writes add up as in linear attention, whatever their order, and what is read is
    the count and nothing else, at its length (``BoundedNorm``). In a reflecting head v is opposite to k, so that a write turns
    around what the key reads. Other heads keep what was drawn, with shorter values. M_α begins at zero: what is kept depends on no
    token.

    >>> k, v, made, bias = torch.ones(3, 4, 4), torch.zeros(3, 4, 4), torch.ones(3, 1, 4), torch.zeros(3)
    >>> starts = Starts(torch.eye(4).repeat(3, 1, 1), {"k": k, "v": v, "η": made}, torch.ones(3, 4, 12), {"η": bias})
    >>> Tracking(1, 1)(starts)
    >>> k[0, :, 0], v[0, :, 0], v[1, 0, 0], starts.memory[0].diagonal()
    (tensor([1., 1., 0., 0.]), tensor([10., 10.,  0.,  0.]), tensor(-0.7000), tensor([0., 0., 1., 1.]))
    """

    additive: int = 3
    reflecting: int = 1
    counting: float = -2.0
    """b of η in additive heads: a step of the count is 0.12 of the limit of η"""
    turning: float = 0.7
    """b of η in reflecting heads: λ = α - η (c - u) is near -1, from where (aa)* is learnt, and not near 0, from where it is not"""

    bound: float = 50.0
    """Up to what r.m.s. readings keep their length (``BoundedNorm``)"""

    def __call__(self, starts: Starts) -> None:
        """Write the starts into the first heads."""
        makers, bias = starts.makers, starts.bias
        heads, width = makers["k"].shape[:2]
        counts, turns = slice(0, self.additive), slice(self.additive, self.additive + self.reflecting)
        if min(self.additive, self.reflecting) < 0 or turns.stop > heads or width % 2:
            raise NestlingError(
                f"{self!r} is for at least {turns.stop} heads of even width, got {heads} of width {width}: use more heads."
            )
        half = width // 2
        with torch.no_grad():
            makers["v"][self.additive :] *= 0.4
            makers["v"][turns] -= 0.7 * makers["k"][turns]
            makers["k"][counts, half:] = 0
            makers["v"][counts, :half] = 10 * makers["k"][counts, :half]
            for each in makers.values():
                each[counts, :, half:] = 0
            starts.queries[counts, half:] = 0
            starts.memory[counts, :half] = 0
            if "α" in makers:
                makers["α"].zero_()
            bias["η"][counts] = self.counting
            bias["η"][turns] = self.turning
