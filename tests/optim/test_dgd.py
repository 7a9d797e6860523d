"""Delta gradient descent against direct solves of its proximal problem; generalised descent against its special cases."""

from __future__ import annotations

import copy

import pytest
import torch

from nestling import NestlingError
from nestling.core import KL, L2, Decay, DotProduct, ElasticNet, Gates, Huber, Lq
from nestling.core.retention import Delta
from nestling.optim import DGD, GGD
from tests.optim.problem import loss, network, same, train

RATE = 0.3


def layer(rows: int, bias: bool = False) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A layer, inputs of various lengths, and targets; the loss is the mean over the inputs."""
    torch.manual_seed(3)
    return torch.nn.Linear(4, 3, bias=bias).double(), *(torch.randn(rows, n, dtype=torch.float64) for n in (4, 3))


def backward(model: torch.nn.Linear, x: torch.Tensor, y: torch.Tensor) -> None:
    (0.5 * (model(x).tanh() - y).square().sum(-1)).mean().backward()


def local(model: torch.nn.Linear, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """δ of each input, by autograd: the derivative of its own loss by its own output."""
    z = model(x).detach().requires_grad_()
    (delta,) = torch.autograd.grad(0.5 * (z.tanh() - y).square().sum(), z)
    return delta


def solve(w: torch.Tensor, x: torch.Tensor, u: torch.Tensor, eta: float) -> torch.Tensor:
    """NL eq. 56, argmin ½‖W x − u‖² + ‖W − Wₜ‖²/2η: W (x xᵀ + I/η) = u xᵀ + Wₜ/η."""
    system = torch.outer(x, x) + torch.eye(len(x), dtype=x.dtype) / eta
    return torch.linalg.solve(system, torch.outer(u, x) + w / eta, left=False)


@pytest.mark.equation("Nested Learning", 56, 57, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121)
@pytest.mark.parametrize("reading", ["averaged", "sequential"])
@pytest.mark.parametrize("eta", [0.01, 0.3, 20.0])
def test_one_input_is_the_direct_solve(reading, eta) -> None:
    model, x, y = layer(1)
    w, u = model.weight.detach().clone(), -local(model, x, y)
    optimizer = DGD(model.parameters(), lr=eta, watch=model, reading=reading)
    backward(model, x, y)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), solve(w, x[0], u[0], eta), rtol=1e-11, atol=1e-11)


def test_the_printed_rate_is_that_of_unit_inputs() -> None:
    """η′ = η/(1 + η), NL eq. 57."""
    model, x, y = layer(1)
    x = x / x.norm()
    w, delta = model.weight.detach().clone(), local(model, x, y)
    optimizer = DGD(model.parameters(), lr=RATE, watch=model)
    backward(model, x, y)
    optimizer.step()
    rate = RATE / (1 + RATE)
    expected = w @ (torch.eye(4, dtype=w.dtype) - rate * x.T @ x) - rate * delta.T @ x
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-11, atol=1e-11)


def test_several_inputs_one_after_the_other_are_direct_solves_in_a_row() -> None:
    model, x, y = layer(6)
    w, u = model.weight.detach().clone(), -local(model, x, y)
    for i in range(6):
        w = solve(w, x[i], u[i], RATE)
    optimizer = DGD(model.parameters(), lr=RATE, watch=model, reading="sequential")
    backward(model, x, y)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), w, rtol=1e-11, atol=1e-11)


def test_several_inputs_at_once_are_the_mean_of_the_memory_s_writes() -> None:
    """With inputs of one length the averaged reading is the mean of the direct solves; in general of core.Delta."""
    model, x, y = layer(6)
    for inputs in (x, x / x.norm(dim=-1, keepdim=True)):
        optimizer = DGD(model.parameters(), lr=RATE, watch=model)
        w, delta = model.weight.detach().clone(), local(model, inputs, y)
        rate = RATE / (1 + RATE * inputs.square().sum(-1).mean())
        writes = [
            Delta().decay(w, Gates(lr=rate), a) - rate * torch.outer(d, a) for a, d in zip(inputs, delta, strict=True)
        ]
        optimizer.zero_grad()
        backward(model, inputs, y)
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), torch.stack(writes).mean(0), rtol=1e-11, atol=1e-11)
    solved = torch.stack([solve(w, a, -d, RATE) for a, d in zip(inputs, delta, strict=True)]).mean(0)
    torch.testing.assert_close(model.weight.detach(), solved, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("make", [DGD, GGD, lambda *a, **k: DGD(*a, **k, reading="sequential")])
def test_clipping_and_accumulation_reach_the_write(make) -> None:
    """Two halves of a batch, each with a loss that is a mean over its half, against the whole."""
    a, x, y = layer(6, bias=True)
    b = copy.deepcopy(a)
    first, second = (make(m.parameters(), lr=RATE, watch=m) for m in (a, b))
    backward(a, x[:3], y[:3])
    backward(a, x[3:], y[3:])
    backward(b, x, y)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        p.grad *= 0.1
        q.grad *= 0.2
    first.step()
    second.step()
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a.bias, b.bias, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [DGD, GGD])
def test_only_inputs_that_had_a_gradient_count(make) -> None:
    a, x, y = layer(4)
    b = copy.deepcopy(a)
    first, second = (make(m.parameters(), lr=RATE, watch=m) for m in (a, b))
    a(x + 1)  # never differentiated
    with torch.no_grad():
        a(x + 2)
    backward(a, 2 * x, y)
    first.zero_grad()  # forgotten
    for model, optimizer in ((a, first), (b, second)):
        backward(model, x, y)
        optimizer.step()
    assert torch.equal(a.weight, b.weight)


def test_inputs_may_be_sequences_and_biases_descend() -> None:
    a, x, y = layer(6, bias=True)
    b = copy.deepcopy(a)
    bias = b.bias.detach().clone()
    for model, shape in ((a, (2, 3)), (b, (6,))):
        optimizer = DGD(model.parameters(), lr=RATE, watch=model)
        backward(model, x.view(*shape, 4), y.view(*shape, 3))
        optimizer.step()
    torch.testing.assert_close(a.weight, b.weight)
    torch.testing.assert_close(b.bias.detach(), bias - RATE * b.bias.grad)


def test_generalised_descent_on_the_dot_product_is_gradient_descent() -> None:
    ours, theirs = network(), network()
    a = train(ours, GGD(ours.parameters(), lr=0.1, watch=ours, objective=DotProduct()), range(20))
    same(a, train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), range(20)))


@pytest.mark.parametrize("objective", [L2(), Huber()])
def test_generalised_descent_on_l2_is_delta_descent_with_the_plain_rate(objective) -> None:
    """W − η mean((W x + δ) xᵀ); Huber without a threshold is L2."""
    model, x, y = layer(6)
    w, delta = model.weight.detach().clone(), local(model, x, y)
    optimizer = GGD(model.parameters(), lr=0.1, watch=model, objective=objective)
    backward(model, x, y)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), w - 0.1 * (w @ x.T + delta.T) @ x / 6, rtol=1e-11, atol=1e-11)


@pytest.mark.equation("Nested Learning", 59, 60)
@pytest.mark.parametrize("retention", [Decay(), ElasticNet(0.02), Lq(2.5)])
@pytest.mark.parametrize("window", [1, 3])
def test_generalised_descent_is_a_loop_over_its_definition(retention, window) -> None:
    model, x, y = layer(6)
    w = model.weight.detach().clone()
    past = [retention.dual(w)] * window
    optimizer = GGD(model.parameters(), lr=0.1, watch=model, retention=retention, window=window)
    for _ in range(12):
        model.weight.data.copy_(w)
        delta = local(model, x, y)
        slope = (w @ x.T + delta.T) @ x / 6
        past = [sum(past) / window - 0.1 * slope, *past[:-1]]
        optimizer.zero_grad()
        backward(model, x, y)
        optimizer.step()
        w = retention.primal(past[0])
        torch.testing.assert_close(model.weight.detach(), w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [lambda m: DGD(m.parameters(), 0.03, m), lambda m: GGD(m.parameters(), 0.01, m)])
def test_each_learns_and_goes_on_from_a_saved_state(make) -> None:
    model = network()
    optimizer = make(model)
    before = loss(model, 0).item()
    for _ in range(60):
        train(model, optimizer, range(1))
    assert loss(model, 0).item() < before
    other = network()
    other.load_state_dict(model.state_dict())
    resumed = make(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same(train(other, resumed, range(4)), train(model, optimizer, range(4)), 0.0)


@pytest.mark.parametrize("make", [DGD, GGD])
def test_without_hooks_nothing_happens_but_an_error(make) -> None:
    model = network()
    optimizer = make(model.named_parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NestlingError, match=r"has seen no inputs of '0.weight'.* optimizer.watch\(model\)"):
        train(model, optimizer, range(1))
    assert all(map(torch.equal, before, model.parameters()))
    optimizer.watch(model)
    train(model, optimizer, range(1))
    optimizer.close()
    with pytest.raises(NestlingError, match="has seen no inputs"):
        train(model, optimizer, range(1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: DGD(m.parameters(), watch=torch.nn.Linear(2, 2)), "no nn.Linear whose weight"),
        (lambda m: DGD(m.parameters(), reading="other"), "reading must be"),
        (lambda m: DGD(m.parameters(), lr=-1.0), "lr must be"),
        (lambda m: GGD(m.parameters(), retention=KL()), "does not fit"),
        (lambda m: GGD(m.parameters(), retention=Delta()), "DGD for Delta"),
        (lambda m: GGD(m.parameters(), window=0), "window must be"),
    ],
)
def test_what_cannot_be_is_refused(make, said: str) -> None:
    with pytest.raises(NestlingError, match=said):
        make(network())


def test_a_gradient_of_something_else_is_refused() -> None:
    model, x, y = layer(6)
    optimizer = DGD(model.parameters(), watch=model, reading="sequential")
    backward(model, x, y)
    model.weight.grad += torch.randn_like(model.weight)
    with pytest.raises(NestlingError, match="not that of its layer's inputs"):
        optimizer.step()
