"""Levels: components ordered by how often they are updated (NL definition 2)."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf

from nestling.core.rule import Descend, Rule
from nestling.errors import NestlingError


@dataclass(frozen=True)
class Level:
    """A set of weights that is updated once every ``period`` units of time (tokens inside a model, steps outside).

    ``owns`` is a glob over names of parameters; ``reset`` is the number of units after which the level begins anew
    (None: never), and ``carry`` the part of what it has learnt by then that its initial state keeps (NL eq. 72). ``rate`` is times
    the rate of all levels; ``bptt`` the number of its periods that an outer gradient spans: 1 is first order, inf goes through every
    update (NL figure 5). The frequency of a level is 1 / period.

    >>> level = Level("slow", period=512, owns="blocks.*.cms.1.*")
    >>> level.owner("blocks.3.cms.1.up.weight"), level.frequency
    (True, 0.001953125)
    """

    name: str
    period: float
    rule: Rule = Descend()
    owns: str = "*"
    reset: int | None = None
    carry: float = 0.0
    rate: float = 1.0
    bptt: float = 1

    def __post_init__(self) -> None:
        if not self.period >= 1:
            raise NestlingError(f"level {self.name!r}: period is a number of units ≥ 1 or inf, got {self.period}.")
        if not (self.bptt >= 1 and (self.bptt == inf or self.bptt % 1 == 0)):
            raise NestlingError(f"level {self.name!r}: bptt is a number of periods ≥ 1 or inf, got {self.bptt}.")
        if self.reset is not None and not (self.reset >= self.period and self.reset % self.period == 0):
            raise NestlingError(
                f"level {self.name!r}: reset is a multiple of the period {self.period:g}, got {self.reset}: use {2 * self.period:g}."
            )

    @property
    def frequency(self) -> float:
        """Updates per unit of time."""
        return 1 / self.period

    def owner(self, parameter: str) -> bool:
        """Does this level own the parameter of that name?"""
        return fnmatchcase(parameter, self.owns)
