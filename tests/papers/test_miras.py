"""MIRAS, It's All Connected (arXiv 2504.13173): attentional biases, retention gates, and Moneta, Yaad and Memora."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.core import (
    KL,
    L2,
    MLP,
    Decay,
    Descend,
    ElasticNet,
    Gates,
    Huber,
    Lp,
    Lq,
    Matrix,
    Memory,
    Normed,
    Residual,
)
from tests.papers.setting import PATHS, Problem, each, problem, run, same, weights

WIDTH, HEADS, LENGTH = 4, 2, 13
DEEP = Residual(Normed(MLP(2, 2)))


def deep(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """M(x) = x + LN(W₂ σ(W₁ x))"""
    return x + F.layer_norm(w["w2"] @ F.gelu(w["w1"] @ x), (WIDTH,))


def gradients(w: dict[str, Tensor], loss_of: Tensor) -> dict[str, Tensor]:
    return dict(zip(w, torch.autograd.grad(loss_of, list(w.values())), strict=True))


def leaves(w: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.detach().clone().requires_grad_() for name, each in w.items()}


def deep_weights() -> dict[str, Tensor]:
    return {"w1": weights(HEADS, 8, WIDTH), "w2": weights(HEADS, WIDTH, 8, seed=2)}


@pytest.mark.equation("MIRAS", 10, 11, 24, 25)
def test_eqs_24_and_25_moneta():
    """MIRAS eqs 24-25, (p, q) = (3, 4): Aₜ = αAₜ₋₁ - η p (Sign(r) ⊙ |r|^(p-1)) kᵀ, Wₜ = Aₜ/‖Aₜ‖_q^(q-2), linear memory."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)
    given = replace(given, rate=0.2 * given.rate)

    def norm(a: Tensor) -> Tensor:
        return a.abs().pow(4).sum().pow(0.25)

    def loop(head: int, now: Problem) -> Tensor:
        w = initial[head]
        a, outputs = w / norm(w) ** 2, []  # A₀ = W₀/‖W₀‖₄², the inverse of the map
        for t in range(LENGTH):
            r = w @ now.k[t] - now.v[t]
            a = now.keep[t] * a - now.rate[t] * torch.outer(3 * r.sign() * r.abs().square(), now.k[t])
            w = a / norm(a) ** 2
            outputs.append(w @ now.q[t])
        return torch.stack(outputs)

    memory = Memory(Matrix(), Lp(3.0, epsilon=0.0), Lq(4.0))
    y, _ = run(memory, {"w1": initial}, given, Gates(given.rate, given.keep), "auto")
    same(y, each(given, loop))


@pytest.mark.equation("MIRAS", 24)
def test_eq_24_starts_at_the_weights_it_is_given():
    """MIRAS eq. 24, where the inverse map is left out: without writes Moneta reads W₀, not A₀."""
    given, initial = problem(1), weights(HEADS, WIDTH, WIDTH)
    y, _ = run(Memory(Matrix(), Lp(3.0), Lq(4.0)), {"w1": initial}, given, Gates(lr=0.0), "auto")
    same(y, each(given, lambda head, now: now.q @ initial[head].mT))


@pytest.mark.equation("MIRAS", 14)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_eqs_14_and_26_yaad(path):
    """MIRAS eq. 26 by coordinate (eq. 14): W ← αW - η(r ⊙ I(|r| ≤ δ) + δ Sign(r) ⊙ I(|r| > δ))kᵀ, δ of the token."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)
    delta = given.momentum

    def loop(head: int, now: Problem) -> Tensor:
        w, outputs = initial[head], []
        for t in range(LENGTH):
            r, bound = w @ now.k[t] - now.v[t], now.momentum[t]
            slope = torch.where(r.abs() <= bound, r, bound * r.sign())
            w = now.keep[t] * w - now.rate[t] * torch.outer(slope, now.k[t])
            outputs.append(w @ now.q[t])
        return torch.stack(outputs)

    gates = Gates(given.rate, given.keep, threshold=delta)
    y, _ = run(Memory(Matrix(), Huber()), {"w1": initial}, given, gates, path)
    same(y, each(given, loop))


@pytest.mark.equation("MIRAS", 13)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_eq_13_yaad_without_a_threshold_is_l2(path):
    """MIRAS eq. 13 for δ → ∞ is ½r²: the same memory as L2."""
    given, initial = problem(LENGTH), deep_weights()
    gates = Gates(given.rate, given.keep)
    huber, _ = run(Memory(DEEP, Huber(), period=4), initial, given, gates, path)
    huge, _ = run(Memory(DEEP, Huber(), period=4), initial, given, replace(gates, threshold=1e9), path)
    l2, _ = run(Memory(DEEP, L2(), period=4), initial, given, gates, path)
    same(huber, l2, 1e-12)
    same(huge, l2, 1e-12)


@pytest.mark.equation("MIRAS", 10, 24)
def test_eqs_10_and_24_with_p_and_q_of_two_is_l2_at_twice_the_rate():
    """MIRAS eq. 10 carries the factor p; with q = 2 eq. 24's map is the identity."""
    given, initial = problem(LENGTH), deep_weights()
    moneta = Memory(DEEP, Lp(2.0, epsilon=0.0), Lq(2.0))
    y, _ = run(moneta, initial, given, Gates(given.rate, given.keep), "auto")
    expected, _ = run(Memory(DEEP, L2()), initial, given, Gates(2 * given.rate, given.keep), "auto")
    same(y, expected)


