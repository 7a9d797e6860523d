"""What every layer of Nestling is: ``(x, state) -> (y, state)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nestling.core import Memory, MemoryState
from nestling.ops import Marks
from nestling.tree import nbytes

State = Any
"""A tree of tensors (see ``nestling.tree``), each with the batch as its first dimension."""

UNMARKED = Marks()


@dataclass(frozen=True)
class LevelRow:
    """One component of a nested system: who is updated, how often, from what, and how (NL definitions 2 and 3)."""

    name: str
    period: float
    """Units of time between updates; inf for what is never updated."""
    unit: str
    """"token" for what is written inside the forward pass, "step" for what the outer loop trains."""
    context: str
    """The context flow: what the component compresses."""
    objective: str
    rule: str
    parameters: int
    """Numbers that are updated (for each sequence where the unit is a token)."""
    state_bytes: int
    """Bytes that one sequence carries for it."""
    transfer: str
    """How knowledge reaches it from the other levels (NL §3.3): direct, backpropagation, initialisation, generation."""
    depth: int = 0
    """Of two with the same frequency, the state of the deeper one needs that of the other (≻ in NL definition 2)."""
    level: int = 0
    """The number of its level, 1 the fastest; ``describe`` counts."""

    @staticmethod
    def of_memory(
        name: str, memory: Memory, held: MemoryState, context: str, transfer: str, carried: State = None
    ) -> LevelRow:
        """A memory written along tokens; ``held``: its state for one sequence; ``carried``: all that is carried for it, if more."""
        return LevelRow(
            name=name,
            period=memory.period,
            unit="token",
            context=context,
            objective=repr(memory.objective),
            rule=f"{memory.retention!r}, {memory.rule!r}",
            parameters=sum(weight.numel() for weight in held.dual.values()),
            state_bytes=nbytes(held if carried is None else carried),
            transfer=transfer,
        )


class Mixer(nn.Module, ABC):
    """A causal layer with explicit state. Calling it twice with the same arguments gives the same answer.

    The laws (tests/laws): any split of a stream gives the same outputs and the same final state; changing a token changes no
    output before it; rows of a batch share nothing; padding changes no state. Padding stands at the right end of a row
    (``LM`` moves it there).
    """

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """The state before the first token of ``batch`` sequences."""

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, State]:
        """``x`` (B, T, D) -> y (B, T, D), and the state to go on from. ``state=None`` begins a sequence."""

    def levels(self) -> list[LevelRow]:
        """What inside this layer is updated while it reads; nothing by default."""
        return []
