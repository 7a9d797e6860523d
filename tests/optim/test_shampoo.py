"""Shampoo, AdaGrad with outer products and SOAP: against loops over their equations, and as closed forms of a memory."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from nestling import NestlingError
from nestling.optim import SOAP, Adam, Shampoo
from nestling.optim.roots import power
from tests.optim.problem import follow, gradients, same, train

LEFT = (math.inf, 0)


def root(h: Tensor, p: float) -> Tensor:
    """Hᵖ by singular values, which for a positive matrix are its eigenvalues."""
    u, s, v = torch.linalg.svd(h)
    return u @ torch.diag(s**p) @ v


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("period", [1, 4])
def test_shampoo_is_its_algorithm(shape, period) -> None:
    """L ← L + g gᵀ, R ← R + gᵀ g from ε I; W ← W − η L^-¼ g R^-¼ (Gupta et al. 2018, algorithm 1)."""
    given, w, expected = gradients(50, *shape), 0.0, []
    left, right = (0.1 * torch.eye(n, dtype=torch.float64) for n in shape)
    for t, g in enumerate(given):
        left, right = left + g @ g.T, right + g.T @ g
        if t % period == 0:
            a, b = root(left, -0.25), root(right, -0.25)
        w = w - 0.03 * a @ g @ b
        expected.append(w)
    make = lambda p: Shampoo(p, 0.03, (0, 1), eps=0.1, period=period, rms=None)  # noqa: E731
    same(follow(make, given), expected, 1e-8)


def test_its_running_means_forget() -> None:
    given, w, m, expected = gradients(30, 3, 4), 0.0, 0.0, []
    left, right = (torch.zeros(n, n, dtype=torch.float64) for n in (3, 4))
    for t, g in enumerate(given, 1):
        m = 0.8 * m + 0.2 * g
        left, right = 0.9 * left + 0.1 * g @ g.T, 0.9 * right + 0.1 * g.T @ g
        a, b = (root(h / (1 - 0.9**t) + 1e-2 * torch.eye(len(h)), -0.25) for h in (left, right))
        u = a @ (m / (1 - 0.8**t)) @ b
        w = w * (1 - 0.03 * 0.5) - 0.03 * 0.2 * u / u.square().mean().sqrt()
        expected.append(w)
    make = lambda p: Shampoo(p, 0.03, (0.8, 0.9), eps=1e-2, weight_decay=0.5, period=1)  # noqa: E731
    same(follow(make, given), expected, 1e-8)


def closed_form(past: list[Tensor]) -> Tensor:
    """NL eqs 106-110 in the shapes that fit: P X with X = argmin Σ ‖gᵢᵀ X − I‖², P = (Σ gᵢ gᵢᵀ)^½, by least squares.

    X is a memory whose keys are the rows that gᵢᵀ gives, and whose every answer should be I; its normal equations are
    H X = Σ gᵢ. (As printed, ‖m g − P‖², the sides of a matrix do not fit.)
    """
    rows, wanted = (
        torch.cat([g.T for g in past]),
        torch.cat([torch.eye(past[0].shape[1], dtype=torch.float64)] * len(past)),
    )
    return root(sum(g @ g.T for g in past), 0.5) @ torch.linalg.lstsq(rows, wanted).solution


@pytest.mark.equation("Nested Learning", 106, 107, 108, 109, 110, 111)
def test_adagrad_with_outer_products_is_the_closed_form_of_a_memory() -> None:
    """NL eq. 111: W ← W − η H^-½ M, H = Σ g gᵀ, M = Σ g, 50 steps."""
    given, w, expected = gradients(50, 3, 5), 0.0, []
    for t in range(1, len(given) + 1):
        w = w - 0.01 * closed_form(given[:t])
        expected.append(w)
        torch.testing.assert_close(closed_form(given[:t]), root(sum(g @ g.T for g in given[:t]), -0.5) @ sum(given[:t]))
    same(follow(lambda p: Shampoo(p, 0.01, (1, 1), eps=0.0, period=1, widest=LEFT, rms=None), given), expected, 1e-8)


def test_with_gradients_of_one_column_it_is_adagrad_of_vectors() -> None:
    """NL eq. 106: for a vector g, H = Σ g gᵀ is the full matrix of AdaGrad (Duchi et al. 2011)."""
    given, w, expected = gradients(20, 4, 1), 0.0, []
    for t in range(1, 21):
        h = sum(g @ g.T for g in given[:t]) + 1e-2 * torch.eye(4, dtype=torch.float64)
        w = w - 0.1 * root(h, -0.5) @ given[t - 1]
        expected.append(w)
    same(follow(lambda p: Shampoo(p, 0.1, (0, 1), eps=1e-2, period=1, widest=LEFT, rms=None), given), expected, 1e-8)


@pytest.mark.parametrize("period", [1, 4])
@pytest.mark.parametrize("widest", [(9, 9), (9, 0)])
def test_soap_is_its_algorithm(period, widest) -> None:
    """Vyas et al. 2024, algorithms 3 and 4, with corrections of bias as Adam has them.

    Square gradients: of what one gradient has never seen, eigenvectors are arbitrary.
    """
    given, (b1, b2), eps, rate = gradients(40, 4, 4), (0.8, 0.9), 1e-3, 0.02
    w = m = v = torch.zeros(4, 4, dtype=torch.float64)
    sizes, expected = [n if n <= most else 0 for n, most in zip((4, 4), widest, strict=True)], []
    known = [torch.zeros(n, n, dtype=torch.float64) for n in (4, 4)]
    bases = [torch.eye(n, dtype=torch.float64) for n in (4, 4)]
    for t, g in enumerate(given, 1):
        known = [b2 * h + (1 - b2) * each for h, each in zip(known, (g @ g.T, g.T @ g), strict=True)]
        for side in (i for i in (0, 1) if sizes[i] and (t - 1) % period == 0):
            start = torch.linalg.eigh(known[side])[1] if t == 1 else torch.linalg.qr(known[side] @ bases[side])[0]
            bases[side] = start
        q, r = bases
        m, seen = b1 * m + (1 - b1) * g, q.T @ g @ r
        v = b2 * v + (1 - b2) * seen * seen
        n = (q.T @ m @ r / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
        w = w - rate * q @ n @ r.T
        expected.append(w)
    make = lambda p: SOAP(p, rate, (b1, b2), eps=eps, period=period, widest=widest)  # noqa: E731
    same(follow(make, given), expected, 1e-8)


def test_soap_without_sides_is_adam() -> None:
    given = gradients(20, 3, 4)
    same(
        follow(lambda p: SOAP(p, 0.01, (0.9, 0.99), widest=(0, 0)), given),
        follow(lambda p: Adam(p, 0.01, (0.9, 0.99)), given),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roots_of_singular_matrices_stay_finite(dtype) -> None:
    g = torch.randn(6, 2, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 1e3
    found = power(g @ g.T, -0.25)
    assert found.isfinite().all()
    u, s, _ = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(u.T @ found @ u, torch.diag(s**-0.5), rtol=1e-3, atol=1e-3)
    assert torch.equal(power(torch.zeros(3, 3, dtype=dtype), -0.25), torch.zeros(3, 3, dtype=dtype))


@pytest.mark.parametrize("make", [Shampoo, SOAP])
def test_each_goes_on_from_a_state_saved_inside_a_period(make) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3, bias=False).double()
    optimizer = make(model.parameters(), period=4)
    train(model, optimizer, range(6))
    other = copy.deepcopy(model)
    resumed = make(other.parameters(), period=4)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same(train(other, resumed, range(6, 13)), train(model, optimizer, range(6, 13)), 0.0)


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (Shampoo, {"retain": (0.9, 1.1)}, "retain must"),
        (Shampoo, {"retain": (0.9,)}, "retain must"),
        (Shampoo, {"period": 0}, "period must"),
        (Shampoo, {"widest": (-1, 2)}, "widest must"),
        (SOAP, {"widest": (2,)}, "widest must"),
        (SOAP, {"betas": (0.9, 1.0)}, "betas must"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, settings, said: str) -> None:
    with pytest.raises(NestlingError, match=said):
        make([torch.nn.Parameter(torch.zeros(2, 2))], **settings)
    with pytest.raises(NestlingError, match="needs matrices"):
        make([torch.nn.Parameter(torch.zeros(2))])
