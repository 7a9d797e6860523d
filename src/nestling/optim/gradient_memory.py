"""A rule made of a memory: momentum, preconditioned, delta and deep momentum are one expression each (NL §4.4)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.core.architecture import MLP, Architecture, Constant, GatedMLP, Matrix
from nestling.core.gates import Gates
from nestling.core.memory import Memory, MemoryState
from nestling.core.retention import Decay, Delta
from nestling.core.rule import Rule, RuleState
from nestling.errors import NestlingError
from nestling.optim.streams import Gradient, Identity, One, Seen, Stream


@dataclass(frozen=True)
class GradientMemory(Rule):
    """The update of a weight, as what a memory of its gradients answers (NL eqs 33-37 and 46-52)::

        m ← decay(m) + rule(Σ ∇ℓ(m; key, −value)),     ΔW = m(query)

    The memory is taught the negative of ``value``, since its answer is added to the weight; the rate is in the memory
    (``gates.lr``, with α = ``gates.retain``), as in the paper. All keys of a step are written at once, at the same m. Weights
    of one shape are written as one batch (``torch.vmap``), so that rules inside may not branch on values.
    How wide a memory is follows from the streams: a key ``One()`` has one entry, and its value is the whole gradient;
    ``Identity()`` makes the memory a map between the two sides of the weight; otherwise gradients are cut into rows of
    ``width`` (None: the weight's last side), so that a deep memory does not grow with the weight. All begin at m(·) = 0;
    ``seed`` draws the inner weights of a deep one.

    ============== ==================================== ================== ===================== ============ ==========
    momentum       ``Memory(Constant(), DotProduct())`` key ``One()``      value ``Gradient()``  ``One()``    eqs 33, 34
    preconditioned ``Memory(Constant(), DotProduct())`` key ``One()``      ``Preconditioned(P)`` ``One()``    eqs 46, 47
    delta          ``Memory(Matrix(), L2())``           key ``Gradient()`` value ``Identity()``  ``Identity`` eqs 48, 49
    deep (DMGD)    ``Memory(MLP(), DotProduct())``      key ``Gradient()`` value ``One()``       ``Gradient`` eq. 50
    generalised    ``Memory(Matrix(), L2())``           key ``Input()``    value ``Cotangent()`` ``Identity`` eqs 35-37
    ============== ==================================== ================== ===================== ============ ==========

    >>> from nestling.core import Constant, DotProduct
    >>> rule = GradientMemory(Memory(Constant(), DotProduct()))
    >>> state, gates = rule.init(torch.zeros(1, 2)), Gates(lr=0.1, retain=0.5)
    >>> _, state = rule.update(torch.ones(1, 2), state, gates)
    >>> rule.update(torch.ones(1, 2), state, gates)[0]  # −0.5 · 0.1 − 0.1
    tensor([[-0.1500, -0.1500]])
    """

    memory: Memory
    key: Stream = One()
    value: Stream = Gradient()
    query: Stream = One()
    width: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise NestlingError(f"width must be a number of entries ≥ 1, got {self.width}: use 64.")
        if isinstance(self.query, One) != isinstance(self.key, One):
            raise NestlingError(
                f"key {self.key} and query {self.query} must both be One() or neither: what has no key is asked without one."
            )
        readout(self.memory.architecture)

    def init(self, weight: Tensor) -> RuleState:
        """The memory, and what the streams remember"""
        architecture, generator = self.memory.architecture, torch.Generator().manual_seed(self.seed)
        drawn = architecture.init(*self._sides(weight), generator=generator)
        drawn[readout(architecture)].zero_()
        weights = {name: part.to(weight.device, weight.dtype) for name, part in drawn.items()}
        streams = tuple(stream.init(weight) for stream in (self.key, self.value, self.query))
        return self._kept(self.memory.init(weights)), streams

    def update(self, signal: Tensor, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """One write, then one read"""
        return self.step(Seen(signal), state, gates)

    def step(self, seen: Seen, state: RuleState, gates: Gates) -> tuple[Tensor, RuleState]:
        """``update`` with what a layer has seen beside its gradient: ``Input`` and ``Cotangent`` ask for it"""
        memory, streams = self._whole(state[0]), state[1]
        keys, values = self._sides(seen.gradient)
        key, first = self.key.rows(seen, streams[0], gates, keys)
        value, second = self.value.rows(seen, streams[1], gates, values)
        memory = self.memory.write(memory, key, -value.expand(key.shape[0], values), gates)
        answer, third = self._answer(memory, seen, streams[2], gates, keys)
        return answer, (self._kept(memory), (first, second, third))

    def _answer(self, memory: MemoryState, seen: Seen, state: RuleState, gates: Gates, keys: int) -> tuple[Tensor, Any]:
        match self.query, self.memory:
            case Identity(size), Memory(Matrix(), retention=Decay() | Delta(), read_at="current"):
                return size * memory.dual["w1"], state  # W I = W
            case _:
                query, state = self.query.rows(seen, state, gates, keys)
                read = self.memory.read(memory, query)
                read = read.mT if isinstance(self.query, Identity) else read  # its row i is what is known of input i
                return read.reshape(-1)[: seen.gradient.numel()].view(seen.gradient.shape), state

    def _kept(self, state: MemoryState) -> MemoryState:
        """What has to be remembered: with period 1 the anchor is the weights before the next write."""
        nothing: Any = ()
        return dataclasses.replace(state, anchor={}, phase=nothing) if self.memory.period == 1 else state

    def _whole(self, kept: MemoryState) -> MemoryState:
        if self.memory.period != 1:
            return kept
        full = torch.ones((), dtype=torch.int64, device=next(iter(kept.dual.values())).device)
        return dataclasses.replace(kept, anchor=kept.dual, phase=full)  # a period is full: the write moves the anchor

    def _sides(self, weight: Tensor) -> tuple[int, int]:
        """Entries of a key and of a value."""
        match self.key, self.query:
            case One(), _:
                return 1, weight.numel()
            case _, Identity():
                if weight.dim() != 2:
                    raise NestlingError(
                        f"a memory from one side of a weight to the other needs a matrix, got shape {tuple(weight.shape)}: use query=Gradient()."
                    )
                return weight.shape[1], weight.shape[0]
            case _:
                width = self.width or (weight.shape[-1] if weight.dim() else 1)
                return width, width


def readout(architecture: Architecture) -> str:
    """The weight that an answer is linear in: a memory in which it is 0 answers 0.

    >>> from nestling.core import MLP
    >>> readout(MLP(depth=3))
    'w3'
    """
    match architecture:
        case Constant() | Matrix():
            return "w1"
        case MLP(depth=depth):
            return f"w{depth}"
        case GatedMLP():
            return "w2"
        case _:
            raise NestlingError(
                f"a memory of gradients must be able to begin with the answer 0, and {architecture} is not: use Matrix(), MLP() or GatedMLP()."
            )
