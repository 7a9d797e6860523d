"""What happens in a state now and then: a memory commits, a segment ends, tokens that waited are written.

A program that adds one token has one form for all tokens. What happens once in a while would have to be in it, and be done for every
token, to be taken or not: a choice between weights costs more than all that a token computes. So the program gets parts of a state as
they are between two events, and whoever runs it does the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import nestling.tree as tree

T = TypeVar("T")

ALWAYS = 2**62
"""More tokens than come"""


class Eventful(ABC):
    """A part of a state that knows when the next event is."""

    @abstractmethod
    def left(self) -> int | None:
        """How many tokens may come before one at which something happens that ``between`` leaves out; None: rows differ."""

    @abstractmethod
    def between(self, quiet: bool) -> Any:
        """What a program for one token gets; ``quiet``: nothing happens at this token."""

    @abstractmethod
    def resumed(self, after: Any) -> Any:
        """This part with what the program made of its ``between``."""


# mypy takes only a concrete class for a kind of node.
_PART: type[Any] = Eventful


def left(state: Any) -> int | None:
    """How many tokens may come before one at which something happens anywhere in ``state``; None: rows differ.

    >>> left({})
    4611686018427387904
    """
    counts = [each.left() for each in tree.nodes(state, _PART)]
    known = [count for count in counts if count is not None]
    return min(known, default=ALWAYS) if len(known) == len(counts) else None


def between(state: T, quiet: bool = False) -> T:
    """``state`` for a program that adds one token to it; ``quiet``: at which nothing happens."""
    return tree.replaced(state, _PART, lambda each: each.between(quiet))


def resumed(before: Any, after: T) -> T:
    """What such a program made of ``between(before)``, as a state."""
    earlier = iter(tree.nodes(before, _PART))
    return tree.replaced(after, _PART, lambda now: next(earlier).resumed(now))
