"""Rules: each against a plain loop over its formula."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import (
    Adaptive,
    Chain,
    Clip,
    Descend,
    Every,
    Gates,
    Hold,
    Momentum,
    NewtonSchulz,
    Rule,
    Scale,
    Sum,
)
from nestling.errors import NestlingError
from tests.core.values import RULES

STEPS = 12


def signals(count: int = STEPS, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape or (3, 4), generator=generator, dtype=torch.float64) for _ in range(count)]


def rates(count: int = STEPS) -> list[Gates]:
    generator = torch.Generator().manual_seed(1)
    return [Gates(*torch.rand(3, generator=generator, dtype=torch.float64).unbind()) for _ in range(count)]


def updates(rule: Rule, given: list[Tensor], gates: list[Gates]) -> Iterator[Tensor]:
    state = rule.init(torch.zeros_like(given[0]))
    for g, gate in zip(given, gates, strict=True):
        update, state = rule.update(g, state, gate)
        yield update


def same(got: Iterator[Tensor], expected: list[Tensor]) -> None:
    for t, (a, b) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, t=t: f"step {t}: {m}")


def test_momentum_of_the_gates_and_of_its_own():
    s, own, of_gates, given, gates = 0, [], [], signals(), rates()
    for g in given:
        s = 0.7 * s + g
        own.append(s)
    s = 0
    for g, gate in zip(given, gates, strict=True):
        s = gate.momentum * s + g
        of_gates.append(s)
    same(updates(Momentum(0.7), given, gates), own)
    same(updates(Momentum(), given, gates), of_gates)


def test_the_order_of_a_chain_is_the_order_of_its_steps():
    """Titans: Sₜ = ηSₜ₋₁ - θₜgₜ. SGD: Sₜ = ηSₜ₋₁ + gₜ, u = -θₜSₜ. They differ when the rate changes."""
    given, gates = signals(), rates()
    titans, sgd, s, m = [], [], 0, 0
    for g, gate in zip(given, gates, strict=True):
        s = gate.momentum * s - gate.lr * g
        m = gate.momentum * m + g
        titans.append(s)
        sgd.append(-gate.lr * m)
    same(updates(Chain((Descend(), Momentum())), given, gates), titans)
    same(updates(Chain((Momentum(), Descend())), given, gates), sgd)
    assert (titans[-1] - sgd[-1]).abs().max() > 1e-3
    same(updates(Chain(()), given, gates), given)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_then_descend_is_torchs_sgd_for_50_steps(nesterov):
    """Nesterov's step, g + μS, is a sum of two chains."""
    parameter = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mine, target = parameter.detach().clone(), torch.randn(3, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD([parameter], lr=0.01, momentum=0.9, nesterov=nesterov)
    plain = Chain((Momentum(0.9), Descend()))
    rule = Sum((Descend(), Chain((Momentum(0.9), Scale(0.9), Descend())))) if nesterov else plain
    state = rule.init(mine)
    for _ in range(50):
        optimizer.zero_grad()
        ((parameter - target) ** 4).sum().backward()
        update, state = rule.update(4 * (mine - target) ** 3, state, Gates(lr=0.01))
        optimizer.step()
        mine = mine + update
    torch.testing.assert_close(mine, parameter.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 5, 4, 6)], ids=str)
def test_newton_schulz_is_near_u_vt(shape):
    """Singular vectors stay, singular values go to about one (Muon's quintic: between 0.68 and 1.14)."""
    g = 100 * torch.randn(*shape, dtype=torch.float64)
    u, _ = NewtonSchulz(8).update(g, (), Gates())
    left, _, right = torch.linalg.svd(g, full_matrices=False)
    core = left.mT @ u @ right.mT
    values = core.diagonal(dim1=-2, dim2=-1)
    assert bool(((values > 0.65) & (values < 1.25)).all()), values
    assert (core - torch.diag_embed(values)).abs().max() < 1e-6
    once, _ = NewtonSchulz(5).update(g, (), Gates())
    scaled, _ = NewtonSchulz(5).update(1e-3 * g, (), Gates())
    torch.testing.assert_close(once, scaled, rtol=1e-6, atol=1e-9, msg="blind to the size of g")
    nothing, _ = NewtonSchulz().update(torch.zeros(*shape, dtype=torch.float64), (), Gates())
    assert not bool(nothing.any())


def test_newton_schulz_against_its_polynomial():
    """X ← aX + b(XXᵀ)X + c(XXᵀ)²X acts on singular values alone: σ ← aσ + bσ³ + cσ⁵, from σ/‖g‖."""
    g = torch.randn(4, 6, dtype=torch.float64)
    left, sigma, right = torch.linalg.svd(g, full_matrices=False)
    sigma = sigma / g.norm()
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    u, _ = NewtonSchulz(5).update(g, (), Gates())
    torch.testing.assert_close(u, left @ torch.diag(sigma) @ right, rtol=1e-8, atol=1e-8)


