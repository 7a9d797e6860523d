"""Generalised momentum: a memory of a layer's inputs and cotangents, against loops over its definition."""

from __future__ import annotations

import copy

import pytest
import torch

from nestling import NestlingError
from nestling.core import L2, Decay, Delta, DotProduct, Huber, Matrix, Memory
from nestling.optim import GM, Gradient, Input
from tests.optim.problem import loss, network, same, train


def test_on_the_dot_product_it_is_momentum() -> None:
    """NL eqs 33-34: the values of the inputs add up to the gradient."""
    ours, theirs = network(), network()
    memory = Memory(Matrix(), DotProduct())
    got = train(ours, GM(ours.parameters(), lr=0.1, momentum=0.9, watch=ours, memory=memory), range(20))
    weights = [p for p in theirs.parameters() if p.dim() == 2]
    biases = [p for p in theirs.parameters() if p.dim() == 1]
    groups = [{"params": weights, "momentum": 0.9}, {"params": biases, "momentum": 0.0}]
    same(got, train(theirs, torch.optim.SGD(groups, lr=0.1), range(20)))


@pytest.mark.equation("Nested Learning", 35, 36, 37)
@pytest.mark.parametrize("objective", [L2(), Huber(), DotProduct()])
@pytest.mark.parametrize("retention", [Decay(), Delta()])
def test_it_is_a_loop_over_its_definition(objective, retention) -> None:
    """NL eqs 35-37: m ← α m − η ∇ mean L̃(m; x, −δ), with autograd for both gradients."""
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 3, bias=False).double()
    x, y = (torch.randn(6, n, dtype=torch.float64) for n in (4, 3))
    w, m = model.weight.detach().clone(), torch.zeros(3, 4, dtype=torch.float64)
    optimizer = GM(model.parameters(), lr=0.05, watch=model, memory=Memory(Matrix(), objective, retention))
    for _ in range(12):
        z = (x @ w.T).requires_grad_()
        (delta,) = torch.autograd.grad((z.tanh() - y).square().sum(), z)
        live = m.clone().requires_grad_()
        said = x @ live.T
        each = 0.5 * (said + delta).square() if not isinstance(objective, DotProduct) else said * delta
        (slope,) = torch.autograd.grad(each.sum(-1).mean(), live)
        erased = m @ x.T @ x / 6 if isinstance(retention, Delta) else 0.0
        m = 0.9 * m - 0.05 * (slope + erased)
        w = w + m
        optimizer.zero_grad()
        (model(x).tanh() - y).square().sum(-1).mean().backward()
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), w, rtol=1e-9, atol=1e-9)


def test_it_learns_and_goes_on_from_a_saved_state() -> None:
    model = network()
    optimizer = GM(model.parameters(), 0.03, watch=model)
    before = loss(model, 0).item()
    for _ in range(60):
        train(model, optimizer, range(1))
    assert loss(model, 0).item() < before
    other = network()
    other.load_state_dict(model.state_dict())
    resumed = GM(other.parameters(), 0.03, watch=other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same(train(other, resumed, range(4)), train(model, optimizer, range(4)), 0.0)


def test_without_hooks_nothing_happens_but_an_error() -> None:
    model = network()
    with pytest.raises(NestlingError, match=r"GM has seen no inputs of '0.weight'"):
        train(model, GM(model.named_parameters()), range(1))


def test_streams_may_be_mixed() -> None:
    """Keys that are inputs, values that are rows of the gradient do not fit; keys and values that are gradients do."""
    model = network()
    optimizer = GM(model.parameters(), 0.01, watch=model, key=Gradient(), value=Gradient(), query=Gradient())
    train(model, optimizer, range(3))
    assert not optimizer.asks(optimizer.param_groups[0]) and GM(model.parameters(), key=Input()).memory.key == Input()
