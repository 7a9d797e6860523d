"""M3 against a plain loop over algorithm 1 of the Nested Learning paper."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from nestling import NestlingError
from nestling.optim import M3
from tests.optim.problem import follow, gradients, same, train

BETAS, ALPHA, RATE, F, EPS = (0.9, 0.99, 0.8), 0.4, 0.03, 4, 1e-6


def newton_schulz(m: Tensor) -> Tensor:
    x = m / (m.norm() + 1e-30)
    x = x if m.shape[0] <= m.shape[1] else x.T
    for _ in range(5):
        g = x @ x.T
        x = 3.4445 * x - 4.7750 * g @ x + 2.0315 * g @ g @ x
    return x if m.shape[0] <= m.shape[1] else x.T


def algorithm(given: list[Tensor], form: str) -> list[Tensor]:
    """Two loops, as printed: the slow memory of period k is written with the gradients of period k − 1."""
    b1, b2, b3 = BETAS
    w = fast = slow = v = torch.zeros_like(given[0])
    expected, t = [], 0
    for k in range(len(given) // F):
        past = sum(given[(k - 1) * F : k * F]) if k else torch.zeros_like(w)
        if form == "paper":
            slow = slow + b3 * past
        elif k:
            slow = b3 * slow + (1 - b3) * past / F
        second = newton_schulz(slow)
        for g in given[k * F : (k + 1) * F]:
            t += 1
            fast = fast + b1 * g if form == "paper" else b1 * fast + (1 - b1) * g
            v = v + b2 * g * g if form == "paper" else b2 * v + (1 - b2) * g * g
            seen = v if form == "paper" else v / (1 - b2**t)
            step = (newton_schulz(fast) + ALPHA * second) / (seen.sqrt() + EPS)
            if form == "mean":
                step = 0.2 * step / step.square().mean().sqrt()
            w = w - RATE * step
            expected.append(w)
    return expected


@pytest.mark.equation("Nested Learning", 75, "Alg. 1")
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
@pytest.mark.parametrize("form", ["paper", "mean"])
def test_m3_is_algorithm_1(form: str, shape: tuple[int, int]) -> None:
    given = gradients(52, *shape)
    make = lambda p: M3(p, RATE, BETAS, ALPHA, F, EPS, form=form)  # noqa: E731
    same(follow(make, given), algorithm(given, form), 1e-9)


def test_the_slow_memory_is_silent_in_the_first_period_and_heard_in_the_second() -> None:
    given = gradients(2 * F, 3, 4)
    with_it, without = (follow(lambda p, a=a: M3(p, slow_weight=a, period=F), given) for a in (1.0, 0.0))
    same(with_it[:F], without[:F], 0.0)
    assert not torch.allclose(with_it[F], without[F])


def test_only_the_scale_of_the_printed_sums_depends_on_their_betas() -> None:
    """Without decay, β₁ and β₃ are lost in Newton-Schulz, and β₂ is a factor of the rate (spec §3, item 32)."""
    given = gradients(12, 3, 4)
    a = follow(lambda p: M3(p, betas=(0.9, 0.25, 0.9), eps=0.0, period=F, form="paper"), given)
    b = follow(lambda p: M3(p, betas=(0.1, 0.01, 0.2), eps=0.0, period=F, form="paper"), given)
    same([5 * w for w in a], b, 1e-7)


def test_means_do_not_see_the_scale_of_the_gradient() -> None:
    given = gradients(12, 3, 4)
    a = follow(lambda p: M3(p, eps=0.0, period=F), given)
    same(follow(lambda p: M3(p, eps=0.0, period=F), [1e3 * g for g in given]), a, 1e-7)


def test_it_goes_on_from_a_state_saved_inside_a_period() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3, bias=False).double()
    optimizer = M3(model.parameters(), period=F)
    train(model, optimizer, range(6))
    other = copy.deepcopy(model)
    resumed = M3(other.parameters(), period=F)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same(train(other, resumed, range(6, 13)), train(model, optimizer, range(6, 13)), 0.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"period": 0}, "period must"),
        ({"form": "other"}, "form must"),
        ({"betas": (0.9, 0.9)}, "three"),
        ({"betas": (0.9, 0.9, 1.0)}, "betas must"),
        ({"slow_weight": -1.0}, "slow_weight must"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said: str) -> None:
    with pytest.raises(NestlingError, match=said):
        M3([torch.nn.Parameter(torch.zeros(2, 2))], **settings)
    with pytest.raises(NestlingError, match="M3 needs matrices"):
        M3([torch.nn.Parameter(torch.zeros(2))])
