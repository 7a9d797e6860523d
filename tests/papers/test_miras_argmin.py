"""MIRAS' catalogue against its definitions: each step is the minimiser that the paper derives it from, solved numerically in float64.

Learning-retaining viewpoint: Wₜ = argmin ⟨W, ∇ℓ⟩ + Ret(W, Wₜ₋₁)/η. FTRL viewpoint: Wₜ = argmin ⟨W, Σᵢ∇ℓᵢ⟩ + R(W)/η.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nestling.core import (
    KL,
    L2,
    ChiSquared,
    Decay,
    ElasticNet,
    FDivergence,
    Gates,
    Hellinger,
    Logistic,
    Lp,
    Lq,
    LqLink,
    Matrix,
    Memory,
    MixedHuber,
    NormHuber,
    Retention,
    ReverseKL,
    SoftThreshold,
    ValueShift,
)
from nestling.core.proximal import Divergence

OUT, WIDTH, RATE, CLOSE = 3, 5, 0.4, 1e-6
FIRST = torch.tensor(True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The point that minimises a smooth convex function."""
    point = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([point], 1.0, 500, 1000, 1e-13, 1e-18, 50, "strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective(point)
        value.backward()
        return value

    for _ in range(3):
        solver.step(closure)
    return point.detach()


def separable(objective: Callable[[Tensor], Tensor]) -> Tensor:
    """The entries in (-9, 9) that minimise a convex function of each entry by itself, kinks and all, by thirds."""
    low, high = torch.full((OUT, WIDTH), -9.0, dtype=torch.float64), torch.full((OUT, WIDTH), 9.0, dtype=torch.float64)
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        worse = objective(left) > objective(right)
        low, high = torch.where(worse, left, low), torch.where(worse, high, right)
    return 0.5 * (low + high)


def step(retention: Retention, before: Tensor, gradient: Tensor, gates: Gates) -> Tensor:
    """W after one write of gradient descent at W = ``before``."""
    dual = retention.write(retention.dual(before), -gates.lr * gradient, gates, normal(WIDTH), FIRST)
    return retention.primal(dual)


def close(got: Tensor, expected: Tensor) -> None:
    assert (got - expected).abs().max() <= CLOSE, float((got - expected).abs().max())


def on_simplex(scale: float, seed: int = 1) -> Tensor:
    return scale * torch.softmax(normal(OUT, WIDTH, seed=seed), -1)


@pytest.mark.equation("MIRAS", 8)
def test_eq_8_l2_retention():
    """⟨W, ∇ℓ⟩ + ‖W - αW'‖²/2η."""
    w, g = normal(OUT, WIDTH), normal(OUT, WIDTH, seed=1)
    found = smooth(lambda x: (x * g).sum() + (x - 0.9 * w).square().sum() / (2 * RATE), w)
    close(step(Decay(), w, g, Gates(RATE, 0.9)), found)


@pytest.mark.equation("MIRAS", 21)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_eq_21_kl_with_entropy(scale):
    """⟨W, ∇ℓ⟩ + KL(W, W')/η + Σ W log W/a on the scaled simplex; λ = (1/a)/(1/a + 1/η), α = 1 - λ, η' = 1/(1/a + 1/η)."""
    w, g, entropy = on_simplex(scale), normal(OUT, WIDTH, seed=2), 2.0

    def objective(z: Tensor) -> Tensor:
        x = scale * torch.softmax(z, -1)
        kl = (x * (x / w).log()).sum()
        return (x * g).sum() + kl / RATE + (x * x.log()).sum() / entropy

    both = 1 / entropy + 1 / RATE
    gates = Gates(1 / both, 1 - (1 / entropy) / both)
    close(step(KL(scale), w, g, gates), scale * torch.softmax(smooth(objective, w.log()), -1))


@pytest.mark.equation("MIRAS", 18)
@pytest.mark.parametrize("divergence", [Hellinger(), ReverseKL(), ChiSquared()], ids=repr)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_eq_18_f_divergence(divergence, scale):
    """⟨W, η∇ℓ⟩ + Σ W' f(W/W') on the scaled simplex."""
    w, g = on_simplex(scale), 0.5 * normal(OUT, WIDTH, seed=2)

    def objective(z: Tensor) -> Tensor:
        x = scale * torch.softmax(z, -1)
        return (x * RATE * g).sum() + (w * divergence.of(x / w)).sum()

    got = step(FDivergence(divergence, scale), w, g, Gates(RATE))
    close(got, scale * torch.softmax(smooth(objective, w.log()), -1))
    close(got.sum(-1), torch.full((OUT,), scale, dtype=torch.float64))


@pytest.mark.equation("MIRAS", 18)
def test_eq_18_chi_squared_may_leave_nothing_of_a_weight():
    """Where the gradient is large, the constraint W ≥ 0 holds; the others have what is left."""
    w = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    got = step(FDivergence(ChiSquared()), w, torch.tensor([[0.0, 0.0, 9.0]], dtype=torch.float64), Gates(1.0))
    close(got, torch.tensor([[0.625, 0.375, 0.0]], dtype=torch.float64))


class _Entropy(Divergence):
    """f(τ) = τ ln τ - τ + 1"""

    def of(self, ratio: Tensor) -> Tensor:
        return ratio * ratio.log() - ratio + 1

    def ratio(self, slope: Tensor) -> Tensor:
        return slope.exp()

    def spread(self, slope: Tensor) -> Tensor:
        return slope.exp()


@pytest.mark.equation("MIRAS", 18)
def test_eq_18_with_entropy_is_eq_21_in_value_and_slope():
    """f = τ ln τ is KL; and the search for ζ does not get in the way of gradients."""
    w, g = on_simplex(1.0), normal(OUT, WIDTH, seed=2)
    results = []
    for retention in (FDivergence(_Entropy()), KL()):
        leaves = [each.clone().requires_grad_() for each in (w.log(), g)]
        kept = retention.write(leaves[0], -RATE * leaves[1], Gates(RATE, 0.9), normal(WIDTH), FIRST)
        out = retention.primal(kept)
        grads = torch.autograd.grad((out * normal(OUT, WIDTH, seed=3)).sum(), leaves)
        results.append((out.detach(), *grads))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.equation("MIRAS", 22)
def test_eq_22_elastic_net_in_the_learning_retaining_reading():
    """⟨W, ∇ℓ⟩ + ‖W - W'‖²/2θ + ‖W‖²/2b + s‖W‖₁: W = S_γ(λW' - ζ∇ℓ), λ = b/(b+θ), ζ = θλ, γ = ζ s."""
    w, g, b, s = normal(OUT, WIDTH), normal(OUT, WIDTH, seed=1), 2.0, 0.7

    def objective(x: Tensor) -> Tensor:
        return x * g + (x - w).square() / (2 * RATE) + x.square() / (2 * b) + s * x.abs()

    kept = b / (b + RATE)
    got = step(SoftThreshold(s), w, g, Gates(RATE * kept, kept))
    close(got, separable(objective))
    assert bool((got == 0).any()), "hard forgetting"


@pytest.mark.equation("MIRAS", 23)
@pytest.mark.equation("MIRAS", 6, 7)
def test_eq_23_elastic_net_in_the_ftrl_reading():
    """⟨W, Σ∇ℓ⟩ + (‖W‖²/2 + s‖W‖₁)/η: W = S_γ(A), γ = s, A = -η Σ∇ℓ."""
    total, s = normal(OUT, WIDTH, seed=1), 0.3
    found = separable(lambda x: x * total + (0.5 * x.square() + s * x.abs()) / RATE)
    close(ElasticNet(s).primal(-RATE * total), found)


@pytest.mark.parametrize("q", [1.3, 1.6, 2.0, 4.0])
def test_lq_stability(q):
    """⟨W, Σ∇ℓ⟩ + ‖W‖_q²/(2η(q-1)): the link function of the q-norm, and not the printed formula, which is it for q = 2 alone."""
    total = normal(OUT, WIDTH, seed=1)

    def objective(x: Tensor) -> Tensor:
        return (x * total).sum() + x.abs().pow(q).sum().pow(2 / q) / (2 * RATE * (q - 1))

    dual = -RATE * total
    close(LqLink(q).primal(dual), smooth(objective, dual))
    conjugate = q / (q - 1)
    printed = Lq(conjugate).primal(dual)
    assert torch.allclose(printed, LqLink(q).primal(dual)) == (q == 2)


@pytest.mark.equation("MIRAS", 24)
def test_eq_24_as_printed_minimises_nothing():
    """The map A/‖A‖_q^(q-2) has no potential for q ≠ 2: its Jacobian is not symmetric."""
    a = normal(2, 2)
    for map, symmetric in ((Lq(4.0), False), (Lq(2.0), True), (LqLink(4 / 3), True)):
        jacobian = torch.func.jacrev(lambda x, map=map: map.primal(x.view(2, 2)).flatten())(a.flatten())
        assert torch.allclose(jacobian, jacobian.mT, atol=1e-12) == symmetric


def bregman(potential: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """F(x) - F(y) - ⟨∇F(y), x - y⟩"""
    y = y.detach().requires_grad_()
    (slope,) = torch.autograd.grad(potential(y).sum(), y)
    return potential(x).sum() - potential(y).sum().detach() - (slope * (x - y.detach())).sum()


def _logit(x: Tensor) -> Tensor:
    return x * x.log() + (1 - x) * (1 - x).log()


def _simplex(x: Tensor) -> Tensor:
    return x * x.log()


def _q_norm(x: Tensor) -> Tensor:
    return x.abs().pow(1.5).sum().pow(4 / 3)[None] / (2 * 0.5)


@pytest.mark.equation("MIRAS", "Bregman")
@pytest.mark.parametrize(
    ("retention", "potential", "inside"),
    [
        (Logistic(), _logit, torch.sigmoid),
        (KL(), _simplex, lambda z: torch.softmax(z, -1)),
        (LqLink(1.5), _q_norm, lambda z: z),
    ],
    ids=["logistic", "simplex", "q-norm"],
)
def test_mirror_maps_are_bregman_steps(retention, potential, inside):
    """⟨W, η∇ℓ⟩ + D_F(W, W'): W = (F')⁻¹(F'(W') - η∇ℓ) (MIRAS §5.2; F' in the divergence, where the paper prints W')."""
    start, g = normal(OUT, WIDTH), normal(OUT, WIDTH, seed=1)
    w = inside(start)
    found = smooth(lambda z: (inside(z) * RATE * g).sum() + bregman(potential, inside(z), w), start)
    close(step(retention, w, g, Gates(RATE)), inside(found))


@pytest.mark.equation("MIRAS", "value shift")
def test_value_shift_is_the_worst_of_the_values_near():
    """max over ‖s‖ ≤ Δ of ½‖v̂ - (v + s)‖², by the angle of s; and the write of a matrix, W - η(r + Δ r/‖r‖)kᵀ."""
    w, k, v, shift = normal(2, WIDTH), normal(WIDTH, seed=1), normal(2, seed=2), 0.6
    angle = torch.linspace(0, 2 * torch.pi, 20_001, dtype=torch.float64)
    s = shift * torch.stack((angle.cos(), angle.sin()), -1)
    worst = (0.5 * (w @ k - (v + s)).square().sum(-1)).max()
    objective = ValueShift(shift, epsilon=0.0)
    close(objective(w @ k, v, 0.0), worst)
    memory = Memory(Matrix(), objective)
    r = w @ k - v
    state = memory.write(memory.init({"w1": w}), k, v, Gates(RATE))
    close(state.dual["w1"], w - RATE * torch.outer(r + shift * r / r.norm(), k))


def written(objective, threshold: float, w: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(W - W')/-η, the gradient that was written"""
    memory = Memory(Matrix(), objective)
    return (w - memory.write(memory.init({"w1": w}), k, v, Gates(RATE, threshold=threshold)).dual["w1"]) / RATE


@pytest.mark.equation("MIRAS", 15, 16)
def test_eqs_15_and_16_huber_by_norm_and_as_a_mixture():
    """Inside δ all are ℓ₂; outside, (15) writes δ r/‖r‖ and (16) δ Sign(r)."""
    w, k, v = normal(OUT, WIDTH), normal(WIDTH, seed=1), normal(OUT, seed=2)
    r = w @ k - v
    wide, narrow = 1.1 * float(r.norm()), 0.9 * float(r.norm())
    mixed = MixedHuber(epsilon=0.0)
    for objective in (NormHuber(), mixed, L2()):
        close(written(objective, wide, w, k, v), torch.outer(r, k))
        close(written(objective, float("inf"), w, k, v), torch.outer(r, k))
    close(written(NormHuber(), narrow, w, k, v), torch.outer(narrow * r / r.norm(), k))
    close(written(mixed, narrow, w, k, v), torch.outer(narrow * r.sign(), k))
    close(written(mixed, narrow, w, k, v), narrow * written(Lp(1.0, epsilon=0.0), 0.0, w, k, v))
