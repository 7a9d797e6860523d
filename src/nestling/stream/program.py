"""A token that comes alone as one compiled program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nestling.errors import NestlingError
from nestling.models import LM, InContext
from nestling.nn import State, buffered
from nestling.ops.buffered import Buffered, emptied, joined
from nestling.tree import map as tree_map
from nestling.tree import nodes


class Program:
    """``model`` without gradients, for streams that grow by single tokens: it compiles the model for one, at the first.

    What is written is the same, to rounding. Several tokens at once, padding and starts of documents are the model's own. Compiling takes a
    minute or more, once for each number of rows, and needs a C++ compiler on a processor.

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
        self._one: Any = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, state: State | None = None, valid: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """As the model is called; the state may have tokens that wait."""
        if state is None or tokens.shape[1] > 1 or valid is not None or starts is not None:
            return self.model(tokens, state, valid, starts)
        state = buffered(state)
        if any(held.room == 0 for held in nodes(state, Buffered)):
            # Which of them may wait is seen at the first token.
            return self.model(tokens, state)
        # The same layout whatever made the state: another one would be another program.
        given = tree_map(torch.Tensor.contiguous, emptied(state))
        logits, after = self._one(tokens, given)
        return logits, joined(state, after)
