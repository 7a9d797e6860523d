"""Memories of gradients: momentum, preconditioned, delta and deep momentum, against plain loops over their equations."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from nestling import NestlingError, optim
from nestling.core import (
    L2,
    MLP,
    Chain,
    Constant,
    Decay,
    Delta,
    DotProduct,
    ElasticNet,
    Gates,
    Matrix,
    Memory,
    NewtonSchulz,
    Normed,
    Scale,
)
from nestling.optim import (
    DeepMomentum,
    DeltaMomentum,
    Gradient,
    GradientMemory,
    Identity,
    One,
    Preconditioned,
    PreconditionedMomentum,
)
from nestling.optim.rules import Sign
from tests.optim.problem import follow, gradients, loss, network, same, train


@pytest.mark.equation("Nested Learning", 12, 13, 34)
def test_momentum_is_a_memory_without_keys() -> None:
    """NL eqs 33-34: m ← α m − η g, W ← W + m."""
    rule, gates = GradientMemory(Memory(Constant(), DotProduct())), Gates(lr=0.1, retain=0.8)
    given, m = gradients(50, 3, 4), torch.zeros(3, 4, dtype=torch.float64)
    state = rule.init(m)
    for g in given:
        m = 0.8 * m - 0.1 * g
        update, state = rule.update(g, state, gates)
        torch.testing.assert_close(update, m, rtol=1e-12, atol=1e-12)


@pytest.mark.equation("Nested Learning", 33, 34, 35, 36, 37)
@pytest.mark.parametrize("shape", [(3, 4), (5,), (), (2, 3, 4)])
def test_the_momentum_of_sgd_is_that_memory(shape) -> None:
    """At a constant rate it does not matter whether the rate stands in the memory or behind it."""
    given = gradients(50, *shape)
    ours = follow(lambda p: PreconditionedMomentum(p, lr=0.1, momentum=0.9, by=Scale(1.0)), given)
    same(ours, follow(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), given))


@pytest.mark.equation("Nested Learning", 46, 47)
def test_preconditioned_momentum_is_equation_47() -> None:
    given, w, m, v, expected = gradients(50, 3, 4), 0.0, 0.0, 0.0, []
    for t, g in enumerate(given, 1):
        v = 0.999 * v + 0.001 * g * g
        m = 0.8 * m - 0.1 * g / ((v / (1 - 0.999**t)).sqrt() + 1e-8)  # P = diag(v̂)^-½
        w = w + m
        expected.append(w)
    same(follow(lambda p: PreconditionedMomentum(p, lr=0.1, momentum=0.8), given), expected)


def test_a_preconditioner_may_be_any_rule() -> None:
    given = gradients(5, 3, 3)
    seen = follow(lambda p: PreconditionedMomentum(p, lr=1.0, momentum=0.0, by=NewtonSchulz()), given)
    expected, _ = NewtonSchulz().update(given[0], (), Gates())
    torch.testing.assert_close(seen[0], -expected)


@pytest.mark.equation("Nested Learning", 49)
@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 6)])
@pytest.mark.parametrize("form", ["paper", "rated"])
def test_delta_momentum_is_equation_49(shape, form) -> None:
    given, eta, alpha = [0.3 * g for g in gradients(50, *shape)], 0.05, 0.9
    w = m = torch.zeros(shape, dtype=torch.float64)
    eye, expected = torch.eye(shape[1], dtype=torch.float64), []
    for g in given:
        m = m @ (alpha * eye - (1.0 if form == "paper" else eta) * g.T @ g) - eta * g
        w = w + m
        expected.append(w)
    same(follow(lambda p: DeltaMomentum(p, lr=eta, momentum=alpha, form=form), given), expected)


@pytest.mark.equation("Nested Learning", 48)
def test_delta_momentum_is_a_gradient_step_of_equation_48() -> None:
    """½‖m gᵀ + I‖², differentiated by autograd."""
    given, eta, alpha, expected = [0.3 * g for g in gradients(20, 3, 4)], 0.05, 0.9, []
    w = m = torch.zeros(3, 4, dtype=torch.float64)
    for g in given:
        m = m.detach().requires_grad_()
        objective = 0.5 * (m @ g.T + torch.eye(3, dtype=torch.float64)).square().sum()
        (slope,) = torch.autograd.grad(objective, m)
        m = (alpha * m - eta * slope).detach()
        w = w + m
        expected.append(w)
    same(follow(lambda p: DeltaMomentum(p, lr=eta, momentum=alpha), given), expected)


P = ((2.0, 0.5, 0.0), (-1.0, 1.0, 0.3), (0.0, 0.7, 1.5))


@pytest.mark.equation("Nested Learning", 38, 39)
@pytest.mark.parametrize("form", ["paper", "rated"])
def test_delta_momentum_takes_any_preconditioner(form) -> None:
    """NL eq. 49: m ← m (α − gᵀg) − η P g, with a P that is not symmetric."""
    given, eta, alpha, p = [0.3 * g for g in gradients(50, 3, 4)], 0.05, 0.9, torch.tensor(P, dtype=torch.float64)
    w = m = torch.zeros(3, 4, dtype=torch.float64)
    eye, expected = torch.eye(4, dtype=torch.float64), []
    for g in given:
        m = m @ (alpha * eye - (1.0 if form == "paper" else eta) * g.T @ g) - eta * p @ g
        w = w + m
        expected.append(w)
    same(follow(lambda q: DeltaMomentum(q, lr=eta, momentum=alpha, form=form, by=optim.Fixed(P)), given), expected)


def test_delta_momentum_may_whiten() -> None:
    """P = (Σ g gᵀ)^-½, by its singular values."""
    given, w, m, expected = gradients(30, 3, 5), 0.0, torch.zeros(3, 5, dtype=torch.float64), []
    for t, g in enumerate(given, 1):
        u, s, _ = torch.linalg.svd(torch.cat(given[:t], 1), full_matrices=False)
        m = 0.9 * m - 0.02 * m @ g.T @ g - 0.02 * (u / s) @ u.T @ g
        w = w + m
        expected.append(w)
    same(follow(lambda q: DeltaMomentum(q, lr=0.02, by=optim.Whitening(-0.5)), given), expected, 1e-9)


def test_erasing_may_be_the_retention_instead() -> None:
    """½‖m gᵀ + I‖² by gradient is ⟨m gᵀ, −I⟩ by gradient with delta retention."""
    given = [0.3 * g for g in gradients(20, 3, 4)]
    rules = [
        GradientMemory(Memory(Matrix(), objective, retention), Gradient(), Identity(), Identity())
        for objective, retention in ((L2(), Decay()), (DotProduct(), Delta()))
    ]
    states, gates = [rule.init(given[0]) for rule in rules], Gates(lr=0.05, retain=0.9)
    for g in given:
        (a, states[0]), (b, states[1]) = (rule.update(g, of, gates) for rule, of in zip(rules, states, strict=True))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("retention", [Decay(), Delta(), ElasticNet(0.01)])
def test_what_is_kept_is_enough(period, retention) -> None:
    """With period 1 the anchor is not kept; ``Memory.write`` one example after the other knows it."""
    memory = Memory(Matrix(), L2(), retention, period=period)
    rule = GradientMemory(memory, Gradient(), One(), Gradient())
    gates, state = Gates(lr=0.1, retain=0.9), rule.init(torch.zeros(1, 4, dtype=torch.float64))
    whole = memory.init({"w1": torch.zeros(4, 4, dtype=torch.float64)})
    for g in gradients(9, 1, 4):
        update, state = rule.update(g, state, gates)
        whole = memory.write(whole, g[0], -torch.ones(4, dtype=torch.float64), gates)
        torch.testing.assert_close(update[0], memory.read(whole, g[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.equation("Nested Learning", 51)
def test_values_may_be_features_of_gradients() -> None:
    """NL eq. 51: m ← α m − η P φ(g), with φ the sign and P = 3."""
    rule = GradientMemory(Memory(Constant(), DotProduct()), One(), Preconditioned(Chain((Sign(), Scale(3.0)))), One())
    state, m = rule.init(torch.zeros(3, 4, dtype=torch.float64)), 0.0
    for g in gradients(10, 3, 4):
        m = 0.9 * m - 0.1 * 3 * g.sign()
        update, state = rule.update(g, state, Gates(lr=0.1, retain=0.9))
        torch.testing.assert_close(update, m, rtol=1e-12, atol=1e-12)


@pytest.mark.equation("Nested Learning", 52)
def test_a_linear_memory_read_through_newton_schulz_is_muon() -> None:
    """NL eq. 52: W ← W + σ(m(u)), m ← α m − η ∇⟨m(u), I⟩. The scale of m is lost in σ."""
    linear = GradientMemory(Memory(Matrix(), DotProduct()), Gradient(), Identity(), Identity())
    rule, w = Chain((linear, NewtonSchulz())), torch.zeros(3, 4, dtype=torch.float64)
    state, given, got = rule.init(w), gradients(20, 3, 4), []
    for g in given:
        update, state = rule.update(g, state, Gates(lr=0.7, retain=0.9))
        w = w + update
        got.append(w)
    muon = follow(lambda p: optim.Muon(p, lr=1.0, momentum=0.9, weight_decay=0.0, kind="heavy ball"), given)
    same(got, muon, 1e-6)


def small(*shape: int) -> list[torch.Tensor]:
    """Gradients on which eq. 50 does not diverge: with ones of size 1, three layers reach 10⁴ in 14 steps."""
    return [0.3 * g for g in gradients(25, *shape)]


def deep(form: str, width: int, depth: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """NL eq. 50: W ← W + m(u), m ← α m − η∇ℓ(m; u), with autograd for ∇ℓ; written here from the equation."""
    eta, alpha, w, expected = 0.05, 0.9, torch.zeros(shape, dtype=torch.float64), []
    names = [f"w{i + 1}" for i in range(depth)]
    drawn = MLP(2, depth).init(width, width, generator=torch.Generator().manual_seed(0))
    drawn[names[-1]].zero_()
    m = {name: drawn[name].double() for name in names}

    def net(weights, x):
        for i, name in enumerate(names):
            x = (x if i == 0 else F.gelu(x)) @ weights[name].T
        return x

    for g in small(*shape):
        u = F.pad(g.flatten(), (0, -g.numel() % width)).view(-1, width)
        key = u if form == "paper" else u / g.square().mean().sqrt() / width**0.5
        live = {name: value.clone().requires_grad_() for name, value in m.items()}
        target = torch.ones_like(u) if form == "paper" else u
        slopes = torch.autograd.grad((net(live, key) * target).sum(), list(live.values()))
        for name, slope in zip(names, slopes, strict=True):
            kept = alpha if form == "paper" or name == names[-1] else 1.0
            m[name] = kept * m[name] - eta * slope
        w = w + net(m, key).flatten()[: g.numel()].view(shape)
        expected.append(w)
    return expected


@pytest.mark.equation("Nested Learning", 50)
@pytest.mark.parametrize("form", ["paper", "similar"])
@pytest.mark.parametrize(("width", "depth", "shape"), [(4, 2, (3, 4)), (5, 3, (3, 4)), (4, 1, (6,))])
def test_deep_momentum_is_equation_50(form, width, depth, shape) -> None:
    memory = Memory(MLP(2, depth), DotProduct())
    got = follow(lambda p: DeepMomentum(p, lr=0.05, width=width, memory=memory, form=form), small(*shape))
    same(got, deep(form, width, depth, shape), 1e-9)


def test_a_deep_momentum_does_not_grow_with_the_weight() -> None:
    def size(*shape: int) -> int:
        rule = GradientMemory(Memory(MLP(2), DotProduct()), Gradient(), Gradient(), Gradient(), 16)
        state, _ = rule.init(torch.zeros(shape))
        return sum(w.numel() for w in state.dual.values())

    assert size(32, 32) == size(256, 512) == 2 * 16 * 32


MAKERS = [
    lambda p: PreconditionedMomentum(p, lr=0.01),
    lambda p: DeltaMomentum([q for q in p if q.dim() == 2], lr=0.05),
    lambda p: DeepMomentum(p, lr=0.02, width=8),
]


@pytest.mark.parametrize("make", MAKERS)
def test_each_learns_and_goes_on_from_a_saved_state(make) -> None:
    model = network()
    optimizer = make(list(model.parameters()))
    before = loss(model, 0).item()
    for _ in range(60):
        train(model, optimizer, range(1))
    assert loss(model, 0).item() < 0.8 * before
    other = copy.deepcopy(model)
    resumed = make(list(other.parameters()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = copy.deepcopy((model, optimizer))
    expected = train(model, optimizer, range(4))
    same(train(other, resumed, range(4)), expected, 0.0)
    same(train(*twin, range(4)), expected, 0.0)


class WithInput(optim.Optimizer):
    def rule(self, group):
        return GradientMemory(Memory(Matrix(), L2()), optim.Input(), optim.Cotangent(), Identity())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: follow(lambda p: DeltaMomentum(p, by=optim.Fixed(P)), gradients(1, 2, 2)),
            r"2 outputs is \(2, 2\), got \(3, 3\)",
        ),
        (lambda: follow(lambda p: WithInput(p, {"lr": 0.1}), gradients(1, 2, 2)), "use optim.GM"),
        (lambda: GradientMemory(Memory(Normed(MLP())), Gradient(), One(), Gradient()), "begin with the answer 0"),
        (lambda: GradientMemory(Memory(Matrix()), Gradient(), One(), One()), "both be One"),
        (lambda: GradientMemory(Memory(Matrix()), Gradient(), One(), Gradient(), width=0), "width must be"),
        (lambda: GradientMemory(Memory(Matrix()), Gradient(), Identity(), Identity()).init(torch.zeros(3)), "matrix"),
        (lambda: DeltaMomentum(network().parameters()), "DeltaMomentum needs matrices"),
        (lambda: DeltaMomentum([torch.nn.Parameter(torch.zeros(2, 2))], form="other"), "form must be"),
        (lambda: DeepMomentum(network().parameters(), form="other"), "form must be"),
        (lambda: optim.DeepMomentum(network().parameters(), lr=-1.0), "lr must be"),
    ],
)
def test_what_cannot_be_is_refused(make, said: str) -> None:
    with pytest.raises(NestlingError, match=said):
        make()
