"""What a self-modifying memory is made of: which of its parts are memories, and how they are written. Values only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nestling.core import (
    L2,
    Architecture,
    Beside,
    Chain,
    Decay,
    Delta,
    Descend,
    Matrix,
    Memory,
    Momentum,
    Objective,
    Residual,
    Retention,
    Returning,
    Rule,
)
from nestling.errors import NestlingError
from nestling.nn.norm import unit
from nestling.nn.self_modifying_start import Drawn, Tracking

Component = Literal["q", "k", "v", "η", "α", "β"]
VECTORS, GATES = ("q", "k", "v"), ("η", "α", "β")


@dataclass(frozen=True)
class Exactly:
    """‖v‖ = ``length``: what the memories make their targets from neither grows nor shrinks as they are written."""

    length: float = 1.0

    def __call__(self, v: Tensor, k: Tensor, lr: Tensor) -> Tensor:
        """C v / ‖v‖, whatever the key and the rate"""
        return self.length * unit(v)


@dataclass(frozen=True)
class UpTo:
    """‖v‖ < ``length``, and small values stay as they are: v / √(1 + ‖v‖²/c²).

    >>> v = torch.tensor([[3e-3, 0.0], [3e3, 0.0]])
    >>> UpTo(2.0)(v, k=torch.tensor([0.0, 1.0]), lr=torch.tensor(0.1)).round(decimals=3)
    tensor([[0.0030, 0.0000],
            [2.0000, 0.0000]])
    """

    length: float = 1.0

    def __call__(self, v: Tensor, k: Tensor, lr: Tensor) -> Tensor:
        """V / √(1 + ‖v‖²/c²), whatever the key and the rate"""
        return v * torch.rsqrt(1 + v.square().sum(-1, keepdim=True) / self.length**2)


@dataclass(frozen=True)
class Within:
    """v = u k + o with c - 2/η ≤ u ≤ c and ‖o‖ ≤ ``length``, where v was u k + o: what a write can do to a memory, bounded.

    A write that erases ``erased`` = c times (delta gradient descent with L2: twice) multiplies what the memory holds along the key
    by α - η (c - u). The bounds keep that between α - 2 and α: nothing grows, and both ends can be held exactly, where counting
    (α = 1: M ← M + η M o kᵀ adds up) and telling odd from even (a reflection) take place. That holds token by token (period 1).

    >>> k, v = torch.tensor([1.0, 0.0]), torch.tensor([5.0, 3.0])
    >>> Within()(v, k, torch.tensor(0.5)), Within()(-v, k, torch.tensor(1.0))
    (tensor([2., 1.]), tensor([ 0., -1.]))
    """

    length: float = 1.0
    erased: float = 2.0

    def __call__(self, v: Tensor, k: Tensor, lr: Tensor) -> Tensor:
        """U k + o, for keys of unit length and rates that broadcast against them"""
        along = (v * k).sum(-1, keepdim=True)
        across = v - along * k
        short = (self.length * torch.rsqrt(across.square().sum(-1, keepdim=True) + 1e-12)).clamp(max=1)
        lowest = self.erased - 2 / lr.clamp(min=1e-6)
        return torch.maximum(along, lowest).clamp(max=self.erased) * k + short * across


@dataclass(frozen=True)
class SelfRange:
    """What the generated gates can be: η = lr σ(· + b), b spread evenly over the heads; α = σ(· + retain).

    A period of C tokens takes its gradients at one anchor, and delta gradient descent with L2 erases twice; along a key that
    repeats, the memory comes to rest without overshooting while η C ≲ 0.7 (docs/hope.md derives it). So heads start between
    η C = 0.04 (they remember) and 0.7 (they adapt), less where a momentum adds gradients up. With ``lr`` = 2, η reaches α + 1:
    then a write can turn what a key reads around, which tracking a state needs.

    >>> [round(SelfRange().start(16, share), 2) for share in (0.0, 1.0)]
    [-5.99, -3.08]
    """

    lr: float = 1.0
    slow: float | None = None
    """b of the first head; None: where η C = 0.04"""
    fast: float | None = None
    """b of the last head; None: where η C = 0.7"""
    retain: float = 6.0
    projections: float = 0.1
    """Scale of η and of 1 - α for the memories that make k, v, η and α (1 is the paper; below it trains stably)."""
    momentum: float = 0.0
    """β = σ(· + momentum), where the rule has a momentum without a number of its own"""

    def start(self, period: float, share: float, rest: float = 1.0) -> float:
        """B of the head at ``share`` of the way from slow to fast; ``rest`` is 1 - β."""
        # σ(b) lr C = 0.04 … 0.7, where η has a start at all
        ends = [
            given if given is not None else _logit(min(rate * rest / max(period, 1.0) / max(self.lr, 1e-9), 0.5))
            for given, rate in ((self.slow, 0.04), (self.fast, 0.7))
        ]
        return ends[0] + share * (ends[1] - ends[0])


def _logit(p: float) -> float:
    return math.log(max(p, 1e-6) / (1 - p))


@dataclass(frozen=True)
class SelfForm:
    """The parts of self-modifying Titans: k, v, q and the gates η, α, β, each made by a memory or by a projection that stands still.

    ``adaptive`` are memories, ``static`` are linear maps; q and k and v and η must be among them, α that is in neither is 1
    (nothing is forgotten), β is there where the rule has ``Momentum()``. ``memory`` is the architecture of the one that is read,
    ``projections`` that of k, v and q, ``gates`` that of η, α and β, whose values are one number (so no ``Residual``).
    ``period`` is the clock of those that make k, v, q and gates; None: the one of the main memory. ``read_at="commit"`` reads
    y at the last commit (NL eq. 90 as printed), "current" the running memory.

    >>> SelfForm().without("k").static
    ('q', 'k')
    """

    adaptive: tuple[Component, ...] = ("k", "v", "η", "α")
    static: tuple[Component, ...] = ("q",)
    memory: Architecture = Residual(Matrix())
    projections: Architecture = Residual(Matrix())
    gates: Architecture = Matrix()
    objective: Objective = L2()
    retention: Retention = Returning(Delta())
    rule: Rule = Descend()
    period: float | None = None
    read_at: Literal["current", "commit"] = "current"
    value: Exactly | UpTo | Within = Exactly()
    start: Drawn | Tracking = Drawn()

    def __post_init__(self) -> None:
        given = (*self.adaptive, *self.static)
        needed = {"q", "k", "v", "η"} | ({"β"} if _gated(self.rule) else set())
        unknown, twice = set(given) - {*VECTORS, *GATES}, len(given) - len(set(given))
        if unknown or twice or needed - set(given):
            raise NestlingError(
                f"each of {', '.join(sorted(needed))} is adaptive or static (α may be neither), "
                f"got adaptive={self.adaptive!r}, static={self.static!r}."
            )
        if ("β" in given) != _gated(self.rule):
            raise NestlingError(f"β is the momentum of a rule with Momentum(), got {given!r} with {self.rule!r}.")
        if not self.adaptive:
            raise NestlingError("nothing here modifies itself: name what is adaptive, or take a MemoryLayer.")
        if isinstance(self.start, Tracking):
            self._starts_as_matrices()

    def _starts_as_matrices(self) -> None:
        parts = (self.memory, self.projections, self.gates)
        if parts != (Matrix(),) * 3 or not {"k", "v", "η"} <= set(self.adaptive):
            raise NestlingError(
                "heads begin to count where the memory, k, v and η are matrices that are written, got "
                f"adaptive={self.adaptive!r}, memory and makers {parts!r}: use memory=Matrix(), projections=Matrix()."
            )

    def made(self, width: int) -> Beside:
        """The memories that make keys, values, queries and gates, side by side, for heads of this width."""
        return Beside(
            tuple(
                (name, self.projections, width) if name in VECTORS else (name, self.gates, 1) for name in self.adaptive
            )
        )

    def memories(self, width: int, period: float) -> tuple[Memory, Memory]:
        """The memory that is read, and the memories that make its keys, values and gates."""
        slower = period if self.period is None else self.period
        main = Memory(self.memory, self.objective, self.retention, self.rule, period, self.read_at)
        return main, Memory(self.made(width), self.objective, self.retention, self.rule, slower, "commit")

    def rest(self, ranges: SelfRange) -> float:
        """1 - β before training: what a gradient counts for in all is 1 / (1 - β) of it."""
        decays = (
            [rule.decay for rule in self.rule.rules if isinstance(rule, Momentum)]
            if isinstance(self.rule, Chain)
            else []
        )
        given = [1 / (1 + math.exp(-ranges.momentum)) if decay is None else decay for decay in decays]
        return 1 - max(given, default=0.0)

    def without(self, what: Ablation) -> SelfForm:
        """This form with one of its ideas taken away: the rows of NL table 6 (without CMS is a choice of the recipe)."""
        return _ABLATIONS[what](self)


def joined(made: dict[str, Tensor], static: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each part: what its memory made, what stands still of it, or the sum where there is both.

    >>> joined({"η": torch.ones(1), "k": torch.zeros(1)}, {"η": torch.ones(1)})
    {'η': tensor([2.]), 'k': tensor([0.])}
    """
    both = {**made, **static}
    return {name: made[name] + static[name] if name in made and name in static else both[name] for name in both}


