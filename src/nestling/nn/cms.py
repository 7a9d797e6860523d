"""Continuum memory system: several MLPs, each updated at a frequency of its own (NL §7.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import TypeAlias

import torch
from torch import Tensor, nn

from nestling.core import Level
from nestling.errors import NestlingError
from nestling.nn.mixer import UNMARKED, Mixer
from nestling.nn.mlp import SwiGLU
from nestling.nn.norm import RMSNorm
from nestling.ops import Marks


@dataclass(frozen=True)
class InSequence:
    """y = MLP_k(… MLP_1(x)), and no level ever begins anew (NL eqs 70 and 73)."""


@dataclass(frozen=True)
class Nested:
    """The same chain; a level begins anew at each update of the next slower one (NL eq. 72).

    Its initial state θ₀ is what the slower level learns: θ₀ ← θ₀ + carry (θ − θ₀), then θ ← θ₀. With plain descent that is the
    first-order meta-gradient at ``carry`` times the rate; 0 begins where training began, 1 never begins anew.
    """

    carry: float = 0.5


@dataclass(frozen=True)
class Independent:
    """y = Σ w_s MLP_s(x) with learnt w, all levels beside one another (NL eq. 74)."""


@dataclass(frozen=True)
class Gated:
    """y = Σ g_s(x) MLP_s(x), g = n softmax(W x + b) over the n branches: levels, and ``others`` that are given from outside."""

    others: int = 0


Wiring: TypeAlias = InSequence | Nested | Independent | Gated


class CMS(Mixer):
    """Levels from fast to slow, each an MLP, joined as ``wiring`` says; the norm and the residual around it are the block's.

    Here the levels only read. What updates them stands outside, and knows them by ``schedule``: each has a period, a rule and,
    as ``owns``, the parameters ``chain.<i>.*`` of one MLP. In training a period is counted in steps (``optim.Scheduled``), in a
    context in tokens (``InContext``).

    >>> import torch
    >>> cms = CMS(32, [Level("fast", 1), Level("slow", 8)], wiring=Nested())
    >>> cms(torch.randn(1, 5, 32))[0].shape, cms.schedule[0].reset
    (torch.Size([1, 5, 32]), 8)
    """

    def __init__(self, dim: int, levels: Sequence[Level], expand: float = 4, wiring: Wiring = InSequence()) -> None:
        """``expand``: width of all levels together, as in ``SwiGLU``."""
        super().__init__()
        self.schedule, self.wiring = schedule(levels, wiring), wiring
        self.chain = nn.ModuleList(SwiGLU(dim, expand / len(self.schedule)) for _ in self.schedule)
        beside = isinstance(wiring, Independent | Gated)
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in self.schedule[1:] if not beside)
        self.gain = nn.Parameter(torch.ones(len(self.schedule))) if isinstance(wiring, Independent) else None
        self.gate = nn.Linear(dim, len(self.schedule) + wiring.others) if isinstance(wiring, Gated) else None

    def initial_state(self, batch: int) -> tuple[()]:
        """None needed: levels are written from outside."""
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, tuple[()]]:
        """(B, T, dim) -> (B, T, dim)"""
        if self.gain is not None:
            # y = Σ w_s MLP_s(x)
            return sum(w * mlp(x)[0] for w, mlp in zip(self.gain, self.chain, strict=True)), ()  # type: ignore[return-value]
        if self.gate is not None:
            return self.fused(x), ()
        # h ← h + MLP_s(norm h) from h = x + MLP_1(x), and y = h - x: the block adds x
        y, _ = self.chain[0](x)
        for norm, mlp in zip(self.norms, list(self.chain)[1:], strict=True):
            y = y + mlp(norm(x + y))[0]
        return y, ()

    def fused(self, x: Tensor, *others: Tensor) -> Tensor:
        """The levels and ``others``, each by its part of the gate, which begins at 1 for all on average."""
        assert self.gate is not None
        branches = [mlp(x)[0] for mlp in self.chain] + list(others)
        # y = Σ g_s b_s, g = n softmax(W x + b)
        parts = len(branches) * self.gate(x).softmax(-1)
        return sum(g[..., None] * branch for g, branch in zip(parts.unbind(-1), branches, strict=True))  # type: ignore[return-value]


def schedule(levels: Sequence[Level], wiring: Wiring = InSequence()) -> tuple[Level, ...]:
    """The levels of a system, each the owner of its MLP; in a nested one, each with the reset that the next slower one is.

    Raises:
        NestlingError: no level, equal names, not from fast to slow, or nested periods that are no multiples.

    >>> [(level.name, level.owns) for level in schedule([Level("fast", 1), Level("slow", 8)])]
    [('fast', '*chain.0.*'), ('slow', '*chain.1.*')]
    """
    if not levels:
        raise NestlingError("a continuum memory system needs at least one level, got none: use (Level('fast', 1),).")
    if len({level.name for level in levels}) < len(levels):
        raise NestlingError(f"levels must have different names, got {[level.name for level in levels]}: rename one.")
    periods = [level.period for level in levels]
    if periods != sorted(periods):
        raise NestlingError(f"levels stand from fast to slow, got periods {periods}: sort them.")
    owned = [replace(level, owns=f"*chain.{index}.*") for index, level in enumerate(levels)]
    if isinstance(wiring, Nested):
        for index, (fast, slow) in enumerate(pairwise(owned)):
            if slow.period != inf and slow.period % fast.period:
                raise NestlingError(
                    f"in a nested system a period is a multiple of the faster one, got {slow.period:g} after {fast.period:g}: "
                    f"use {fast.period * 2:g}."
                )
            if slow.period != inf:
                owned[index] = replace(fast, reset=int(slow.period), carry=wiring.carry)
    return tuple(owned)


def levels_of(model: nn.Module) -> list[Level]:
    """The levels of all systems in a model, named after their place, each the owner of its parameters.

    >>> [(level.name, level.owns) for level in levels_of(nn.Sequential(CMS(8, [Level("fast", 1)])))]
    [('0.fast', '0.chain.0.*')]
    """
    return [
        replace(level, name=f"{place}.{level.name}", owns=f"{place}.{level.owns.lstrip('*')}") if place else level
        for place, module in model.named_modules()
        if isinstance(module, CMS)
        for level in module.schedule
    ]
