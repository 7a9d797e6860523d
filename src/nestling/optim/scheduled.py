"""Any optimizer, its weights moved at the frequencies of levels: the continuum memory system in training (NL eqs 71 and 72)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from nestling.core.level import Level
from nestling.errors import NestlingError

_PREFIX = "level_"


class Scheduled(torch.optim.Optimizer):
    """``inner`` moves the weights of a level once in ``period`` steps, by the sum of the gradients since then (NL eq. 71).

    Between two updates the weights and all that ``inner`` remembers of them stay as they are; a period of inf never moves. A
    level with ``reset`` begins anew after so many steps: θ₀ ← θ₀ + carry (θ − θ₀), θ ← θ₀, and what ``inner`` remembers of it
    is forgotten (NL eq. 72). The first level that owns a name has it; what no level owns moves at every step. The groups are
    those of ``inner``; ``state_dict`` holds the state of both. ``Levels`` differs in that each level has a rule of its own.

    Raises:
        NestlingError: a period is no whole number of steps, or a level owns no parameter.

    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    >>> inner = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> optimizer = Scheduled(inner, model.named_parameters(), [Level("slow", period=2, owns="1.*")])
    >>> for parameter in model.parameters():
    ...     _ = torch.nn.init.ones_(parameter); parameter.grad = torch.ones(1, 1)
    >>> optimizer.step(); [round(p.item(), 1) for p in model.parameters()]
    [0.9, 1.0]
    >>> optimizer.step(); [round(p.item(), 1) for p in model.parameters()]
    [0.8, 0.8]
    """

    def __init__(
        self, inner: torch.optim.Optimizer, named: Iterable[tuple[str, Tensor]], levels: Sequence[Level]
    ) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})
        self.levels = _owners(dict(named), levels)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step: gradients are gathered, and levels that are due move."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = {parameter: parameter.grad for parameter in self.levels if parameter.grad is not None}
        after = {parameter: self._gather(parameter, level) for parameter, level in self.levels.items()}
        try:
            self.inner.step()
        finally:
            for parameter, gradient in given.items():
                parameter.grad = gradient
        for parameter, state in after.items():
            if state:
                self.state[parameter] = state
                self._reset(parameter, self.levels[parameter])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, and what ``inner`` has seen beside them"""
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """That of ``inner``; what levels have gathered stands beside it, under names that begin with ``level_``."""
        ours, theirs = super().state_dict(), self.inner.state_dict()
        for number, state in ours["state"].items():
            named = {_PREFIX + name: leaf for name, leaf in state.items()}
            theirs["state"][number] = {**theirs["state"].get(number, {}), **named}
        return theirs

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict()`` gave."""
        ours: dict[int, dict[str, Tensor]] = {}
        theirs: dict[int, dict[str, Tensor]] = {}
        for number, state in state_dict["state"].items():
            for name, leaf in state.items():
                (ours if name.startswith(_PREFIX) else theirs).setdefault(number, {})[name.removeprefix(_PREFIX)] = leaf
        self.inner.load_state_dict({**state_dict, "state": theirs})
        self.param_groups = self.inner.param_groups
        order = [parameter for group in self.param_groups for parameter in group["params"]]
        self.state.clear()
        for number, state in ours.items():
            self.state[order[number]] = {
                name: leaf.detach().to(order[number].device, copy=True) for name, leaf in state.items()
            }

    def _gather(self, parameter: Tensor, level: Level) -> dict[str, Tensor]:
        """Show ``inner`` Σg where the level is due, and nothing where it is not; return the state after the step."""
        gradient, parameter.grad = parameter.grad, None
        if gradient is None or level.period == inf:
            return {}
        state = self.state[parameter] or _begin(parameter, level)
        gathered, phase = state["gathered"] + gradient, state["phase"] + 1
        if int(phase) % int(level.period) == 0:
            # θ ← θ + inner(Σ g) over C steps
            parameter.grad, gathered = gathered, torch.zeros_like(gathered)
        return {**state, "gathered": gathered, "phase": phase}

    def _reset(self, parameter: Tensor, level: Level) -> None:
        state = self.state[parameter]
        if level.reset is not None and int(state["phase"]) % level.reset == 0:
            # θ₀ ← θ₀ + carry (θ - θ₀); θ ← θ₀
            state["initial"] = torch.lerp(state["initial"], parameter, level.carry)
            parameter.copy_(state["initial"])
            self.inner.state.pop(parameter, None)


def _begin(parameter: Tensor, level: Level) -> dict[str, Tensor]:
    begun = {"gathered": torch.zeros_like(parameter), "phase": torch.zeros((), dtype=torch.int64)}
    return begun if level.reset is None else {**begun, "initial": parameter.detach().clone()}


def _owners(named: dict[str, Tensor], levels: Sequence[Level]) -> dict[Tensor, Level]:
    """The level of each parameter that does not simply move at every step."""
    for level in levels:
        if level.period != inf and level.period % 1 != 0:
            raise NestlingError(
                f"level {level.name!r}: along steps a period is a whole number, got {level.period}: use {level.period:.0f}."
            )
        if not any(level.owner(name) for name in named):
            raise NestlingError(f"level {level.name!r} owns no parameter: nothing fits {level.owns!r}.")
    found = {p: next((level for level in levels if level.owner(name)), None) for name, p in named.items()}
    return {p: level for p, level in found.items() if level and (level.period > 1 or level.reset is not None)}
