"""A language model whose levels go on learning from what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from torch import Tensor, nn

from nestling import tree
from nestling.core import Level
from nestling.models.lm import LM
from nestling.nn import LevelRow, State
from nestling.nn.in_context import Context, Writer
from nestling.ops import Path, settled


class InContext(LM):
    """``model`` with weights that each sequence changes for itself: W + Δ, Δ written at each level's period, in tokens.

    It is called as any model, ``(tokens, state) -> (logits, state)``; Δ is in the state, so rows share nothing, any split of a stream
    gives the same, a state can be saved and forked, and ``nl.Session`` reads with it. Documents marked by ``starts`` begin at Δ = 0. The
    parameters are those of ``model`` itself, and a rate of 0 is ``model``. ``lr`` is the rate of the mean gradient of a period
    (η in NL eq. 71 is lr/C), times ``rate`` of each level. A level writes matrices of ``nn.Linear`` whose names it owns;
    what it costs is a backward pass for each chunk, and its matrices once for each row.

    Trained with gradients enabled, the model learns to be written to: first order at ``bptt=1``, through the updates above it.

    Raises:
        NestlingError: a level owns nothing or more than matrices, or periods are no multiples of the fastest.

    >>> import nestling, torch
    >>> model = nestling.build("transformer", dim=32, layers=1, heads=2)
    >>> learner = InContext(model, [Level("fast", period=16, owns="*.channel.*")], lr=0.1)
    >>> logits, state = learner(torch.randint(0, 256, (2, 40)))
    >>> logits.shape, state.chunks.tolist(), state.filled.tolist()
    (torch.Size([2, 40, 256]), [2, 2], [8, 8])
    """

    def __init__(self, model: LM, levels: Sequence[Level], lr: float = 0.1) -> None:
        """``levels``: the first that owns a weight writes it; those with a period of inf write nothing."""
        nn.Module.__init__(self)
        self.config, self.embedding, self.blocks = model.config, model.embedding, model.blocks
        self.norm, self.head = model.norm, model.head
        self._base = (model,)  # in a tuple: its parts are ours already
        self.writer = Writer(model, model.forward, model.initial_state, levels, lr)

    @property
    def base(self) -> LM:
        """The model without what it learns here"""
        return self._base[0]

    def initial_state(self, batch: int) -> Context:
        """The model's own, and Δ = 0"""
        return self.writer.initial_state(batch)

    def forward(
        self, tokens: Tensor, state: State | None = None, valid: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Context]:
        """As ``LM.forward``"""
        state = settled(state)
        self._check(tokens, state, valid, starts)
        return self.writer(tokens, state, valid, starts)

    def frozen(self) -> LM:
        """The model itself with its memories shut: nothing is written"""
        return self.base.frozen()

    def using(self, path: Path) -> InContext:
        """As ``LM.using``"""
        return InContext(self.base.using(path), self.writer.levels, self.writer.lr)

    def levels(self) -> list[LevelRow]:
        """Those of the model, and those that are written here"""
        held = tree.map(lambda leaf: leaf.to("meta"), self.writer.initial_state(1))
        return [
            *self.base.levels(),
            *(
                LevelRow(
                    name=f"context.{level.name}",
                    period=level.period,
                    unit="token",
                    context="tokens of the stream",
                    objective="cross entropy of the next token",
                    rule=repr(level.rule),
                    parameters=sum(leaf.numel() for leaf in written.delta.values()),
                    state_bytes=tree.nbytes(written),
                    transfer=_transfer(level),
                )
                for level, written in zip(self.writer.levels, held.levels, strict=True)
            ),
        ]

    @property
    def spec(self) -> dict[str, Any]:
        """That of the model, and the levels"""
        return {**self.base.spec, "in_context": repr(self.writer.levels), "lr": self.writer.lr}


def _transfer(level: Level) -> str:
    how = {1: "first order", inf: "through all updates"}.get(level.bptt, f"through {level.bptt:g} periods")
    return f"initialisation ({how})"
