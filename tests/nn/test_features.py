"""Polynomial features: their inner products are the polynomial, and a matrix holds more pairs by them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nestling.core import Matrix, Memory
from nestling.errors import NestlingError
from nestling.nn import MemoryLayer, Polynomial
from nestling.nn.norm import unit
from nestling.ops import Marks


@pytest.mark.equation("Atlas", "§3")
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_inner_products_are_the_polynomial_of_inner_products(degree):
    """φ(q)·φ(k) = Σ aᵢ (q·k)ⁱ with aᵢ = 1/i! (Atlas §3), on unit queries and keys after SiLU."""
    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    features = Polynomial(degree, 4).module(2).double()
    (a, b, same), _ = features((q, k, v), (), Marks())
    overlap = (unit(F.silu(q)) * unit(F.silu(k))).sum(-1)
    expected = sum(overlap**i / math.factorial(i) for i in range(degree + 1))
    assert torch.allclose((a * b).sum(-1), expected, rtol=0, atol=1e-7)
    assert a.shape[-1] == math.comb(4 + degree, degree) == features.widths(9)[1]
    assert torch.equal(same, F.silu(v))


def test_coefficients_are_learnt_by_each_head_or_fixed():
    learnt, fixed = Polynomial(2, 3).module(4), Polynomial(2, 3, (1.0, 2.0, 3.0)).module(4)
    assert [tuple(p.shape) for p in learnt.parameters()] == [(4, 3)] and not list(fixed.parameters())
    x = F.normalize(torch.randn(1, 4, 5, 3), dim=-1)
    square = fixed.mapped(x).square().sum(-1)
    assert torch.allclose(square, torch.full_like(square, 6.0), atol=1e-5)
    learnt.mapped(x).square().sum().backward()
    assert bool(learnt.logs.grad.ne(0).all())


def test_a_matrix_holds_more_pairs_than_its_keys_are_wide():
    """Proposition 2: the best matrix on monomials of degree 2 of keys of width 4 holds 12 pairs; on the keys alone, not."""
    generator = torch.Generator().manual_seed(0)
    k = F.normalize(torch.randn(1, 1, 12, 4, generator=generator, dtype=torch.float64), dim=-1)
    v = torch.randn(12, 3, generator=generator, dtype=torch.float64)

    def error(keys: torch.Tensor) -> float:
        return float((keys @ (torch.linalg.pinv(keys) @ v) - v).norm() / v.norm())

    assert error(k[0, 0]) > 0.5
    assert error(Polynomial(2, 4).module(1).double().mapped(k)[0, 0].detach()) < 1e-9


def test_a_layer_projects_to_the_width_of_its_keys():
    layer = MemoryLayer(12, 2, Memory(Matrix()), features=Polynomial(2, 3))
    assert layer.qkv.out_features == 2 * 3 + 2 * 3 + 12 and layer.initial["w1"].shape == (2, 6, 10)
    assert layer(torch.randn(1, 5, 12))[0].shape == (1, 5, 12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Polynomial(0),
        lambda: Polynomial(2, 0),
        lambda: Polynomial(2, 3, (1.0,)),
        lambda: Polynomial(1, 3, (1.0, 0.0)),
    ],
)
def test_what_is_no_polynomial_is_refused(make):
    with pytest.raises(NestlingError, match="Polynomial"):
        make()
