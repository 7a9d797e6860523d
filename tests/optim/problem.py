"""A small problem for optimizers: a two-layer network with a bias, in float64, whose data change at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def network(dtype: torch.dtype = torch.float64) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).to(dtype)


def loss(model: torch.nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    weight = next(model.parameters())
    x = torch.randn(6, 5, generator=generator).to(weight.dtype)
    y = torch.randn(6, 3, generator=generator).to(weight.dtype)
    return (model(x) - y).square().mean()


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(50)) -> list[Tensor]:
    """All parameters after each step, in one vector."""
    seen = []
    for step in steps:
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone())
    return seen


def trajectory(make: Callable[[torch.nn.Module], torch.optim.Optimizer], steps: int = 50) -> list[Tensor]:
    model = network()
    return train(model, make(model), range(steps))


def gradients(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def follow(make: Callable[[list[Tensor]], torch.optim.Optimizer], given: list[Tensor]) -> list[Tensor]:
    """One weight that begins at nothing, after each of the given gradients."""
    weight, seen = torch.nn.Parameter(torch.zeros_like(given[0])), []
    optimizer = make([weight])
    for gradient in given:
        weight.grad = gradient.clone()
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


def same(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    assert len(got) == len(expected)
    for t, (a, b) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, t=t: f"step {t}: {m}")
