"""Moneta, Yaad and Memora as the recipes have them: their memories against the equations of the paper, and against one another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestling as nl
from nestling.core import KL, L2, Decay, Descend, Gates, HeldLq, Lag, Lp, Memory, MixedHuber
from nestling.nn import ChannelRange
from nestling.recipes.miras import DEEP, MEMORA_MEMORY, MONETA_MEMORY, YAAD_MEMORY
from nestling.recipes.titans import LONG_TERM_MEMORY
from tests.papers.setting import PATHS, Problem, each, problem, run, same, weights

WIDTH, HEADS, LENGTH, PERIOD = 4, 2, 11, 4


def deep(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """M(x) = x + LN(W₂ σ(W₁ x))"""
    return x + F.layer_norm(w["w2"] @ F.gelu(w["w1"] @ x), (WIDTH,))


def slopes(w: dict[str, Tensor], k: Tensor, v: Tensor, loss) -> dict[str, Tensor]:
    at = {name: one.detach().clone().requires_grad_() for name, one in w.items()}
    return dict(zip(w, torch.autograd.grad(loss(deep(at, k) - v), list(at.values())), strict=True))


def start() -> dict[str, Tensor]:
    return {"w1": weights(HEADS, 16, WIDTH), "w2": weights(HEADS, WIDTH, 16, seed=2)}


@pytest.mark.equation("MIRAS", 24, 25, 28, 29)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_moneta_takes_its_norm_at_the_end_of_a_chunk(path):
    """A ← αA - η∇ℓ₃ at the chunk's start; within the chunk W = A / n with n = ‖A‖₄² there (means, as the recipe has them)."""
    given, initial = problem(LENGTH), start()

    def square(a: Tensor) -> Tensor:
        return a.abs().pow(4).mean().sqrt()

    def loop(head: int, now: Problem) -> Tensor:
        w0 = {name: one[head] for name, one in initial.items()}
        a, outputs = {name: w / square(w) for name, w in w0.items()}, []
        for t in range(LENGTH):
            if t % PERIOD == 0:
                n = {name: square(one) for name, one in a.items()}
                anchor = {name: one / n[name] for name, one in a.items()}
            found = slopes(anchor, now.k[t], now.v[t], lambda r: r.abs().pow(3).sum())
            a = {name: now.keep[t] * a[name] - 0.1 * now.rate[t] * found[name] for name in a}
            outputs.append(deep({name: one / n[name] for name, one in a.items()}, now.q[t]))
        return torch.stack(outputs)

    memory = replace(MONETA_MEMORY, objective=Lp(3.0, epsilon=0.0), period=PERIOD)
    y, _ = run(memory, initial, given, Gates(0.1 * given.rate, given.keep), path)
    same(y, each(given, loop))


@pytest.mark.equation("MIRAS", 16, 26)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_eq_26_yaad(path):
    """W ← αW - η∇ℓ₂ where ‖M(k) - v‖ ≤ δ, else αW - ηδ∇ℓ₁, δ of the token, at the chunk's start."""
    given, initial = problem(LENGTH), start()
    given = replace(given, momentum=4 * given.momentum)
    sides = []

    def loop(head: int, now: Problem) -> Tensor:
        w, outputs = {name: one[head] for name, one in initial.items()}, []
        for t in range(LENGTH):
            if t % PERIOD == 0:
                anchor = w
            near = (deep(anchor, now.k[t]) - now.v[t]).norm() <= now.momentum[t]
            sides.append(bool(near))
            taxi = slopes(anchor, now.k[t], now.v[t], lambda r: r.abs().sum())
            square = slopes(anchor, now.k[t], now.v[t], lambda r: 0.5 * r.square().sum())
            found = square if near else {name: now.momentum[t] * one for name, one in taxi.items()}
            w = {name: now.keep[t] * w[name] - 0.1 * now.rate[t] * found[name] for name in w}
            outputs.append(deep(w, now.q[t]))
        return torch.stack(outputs)

    memory = replace(YAAD_MEMORY, objective=MixedHuber(epsilon=0.0), period=PERIOD)
    y, _ = run(memory, initial, given, Gates(0.1 * given.rate, given.keep, threshold=given.momentum), path)
    same(y, each(given, loop))
    assert 0 < sum(sides) < len(sides), "both branches are taken"


