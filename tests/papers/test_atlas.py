"""ATLAS: Learning to Optimally Memorize the Context at Test Time (arXiv 2505.23735), and NL eq. 68."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nestling.core import (
    L2,
    MLP,
    Above,
    Chain,
    Decay,
    Descend,
    Gates,
    Huber,
    Matrix,
    Memory,
    Momentum,
    NewtonSchulz,
    Omega,
    Quantile,
)
from tests.papers.setting import PATHS, Problem, each, problem, run, same, weights

WIDTH, HEADS, LENGTH = 4, 2, 13
START = {"w1": weights(HEADS, 8, WIDTH), "w2": weights(HEADS, WIDTH, 8, seed=2)}


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def loss(fast: list[Tensor], key: Tensor, value: Tensor) -> Tensor:
    """½‖M(k) − v‖², M(k) = W₂σ(W₁k)."""
    return 0.5 * (fast[1] @ gelu(fast[0] @ key) - value).square().sum()


def newton_schulz(g: Tensor, steps: int) -> Tensor:
    """Muon's quintic iteration, for wide and tall matrices alike: X(aI + bXᵀX + c(XᵀX)²)."""
    x = g / (g.square().sum() + 1e-14).sqrt()
    for _ in range(steps):
        inner = x.mT @ x
        x = 3.4445 * x - 4.7750 * x @ inner + 2.0315 * x @ inner @ inner
    return x


