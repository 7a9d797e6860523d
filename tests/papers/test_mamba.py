"""Mamba-2 and Samba: the layer against the recurrence written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestling as nl
from nestling.nn import Attention, Mamba2
from nestling.recipes.linear import RETENTION_MEMORY
from tests.laws.subjects import small

LENGTH = 19


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def literal(layer: Mamba2, u: Tensor) -> Tensor:
    """z, x, B, C by projection; convolution by sums; the recurrence of each head; y + D x; norm(y ⊙ SiLU(z)); the way out."""
    inner, state, heads, taps = layer.inner, layer.state, layer.heads, layer.conv.weight
    projected = u @ layer.project.weight.T
    z, mixed = projected[:, :inner], projected[:, inner:]
    mixed = silu(
        torch.stack([sum(taps[j] * mixed[t - j] for j in range(min(len(taps), t + 1))) for t in range(LENGTH)])
    )
    x, b, c = mixed[:, :inner], mixed[:, inner : inner + state], mixed[:, inner + state :]
    width = inner // heads
    y = torch.zeros_like(x)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        h = torch.zeros(state, width, dtype=torch.float64)
        for t in range(LENGTH):
            delta = torch.log(1 + torch.exp(layer.gates.linear.weight[head] @ u[t] + layer.gates.bias[head]))
            a = -torch.exp(layer.gates.speed[head])
            # h_t = exp(ΔA) h_{t-1} + Δ B_t x_tᵀ,  y_t = C_tᵀ h_t + D x_t
            h = torch.exp(delta * a) * h + delta * torch.outer(b[t], x[t, columns])
            y[t, columns] = c[t] @ h + layer.skip[head] * x[t, columns]
    y = y * silu(z)
    return (y / torch.sqrt(y.square().mean(-1, keepdim=True) + layer.norm.eps) * layer.norm.gain) @ layer.out.weight.T


@pytest.mark.equation("Baselines", "Mamba-2")
@pytest.mark.parametrize("recipe", ["mamba2", "samba"])
def test_the_state_space_is_a_memory(recipe):
    """Mamba-2: hₜ = exp(ΔₜA) hₜ₋₁ + Δₜ Bₜ xₜᵀ, yₜ = Cₜᵀhₜ + D xₜ, with one B and one C for all heads."""
    torch.manual_seed(0)
    layer = nl.build(recipe, **small(recipe)).double().blocks[0].mixer
    assert isinstance(layer, Mamba2)
    u = torch.randn(LENGTH, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer.skip.copy_(torch.tensor([0.5, -2.0]))
        got, state = layer(u[None])
        torch.testing.assert_close(got[0], literal(layer, u), rtol=1e-8, atol=1e-9)
        assert state.memory.dual["w1"].shape == (1, 2, 32, 128)


def test_steps_and_decays_begin_in_their_ranges():
    """Δ between 0.001 and 0.1 where the token says nothing, A between 1 and 16."""
    torch.manual_seed(0)
    with torch.no_grad():
        gates = Mamba2(32, 64, RETENTION_MEMORY).gates(torch.zeros(1, 1, 32))
    assert 1e-3 < float(gates.lr.min()) < 3e-3 and 0.05 < float(gates.lr.max()) < 0.1
    speed = -gates.retain.log() / gates.lr
    assert 1 < float(speed.min()) < 2 and 15 < float(speed.max()) < 16


@pytest.mark.equation("Baselines", "Samba §2")
def test_samba_takes_turns():
    """Samba §2: a state space, then attention in a window, each before an MLP."""
    model = nl.build("samba", **small("samba", layers=4))
    assert [type(block.mixer) for block in model.blocks] == [Mamba2, Attention] * 2
    assert {block.mixer.window for block in model.blocks[1::2]} == {8}


@pytest.mark.parametrize("changes", [{"widen": 0}, {"state": 0}, {"memory": "L2()"}, {"steps": "L2()"}])
def test_what_cannot_be_built_is_refused(changes):
    with pytest.raises(nl.NestlingError) as raised:
        nl.build("mamba2", **changes)
    assert "\n" not in str(raised.value)
