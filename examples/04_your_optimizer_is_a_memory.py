"""Your optimizer is a memory: SGD with momentum, three times, and a momentum that nobody named.

Once as torch has it, once as a rule of the core, once as an associative memory without keys that is written with gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nestling import optim
from nestling.core import L2, Constant, DotProduct, Gates, Matrix, Memory
from nestling.optim import Gradient, GradientMemory, Identity, One


class ByMemory(optim.Optimizer):
    """W ← W + m(query), for any memory m of gradients."""

    def __init__(self, params: object, memory: GradientMemory, lr: float, momentum: float) -> None:
        self.memory = memory
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def rule(self, group: dict) -> GradientMemory:
        """The memory, which is a rule of the core."""
        return self.memory

    def gates(self, group: dict) -> Gates:
        """How strongly it is written, and how much it keeps."""
        return Gates(lr=group["lr"], retain=group["momentum"])


def train(make: Callable[[nn.Module], torch.optim.Optimizer]) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 1, bias=False))
    optimizer = make(model)
    x = torch.randn(64, 8)
    y = x[:, :1] * x[:, 1:2]
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    momentum = GradientMemory(Memory(Constant(), DotProduct()), One(), Gradient(), One())
    delta = GradientMemory(Memory(Matrix(), L2()), Gradient(), Identity(), Identity())
    runs: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "torch.optim.SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "optim.SGD": lambda model: optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "a memory without keys": lambda model: ByMemory(model.parameters(), momentum, lr=0.05, momentum=0.9),
        "a memory with gradients as keys": lambda model: ByMemory(model.parameters(), delta, lr=0.05, momentum=0.9),
    }
    for name, make in runs.items():
        print(f"{name:<32} loss {train(make):.6f}")


if __name__ == "__main__":
    main()
