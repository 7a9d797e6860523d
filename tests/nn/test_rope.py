"""Rotary positions."""

from __future__ import annotations

import math

import pytest
import torch

from nestling.nn import rotate


@pytest.mark.parametrize("first", [0, 5, 1000])
def test_each_pair_is_turned_by_its_angle(first):
    """(xᵢ + i·xᵢ₊ₙ⸝₂) e^{i p base^(-2i/n)}"""
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    for t in range(4):
        for i in range(3):
            angle = (first + t) * 10_000 ** (-i / 3)
            turned = torch.complex(x[:, t, i], x[:, t, i + 3]) * complex(math.cos(angle), math.sin(angle))
            got = rotate(x, first)[:, t]
            torch.testing.assert_close(torch.complex(got[:, i], got[:, i + 3]), turned, rtol=1e-12, atol=1e-12)


def test_scores_depend_on_differences_of_positions_alone():
    q, k = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    here = rotate(q, 0) @ rotate(k, 0).mT
    there = rotate(q, 77) @ rotate(k, 77).mT
    torch.testing.assert_close(here, there, rtol=1e-11, atol=1e-11)
    assert (here - rotate(q, 1) @ rotate(k, 0).mT).abs().max() > 1e-2


def test_lengths_stay_and_types_come_back():
    x = torch.randn(1, 7, 8)
    torch.testing.assert_close(rotate(x, 3).norm(dim=-1), x.norm(dim=-1))
    assert rotate(x.bfloat16(), 3).dtype == torch.bfloat16
    exact = rotate(x.double(), 100_000)
    torch.testing.assert_close(rotate(x, 100_000).double(), exact, rtol=1e-5, atol=1e-5)


def test_angles_that_were_asked_for_in_inference_serve_training_too():
    x = torch.randn(2, 3, 7, 6)
    with torch.inference_mode():
        expected = rotate(x, first=11).clone()
    given = x.clone().requires_grad_()
    turned = rotate(given, first=11)
    turned.square().sum().backward()
    torch.testing.assert_close(turned.detach(), expected)
    # A rotation keeps lengths: the gradient of the squared length is 2x.
    torch.testing.assert_close(given.grad, 2 * x)