@pytest.mark.equation("MIRAS", 27, 30, 31, 32)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_memora_has_a_lag_token(path):
    """The first token of a chunk takes W₁ = c softmax(α log W₀ - η∇ℓ(W₀)); the others add to W, with the gradient at W₁."""
    given, floor = problem(LENGTH), 1e-2
    initial = {name: w.shape[-1] * torch.softmax(w, -1) for name, w in start().items()}

    def square(r: Tensor) -> Tensor:
        return 0.5 * r.square().sum()

    def loop(head: int, now: Problem) -> Tensor:
        w, outputs = {name: one[head] for name, one in initial.items()}, []
        for t in range(LENGTH):
            if t % PERIOD == 0:
                found = slopes(w, now.k[t], now.v[t], square)
                logs = {name: one.clamp_min(floor).log() for name, one in w.items()}
                raised = {name: now.keep[t] * logs[name] - now.rate[t] * found[name] for name in w}
                w = anchor = {name: one.shape[-1] * torch.softmax(one, -1) for name, one in raised.items()}
            else:
                found = slopes(anchor, now.k[t], now.v[t], square)
                w = {name: now.keep[t] * w[name] - now.rate[t] * found[name] for name in w}
            outputs.append(deep(w, now.q[t]))
        return torch.stack(outputs)

    memory = replace(MEMORA_MEMORY, retention=Lag(KL(1.0, "mean", floor)), period=PERIOD)
    y, _ = run(memory, initial, given, Gates(given.rate, given.keep), path)
    same(y, each(given, loop))


@pytest.mark.equation("MIRAS", 26)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_yaad_without_a_threshold_is_titans_without_momentum(path):
    """δ → ∞ in eq. 26 is eq. 13 of Titans with η = 0, with ½ before ℓ₂."""
    given, initial = problem(LENGTH), start()
    titans = replace(LONG_TERM_MEMORY, period=PERIOD)
    expected, _ = run(titans, initial, given, Gates(given.rate, given.keep, momentum=0.0), path)
    for threshold in (1e9, float("inf")):
        gates = Gates(given.rate, given.keep, threshold=threshold)
        y, _ = run(replace(YAAD_MEMORY, period=PERIOD), initial, given, gates, path)
        same(y, expected, 1e-12)


@pytest.mark.equation("MIRAS", 24, 25)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_moneta_with_p_and_q_of_two_is_l2_at_twice_the_rate(path):
    """∇‖r‖₂² is twice ∇½‖r‖², and q = 2 leaves A as it is."""
    given, initial = problem(LENGTH), start()
    moneta = replace(MONETA_MEMORY, objective=Lp(2.0, epsilon=0.0), retention=HeldLq(2.0, "mean"), period=PERIOD)
    y, _ = run(moneta, initial, given, Gates(given.rate, given.keep), path)
    expected, _ = run(
        Memory(DEEP, L2(), Decay(), Descend(), PERIOD), initial, given, Gates(2 * given.rate, given.keep), path
    )
    same(y, expected)


@pytest.mark.equation("MIRAS", 21, 27)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kl_stays_on_the_simplex_through_many_writes(dtype):
    """Rows keep their sum and stay positive through 1,000 writes, with values that jump; Memora's at every lag token."""
    length, shapes = 1_024, {"w1": (8, 4), "w2": (4, 8)}
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(1, 1, length, 4, dtype=dtype), dim=-1) for _ in range(2))
    v = 3 * torch.randn(1, 1, length, 4, dtype=dtype)
    shallow = replace(MEMORA_MEMORY, architecture=type(DEEP)(nl.Normed(nl.MLP(2, 2))))
    for memory in (replace(shallow, retention=KL(1.0, "mean"), period=16), replace(shallow, period=16)):
        initial = {name: memory.retention.inside(torch.randn(1, *shape, dtype=dtype)) for name, shape in shapes.items()}
        # The last write is the first of a period: a lag token.
        _, state = nl.scan(memory, initial, *(x[:, :, : length - 15] for x in (q, k, v)), Gates(lr=0.3, retain=0.99))
        for name, dual in state.dual.items():
            w = memory.retention.primal(dual)
            assert bool(torch.isfinite(w).all()) and bool((w >= 0).all()), name
            torch.testing.assert_close(w.mean(-1), torch.ones_like(w.mean(-1)))


def test_the_threshold_is_positive_and_made_from_the_token():
    """δ = softplus(W₂W₁x + b) > 0 starts near its start; rates are positive and bounded, what is kept is in (0, 1)."""
    module = ChannelRange(threshold=0.5).module(8, 2, {"w1": (16, 4), "w2": (4, 16)}, 4).double()
    x = 30 * torch.randn(2, 50, 8, dtype=torch.float64)
    gates = module(x)
    assert gates.threshold.shape == (2, 2, 50) and bool((gates.threshold > 0).all())
    assert gates.threshold.std(-1).min() > 0
    torch.testing.assert_close(
        module(0 * x).threshold, torch.full((2, 2, 50), 0.5, dtype=torch.float64), rtol=1e-6, atol=0
    )
    for name in ("w1", "w2"):
        assert gates.lr[name].shape == (2, 2, 50, 4)
        assert bool((gates.lr[name] > 0).all()) and bool((gates.lr[name] <= 0.2).all())
        assert bool((gates.retain[name] > 0).all()) and bool((gates.retain[name] < 1).all())