def test_adaptive_is_adams_second_moment():
    parameter = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mine = parameter.detach().clone()
    optimizer = torch.optim.Adam([parameter], lr=0.01, betas=(0.0, 0.99), eps=1e-7)
    rule = Chain((Adaptive(0.99, 1e-7), Descend()))
    state = rule.init(mine)
    for g in signals(30):
        parameter.grad = g.clone()
        update, state = rule.update(g, state, Gates(lr=0.01))
        optimizer.step()
        mine = mine + update
    torch.testing.assert_close(mine, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_adaptive_of_what_never_moves_is_zero_and_has_a_slope():
    g = torch.tensor([[0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    rule = Adaptive()
    u, _ = rule.update(g, rule.init(g), Gates())
    (grad,) = torch.autograd.grad(u.sum(), g)
    assert u[0, 0] == 0 and bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("period", [1, 2, 5])
def test_every_is_zero_between_commits_and_its_rule_stands_still(period):
    """The rule sees the sum of a period, and one step of its own a period."""
    inner = Chain((Momentum(0.5), Descend()))
    given, gates = signals(), rates()
    expected, state, gathered = [], inner.init(given[0]), torch.zeros_like(given[0])
    for t, (g, gate) in enumerate(zip(given, gates, strict=True), 1):
        gathered = gathered + g
        if t % period:
            expected.append(torch.zeros_like(g))
        else:
            update, state = inner.update(gathered, state, gate)
            expected.append(update)
            gathered = torch.zeros_like(g)
    same(updates(Every(period, inner), given, gates), expected)


@pytest.mark.parametrize("period", [1, 2, 5])
def test_hold_repeats_what_the_last_commit_computed_one_step_late(period):
    given, gates = signals(), rates()
    commits = list(updates(Every(period, Momentum(0.5)), given, gates))
    expected, held = [], torch.zeros_like(given[0])
    for t, commit in enumerate(commits, 1):
        expected.append(held)
        held = held if t % period else commit
    same(updates(Hold(period, Momentum(0.5)), given, gates), expected)


def test_clip_scales_down_and_never_up():
    g = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    for c, expected in ((1.0, g / 5), (5.0, g), (9.0, g)):
        torch.testing.assert_close(Clip(c).update(g, (), Gates())[0], expected)
    stacked = torch.stack((g, 0.1 * g))
    torch.testing.assert_close(Clip(1.0).update(stacked, (), Gates())[0], torch.stack((g / 5, 0.1 * g)))
    zero = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(Clip(1.0).update(zero, (), Gates())[0].sum(), zero)
    assert bool(torch.isfinite(grad).all())


def test_sum_adds_rules_that_keep_their_own_state():
    given, gates = signals(), rates()
    parts = [list(updates(rule, given, gates)) for rule in (Momentum(0.9), Every(3, Scale(2.0)))]
    same(
        updates(Sum((Momentum(0.9), Every(3, Scale(2.0)))), given, gates), [a + b for a, b in zip(*parts, strict=True)]
    )


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_keeps_shapes_and_changes_nothing_it_is_given(rule):
    given, gates = signals(5), rates(5)
    kept = [g.clone() for g in given]
    state = rule.init(given[0])
    layout = [(path, leaf.shape, leaf.dtype) for path, leaf in tree.items(state)]
    for g, gate in zip(given, gates, strict=True):
        before = tree.fork(state)
        update, after = rule.update(g, state, gate)
        assert update.shape == g.shape and update.dtype == g.dtype
        assert [(path, leaf.shape, leaf.dtype) for path, leaf in tree.items(after)] == layout
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(state), tree.leaves(before), strict=True))
        state = after
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_lifts_over_many_weights(rule):
    """vmap over weights is the loop over them: what ops relies on."""
    given = torch.stack(signals(3))
    state = torch.vmap(rule.init)(torch.zeros_like(given))
    gates = Gates(*torch.rand(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).unbind())
    for _ in range(4):
        update, state = torch.vmap(rule.update)(given, state, gates)
    for i in range(3):
        own = tree.map(lambda gate, i=i: gate[i], gates)
        *_, alone = updates(rule, [given[i]] * 4, [own] * 4)
        torch.testing.assert_close(update[i], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [Every, Hold])
@pytest.mark.parametrize("period", [0, -1, 1.5, float("nan")])
def test_periods_are_whole_and_at_least_one(kind, period):
    with pytest.raises(NestlingError, match="≥ 1"):
        kind(period, Descend())
