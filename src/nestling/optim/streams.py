"""Streams: what a memory of gradients is taught, and what it is asked (NL §4.4). Examples of one step are rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.core.gates import Gates
from nestling.core.rule import Rule, RuleState


class Stream(ABC):
    """A view of one step's gradient as keys, values or queries of a memory."""

    def init(self, weight: Tensor) -> RuleState:
        """What the stream remembers from step to step; nothing, mostly."""
        return ()

    @abstractmethod
    def rows(self, signal: Tensor, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """The examples of a step, (n, width)."""


@dataclass(frozen=True)
class One(Stream):
    """Nothing to tell examples apart by: the 1 of NL eq. 50. As values: ones, as many as there are keys.

    >>> One().rows(torch.zeros(2, 3), (), Gates(), 3)[0]
    tensor([[1., 1., 1.]])
    """

    def rows(self, signal: Tensor, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """(1, width) ones"""
        return signal.new_ones(1, width), state


@dataclass(frozen=True)
class Identity(Stream):
    """The rows of c I, the target P of NL eqs 48 and 52: asked with I, a linear memory answers with all it holds.

    >>> Identity().rows(torch.zeros(2, 3), (), Gates(), 2)[0]
    tensor([[1., 0.],
            [0., 1.]])
    """

    size: float = 1.0

    def rows(self, signal: Tensor, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """(width, width), c I"""
        return self.size * torch.eye(width, dtype=signal.dtype, device=signal.device), state


@dataclass(frozen=True)
class Gradient(Stream):
    """The gradient itself, cut into rows of the width that the memory takes; the last one is filled up with zeros.

    >>> Gradient().rows(torch.arange(6.0).view(2, 3), (), Gates(), 4)[0]
    tensor([[0., 1., 2., 3.],
            [4., 5., 0., 0.]])
    """

    def rows(self, signal: Tensor, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """(⌈numel/width⌉, width)"""
        return cut(signal, width), state


@dataclass(frozen=True)
class Preconditioned(Stream):
    """P(g), a rule's answer to the gradient: the values of NL eqs 46-47. ``by`` may remember (``Adaptive()``).

    >>> from nestling.core import Scale
    >>> Preconditioned(Scale(2.0)).rows(torch.ones(1, 2), (), Gates(), 2)[0]
    tensor([[2., 2.]])
    """

    by: Rule

    def init(self, weight: Tensor) -> RuleState:
        """What the rule remembers"""
        return self.by.init(weight)

    def rows(self, signal: Tensor, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """The rows of P(g)"""
        after, state = self.by.update(signal, state, gates)
        return cut(after, width), state


def cut(tensor: Tensor, width: int) -> Tensor:
    """The entries of a tensor in rows of ``width``, with zeros behind the last one.

    >>> cut(torch.ones(3), 2)
    tensor([[1., 1.],
            [1., 0.]])
    """
    flat = tensor.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % width)).view(-1, width)
