"""Titans: Learning to Memorize at Test Time (arXiv 2501.00663; App. and defaults of the NeurIPS 2025 version)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nestling.core import L2, MLP, Chain, Decay, Descend, Gates, Matrix, Memory, Momentum, Normed, Residual
from nestling.ops import Chunk
from tests.papers.setting import PATHS, Problem, each, problem, run, same, weights

TITANS = Chain((Descend(), Momentum()))
LMM = Residual(Normed(MLP(expand=4, depth=2)))
WIDTH, HEADS = 4, 2


def lmm(w1: Tensor, w2: Tensor, x: Tensor) -> Tensor:
    """M(x) = x + LN(W₂ GELU(W₁ x)), written out."""
    hidden = w1 @ x
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    out = w2 @ hidden
    centred = out - out.mean()
    return x + centred / torch.sqrt(centred.square().mean() + 1e-5)


def layered(given: Problem, seed: int) -> tuple[Problem, ...]:
    """Gates of their own for each layer of the memory."""
    return tuple(problem(given.q.shape[2], seed=seed + i) for i in range(2))


@pytest.mark.equation("Titans", 8, 9, 10, 11, 12, 13, 14, 15, "NeurIPS §3.3", "NeurIPS B.3")
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("chunk", [1, 16])
def test_eqs_8_to_15_the_neural_long_term_memory(chunk, path):
    """Titans §3.1, eqs 11-15 (which hold 8-10), with chunks as in §3.2: ∇ℓ at M_{t'}, t' = b⌊(t-1)/b⌋.

    Sₜ = ηₜSₜ₋₁ - θₜ∇ℓ(M_t'; kₜ, vₜ), Mₜ = (1-αₜ)Mₜ₋₁ + Sₜ, yₜ = Mₜ(qₜ); the two-layer GELU memory of four times the width with
    residual and LayerNorm, and gates for each layer of it (NeurIPS version, §3.3 and App. B.3). A plain loop over tokens, the
    inner gradient by autograd.
    """
    given = problem(37)
    per_layer = layered(given, 50)
    initial = {"w1": weights(HEADS, 16, WIDTH), "w2": weights(HEADS, WIDTH, 16, seed=2)}
    finals = {}

    def loop(head: int, now: Problem) -> Tensor:
        row = len(finals) // HEADS
        fast = [initial[name][head].clone() for name in ("w1", "w2")]
        trace = [torch.zeros_like(w) for w in fast]
        outputs = []
        for t in range(now.q.shape[0]):
            if t % chunk == 0:
                anchor = [w.clone().requires_grad_() for w in fast]
            loss = 0.5 * (lmm(*anchor, now.k[t]) - now.v[t]).square().sum()  # eq. 12
            surprise = torch.autograd.grad(loss, anchor)
            for i, gates in enumerate(per_layer):
                theta, kept, eta = (x[row, head, t] for x in (gates.rate, gates.keep, gates.momentum))
                trace[i] = eta * trace[i] - theta * surprise[i]  # eq. 14
                fast[i] = kept * fast[i] + trace[i]  # eq. 13, kept = 1 - α
            outputs.append(lmm(*fast, now.q[t]))  # eq. 15
        finals[row, head] = (fast, trace)
        return torch.stack(outputs)

    expected = each(given, loop)
    memory = Memory(LMM, L2(), Decay(), TITANS, period=chunk)
    rates, keeps, momenta = (
        {name: vars(gates)[field] for name, gates in zip(("w1", "w2"), per_layer, strict=True)}
        for field in ("rate", "keep", "momentum")
    )
    y, state = run(memory, initial, given, Gates(rates, keeps, momenta), path)
    same(y, expected)
    for (row, head), (fast, trace) in finals.items():
        for name, w, s in zip(("w1", "w2"), fast, trace, strict=True):
            same(state.dual[name][row, head], w)
            same(state.rule[name][1][row, head], s)


@pytest.mark.equation("Titans", 8)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_eq_8_momentary_surprise_alone(path):
    """Titans eq. 8: Mₜ = Mₜ₋₁ - θₜ∇ℓ(Mₜ₋₁; xₜ), the neutral gates of the full rule."""
    given, initial = problem(11), weights(HEADS, WIDTH, WIDTH)

    def loop(head: int, now: Problem) -> Tensor:
        m, outputs = initial[head], []
        for t in range(11):
            m = m - now.rate[t] * torch.outer(m @ now.k[t] - now.v[t], now.k[t])
            outputs.append(m @ now.q[t])
        return torch.stack(outputs)

    for rule in (Descend(), TITANS):
        y, _ = run(Memory(Matrix(), L2(), Decay(), rule), {"w1": initial}, given, Gates(lr=given.rate), path)
        same(y, each(given, loop))


@pytest.mark.equation("Titans", 16, 17)
def test_eqs_16_and_17_a_chunk_of_a_linear_memory_in_closed_form():
    """Titans §3.2, eqs 16-17: M_b = β_b M₀ - (W₀K - V) Θ_b B_b Kᵀ, with βᵢ = Πⱼ≤ᵢ(1-αⱼ) and B_b = diag(β_b/βᵢ)."""
    given, initial = problem(16), weights(HEADS, WIDTH, WIDTH)
    memory = Memory(Matrix(), L2(), Decay(), Descend(), period=16)
    for path in PATHS:
        y, state = run(memory, {"w1": initial}, given, Gates(given.rate, given.keep), path)
        for row in range(2):
            for head in range(HEADS):
                w, k, v = initial[head], given.k[row, head].mT, given.v[row, head].mT
                beta = given.keep[row, head].cumprod(0)
                scale = given.rate[row, head] * beta[-1] / beta
                same(state.dual["w1"][row, head], beta[-1] * w - (w @ k - v) @ torch.diag(scale) @ k.mT)
                # eq. 16 at every token of the chunk
                for t in range(16):
                    pulls = given.rate[row, head, : t + 1] * beta[t] / beta[: t + 1]
                    m = beta[t] * w - (w @ k - v)[:, : t + 1] @ torch.diag(pulls) @ k[:, : t + 1].mT
                    same(y[row, head, t], m @ given.q[row, head, t])


@pytest.mark.equation("Titans", 18)
def test_eq_18_momentum_in_a_chunk_is_a_linear_scan():
    """Titans eq. 18 with eq. 13, in closed form: S_b = mS₀ - Σ Pθu, M_b = βM₀ + fS₀ - Σ Gu, over two chunks."""
    given, initial = problem(16), weights(HEADS, WIDTH, WIDTH)
    memory = Memory(Matrix(), L2(), Decay(), TITANS, period=8)
    y, state = run(memory, {"w1": initial}, given, Gates(given.rate, given.keep, given.momentum), Chunk())
    lower = torch.ones(8, 8, dtype=torch.float64).tril()
    for row in range(2):
        for head in range(HEADS):
            w, s = initial[head], torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
            for chunk in (slice(0, 8), slice(8, 16)):
                q, k, v = (x[row, head, chunk] for x in (given.q, given.k, given.v))
                theta, kept, eta = (x[row, head, chunk] for x in (given.rate, given.keep, given.momentum))
                beta, m = kept.cumprod(0), eta.cumprod(0)
                p, a = (m[:, None] / m[None, :]) * lower, (beta[:, None] / beta[None, :]) * lower
                g, f, errors = a @ p @ torch.diag(theta), a @ m, k @ w.mT - v
                outputs = beta[:, None] * (q @ w.mT) + f[:, None] * (q @ s.mT) - ((q @ k.mT) * g) @ errors
                same(y[row, head, chunk], outputs)
                w, s = (
                    beta[-1] * w + f[-1] * s - errors.mT @ torch.diag(g[-1]) @ k,
                    m[-1] * s - errors.mT @ torch.diag(p[-1] * theta) @ k,
                )
            same(state.dual["w1"][row, head], w)
            same(state.rule["w1"][1][row, head], s)


@pytest.mark.equation("Titans", "App. C")
@pytest.mark.equation("MIRAS", 9)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_appendix_c_without_momentum_and_decay_it_is_deltanet(path):
    """Titans App. C: ηₜ = 0, αₜ = 0, b = 1 and a linear memory give Sₜ = Sₜ₋₁(I - βₜkₜkₜᵀ) + βₜvₜkₜᵀ (DeltaNet)."""
    given, eye = problem(19), torch.eye(WIDTH, dtype=torch.float64)

    def loop(head: int, now: Problem) -> Tensor:
        s, outputs = torch.zeros(WIDTH, WIDTH, dtype=torch.float64), []
        for t in range(19):
            s = s @ (eye - now.rate[t] * torch.outer(now.k[t], now.k[t])) + now.rate[t] * torch.outer(
                now.v[t], now.k[t]
            )
            outputs.append(s @ now.q[t])
        return torch.stack(outputs)

    zeros = {"w1": torch.zeros(HEADS, WIDTH, WIDTH, dtype=torch.float64)}
    y, _ = run(Memory(Matrix(), L2(), Decay(), TITANS), zeros, given, Gates(lr=given.rate), path)
    same(y, each(given, loop))


def test_the_cold_start_titans_measures_surprise_before_it_forgets():
    """MIRAS, footnote 2: with α → 1 everything is forgotten, and still the old memory decides how surprising the token is."""
    given, initial = problem(1), weights(HEADS, WIDTH, WIDTH)
    nothing = torch.zeros_like(given.keep)
    _, state = run(Memory(Matrix()), {"w1": initial}, given, Gates(given.rate, nothing), "auto")
    k, v = given.k[0, 0, 0], given.v[0, 0, 0]
    same(state.dual["w1"][0, 0], -given.rate[0, 0, 0] * torch.outer(initial[0] @ k - v, k), 1e-9)
