from __future__ import annotations

import itertools

import pytest
import torch

from nestling.recipes import build, recipes
from nestling.train.config import OptimizerConfig
from nestling.train.optimizer import adamw, is_matrix, learning_rate


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    config = OptimizerConfig(lr=2.0, warmup=0.1, floor=0.25)
    rates = [learning_rate(config, step, 100) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(rates) == rates[9] == 2.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert rates[54] == pytest.approx((2.0 + 0.5) / 2)  # half way down
    assert rates[-1] == pytest.approx(0.5)


def test_the_rate_agrees_with_torch() -> None:
    config = OptimizerConfig(lr=0.1, warmup=0.0, floor=0.1)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.01)
    for step in range(1, 21):
        optimizer.step()
        scheduler.step()
        assert learning_rate(config, step, 20) == pytest.approx(scheduler.get_last_lr()[0])


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (1.0, 7), (0.5, 1), (0.0, 3)])
def test_short_runs_have_rates(warmup: float, steps: int) -> None:
    config = OptimizerConfig(lr=1.0, warmup=warmup)
    assert all(0 < learning_rate(config, step, steps) <= 1 for step in range(1, steps + 1))


@pytest.mark.parametrize("recipe", recipes())
def test_only_matrices_decay(recipe: str) -> None:
    model = build(recipe, dim=32, layers=1, heads=2)
    groups = adamw(model.named_parameters(), OptimizerConfig(weight_decay=0.3)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.3 for p in group["params"]}
    kept = {id(p) for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    named = dict(model.named_parameters())
    assert decayed | kept == {id(p) for p in named.values()}
    assert not decayed & kept
    assert all(p.dim() >= 2 for p in named.values() if id(p) in decayed)
    assert all(id(p) in kept for name, p in named.items() if name.endswith(("gain", "bias", "conv.weight")))
    assert id(model.embedding.weight) in decayed


def test_decay_shrinks_matrices_and_nothing_else() -> None:
    weights = {"up.weight": torch.ones(2, 2), "norm.gain": torch.ones(2, 2), "bias": torch.ones(2)}
    parameters = {name: torch.nn.Parameter(value) for name, value in weights.items()}
    optimizer = adamw(parameters.items(), OptimizerConfig(lr=0.1, weight_decay=0.5))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert {name: p.detach().mean().item() for name, p in parameters.items()} == pytest.approx(
        {"up.weight": 0.95, "norm.gain": 1.0, "bias": 1.0}
    )


def test_what_does_not_learn_is_left_out() -> None:
    frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    live = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = adamw([("a.weight", frozen), ("b.weight", live)], OptimizerConfig())
    assert [p is live for group in optimizer.param_groups for p in group["params"]] == [True]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.mixer.qkv.weight", (4, 2), True),
        ("blocks.0.mixer.initial.w1", (2, 4, 2), True),
        ("blocks.0.mixer.norm.gain", (2, 4), False),
        ("blocks.0.mixer.conv.weight", (4, 2), False),
        ("blocks.0.mixer.bias", (4, 2), False),
        ("norm.gain", (4,), False),
    ],
)
def test_matrices_are_told_by_what_they_do(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(name, torch.zeros(shape)) is expected
