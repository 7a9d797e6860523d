"""Kernels over many weights: each is the rule of the core, weight by weight."""

from __future__ import annotations

import pytest
import torch
import torch.utils._pytree as pytree

from nestling import tree
from nestling.core import (
    L2,
    MLP,
    Adaptive,
    Chain,
    Clip,
    Constant,
    Descend,
    DotProduct,
    Every,
    Gates,
    Hold,
    Matrix,
    Memory,
    Momentum,
    NewtonSchulz,
    Scale,
    Sum,
)
from nestling.optim import Gradient, GradientMemory, Identity, One, Preconditioned, Whitening, kernels
from nestling.optim.kernels import Column, Signals
from nestling.optim.rules import (
    Before,
    Normalise,
    Quotient,
    Root,
    Sign,
    Square,
    Stretch,
    Unbiased,
    mean,
    nesterov,
    unbiased,
)

SECOND = Chain((Square(), *unbiased(0.8).rules, Root(1e-3)))
RULES = [
    *(Descend(), Scale(3.0), Momentum(0.7), Momentum(), Before(0.7), Square(), Sign(), NewtonSchulz(3), Stretch()),
    *(Adaptive(0.9), Clip(0.1), Normalise(0.2), Unbiased(0.8), unbiased(0.6), SECOND, nesterov(mean(0.9), 0.9, 0.1)),
    Chain((Square(), Square())),
    Chain((Scale(2.0), Square(), Root(0.1))),
    Chain((Quotient(unbiased(0.9), SECOND), Descend())),
    Chain((Scale(2.0), Quotient(Scale(0.5), SECOND), Descend())),
    Chain((Quotient(Chain((Scale(2.0), Square())), SECOND), Descend())),
    Chain((Quotient(Scale(1.0), SECOND), Momentum(0.5), Descend())),
    Chain((Momentum(0.9), NewtonSchulz(), Descend())),
    Sum((Momentum(0.9), Momentum(0.5), Scale(0.1))),
    Every(3, Chain((Momentum(0.9), Descend()))),
    Every(3, Scale(1.0)),
    Every(2, Every(2, unbiased(0.9))),
    Hold(3, Momentum(0.9)),
    Hold(2, Chain((Momentum(1.0), NewtonSchulz(2)))),
    Sum((Hold(1, Descend()), Descend())),
    GradientMemory(Memory(Constant(), DotProduct())),
    GradientMemory(Memory(Constant(), DotProduct()), One(), Preconditioned(unbiased(0.6)), One()),
    GradientMemory(Memory(Constant(), DotProduct(), period=3)),
    GradientMemory(Memory(Constant(), L2(), rule=Chain((Descend(), Momentum(0.5))))),
    GradientMemory(Memory(Matrix(), L2()), Gradient(), Identity(), Identity()),
    GradientMemory(Memory(Matrix(), L2(), period=2), Gradient(), Whitening(), Identity()),
    GradientMemory(Memory(MLP(), DotProduct()), Preconditioned(Normalise(0.2)), Gradient(), Gradient(), 2),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_many_at_once_are_the_rule_one_by_one(rule) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes, gates = [(3, 4), (4, 3), (3, 4)], Gates(lr=0.3, retain=0.8, momentum=0.6)
    draw = lambda: [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]  # noqa: E731
    ours = draw()
    theirs = [weight.clone() for weight in ours]
    states = [rule.init(weight) for weight in ours]
    names, shape = kernels.layout(rule)
    columns = [[dict(tree.items(state))[name].clone() for state in states] for name in names]
    many = pytree.tree_unflatten([Column(column) for column in columns], shape)
    for number in range(7):
        given = draw()
        kept = [g.clone() for g in given]
        # The third weight has no gradient in the second step, so that their clocks differ.
        live = [0, 1] if number == 1 else [0, 1, 2]
        part = pytree.tree_map(lambda column, live=live: Column(column[i] for i in live), many)
        kernels.step(rule, [ours[i] for i in live], Signals.of([given[i] for i in live]), part, gates)
        for i in live:
            update, states[i] = rule.update(given[i], states[i], gates)
            theirs[i] = theirs[i] + update
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert all(map(torch.equal, given, kept)), "a gradient was written to"
    for name, column in zip(names, columns, strict=True):
        expected = [dict(tree.items(state))[name] for state in states]
        torch.testing.assert_close(column, expected, rtol=1e-12, atol=1e-12)


def test_adams_second_memory_is_that_of_the_core() -> None:
    ours = Quotient(Scale(1.0), Chain((Square(), *unbiased(0.9).rules, Root(1e-3))))
    core = Adaptive(0.9, 1e-3)
    a, b = ours.init(torch.zeros(3)), core.init(torch.zeros(3))
    for _ in range(5):
        g = torch.randn(3)
        left, a = ours.update(g, a, Gates())
        right, b = core.update(g, b, Gates())
        torch.testing.assert_close(left, right)