Ablation = Literal["DGD", "momentum", "weight decay", "k", "v", "q"]


def _gated(rule: Rule) -> bool:
    """Does the rule ask the token for its momentum?"""
    return isinstance(rule, Chain) and Momentum() in rule.rules


def _plain(retention: Retention) -> Retention:
    return Returning(Decay()) if isinstance(retention, Returning) else Decay()


def _without_momentum(form: SelfForm) -> SelfForm:
    return replace(
        form,
        rule=Descend(),
        adaptive=tuple(name for name in form.adaptive if name != "β"),
        static=tuple(name for name in form.static if name != "β"),
    )


def _standing(name: Component) -> Callable[[SelfForm], SelfForm]:
    def standing(form: SelfForm) -> SelfForm:
        kept = tuple(each for each in form.adaptive if each != name)
        return replace(form, adaptive=kept, static=(*(each for each in form.static if each != name), name))

    return standing


_ABLATIONS: dict[Ablation, Callable[[SelfForm], SelfForm]] = {
    "DGD": lambda form: replace(form, retention=_plain(form.retention)),
    "momentum": _without_momentum,
    "weight decay": lambda form: replace(
        form,
        adaptive=tuple(name for name in form.adaptive if name != "α"),
        static=tuple(name for name in form.static if name != "α"),
    ),
    "k": _standing("k"),
    "v": _standing("v"),
    "q": _standing("q"),
}
