"""Two optimizers that step as one."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from nestling import NestlingError
from nestling.optim import DGD, M3, AdamW, Muon, Split, split
from tests.optim.problem import loss, network, same, train


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.up = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.taps = nn.Conv1d(6, 6, 3)
        self.stack = nn.Parameter(torch.zeros(2, 3, 3))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
        self.lm_head = nn.Linear(6, 7, bias=False)


def test_hidden_matrices_go_to_one_and_everything_else_to_the_other() -> None:
    first, second = split(Model()).param_groups
    assert first["param_names"] == ["up.weight"]
    assert set(second["param_names"]) == {
        *("embedding.weight", "up.bias", "norm.weight", "norm.bias", "taps.weight", "taps.bias", "stack"),
        "lm_head.weight",
    }


@pytest.mark.parametrize("make", [M3, Muon])
def test_each_part_steps_as_it_would_alone(make) -> None:
    ours, theirs = network(), network()
    both = split(ours, partial(make, lr=0.02), partial(AdamW, lr=0.01))
    alone = [
        make([p for p in theirs.parameters() if p.dim() == 2], lr=0.02),
        AdamW([p for p in theirs.parameters() if p.dim() != 2], lr=0.01),
    ]
    got, expected = train(ours, both, range(20)), []
    for step in range(20):
        for optimizer in alone[1:]:
            optimizer.zero_grad()
        alone[0].zero_grad()

        loss(theirs, step).backward()
        for optimizer in alone:
            optimizer.step()
        expected.append(torch.cat([p.detach().flatten() for p in theirs.parameters()]).clone())
    same(got, expected)


@pytest.mark.parametrize("make", [M3, Muon, DGD])
def test_it_goes_on_from_a_saved_state(make) -> None:
    def build(model: nn.Module) -> Split:
        return split(model, partial(make, lr=0.01, **({"watch": model} if make is DGD else {})))

    model = network()
    optimizer = build(model)
    train(model, optimizer, range(6))
    other = network()
    other.load_state_dict(model.state_dict())
    resumed = build(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same(train(other, resumed, range(6, 12)), train(model, optimizer, range(6, 12)), 0.0)


def test_a_scheduler_sets_the_rates_of_both() -> None:
    model = network()
    optimizer = split(model, partial(M3, lr=0.2), partial(AdamW, lr=0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer, range(1))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_errors_of_a_part_come_before_any_change() -> None:
    model = network()
    optimizer = split(model, DGD)  # which watches nothing
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NestlingError, match="has seen no inputs of '0"):
        train(model, optimizer, range(1))
    assert all(map(torch.equal, before, model.parameters()))


def test_a_model_without_matrices_is_refused() -> None:
    with pytest.raises(NestlingError, match="no hidden matrices"):
        split(nn.LayerNorm(3))
