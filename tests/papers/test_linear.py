"""The linear family as values of the same memory: linear attention, RetNet, Gated DeltaNet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nestling.core import L2, Decay, DotProduct, Erase, GatedDelta, Gates, KeyDecay, Matrix, Memory
from nestling.errors import NestlingError
from tests.papers.setting import PATHS, Problem, each, problem, run, same, weights

WIDTH, HEADS, LENGTH = 4, 2, 19
ZEROS = {"w1": torch.zeros(HEADS, WIDTH, WIDTH, dtype=torch.float64)}


@pytest.mark.equation("Nested Learning", 14, 15, 16, 17, 18)
@pytest.mark.equation("Titans", 4, 5)
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("period", [1, 4, float("inf")])
def test_eqs_14_to_18_linear_attention(period, path):
    """NL eqs 14-18: yₜ = Σⱼ≤ₜ vⱼ⟨kⱼ, qₜ⟩ is the dot-product memory at unit rate; its gradient knows no anchor."""
    given = problem(LENGTH)
    y, _ = run(Memory(Matrix(), DotProduct(), period=period), ZEROS, given, Gates(), path)
    scores = (given.q @ given.k.mT).tril()
    same(y, scores @ given.v)


@pytest.mark.equation("MIRAS", 5, 8)
@pytest.mark.equation("Nested Learning", 5, 64)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_eq_8_of_miras_retnet_decays(path):
    """MIRAS eq. 8: Mₜ = αMₜ₋₁ + vₜkₜᵀ, so yₜ = Σⱼ≤ₜ α^(t-j) vⱼ⟨kⱼ, qₜ⟩ (RetNet), one α a head."""
    given = problem(LENGTH)
    alpha = torch.tensor([0.9, 0.97], dtype=torch.float64)
    y, _ = run(Memory(Matrix(), DotProduct()), ZEROS, given, Gates(retain=alpha[:, None]), path)
    time = torch.arange(LENGTH)
    decay = (alpha[:, None, None] ** (time[:, None] - time[None, :]).clamp_min(0)).tril()
    same(y, ((given.q @ given.k.mT) * decay) @ given.v)


def gated_deltanet(initial: Tensor, given: Problem) -> Tensor:
    """Sₜ = αₜSₜ₋₁(I - βₜkₜkₜᵀ) + βₜvₜkₜᵀ"""
    eye = torch.eye(WIDTH, dtype=torch.float64)

    def loop(head: int, now: Problem) -> Tensor:
        s, outputs = initial[head], []
        for t in range(LENGTH):
            beta, k = now.rate[t], now.k[t]
            s = now.keep[t] * s @ (eye - beta * torch.outer(k, k)) + beta * torch.outer(now.v[t], k)
            outputs.append(s @ now.q[t])
        return torch.stack(outputs)

    return each(given, loop)


@pytest.mark.equation("Baselines", "Gated DeltaNet")
def test_gated_deltanet_forgets_before_it_looks():
    """The gated delta rule (Gated DeltaNet, arXiv 2412.06464): Sₜ = αₜSₜ₋₁(I - βₜkₜkₜᵀ) + βₜvₜkₜᵀ, in every period of one token."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)
    y, _ = run(Memory(Matrix(), L2(), GatedDelta()), {"w1": initial}, given, Gates(given.rate, given.keep), "auto")
    same(y, gated_deltanet(initial, given))


def test_titans_is_not_gated_deltanet_unless_nothing_is_forgotten():
    """Notation, trap 1: Titans and MIRAS take the gradient at Wₜ₋₁, Gated DeltaNet at αWₜ₋₁; they differ by (1-α)βSkkᵀ."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)
    titans = Memory(Matrix(), L2(), Decay())
    y, _ = run(titans, {"w1": initial}, given, Gates(given.rate, given.keep), "auto")
    assert (y - gated_deltanet(initial, given)).abs().max() > 1e-3
    kept = Problem(**{**vars(given), "keep": torch.ones_like(given.keep)})
    y, _ = run(titans, {"w1": initial}, kept, Gates(given.rate), "auto")
    same(y, gated_deltanet(initial, kept))


@pytest.mark.equation("Baselines", "Gated DeltaNet 10")
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("period", [1, 5, 64])
def test_gated_deltanet_many_tokens_at_once(period, path):
    """Gated DeltaNet eq. 10: Hebbian writes into what was forgotten and erased are the gated delta rule; no period matters."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)
    memory = Memory(Matrix(), DotProduct(), Erase(), period=period)
    y, state = run(memory, {"w1": initial}, given, Gates(given.rate, given.keep), path)
    same(y, gated_deltanet(initial, given))
    _, expected = run(
        Memory(Matrix(), L2(), GatedDelta()), {"w1": initial}, given, Gates(given.rate, given.keep), "auto"
    )
    same(state.dual["w1"], expected.dual["w1"])


@pytest.mark.equation("MIRAS", 9)
@pytest.mark.equation("Nested Learning", 65)
@pytest.mark.equation("Baselines", "DeltaNet")
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_deltanet_is_the_l2_memory_that_forgets_nothing(path):
    """MIRAS table 1, row DeltaNet: ℓ = ½‖Mk - v‖², b = 1, no decay; as Hebbian writes with erasure it is the same memory."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)
    y, _ = run(Memory(Matrix(), DotProduct(), Erase(), period=64), {"w1": initial}, given, Gates(given.rate), path)
    expected, _ = run(Memory(Matrix(), L2()), {"w1": initial}, given, Gates(given.rate), path)
    same(y, expected)


@pytest.mark.equation("Baselines", "GLA 3")
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("period", [1, 4, 16])
def test_gla_forgets_by_key(period, path):
    """GLA eq. 3 (MIRAS table 1): Mₜ = Mₜ₋₁ diag(αₜ) + vₜkₜᵀ, one αₜ for each key channel."""
    given, initial = problem(LENGTH), weights(HEADS, WIDTH, WIDTH)
    alpha = torch.rand(2, HEADS, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    alpha[:, :, 7, 1] = 0.0
    y, state = run(
        Memory(Matrix(), DotProduct(), KeyDecay(), period=period), {"w1": initial}, given, Gates(retain=alpha), path
    )
    for row in range(2):
        for head in range(HEADS):
            m = initial[head]
            for t in range(LENGTH):
                m = m @ torch.diag(alpha[row, head, t]) + torch.outer(given.v[row, head, t], given.k[row, head, t])
                same(y[row, head, t], m @ given.q[row, head, t])
            same(state.dual["w1"][row, head], m)


@pytest.mark.parametrize("shape", [(2, HEADS, LENGTH), (2, HEADS, LENGTH, 3)])
def test_a_gate_by_key_of_another_shape_is_refused(shape):
    given = problem(LENGTH)
    with pytest.raises(NestlingError, match=r"gate retain has shape .* inputs"):
        run(Memory(Matrix(), DotProduct(), KeyDecay()), ZEROS, given, Gates(retain=torch.ones(shape)), "auto")
