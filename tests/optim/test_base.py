"""What every optimizer does as torch's do: groups, state, schedulers, closures; and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from nestling import NestlingError, optim
from tests.optim.problem import loss, network, same, train

MAKERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=0.05),
    "adamw": lambda p: optim.AdamW(p, lr=0.05),
    "adagrad": lambda p: optim.AdaGrad(p, lr=0.05),
    "rmsprop": lambda p: optim.RMSProp(p, lr=0.05, momentum=0.5),
    "lion": lambda p: optim.Lion(p, lr=0.05),
    "muon": lambda p: optim.Muon([q for q in p if q.dim() == 2], lr=0.05),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_training_goes_on_from_a_saved_state(make, dtype) -> None:
    model = network(dtype)
    optimizer = make(list(model.parameters()))
    train(model, optimizer, range(5))
    other = copy.deepcopy(model)
    resumed = make(list(other.parameters()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    a, b = train(model, optimizer, range(5, 9)), train(other, resumed, range(5, 9))
    assert all(map(torch.equal, a, b))


@every
def test_a_state_keeps_its_types_and_shares_nothing(make) -> None:
    model = network(torch.bfloat16)
    optimizer, again = make(list(model.parameters())), make(list(model.parameters()))
    train(model, optimizer, range(2))
    again.load_state_dict(optimizer.state_dict())
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            assert again.state[parameter][name].dtype == tensor.dtype != torch.bfloat16
            assert again.state[parameter][name].data_ptr() != tensor.data_ptr()
            assert isinstance(name, str)


@every
def test_a_copy_goes_its_own_way(make) -> None:
    model = network()
    optimizer = make(list(model.parameters()))
    train(model, optimizer, range(3))
    other, twin = copy.deepcopy((model, optimizer))
    a = train(other, twin, range(3, 6))
    same(train(model, optimizer, range(3, 6)), a, 0.0)


def test_counts_are_right_in_half_precision() -> None:
    """In bfloat16, 256 + 1 is 256."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = optim.Adam([weight], lr=1e-3)
    for _ in range(300):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert 300.0 in [float(leaf) for leaf in optimizer.state[weight].values() if leaf.dim() == 0]


def test_groups_have_their_own_settings() -> None:
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    a.grad = b.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close((a.data, b.data), (torch.full((2,), 0.9), torch.full((2,), 0.5)))


def test_schedulers_set_the_rate() -> None:
    ours, theirs = network(), network()
    a, b = optim.Adam(ours.parameters(), lr=0.05), torch.optim.Adam(theirs.parameters(), lr=0.05)
    first, second = (torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20) for o in (a, b))
    for step in range(15):
        train(ours, a, range(step, step + 1))
        train(theirs, b, range(step, step + 1))
        first.step()
        second.step()
    same(list(ours.parameters()), list(theirs.parameters()))


def test_a_closure_is_called_with_gradients_and_its_loss_given_back() -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model, 0)
        value.backward()
        return value

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second.item() < first.item()


def test_parameters_without_gradient_stay() -> None:
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = optim.AdamW([a, b], lr=0.1, weight_decay=0.5)
    a.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(b.data, torch.ones(2)) and b not in optimizer.state


def test_gradients_are_unscaled_by_a_scaler() -> None:
    model, plain = network(torch.float32), network(torch.float32)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    train(plain, optim.Adam(plain.parameters(), lr=0.01), range(3))
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_refused_before_anything_changes(bad: float) -> None:
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = optim.SGD([("up", a), ("down", b)], lr=0.1, momentum=0.9)
    a.grad, b.grad = torch.ones(2), torch.tensor([1.0, bad])
    with pytest.raises(NestlingError, match="'down' is nan or infinite"):
        optimizer.step()
    assert torch.equal(a.data, torch.ones(2)) and not optimizer.state


def test_gradients_that_the_caller_has_checked_are_taken_as_they_are() -> None:
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = optim.SGD([{"params": [a], "error_if_nonfinite": False}, {"params": [b]}], lr=0.5)
    a.grad, b.grad = torch.tensor([1.0, math.nan]), torch.ones(2)
    optimizer.step()
    assert a.data[0] == 0.5 and a.data[1].isnan() and torch.equal(b.data, torch.full((2,), 0.5))
    b.grad[0] = math.inf
    with pytest.raises(NestlingError, match="nan or infinite"):
        optimizer.step()


def test_a_group_saved_before_there_was_such_a_setting_is_checked() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = optim.SGD([weight], lr=0.5)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["error_if_nonfinite"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["error_if_nonfinite"] is True


def test_a_large_gradient_is_a_number() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = optim.SGD([weight], lr=1e-38)
    weight.grad = torch.full((3,), 3e38)  # whose sum is infinite
    optimizer.step()
    assert weight[0] != 0


def test_sparse_and_complex_are_refused() -> None:
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = optim.Adam(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(NestlingError, match="sparse"):
        optimizer.step()
    with pytest.raises(NestlingError, match="complex"):
        optim.SGD([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: optim.SGD(p, lr=-0.1), "lr must be"),
        (lambda p: optim.SGD(p, lr=math.nan), "lr must be"),
        (lambda p: optim.SGD(p, momentum=-0.1), "momentum must be"),
        (lambda p: optim.SGD(p, kind="newton"), "kind must be"),
        (lambda p: optim.Adam(p, betas=(0.9, 1.0)), "betas must be"),
        (lambda p: optim.RMSProp(p, beta=-1.0), "beta must be"),
        (lambda p: optim.AdamW(p, weight_decay=-1.0), "weight_decay must be"),
        (lambda p: optim.Adam(p, eps=-1.0), "eps must be"),
        (lambda p: optim.Muon(p), "parameter 1 has shape .7,., and Muon needs matrices"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, said: str) -> None:
    with pytest.raises(NestlingError, match=said):
        make(list(network().parameters()))


def test_a_rate_that_turns_negative_is_refused() -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = -0.1
    with pytest.raises(NestlingError, match="lr must be"):
        train(model, optimizer, range(1))


def test_the_state_of_another_optimizer_is_refused() -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, range(1))
    with pytest.raises(NestlingError, match="another optimizer or model"):
        optim.Adam(model.parameters()).load_state_dict(optimizer.state_dict())
