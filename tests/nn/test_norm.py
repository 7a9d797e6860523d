"""Normalisations."""

from __future__ import annotations

import torch

from nestling.nn import RMSNorm, unit


def test_rmsnorm_is_its_formula():
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    norm = RMSNorm(5).double()
    with torch.no_grad():
        norm.gain.copy_(torch.arange(5) + 1.0)
    expected = (torch.arange(5) + 1.0) * x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_rmsnorm_of_half_precision_is_computed_in_float32_and_comes_back():
    x = torch.randn(4, 64).bfloat16()
    y = RMSNorm(64)(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, RMSNorm(64)(x.float()).bfloat16())
    large = torch.full((1, 8), 3e2).half()  # its square has no half
    assert bool(torch.isfinite(RMSNorm(8)(large)).all())


def test_unit_vectors_have_unit_length_and_zero_has_a_slope():
    x = torch.randn(10, 4, dtype=torch.float64)
    torch.testing.assert_close(unit(x).norm(dim=-1), torch.ones(10, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(unit(x), x / x.norm(dim=-1, keepdim=True), rtol=1e-10, atol=1e-10)
    zero = torch.zeros(1, 4, requires_grad=True)
    y = unit(zero)
    (grad,) = torch.autograd.grad(y.sum(), zero)
    assert not bool(y.any()) and bool(torch.isfinite(grad).all())
