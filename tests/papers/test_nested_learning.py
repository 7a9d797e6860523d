"""Nested Learning: The Illusion of Deep Learning Architectures (arXiv 2512.24695): delta gradient descent and its relatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nestling.core import (
    L2,
    MLP,
    Adaptive,
    Chain,
    Constant,
    Delta,
    Descend,
    DotProduct,
    Every,
    Gates,
    Lp,
    Matrix,
    Memory,
    Momentum,
    Residual,
)
from tests.papers.setting import PATHS, Problem, each, problem, run, same, weights

WIDTH, HEADS, LENGTH = 4, 2, 21
EYE = torch.eye(WIDTH, dtype=torch.float64)


@pytest.mark.equation("Nested Learning", 56, 57)
def test_eqs_56_and_57_delta_gradient_descent_solves_its_proximal_problem():
    """NL eq. 57: W ← W(I - η'xxᵀ) - η'∇_yL ⊗ x with η' = η/(1+η) minimises eq. 56, ½‖Wx - u‖² + ‖W - Wₜ‖²/2η, for ‖x‖ = 1.

    u = -∇_yL at Wₜ. The minimiser solves W(xxᵀ + I/η) = uxᵀ + Wₜ/η.
    """
    given, initial = problem(1), weights(HEADS, WIDTH, WIDTH)
    eta = 0.7
    memory = Memory(Matrix(), Lp(3.0), Delta(), Descend())
    _, state = run(memory, {"w1": initial}, given, Gates(lr=eta / (1 + eta)), "auto")
    w, x, v = initial[1], given.k[1, 1, 0], given.v[1, 1, 0]
    y = (w @ x).requires_grad_()
    (slope,) = torch.autograd.grad(Lp(3.0)(y, v, 0.0), y)
    best = torch.linalg.solve(torch.outer(x, x) + EYE / eta, torch.outer(-slope, x) + w / eta, left=False)
    same(state.dual["w1"][1, 1], best)


@pytest.mark.equation("Nested Learning", 88, 93)
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_eqs_88_and_93_delta_gradient_descent_along_tokens(chunk, path):
    """NL eq. 93: Mₜ = Mₜ₋₁(αₜI - ηₜkₜkₜᵀ) - ηₜ(M_c(t)kₜ - v̂ₜ)kₜᵀ; with chunks of one token it is eq. 88."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)

    def loop(head: int, now: Problem) -> Tensor:
        m, outputs = initial[head], []
        for t in range(LENGTH):
            if t % chunk == 0:
                committed = m
            k, eta = now.k[t], now.rate[t]
            m = m @ (now.keep[t] * EYE - eta * torch.outer(k, k)) - eta * torch.outer(committed @ k - now.v[t], k)
            outputs.append(m @ now.q[t])
        return torch.stack(outputs)

    memory = Memory(Matrix(), L2(), Delta(), Descend(), period=chunk)
    y, _ = run(memory, {"w1": initial}, given, Gates(given.rate, given.keep), path)
    same(y, each(given, loop))


@pytest.mark.equation("Nested Learning", 93)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_eq_93_is_a_gated_delta_rule(path):
    """NL eq. 93 as Sₜ = αSₜ₋₁(I - bkkᵀ) + bv'kᵀ with b = η/α and v' = α(v̂ - M_c k), to 1e-12."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)

    def loop(head: int, now: Problem) -> Tensor:
        s, outputs = initial[head], []
        for t in range(LENGTH):
            if t % 7 == 0:
                committed = s
            k, alpha = now.k[t], now.keep[t]
            b, value = now.rate[t] / alpha, alpha * (now.v[t] - committed @ k)
            s = alpha * s @ (EYE - b * torch.outer(k, k)) + b * torch.outer(value, k)
            outputs.append(s @ now.q[t])
        return torch.stack(outputs)

    memory = Memory(Matrix(), L2(), Delta(), Descend(), period=7)
    y, _ = run(memory, {"w1": initial}, given, Gates(given.rate, given.keep), path)
    same(y, each(given, loop), 1e-12)


@pytest.mark.equation("Nested Learning", 92)
def test_eq_92_with_the_dot_product_a_repeated_key_is_learnt_exactly():
    """NL eq. 92 (its sign set right: + ηv̂kᵀ): delta retention erases, the dot product writes, Mk converges to v."""
    same(repeated(Memory(Matrix(), DotProduct(), Delta())), torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64))


@pytest.mark.equation("Nested Learning", 88)
def test_eq_88_with_l2_erases_twice():
    """NL eq. 88 with ‖·‖² (here ½‖·‖²): one repeated unit key converges to v/2; plain L2 without delta retention to v."""
    value = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64)
    same(repeated(Memory(Matrix(), L2(), Delta())), value / 2)
    same(repeated(Memory(Matrix(), L2())), value)


def repeated(memory: Memory) -> Tensor:
    """What a memory answers after the same unit key and value 300 times."""
    key = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64), dim=0)
    value = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64)
    k, v = (x.expand(1, 1, 300, -1) for x in (key, value))
    given = Problem(k, k, v, *(torch.full((1, 1, 300), x, dtype=torch.float64) for x in (0.2, 1.0, 0.0)))
    y, _ = run(memory, {"w1": weights(1, WIDTH, WIDTH)}, given, Gates(lr=given.rate), "auto")
    return y[0, 0, -1]


@pytest.mark.equation("Nested Learning", 57, 88)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_delta_gradient_descent_of_a_deep_memory_erases_by_each_layers_own_input(path):
    """NL eq. 57 at every linear map of M(x) = x + W₂σ(W₁x): W ← W(αI - ηzzᵀ) - ηδzᵀ, z the map's input at the commit."""
    given = problem(LENGTH)
    initial = {"w1": weights(HEADS, 8, WIDTH), "w2": weights(HEADS, WIDTH, 8, seed=2)}

    def loop(head: int, now: Problem) -> Tensor:
        w1, w2, outputs = initial["w1"][head], initial["w2"][head], []
        for t in range(LENGTH):
            if t % 4 == 0:
                c1, c2 = w1.clone().requires_grad_(), w2.clone().requires_grad_()
            k, eta, alpha = now.k[t], now.rate[t], now.keep[t]
            hidden = torch.nn.functional.gelu(c1 @ k)
            g1, g2 = torch.autograd.grad(0.5 * (k + c2 @ hidden - now.v[t]).square().sum(), (c1, c2))
            z = hidden.detach()
            w1 = alpha * w1 - eta * torch.outer(w1 @ k, k) - eta * g1
            w2 = alpha * w2 - eta * torch.outer(w2 @ z, z) - eta * g2
            q = now.q[t]
            outputs.append(q + w2 @ torch.nn.functional.gelu(w1 @ q))
        return torch.stack(outputs)

    memory = Memory(Residual(MLP(2, 2)), L2(), Delta(), Descend(), period=4)
    y, _ = run(memory, initial, given, Gates(given.rate, given.keep), path)
    same(y, each(given, loop))


@pytest.mark.equation("Nested Learning", 10, 11, 12, 13, 34)
def test_eqs_10_to_13_momentum_is_a_memory_without_keys():
    """NL eqs 10-13 and 33-34: m ← αm - ηg is one write of ``Constant`` with the dot product, values -g."""
    memory = Memory(Constant(), DotProduct())
    state = memory.init({"w1": torch.zeros(3, 1, dtype=torch.float64)})
    m = torch.zeros(3, dtype=torch.float64)
    for _ in range(5):
        g = torch.randn(3, dtype=torch.float64)
        state = memory.write(state, torch.zeros(2, dtype=torch.float64), -g, Gates(lr=0.3, retain=0.9))
        m = 0.9 * m - 0.3 * g
    same(memory.read(state, torch.zeros(2, dtype=torch.float64)), m)


@pytest.mark.equation("Nested Learning", 48, 49)
def test_eqs_48_and_49_delta_momentum_is_a_matrix_memory_of_gradients():
    """NL eq. 48: min ‖m k - P‖² with keys that are rows of the gradient, one after the other, by the delta rule."""
    memory = Memory(Matrix(), L2())
    gradient, target = torch.randn(3, WIDTH, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    state = memory.init({"w1": torch.zeros(2, WIDTH, dtype=torch.float64)})
    m = torch.zeros(2, WIDTH, dtype=torch.float64)
    for row in range(3):
        state = memory.write(state, gradient[row], target[row], Gates(lr=0.1, retain=0.9))
        m = 0.9 * m - 0.1 * (m @ torch.outer(gradient[row], gradient[row]) - torch.outer(target[row], gradient[row]))
    same(state.dual["w1"], m)


@pytest.mark.equation("Nested Learning", 71)
@pytest.mark.parametrize("period", [1, 3, 4])
def test_eq_71_a_level_moves_by_the_sum_of_its_chunk(period):
    """NL eq. 71: θᵢ₊₁ = θᵢ - Σ η f(θ; x) over the C points of the chunk when i ≡ 0 (mod C), and nothing otherwise."""
    rule = Every(period, Descend())
    theta = torch.zeros(2, 2, dtype=torch.float64)
    state = rule.init(theta)
    gathered = torch.zeros_like(theta)
    for i in range(1, 14):
        g = torch.randn(2, 2, dtype=torch.float64)
        gathered += g
        update, state = rule.update(g, state, Gates(lr=0.1))
        if i % period == 0:
            same(update, -0.1 * gathered)
            gathered = torch.zeros_like(theta)
        else:
            assert not bool(update.any())


@pytest.mark.equation("Nested Learning", 105)
def test_eq_105_adams_second_memory():
    """NL eqs 101-105: with P = √Σg² the optimal memory is Adam's M̃/(H^½ + ε); torch's Adam is the oracle (β₁ = 0)."""
    parameter = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mine = parameter.detach().clone()
    optimizer = torch.optim.Adam([parameter], lr=0.01, betas=(0.0, 0.95), eps=1e-6)
    rule = Chain((Adaptive(0.95, 1e-6), Descend()))
    state = rule.init(mine)
    for _ in range(50):
        parameter.grad = torch.randn(3, 4, dtype=torch.float64)
        update, state = rule.update(parameter.grad.clone(), state, Gates(lr=0.01))
        mine = mine + update
        optimizer.step()
    same(mine, parameter.detach(), 1e-12)


@pytest.mark.equation("Nested Learning", 10, 11, 33)
def test_eqs_10_and_11_gradient_descent_with_momentum_is_torchs_sgd():
    """NL eqs 10-11: m ← m + ∇L, W ← W - ηm; 50 steps beside torch.optim.SGD."""
    parameter = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mine = parameter.detach().clone()
    optimizer = torch.optim.SGD([parameter], lr=0.005, momentum=0.9)
    rule = Chain((Momentum(0.9), Descend()))
    state = rule.init(mine)
    target = torch.randn(3, 4, dtype=torch.float64)
    for _ in range(50):
        optimizer.zero_grad()
        (parameter - target).pow(4).sum().backward()
        update, state = rule.update(4 * (mine - target).pow(3), state, Gates(lr=0.005))
        mine = mine + update
        optimizer.step()
    same(mine, parameter.detach(), 1e-12)
