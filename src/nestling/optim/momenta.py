"""Momenta that remember more: preconditioned, delta and deep momentum (NL §4.4). The rate is inside: W ← W + m."""

from __future__ import annotations

from typing import Literal

from nestling.core.architecture import MLP, Constant, Matrix
from nestling.core.gates import Gates
from nestling.core.memory import Memory
from nestling.core.objective import L2, DotProduct
from nestling.core.rule import Adaptive, Rule
from nestling.errors import NestlingError
from nestling.optim.base import Group, Params
from nestling.optim.decay import Decoupled
from nestling.optim.gradient_memory import GradientMemory, readout
from nestling.optim.rules import Normalise
from nestling.optim.streams import Gradient, Identity, One, Preconditioned, Stream, Times


class PreconditionedMomentum(Decoupled):
    """m ← α m − η P(g), W ← W + m: a memory whose values are preconditioned gradients (NL eqs 46-47).

    ``by`` is P, any rule: ``Adaptive()`` divides by the root of the mean square, ``NewtonSchulz()`` is Muon with the
    order of its two parts exchanged.

    >>> import torch
    >>> from nestling.core import Scale
    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = PreconditionedMomentum([weight], lr=0.1, momentum=0.5, by=Scale(2.0))
    >>> for _ in range(2):
    ...     weight.grad = torch.ones(1)
    ...     optimizer.step()
    >>> weight.data  # −0.2 − 0.3
    tensor([-0.5000])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.9,
        by: Rule = Adaptive(),
        weight_decay: float = 0.0,
    ) -> None:
        self.by = by
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def rule(self, group: Group) -> Rule:
        """A memory without keys, of P(g)"""
        return GradientMemory(Memory(Constant(), DotProduct()), One(), Preconditioned(self.by), One())

    def gates(self, group: Group) -> Gates:
        """η and α of the memory"""
        return Gates(lr=float(group["lr"]), retain=group["momentum"])


class DeltaMomentum(Decoupled):
    """m ← m (α − η gᵀg) − η P g, W ← W + m: a momentum that erases what it knew in the direction of g (NL eqs 48-49).

    The memory maps rows of gradients to the columns of P, with ½‖m gᵀ + P‖² as its objective. The erasing is a gradient
    step of that, so that η stands before both terms, and it is stable while η‖g‖² < 1 + α (‖g‖ the largest singular value).
    ``form="paper"`` is eq. 49 as it is printed, without η before gᵀg: it needs ‖g‖² < 1 + α. ``by`` is P: ``Identity()``,
    ``Whitening()`` of the outputs, ``Fixed`` numbers, or any stream with the rows of Pᵀ. Of matrices only.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(1, 2))
    >>> optimizer = DeltaMomentum([weight], lr=0.1, momentum=1.0, form="paper")
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([[1.0, 0.0]])
    ...     optimizer.step()
    >>> weight.data  # the second write replaces the first
    tensor([[-0.2000,  0.0000]])
    """

    needs_matrices = "the momentum is a map from the inputs of a weight to its outputs"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        form: Literal["rated", "paper"] = "rated",
        by: Stream = Identity(),
    ) -> None:
        if form not in ("rated", "paper"):
            raise NestlingError(f"form must be 'rated' or 'paper', got {form!r}: use one of them.")
        self.by = by
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "form": form})

    def rule(self, group: Group) -> Rule:
        """A linear memory under L2, from rows of gradients to P"""
        values = Times(self.by, float(group["lr"])) if group["form"] == "paper" else self.by
        return GradientMemory(Memory(Matrix(), L2()), Gradient(), values, Identity())

    def gates(self, group: Group) -> Gates:
        """α of the memory, and its rate: η, or 1 where η is in the values"""
        return Gates(lr=1.0 if group["form"] == "paper" else float(group["lr"]), retain=group["momentum"])


class DeepMomentum(Decoupled):
    """W ← W + m(g), m ← α m − η ∇ℓ(m; g): a momentum that is a network over gradients, DMGD (NL eq. 50).

    Gradients are cut into rows of ``width``, and one MLP per weight reads them all: its size, width² · 2 · ``expand``, does
    not grow with the weight. By default its keys are gradients of unit root mean square and its values gradients: what comes
    out is −Σ η αᵃᵍᵉ gₛ ⟨φ(gₛ), φ(g)⟩, past gradients weighed by how they resemble this one. Only the last layer forgets:
    a first layer that shrinks with α is soon nothing.

    ``form="paper"`` is eq. 50 as it is printed: the key is g as it is, the value is 1, and all of m forgets. Its answer is
    no direction of descent in general (for a linear m it is −Σ η αᵃᵍᵉ 1 ⟨gₛ, g⟩), so it is there to be studied.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = DeepMomentum([weight], lr=0.1, width=4)
    >>> weight.grad = weight.detach().clone(); optimizer.step()
    >>> bool((weight < 1).all())
    True
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        width: int = 64,
        memory: Memory = Memory(MLP(expand=2, depth=2), DotProduct()),
        form: Literal["similar", "paper"] = "similar",
    ) -> None:
        if form not in ("similar", "paper"):
            raise NestlingError(f"form must be 'similar' or 'paper', got {form!r}: use one of them.")
        self.memory = memory
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "width": width, "form": form}
        super().__init__(params, defaults)

    def rule(self, group: Group) -> Rule:
        """A deep memory from gradients to gradients, or to 1"""
        width = group["width"]
        if group["form"] == "paper":
            return GradientMemory(self.memory, Gradient(), One(), Gradient(), width)
        unit = Preconditioned(Normalise(width**-0.5))  # rows of unit length, on average
        return GradientMemory(self.memory, unit, Gradient(), unit, width)

    def gates(self, group: Group) -> Gates:
        """η, and α of the weights that forget"""
        rate, kept = float(group["lr"]), float(group["momentum"])
        if group["form"] == "paper":
            return Gates(lr=rate, retain=kept)
        shapes = self.memory.architecture.shapes(1, 1)
        last = readout(self.memory.architecture)
        return Gates(lr=rate, retain={name: kept if name == last else 1.0 for name in shapes})
