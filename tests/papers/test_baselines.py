"""The baselines of the papers' tables: each layer, gates and features included, against its recurrence written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestling as nl
from nestling.nn import MemoryLayer
from tests.laws.subjects import small

LENGTH, WIDTH = 19, 16
Step = Callable[[Tensor, Tensor, Tensor, int, int, Tensor], Tensor]
"""(memory, k, v, head, t, xₜ) -> the memory after the token"""


def layer_of(recipe: str) -> MemoryLayer:
    torch.manual_seed(0)
    layer = nl.build(recipe, **small(recipe)).double().blocks[0].mixer
    assert isinstance(layer, MemoryLayer)
    return layer


def literal(layer: MemoryLayer, x: Tensor, heads: Callable[..., tuple[Tensor, Tensor, Tensor]], write: Step) -> Tensor:
    """Projections, convolution by sums, features of one head, the recurrence, the norm by head, the gate, the way out."""
    dim, taps = x.shape[1], layer.conv.weight
    projected = x @ layer.qkv.weight.T
    seen = torch.stack([sum(taps[j] * projected[t - j] for j in range(min(len(taps), t + 1))) for t in range(LENGTH)])
    answers = torch.zeros_like(x)
    for head in range(layer.heads):
        columns = slice(head * WIDTH, (head + 1) * WIDTH)
        q, k, v = heads(*(seen[:, part * dim : (part + 1) * dim][:, columns] for part in range(3)))
        memory = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        for t in range(LENGTH):
            memory = write(memory, k[t], v[t], head, t, x[t])
            y = memory @ q[t]
            answers[t, columns] = y / torch.sqrt(y.square().mean() + layer.norm.eps) * layer.norm.gain
    return (answers * F.silu(x @ layer.gate.weight.T)) @ layer.out.weight.T


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def activated(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return unit(F.silu(q)), unit(F.silu(k)), F.silu(v)


def compare(layer: MemoryLayer, heads, write) -> None:
    x = torch.randn(LENGTH, 2 * WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = literal(layer, x, heads, write)
        got, _ = layer(x[None])
    torch.testing.assert_close(got[0], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.equation("Baselines", "RetNet 3–8")
def test_retnet():
    """RetNet eqs 3-8: Sₙ = αSₙ₋₁ + vₙ(kₙe^{-inθ})ᵀ/√d, oₙ = Sₙ(qₙe^{inθ}), α = 1 - 2^(-5-h); pairs turned as complex numbers."""
    half = WIDTH // 2
    angle = torch.arange(LENGTH)[:, None] * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)

    def turned(x: Tensor) -> Tensor:
        z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), 1)

    def write(s, k, v, head, t, x):
        return (1 - 2.0 ** (-5 - head)) * s + torch.outer(v, k)

    compare(layer_of("retnet"), lambda q, k, v: (turned(q), turned(k) / math.sqrt(WIDTH), v), write)


@pytest.mark.equation("Baselines", "GLA 3", "GLA 5")
def test_gla():
    """GLA eqs 3-5: Sₜ = Sₜ₋₁ diag(αₜ) + vₜkₜᵀ, αₜ = σ(W₂W₁xₜ + b)^(1/16), oₜ = Sₜqₜ/√d."""
    layer = layer_of("gla")
    gates = layer.gates

    def write(s, k, v, head, t, x):
        raw = gates.up_from.weight @ (gates.down_to.weight @ x) + gates.up_from.bias
        alpha = torch.sigmoid(raw[head * WIDTH : (head + 1) * WIDTH]) ** (1 / 16)
        return s @ torch.diag(alpha) + torch.outer(v, k)

    compare(layer, lambda q, k, v: (q / math.sqrt(WIDTH), k, v), write)


@pytest.mark.equation("Baselines", "DeltaNet")
def test_deltanet():
    """DeltaNet: Sₜ = Sₜ₋₁(I - βₜkₜkₜᵀ) + βₜvₜkₜᵀ, β = σ(wx)."""
    layer = layer_of("deltanet")
    eye = torch.eye(WIDTH, dtype=torch.float64)

    def write(s, k, v, head, t, x):
        beta = torch.sigmoid(layer.gates.linear.weight[head] @ x)
        return s @ (eye - beta * torch.outer(k, k)) + beta * torch.outer(v, k)

    compare(layer, activated, write)


@pytest.mark.equation("Baselines", "Longhorn")
def test_longhorn():
    """Longhorn: Sₜ = argmin ‖S - Sₜ₋₁‖² + η‖S k - v‖², the normal equations solved: S(I + η k kᵀ) = Sₜ₋₁ + η v kᵀ, η = σ(wx)."""
    layer = layer_of("longhorn")
    eye = torch.eye(WIDTH, dtype=torch.float64)

    def write(s, k, v, head, t, x):
        eta = torch.sigmoid(layer.gates.linear.weight[head] @ x)
        return torch.linalg.solve(eye + eta * torch.outer(k, k), s + eta * torch.outer(v, k), left=False)

    compare(layer, activated, write)


@pytest.mark.equation("Baselines", "Gated DeltaNet 10", "Gated DeltaNet §3.3")
def test_gated_deltanet():
    """Gated DeltaNet eq. 10: Sₜ = αₜSₜ₋₁(I - βₜkₜkₜᵀ) + βₜvₜkₜᵀ, α = exp(-A softplus(ux + b))."""
    layer = layer_of("gated_deltanet")
    gates, eye = layer.gates, torch.eye(WIDTH, dtype=torch.float64)

    def write(s, k, v, head, t, x):
        beta = torch.sigmoid(gates.linear.weight[head] @ x)
        raw = gates.linear.weight[layer.heads + head] @ x + gates.bias[head]
        alpha = torch.exp(-torch.exp(gates.speed[head]) * torch.log(1 + torch.exp(raw)))
        return alpha * s @ (eye - beta * torch.outer(k, k)) + beta * torch.outer(v, k)

    compare(layer, activated, write)


def ttt(recipe: str, base: float, read: Callable[[list[Tensor], Tensor], Tensor]) -> None:
    """Wₜ = Wₜ₋₁ - ηₜ∇½‖f(W_t'; kₜ) - vₜ‖², t' the start of the mini-batch of 16; f(x) = x + LN(f_res(x))."""
    layer = layer_of(recipe)
    names = sorted(layer.initial)
    held: dict[str, list[Tensor]] = {}

    def model(weights: list[Tensor], x: Tensor) -> Tensor:
        out = read(weights, x)
        centred = out - out.mean()
        return x + centred / torch.sqrt(centred.square().mean() + 1e-5)

    class Fast:
        def __matmul__(self, q: Tensor) -> Tensor:
            return model(held["now"], q)

    def write(s, k, v, head, t, x):
        if t == 0:
            held["now"] = [layer.initial[name][head].detach().clone() for name in names]
        if t % 16 == 0:
            held["anchor"] = [w.clone() for w in held["now"]]
        with torch.enable_grad():
            anchor = [w.detach().requires_grad_() for w in held["anchor"]]
            loss = 0.5 * (model(anchor, k) - v).square().sum()
            grads = torch.autograd.grad(loss, anchor)
        eta = base * torch.sigmoid(layer.gates.linear.weight[head] @ x)
        held["now"] = [w - eta * g for w, g in zip(held["now"], grads, strict=True)]
        return Fast()

    compare(layer, lambda q, k, v: (unit(q), unit(k), v), write)


@pytest.mark.equation("Baselines", "TTT §2")
def test_ttt_linear():
    """TTT §2.7: f_res(x) = Wx, η = σ(θx)."""
    ttt("ttt_linear", 1.0, lambda weights, x: weights[0] @ x)


@pytest.mark.equation("Baselines", "TTT §2")
def test_ttt_mlp():
    """TTT §2.7: f_res(x) = W₂ GELU(W₁x), η = 0.1 σ(θx)."""
    ttt("ttt_mlp", 0.1, lambda weights, x: weights[1] @ F.gelu(weights[0] @ x))


@pytest.mark.parametrize("recipe", ["retnet", "gla", "deltanet", "longhorn", "gated_deltanet"])
def test_the_linear_family_starts_empty(recipe):
    layer = layer_of(recipe)
    assert not len(layer.initial)
    assert not any(bool(weight.any()) for weight in layer.initial_state(1).memory.dual.values())