def shares(given: Problem) -> Tensor:
    return torch.rand(given.rate.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.equation("Atlas", 8, 9, 10, 11)
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(("period", "window"), [(1, 3), (4, 1), (4, 9)])
@pytest.mark.equation("Nested Learning", 68)
def test_eqs_8_to_11_the_omega_rule(period, window, path):
    """Mₜ = αₜMₜ₋₁ − θₜ Σ_{i=t−c+1..t} γᵢ∇ℓ(M_t'; kᵢ, vᵢ): every gradient of the window anew at M_t', the inner one by autograd."""
    given, start = problem(LENGTH), START
    gamma = shares(given)
    rows = iter(range(4))

    def loop(head: int, now: Problem) -> Tensor:
        row = next(rows) // HEADS
        fast, outputs = [start[name][head].clone() for name in ("w1", "w2")], []
        for t in range(LENGTH):
            if t % period == 0:
                anchor = [w.clone().requires_grad_() for w in fast]
            first = max(0, t - window + 1)
            total = sum(gamma[row, head, i] * loss(anchor, now.k[i], now.v[i]) for i in range(first, t + 1))
            surprise = torch.autograd.grad(total, anchor)
            fast = [now.keep[t] * w - now.rate[t] * g for w, g in zip(fast, surprise, strict=True)]
            outputs.append(fast[1] @ gelu(fast[0] @ now.q[t]))
        return torch.stack(outputs)

    expected = each(given, loop)
    memory = Memory(MLP(2, 2), Omega(L2(), window), Decay(), Descend(), period)
    y, _ = run(memory, start, given, Gates(given.rate, given.keep, share=gamma), path)
    same(y, expected)


@pytest.mark.equation("Atlas", 11)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_eq_11_the_omega_rule_of_a_matrix(path):
    """Mₜ = Mₜ₋₁(αₜI − Σγφφᵀ) + Σγvφᵀ (the printed sign of the last term is a misprint)."""
    given, start, window = problem(LENGTH), {"w1": weights(HEADS, WIDTH, WIDTH)}, 4

    def loop(head: int, now: Problem) -> Tensor:
        m, outputs = start["w1"][head], []
        for t in range(LENGTH):
            seen = slice(max(0, t - window + 1), t + 1)
            k, v = now.k[seen], now.v[seen]
            eye = torch.eye(WIDTH, dtype=torch.float64)
            m = m @ (now.keep[t] * eye - now.rate[t] * k.mT @ k) + now.rate[t] * v.mT @ k
            outputs.append(m @ now.q[t])
        return torch.stack(outputs)

    y, _ = run(Memory(Matrix(), Omega(L2(), window)), start, given, Gates(given.rate, given.keep), path)
    same(y, each(given, loop))


@pytest.mark.equation("Atlas", 32, 33)
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("printed", ["eqs 32-33", "appendix D"])
def test_eqs_32_and_33_atlas(printed, path):
    """Sₜ = ηₜSₜ₋₁ + ∇Σγℓ, Mₜ = αₜMₜ₋₁ − θₜ NewtonSchulz₅(Sₜ); App. D: the rate before the momentum, +NS₅(Sₜ)."""
    given, start, period, window = problem(LENGTH), START, 4, 3
    gamma = shares(given)
    rows = iter(range(4))

    def loop(head: int, now: Problem) -> Tensor:
        row = next(rows) // HEADS
        fast, outputs = [start[name][head].clone() for name in ("w1", "w2")], []
        trace = [torch.zeros_like(w) for w in fast]
        for t in range(LENGTH):
            if t % period == 0:
                anchor = [w.clone().requires_grad_() for w in fast]
            first = max(0, t - window + 1)
            total = sum(gamma[row, head, i] * loss(anchor, now.k[i], now.v[i]) for i in range(first, t + 1))
            surprise = torch.autograd.grad(total, anchor)
            for j, g in enumerate(surprise):
                if printed == "appendix D":
                    trace[j] = now.momentum[t] * trace[j] - now.rate[t] * g
                    fast[j] = now.keep[t] * fast[j] + newton_schulz(trace[j], 5)
                else:
                    trace[j] = now.momentum[t] * trace[j] + g
                    fast[j] = now.keep[t] * fast[j] - now.rate[t] * newton_schulz(trace[j], 5)
            outputs.append(fast[1] @ gelu(fast[0] @ now.q[t]))
        return torch.stack(outputs)

    rules = {
        "eqs 32-33": Chain((Momentum(), NewtonSchulz(5), Descend())),
        "appendix D": Chain((Descend(), Momentum(), NewtonSchulz(5))),
    }
    memory = Memory(MLP(2, 2), Omega(L2(), window), Decay(), rules[printed], period)
    y, _ = run(memory, start, given, Gates(given.rate, given.keep, given.momentum, share=gamma), path)
    same(y, each(given, loop), 1e-9)


JUDGES = [0.8, None, Quantile(share=0.3, step=0.2)]


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("softness", [0.0, 0.3])
@pytest.mark.parametrize("judge", JUDGES, ids=repr)
def test_only_what_is_surprising_is_written(judge, softness, path):
    """No paper's equation: 1[ℓ > τ] or σ((ℓ − τ)/s) before every gradient, and a running quantile that moves at commits."""
    given, start, period = problem(LENGTH), START, 4
    tau = 0.5 + shares(given)
    rows = iter(range(4))
    ends = []

    def loop(head: int, now: Problem) -> Tensor:
        row = next(rows) // HEADS
        fast, outputs = [start[name][head].clone() for name in ("w1", "w2")], []
        running = 0.0
        for t in range(LENGTH):
            if t % period == 0:
                anchor, level = [w.clone().requires_grad_() for w in fast], running
            surprise = loss(anchor, now.k[t], now.v[t])
            bound = {0.8: 0.8, None: float(tau[row, head, t])}.get(judge, math.exp(level))
            over = float(surprise.detach()) - bound
            weight = 1 / (1 + math.exp(-over / softness)) if softness else float(over > 0)
            running += 0.2 * ((over > 0) - 0.3)
            gradients = torch.autograd.grad(surprise, anchor)
            fast = [now.keep[t] * w - weight * now.rate[t] * g for w, g in zip(fast, gradients, strict=True)]
            outputs.append(fast[1] @ gelu(fast[0] @ now.q[t]))
        ends.append(running)
        return torch.stack(outputs)

    expected = each(given, loop)
    memory = Memory(MLP(2, 2), Above(L2(), judge, softness), Decay(), Descend(), period)
    y, state = run(memory, start, given, Gates(given.rate, given.keep, threshold=tau), path)
    same(y, expected)
    if isinstance(judge, Quantile):
        same(state.objective.running.flatten(), torch.tensor(ends, dtype=torch.float64))


def test_a_window_of_huber_keeps_each_tokens_own_threshold():
    """A pair that is seen again is judged by the threshold that came with it."""
    given, start = problem(LENGTH), {"w1": weights(HEADS, WIDTH, WIDTH)}
    delta = shares(given)
    rows = iter(range(4))

    def loop(head: int, now: Problem) -> Tensor:
        row, m, outputs = next(rows) // HEADS, start["w1"][head], []
        for t in range(LENGTH):
            seen = range(max(0, t - 2), t + 1)
            clipped = [(m @ now.k[i] - now.v[i]).clamp(-delta[row, head, i], delta[row, head, i]) for i in seen]
            pull = sum(torch.outer(r, now.k[i]) for r, i in zip(clipped, seen, strict=True))
            m = now.keep[t] * m - now.rate[t] * pull
            outputs.append(m @ now.q[t])
        return torch.stack(outputs)

    for path in PATHS:
        rows = iter(range(4))
        memory = Memory(Matrix(), Omega(Huber(), 3))
        y, _ = run(memory, start, given, Gates(given.rate, given.keep, threshold=delta), path)
        same(y, each(given, loop))
