"""A token that comes alone as one compiled program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.errors import NestlingError
from nestling.models import LM, InContext
from nestling.nn import State, buffered
from nestling.ops.compiled import compiled
from nestling.ops.events import between, left, resumed


class Program:
    """``model`` without gradients, for streams that grow by single tokens: it compiles the model for one, at the first.

    What is written is the same, to rounding. Several tokens at once, padding and starts of documents are the model's own, and so are tokens at
    which a memory commits or a segment ends. Compiling takes a minute or more, once for each number of rows, and needs a C++ compiler on a
    processor. The state that it made last is kept until the next token.

    Raises:
        NestlingError: the model's levels learn in context.

    >>> import nestling
    >>> model = nestling.build("titans_lmm", dim=32, layers=1, heads=2)
    >>> read = Program(model)
    >>> logits, state = read(torch.tensor([[1, 2, 3]]))
    >>> logits.shape
    torch.Size([1, 3, 256])
    """

    def __init__(self, model: LM, backend: Any = "inductor") -> None:
        """``backend``: torch.compile's."""
        if isinstance(model, InContext):
            raise NestlingError(
                "a model whose levels learn in context writes at some tokens and not at others, and has no one program: "
                "give its base, or read without compiling."
            )
        self.model = model
        self._last: tuple[State, int | None] | None = None

        def one(token: Tensor, state: State) -> tuple[Tensor, State]:
            logits, after = model(token, state)
            return logits, tree.map(torch.Tensor.contiguous, after)

        self._one = compiled(one, backend=backend)

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, state: State | None = None, valid: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """As the model is called; the state may have tokens that wait."""
        last, self._last = self._last, None
        if state is None or tokens.shape[1] > 1 or valid is not None or starts is not None:
            return self.model(tokens, state, valid, starts)
        if last is not None and last[0] is state:
            # It is known what this program has made itself.
            count = last[1]
        else:
            state = _laid_out(buffered(state))
            count = left(state)
        if count == 0:
            return self.model(tokens, state)
        logits, after = self._one(tokens, between(state, quiet=count is not None))
        after = resumed(state, after)
        self._last = after, None if count is None else count - 1
        return logits, after


def _laid_out(state: State) -> State:
    """In the one layout that a program is made for, and no tensor twice: other layouts, and other twins, would be other programs."""
    seen: set[int] = set()

    def own(leaf: Tensor) -> Tensor:
        twin = id(leaf) in seen
        seen.add(id(leaf))
        return (leaf.detach() if twin else leaf).contiguous()

    return tree.map(own, state)
