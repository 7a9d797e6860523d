"""Objectives: their values and slopes where formulas meet and where they could break."""

from __future__ import annotations

import pytest
import torch

from nestling.core import L2, DotProduct, Huber, Lp
from nestling.errors import NestlingError


def slope(objective, r: torch.Tensor, threshold: float = float("inf")) -> torch.Tensor:
    """∂ℓ/∂v̂ at v̂ - v = r"""
    value = torch.randn_like(r)
    prediction = (value + r).requires_grad_()
    return torch.autograd.grad(objective(prediction, value, threshold).sum(), prediction)[0]


R = torch.tensor([-3.0, -1.0, -0.2, 0.3, 1.5, 4.0], dtype=torch.float64)


def test_l2_has_the_half():
    torch.testing.assert_close(slope(L2(), R), R)
    assert float(L2()(R, torch.zeros_like(R), 0.0)) == pytest.approx(0.5 * float(R.square().sum()))


def test_huber_is_l2_inside_and_l1_outside():
    """MIRAS eqs 13-14: slope r where |r| ≤ δ, δ sign(r) beyond; value and slope continuous at δ."""
    torch.testing.assert_close(slope(Huber(), R, 1.2), R.clamp(-1.2, 1.2))
    near = torch.tensor([1.2 - 1e-9, 1.2 + 1e-9], dtype=torch.float64)
    values = [Huber()(x[None], torch.zeros(1, dtype=torch.float64), 1.2) for x in near]
    torch.testing.assert_close(values[0], values[1], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(slope(Huber(), R, float("inf")), R)
    assert not bool(slope(Huber(), R, 0.0).any()), "at δ = 0 nothing is written"


def test_huber_at_its_threshold_has_one_of_its_slopes():
    at = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    prediction = at.clone().requires_grad_()
    (grad,) = torch.autograd.grad(Huber()(prediction, torch.zeros_like(at), 1.0), prediction)
    torch.testing.assert_close(grad, at)


def test_huber_takes_a_threshold_for_each_example():
    thresholds = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    both = Huber()(R.expand(2, -1), torch.zeros(2, 6, dtype=torch.float64), thresholds)
    single = [Huber()(R, torch.zeros_like(R), float(t)) for t in thresholds[:, 0]]
    torch.testing.assert_close(both, torch.stack(single))


def test_lp_is_smooth_at_zero():
    """MIRAS remark 5: |x| = √(x² + ε); without it p = 1 has no slope there."""
    zero = torch.zeros(3, dtype=torch.float64)
    for p in (1.0, 1.5, 3.0):
        assert not bool(slope(Lp(p), zero).any())
    torch.testing.assert_close(slope(Lp(3.0, 0.0), R), 3 * R.sign() * R.square())
    torch.testing.assert_close(slope(Lp(1.0), R), R / (R.square() + 1e-6).sqrt(), rtol=1e-7, atol=1e-7)


def test_the_dot_product_does_not_look_at_the_prediction():
    value = torch.randn(4, dtype=torch.float64)
    prediction = torch.randn(4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(DotProduct()(prediction, value, 0.0), prediction)
    torch.testing.assert_close(grad, -value)


def test_lp_refuses_what_is_no_norm():
    with pytest.raises(NestlingError, match="p ≥ 1"):
        Lp(0.5)
