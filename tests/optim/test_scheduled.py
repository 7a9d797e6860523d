"""Any optimizer at the frequencies of levels: NL eqs 71 and 72 against literal loops, and its state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nestling import optim
from nestling.core import Level
from nestling.errors import NestlingError
from nestling.optim import Scheduled

LEVELS = [Level("middle", 2, owns="1.*"), Level("slow", 6, owns="2.*"), Level("never", math.inf, owns="3.*")]
INNER: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1),
    "ours": lambda model: optim.AdamW(model.named_parameters(), lr=0.05, weight_decay=0.1),
    "split": lambda model: optim.split(model),
}


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))).double()


def gradient(model: nn.Module, step: int) -> None:
    """∇L on the data of a step."""
    model.zero_grad()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    (model(x) - x.flip(1)).square().mean().backward()


def flat(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.equation("Nested Learning", 71)
@pytest.mark.parametrize("name", INNER)
def test_eq_71_with_any_optimizer(name: str) -> None:
    """θ_{i+1} = θ_i − f(Σ of its C gradients) where i is due, 0 otherwise: four optimizers, each on its own clock."""
    model, mirror = network(), network()
    scheduled = Scheduled(INNER[name](model), model.named_parameters(), LEVELS)
    clocks = {0: 1, 1: 2, 2: 6}
    literal = {i: INNER[name](mirror[i]) for i in clocks}
    sums = {i: [torch.zeros_like(p) for p in mirror[i].parameters()] for i in clocks}
    for step in range(1, 15):
        gradient(model, step)
        scheduled.step()
        gradient(mirror, step)
        for i, period in clocks.items():
            sums[i] = [a + p.grad for a, p in zip(sums[i], mirror[i].parameters(), strict=True)]
            if step % period == 0:
                for a, p in zip(sums[i], mirror[i].parameters(), strict=True):
                    p.grad = a.clone()
                literal[i].step()
                sums[i] = [torch.zeros_like(a) for a in sums[i]]
        torch.testing.assert_close(flat(model), flat(mirror), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(flat(model[3]), flat(network()[3]), strict=True))


@pytest.mark.equation("Nested Learning", 72)
@pytest.mark.parametrize("carry", [0.0, 0.3, 1.0])
def test_eq_72_a_level_begins_anew_from_what_the_slower_one_keeps(carry: float) -> None:
    model, mirror = network(), network()
    level = Level("fast", 2, owns="1.*", reset=6, carry=carry)
    scheduled = Scheduled(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), [level])
    start = flat(mirror[1])
    sums = [torch.zeros_like(a) for a in start]
    for step in range(1, 20):
        gradient(model, step)
        scheduled.step()
        gradient(mirror, step)
        with torch.no_grad():
            for p in [p for i in (0, 2, 3) for p in mirror[i].parameters()]:
                p -= 0.1 * p.grad
            sums = [a + p.grad for a, p in zip(sums, mirror[1].parameters(), strict=True)]
            if step % 2 == 0:
                for a, p in zip(sums, mirror[1].parameters(), strict=True):
                    p -= 0.1 * a
                sums = [torch.zeros_like(a) for a in sums]
            if step % 6 == 0:
                start = [a + carry * (p - a) for a, p in zip(start, mirror[1].parameters(), strict=True)]
                for a, p in zip(start, mirror[1].parameters(), strict=True):
                    p.copy_(a)
        torch.testing.assert_close(flat(model), flat(mirror), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", INNER)
def test_it_goes_on_bit_for_bit_from_a_state_saved_inside_a_period(name: str) -> None:
    levels = [Level("fast", 2, owns="1.*", reset=4, carry=0.5), *LEVELS[1:]]
    model = network()
    whole = Scheduled(INNER[name](model), model.named_parameters(), levels)
    for step in range(1, 6):
        gradient(model, step)
        whole.step()
    other = copy.deepcopy(model)
    resumed = Scheduled(INNER[name](other), other.named_parameters(), levels)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for one, optimizer in ((model, whole), (other, resumed)):
        for step in range(6, 14):
            gradient(one, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(flat(model), flat(other), strict=True))


def test_a_rate_reaches_the_inner_optimizer_before_and_after_loading() -> None:
    model = network()
    scheduled = Scheduled(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), LEVELS)
    for _ in range(2):
        for group in scheduled.param_groups:
            group["lr"] = 0.0
        before = flat(model)
        gradient(model, 1)
        scheduled.step()
        assert all(torch.equal(a, b) for a, b in zip(flat(model), before, strict=True))
        scheduled.load_state_dict(scheduled.state_dict())


def test_gradients_stay_as_they_were_and_missing_ones_count_no_step() -> None:
    model = network()
    scheduled = Scheduled(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), LEVELS)
    gradient(model, 1)
    before = [p.grad.clone() for p in model.parameters()]
    scheduled.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    model[1].weight.grad = None
    scheduled.step()
    assert (int(scheduled.state[model[1].weight]["phase"]), int(scheduled.state[model[1].bias]["phase"])) == (1, 2)


@pytest.mark.parametrize(
    ("level", "said"), [(Level("a", 1.5), "whole number"), (Level("a", 2, owns="nothing"), "owns no parameter")]
)
def test_what_cannot_be_is_refused(level: Level, said: str) -> None:
    model = network()
    with pytest.raises(NestlingError, match=said):
        Scheduled(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), [level])
