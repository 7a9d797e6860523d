"""Weights that are updated at different frequencies: the levels of a nested system, along steps (NL §7.1, eq. 71)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from nestling.core.level import Level
from nestling.core.rule import Every, Rule
from nestling.errors import NestlingError
from nestling.optim.base import Group, Optimizer


class Levels(Optimizer):
    """Each level has a rule and a period C: its weights move once in C steps, by rule(Σ of their C gradients) (NL eq. 71).

    Parameters come with names; the first level that owns a name has it. A level with ``period=inf`` never moves. A group of
    the optimizer is a level, with a rate of its own: ``optimizer.param_groups[i]["lr"]``.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    >>> levels = [Level("fast", period=1, owns="0.*"), Level("slow", period=2, owns="*")]
    >>> optimizer = Levels(model.named_parameters(), levels, lr=0.1)
    >>> for parameter in model.parameters():
    ...     parameter.data.fill_(1.0); parameter.grad = torch.ones(1, 1)
    tensor([[1.]])
    tensor([[1.]])
    >>> optimizer.step(); [round(p.item(), 1) for p in model.parameters()]
    [0.9, 1.0]
    >>> optimizer.step(); [round(p.item(), 1) for p in model.parameters()]
    [0.8, 0.8]
    """

    def __init__(self, params: Iterable[tuple[str, Tensor]], levels: Sequence[Level], lr: float = 1e-3) -> None:
        self.levels = {level.name: level for level in levels}
        if len(self.levels) < len(levels):
            raise NestlingError(
                f"levels must have different names, got {[level.name for level in levels]}: rename one."
            )
        for level in levels:
            if level.reset is not None or (level.period != math.inf and level.period % 1 != 0):
                raise NestlingError(
                    f"level {level.name!r}: along steps a period is a whole number and nothing is reset, got period={level.period}, "
                    f"reset={level.reset}: use reset=None."
                )
        owned: dict[str, list[tuple[str, Tensor]]] = {}
        for name, parameter in params:
            owner = next((level.name for level in levels if level.owner(name)), None)
            if owner is None:
                raise NestlingError(f"no level owns {name!r}: end the levels with one of owns='*', or leave it out.")
            owned.setdefault(owner, []).append((name, parameter))
        groups = [
            {"params": owned[level.name], "level": level.name, "period": level.period}
            for level in levels
            if level.name in owned
        ]
        super().__init__(groups, {"lr": lr})

    def rule(self, group: Group) -> Rule:
        """That of the level, once in a period"""
        rule = self.levels[group["level"]].rule
        return rule if group["period"] == 1 else Every(group["period"], rule)

    def _write(self, parameters: list[Tensor], group: Group) -> None:
        if group["period"] != math.inf:
            super()._write(parameters, group)