@pytest.mark.equation("MIRAS", 12)
def test_eq_12_with_p_of_one_only_signs_are_written():
    """MIRAS eq. 12, the value-less memory: W ← W - η Sign(r)kᵀ (away from zero, ε = 0)."""
    given, initial = problem(1), weights(HEADS, WIDTH, WIDTH)
    _, state = run(Memory(Matrix(), Lp(1.0, epsilon=0.0)), {"w1": initial}, given, Gates(lr=0.1), "auto")
    w, k, v = initial[0], given.k[0, 0, 0], given.v[0, 0, 0]
    same(state.dual["w1"][0, 0], w - 0.1 * torch.outer((w @ k - v).sign(), k))


@pytest.mark.equation("MIRAS", 21, 27)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_eqs_21_and_27_memora(scale):
    """MIRAS eq. 27 (21 with the rates decoupled): Wₜ = c Softmax(α log Wₜ₋₁ - η∇ℓ₂(Wₜ₋₁)), by rows, of a two-layer memory."""
    given = problem(LENGTH)
    initial = {name: scale * torch.softmax(w, -1) for name, w in deep_weights().items()}

    def loop(head: int, now: Problem) -> Tensor:
        w, outputs = {name: each[head] for name, each in initial.items()}, []
        for t in range(LENGTH):
            w = leaves(w)
            slopes = gradients(w, 0.5 * (deep(w, now.k[t]) - now.v[t]).square().sum())
            w = {n: scale * torch.softmax(now.keep[t] * w[n].detach().log() - now.rate[t] * slopes[n], -1) for n in w}
            outputs.append(deep(w, now.q[t]))
        return torch.stack(outputs)

    memory = Memory(DEEP, L2(), KL(scale))
    y, state = run(memory, initial, given, Gates(given.rate, given.keep), "auto")
    same(y, each(given, loop))
    for name, w in memory.primal(state.dual).items():
        assert bool((w > 0).all()), name
        same(w.sum(-1), torch.full_like(w.sum(-1), scale))


@pytest.mark.equation("MIRAS", 23)
def test_eq_23_elastic_net():
    """MIRAS eq. 23, the FTRL reading: Aₜ = Aₜ₋₁ - η∇ℓ(Wₜ₋₁), Wₜ = S_γ(Aₜ), S_γ(z) = sign(z) max(0, |z| - γ)."""
    given, initial, gamma = problem(LENGTH), weights(HEADS, WIDTH, WIDTH), 0.15
    finals = []

    def loop(head: int, now: Problem) -> Tensor:
        w, outputs = initial[head], []
        a = w + gamma * w.sign()
        for t in range(LENGTH):
            a = now.keep[t] * a - now.rate[t] * torch.outer(w @ now.k[t] - now.v[t], now.k[t])
            w = a.sign() * (a.abs() - gamma).clamp_min(0)
            outputs.append(w @ now.q[t])
        finals.append(w)
        return torch.stack(outputs)

    memory = Memory(Matrix(), L2(), ElasticNet(gamma), Descend())
    y, state = run(memory, {"w1": initial}, given, Gates(given.rate, given.keep), "auto")
    same(y, each(given, loop))
    assert any(bool((w == 0).any()) for w in finals), "what stays small is forgotten for good"
    same(memory.primal(state.dual)["w1"].flatten(0, 1), torch.stack(finals))


@pytest.mark.equation("MIRAS", 28, 29, 30, 31, 32)
def test_eqs_28_to_32_within_a_chunk_moneta_and_memora_measure_at_its_start():
    """MIRAS §5.4: gradients at the last state of the chunk before; reads from the running weights, the map at every token."""
    given = problem(8)
    initial = {name: torch.softmax(w, -1) for name, w in deep_weights().items()}

    def loop(head: int, now: Problem) -> Tensor:
        w0 = {name: each[head] for name, each in initial.items()}
        dual, outputs = {name: w.log() for name, w in w0.items()}, []
        anchor = w0
        for t in range(8):
            if t % 4 == 0:
                anchor = {name: torch.softmax(a, -1) for name, a in dual.items()}
            at = leaves(anchor)
            slopes = gradients(at, 0.5 * (deep(at, now.k[t]) - now.v[t]).square().sum())
            dual = {n: now.keep[t] * dual[n] - now.rate[t] * slopes[n] for n in dual}
            outputs.append(deep({name: torch.softmax(a, -1) for name, a in dual.items()}, now.q[t]))
        return torch.stack(outputs)

    memory = Memory(DEEP, L2(), KL(), Descend(), period=4)
    y, _ = run(memory, initial, given, Gates(given.rate, given.keep), "auto")
    same(y, each(given, loop))


@pytest.mark.equation("MIRAS", 8)
def test_eq_8_decay_is_l2_retention():
    """MIRAS eq. 8: argmin ⟨W, ∇ℓ⟩ + ‖W - αW'‖²/2η is αW' - η∇ℓ."""
    given, initial = problem(1), weights(HEADS, WIDTH, WIDTH)
    _, state = run(Memory(Matrix(), L2(), Decay()), {"w1": initial}, given, Gates(0.3, 0.8), "auto")
    w, k, v = initial[1], given.k[1, 1, 0], given.v[1, 1, 0]
    same(state.dual["w1"][1, 1], 0.8 * w - 0.3 * torch.outer(w @ k - v, k))
