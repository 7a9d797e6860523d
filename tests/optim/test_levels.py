"""Levels along steps: weights that move once in a period."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from nestling import NestlingError
from nestling.core import Chain, Descend, Level, Momentum
from nestling.optim import Levels
from nestling.optim.named import Adam
from tests.optim.problem import loss, network, same, train

LEVELS = [Level("slow", period=4, owns="0.*"), Level("fast", 1, owns="2.*")]


@pytest.mark.equation("Nested Learning", 71)
def test_a_slow_level_moves_by_the_sum_of_a_period() -> None:
    """NL eq. 71: W ← W − η Σ g where the period is full, else W."""
    model, expected = network(), []
    mirror = copy.deepcopy(model)
    gathered = [torch.zeros_like(p) for p in mirror[0].parameters()]
    for step in range(21):
        mirror.zero_grad()
        loss(mirror, step).backward()
        with torch.no_grad():
            for total, p in zip(gathered, mirror[0].parameters(), strict=True):
                total += p.grad
                if (step + 1) % 4 == 0:
                    p -= 0.1 * total
                    total.zero_()
            for p in mirror[2].parameters():
                p -= 0.1 * p.grad
        expected.append(torch.cat([p.detach().flatten() for p in mirror.parameters()]).clone())
    same(train(model, Levels(model.named_parameters(), LEVELS, lr=0.1), range(21)), expected)


def test_a_level_may_have_any_rule() -> None:
    """Adam on sums of four gradients, and torch's momentum at every step."""
    rule = Adam([torch.nn.Parameter(torch.zeros(1))]).rule({"betas": (0.9, 0.99), "eps": 1e-8})
    levels = [Level("slow", 4, rule, "0.*"), Level("fast", 1, Chain((Momentum(0.9), Descend())), "*")]
    ours, theirs = network(), network()
    slow = torch.optim.Adam(theirs[0].parameters(), lr=0.05, betas=(0.9, 0.99))
    fast = torch.optim.SGD(theirs[2].parameters(), lr=0.05, momentum=0.9)
    for step in range(20):
        fast.zero_grad()
        loss(theirs, step).backward()
        fast.step()
        if (step + 1) % 4 == 0:
            slow.step()
            slow.zero_grad()
    got = train(ours, Levels(ours.named_parameters(), levels, lr=0.05), range(20))
    same(got[-1:], [torch.cat([p.detach().flatten() for p in theirs.parameters()])])


def test_a_level_without_end_never_moves_and_remembers_nothing() -> None:
    model = network()
    optimizer = Levels(model.named_parameters(), [Level("fixed", math.inf, owns="0.*"), Level("rest", 1)], lr=0.1)
    before = model[0].weight.detach().clone()
    train(model, optimizer, range(3))
    assert torch.equal(model[0].weight, before) and model[0].weight not in optimizer.state


def test_it_goes_on_from_a_state_saved_inside_a_period() -> None:
    model = network()
    optimizer = Levels(model.named_parameters(), LEVELS, lr=0.1)
    train(model, optimizer, range(6))
    other = copy.deepcopy(model)
    resumed = Levels(other.named_parameters(), LEVELS, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same(train(other, resumed, range(6, 13)), train(model, optimizer, range(6, 13)), 0.0)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([Level("slow", 1, owns="0.*")], "no level owns '2"),
        ([Level("a", 1), Level("a", 1)], "different names"),
        ([Level("a", period=1.5)], "whole number"),
        ([Level("a", 1, reset=4)], "nothing is reset"),
    ],
)
def test_what_cannot_be_is_refused(levels, said: str) -> None:
    with pytest.raises(NestlingError, match=said):
        Levels(network().named_parameters(), levels)
