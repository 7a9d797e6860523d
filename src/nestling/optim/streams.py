"""Streams: what a memory of gradients is taught, and what it is asked (NL §§4.1 and 4.4). Examples of one step are rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.core.gates import Gates
from nestling.core.rule import Momentum, Rule, RuleState
from nestling.errors import NestlingError
from nestling.optim.roots import power


@dataclass(frozen=True, eq=False)
class Seen:
    """What one step knows of a weight."""

    gradient: Tensor
    """∂L/∂W"""
    inputs: Tensor | None = None
    """x, (n, in), of the linear layer that the weight is of; only optimizers of layers see them."""
    cotangents: Tensor | None = None
    """δ = ∂ℓ/∂(W x), (n, out), of the loss of each input."""


class Stream(ABC):
    """A view of one step as keys, values or queries of a memory."""

    def init(self, weight: Tensor) -> RuleState:
        """What the stream remembers from step to step; nothing, mostly."""
        return ()

    @abstractmethod
    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """The examples of a step, (n, width)."""


@dataclass(frozen=True)
class One(Stream):
    """Nothing to tell examples apart by: the 1 of NL eq. 50. As values: ones, as many as there are keys.

    >>> One().rows(Seen(torch.zeros(2, 3)), (), Gates(), 3)[0]
    tensor([[1., 1., 1.]])
    """

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """(1, width) ones"""
        return seen.gradient.new_ones(1, width), state


@dataclass(frozen=True)
class Identity(Stream):
    """The rows of c I, the target P of NL eqs 48 and 52: asked with I, a linear memory answers with all it holds.

    >>> Identity().rows(Seen(torch.zeros(2, 3)), (), Gates(), 2)[0]
    tensor([[1., 0.],
            [0., 1.]])
    """

    size: float = 1.0

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """(width, width), c I"""
        return self.size * torch.eye(width, dtype=seen.gradient.dtype, device=seen.gradient.device), state


@dataclass(frozen=True)
class Gradient(Stream):
    """The gradient itself, cut into rows of the width that the memory takes; the last one is filled up with zeros.

    >>> Gradient().rows(Seen(torch.arange(6.0).view(2, 3)), (), Gates(), 4)[0]
    tensor([[0., 1., 2., 3.],
            [4., 5., 0., 0.]])
    """

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """(⌈numel/width⌉, width)"""
        return cut(seen.gradient, width), state


@dataclass(frozen=True)
class Preconditioned(Stream):
    """P(g), a rule's answer to the gradient: the values of NL eqs 46-47. ``by`` may remember (``Adaptive()``).

    >>> from nestling.core import Scale
    >>> Preconditioned(Scale(2.0)).rows(Seen(torch.ones(1, 2)), (), Gates(), 2)[0]
    tensor([[2., 2.]])
    """

    by: Rule

    def init(self, weight: Tensor) -> RuleState:
        """What the rule remembers"""
        return self.by.init(weight)

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """The rows of P(g)"""
        after, state = self.by.update(seen.gradient, state, gates)
        return cut(after, width), state


@dataclass(frozen=True)
class Whitening(Stream):
    """The rows of Hᵖ, with H what ``by`` remembers of g gᵀ: a preconditioner P of the outputs (NL eqs 48 and 111).

    ``by=Momentum(1.0)`` is H = Σ g gᵀ, and p = −¼ Shampoo's factor of one side; p = −½ the inverse root of AdaGrad with
    outer products.

    >>> Whitening(power=-0.5).rows(Seen(torch.diag(torch.tensor([3.0, 0.1]))), torch.zeros(2, 2), Gates(), 2)[0].round(decimals=3)
    tensor([[ 0.3330,  0.0000],
            [ 0.0000, 10.0000]])
    """

    power: float = -0.25
    by: Rule = Momentum(1.0)

    def init(self, weight: Tensor) -> RuleState:
        """What the rule remembers of an (out, out)"""
        return self.by.init(torch.zeros(weight.shape[-2], weight.shape[-2], dtype=weight.dtype, device=weight.device))

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """(out, out), Hᵖ"""
        known, state = self.by.update(seen.gradient @ seen.gradient.mT, state, gates)
        return power(known, self.power), state


@dataclass(frozen=True)
class Fixed(Stream):
    """A constant preconditioner P of the outputs, as the values of NL eq. 48.

    P is rows of numbers, so that the stream is a value. Key i is row i of the gradient, and what it is taught column i of P.

    >>> Fixed(((1.0, 2.0), (0.0, 1.0))).rows(Seen(torch.zeros(2, 3)), (), Gates(), 2)[0]
    tensor([[1., 0.],
            [2., 1.]])
    """

    matrix: tuple[tuple[float, ...], ...]

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """Pᵀ, (width, width)"""
        rows = torch.tensor(self.matrix, dtype=seen.gradient.dtype, device=seen.gradient.device)
        if rows.shape != (width, width):
            raise NestlingError(f"a preconditioner of {width} outputs is ({width}, {width}), got {tuple(rows.shape)}.")
        return rows.mT, state


@dataclass(frozen=True)
class Times(Stream):
    """Another stream, multiplied by a number.

    >>> Times(One(), 0.5).rows(Seen(torch.zeros(2, 3)), (), Gates(), 2)[0]
    tensor([[0.5000, 0.5000]])
    """

    of: Stream
    factor: float

    def init(self, weight: Tensor) -> RuleState:
        """What the stream remembers"""
        return self.of.init(weight)

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """C times its rows"""
        rows, state = self.of.rows(seen, state, gates, width)
        return self.factor * rows, state


@dataclass(frozen=True)
class Input(Stream):
    """The inputs x of the weight's layer: the keys of NL eqs 34-37. Only an optimizer of layers sees them (``GM``).

    >>> Input().rows(Seen(torch.zeros(2, 3), inputs=torch.ones(1, 3)), (), Gates(), 3)[0]
    tensor([[1., 1., 1.]])
    """

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """x, (n, in)"""
        return _layer(self, seen.inputs), state


@dataclass(frozen=True)
class Cotangent(Stream):
    """The cotangents δ = ∂ℓ/∂(W x) of the layer's outputs, one for each input: the values of NL eqs 34-37.

    >>> Cotangent().rows(Seen(torch.zeros(2, 3), torch.ones(1, 3), torch.ones(1, 2)), (), Gates(), 2)[0]
    tensor([[1., 1.]])
    """

    def rows(self, seen: Seen, state: RuleState, gates: Gates, width: int) -> tuple[Tensor, RuleState]:
        """δ, (n, out)"""
        return _layer(self, seen.cotangents), state


def _layer(stream: Stream, rows: Tensor | None) -> Tensor:
    if rows is None:
        raise NestlingError(f"{stream} needs what a layer has seen, and this step has gradients alone: use optim.GM.")
    return rows


def cut(tensor: Tensor, width: int) -> Tensor:
    """The entries of a tensor in rows of ``width``, with zeros behind the last one.

    >>> cut(torch.ones(3), 2)
    tensor([[1., 1.],
            [1., 0.]])
    """
    flat = tensor.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % width)).view(-1, width)
