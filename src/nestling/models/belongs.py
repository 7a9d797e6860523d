"""Whether a state belongs to a model: the paths and shapes of its tensors say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.errors import NestlingError
from nestling.nn import State
from nestling.ops.buffered import Buffered, without_waiting

Shapes: TypeAlias = Sequence[tuple[str, tuple[int, ...]]]
"""The path of each tensor, and its shape without the batch."""


def shapes(state: State) -> Shapes:
    """What the states of a model look like, from one of them.

    >>> import torch
    >>> shapes({"key": torch.zeros(3, 2, 4)})
    [('key', (2, 4))]
    """
    return [(path, tuple(leaf.shape[1:])) for path, leaf in tree.items(state)]


@dataclass(frozen=True)
class Form:
    """What the states of a model are, taken from one of them."""

    example: Any
    """A state with the size of a row in place of each tensor"""
    paths: Shapes

    @classmethod
    def of(cls, state: State) -> Form:
        """That of ``state`` and of others with any number of rows."""
        return cls(tree.map(lambda leaf: leaf.shape[1:], state), shapes(state))


def check(state: State, own: Form, rows: int) -> None:
    """Refuse a state of another model, or of another number of rows, with the first difference named."""
    # Paths take twenty times as long, and every generated token is asked.
    if _like(state, own.example, rows):
        return
    state = without_waiting(state)
    wanted = own.paths
    given = [(path, tuple(leaf.shape)) for path, leaf in tree.items(state)]
    for theirs, (path, shape) in zip_longest(given, wanted, fillvalue=("", ())):
        ours = (path, (rows, *shape))
        if not path:
            raise NestlingError(f"the state is of another model: this one has no {theirs[0]}. {_DO}")
        if theirs[0] != path:
            raise NestlingError(f"the state is of another model: it has no {path}. {_DO}")
        if theirs != ours:
            raise NestlingError(
                f"the state is of another model or batch; first difference: {path} is {theirs[1]} there and {ours[1]} here. {_DO}"
            )


def _like(node: Any, own: Any, rows: int) -> bool:
    """Is this part of a state as it is in the model's own?"""
    kind = type(own)
    if kind is torch.Size:
        return isinstance(node, Tensor) and node.shape == (rows, *own)
    if type(node) is Buffered:
        node = node.written
    if type(node) is not kind:
        return False
    if kind is tuple:
        return len(node) == len(own) and all(_like(a, b, rows) for a, b in zip(node, own, strict=True))
    if kind is dict or is_dataclass(own):
        node, own = (node, own) if kind is dict else (vars(node), vars(own))
        return node.keys() == own.keys() and all(_like(node[name], own[name], rows) for name in own)
    return bool(node == own)


_DO = "Give each row the state that this model returned for it, or none."
