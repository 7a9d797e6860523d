"""Surprise in closed form is surprise by automatic differentiation, and so are its derivatives."""

import pytest
import torch

from nestling.core import L2, MLP, Beside, Constant, DotProduct, GatedMLP, Huber, Lp, Matrix, Memory, Normed, Residual
from nestling.core.architecture import SiLU
from nestling.core.memory import surprise
from nestling.ops.surprise import pairs

ARCHITECTURES = [
    Matrix(),
    MLP(2, 1),
    MLP(2, 2),
    MLP(2, 3, SiLU()),
    GatedMLP(2),
    Residual(Normed(MLP(2, 2))),
    Normed(Residual(GatedMLP(2, SiLU()))),
    Constant(),
    Beside((("a", Matrix(), 2), ("b", MLP(1, 3), 1), ("c", Normed(GatedMLP(2)), 1))),
    Beside((("a", Residual(MLP(2)), 4),)),
]


@pytest.mark.parametrize("objective", [L2(), DotProduct(), Lp(3.0), Lp(1.5), Huber()], ids=repr)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)
def test_is_what_automatic_differentiation_finds(architecture, objective):
    torch.manual_seed(0)
    key, value = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    # Some residuals within the threshold, some beyond it.
    threshold = torch.rand(2, 3, 5, 1, dtype=torch.float64)
    weights = {
        name: torch.randn(2, 3, *shape, dtype=torch.float64) for name, shape in architecture.shapes(4, 4).items()
    }
    given = {name: leaf.requires_grad_() for name, leaf in {"key": key, "value": value, **weights}.items()}

    def answer(cotangents, inputs):
        found = [inputs[name] for name in weights] + [cotangents[name] for name in weights]
        total = sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in found)
        return found, torch.autograd.grad(total, list(given.values()), allow_unused=True)

    fast = answer(*pairs(Memory(architecture, objective), weights, key, value, threshold))
    seen = surprise(architecture, objective, weights, key, value, threshold)
    slow = answer(seen.cotangents, seen.inputs)
    for a, b in zip(fast[0], slow[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for a, b in zip(fast[1], slow[1], strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            *((zero if x is None else x) for x in (a, b)), rtol=1e-9, atol=1e-10, check_dtype=False
        )
