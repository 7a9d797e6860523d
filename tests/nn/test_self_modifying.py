"""The self-modifying layer: what its values mean (its equations are in tests/papers)."""

from __future__ import annotations

import pytest
import torch

from nestling.core import L2, Chain, Decay, Delta, Descend, Gates, Matrix, Memory, Momentum, Residual, Returning
from nestling.errors import NestlingError
from nestling.nn import Exactly, SelfForm, SelfModifying, SelfRange, UpTo
from nestling.ops import scan

PRINTED = SelfForm(memory=Matrix(), projections=Matrix(), retention=Delta())


def test_heads_start_from_slow_to_fast():
    layer = SelfModifying(16, 4, ranges=SelfRange(slow=-5.0, fast=-2.0, retain=4.0))
    assert layer.bias["η"].tolist() == pytest.approx([-5, -4, -3, -2])
    assert layer.bias["α"].tolist() == pytest.approx([4] * 4)
    assert SelfModifying(16, 1).bias["η"].shape == (1,)


@pytest.mark.parametrize("period", [1, 4, 16, 64])
@pytest.mark.parametrize("lr", [0.5, 1.0, 2.0])
def test_heads_start_within_the_stable_rates_of_their_period(period, lr):
    """η C ≤ 0.7, and less by 1 - β with momentum β, for every head and period (docs/hope.md)."""
    constant = SelfForm(rule=Chain((Descend(), Momentum(0.9))))
    for form, rest in ((SelfForm(), 1.0), (constant, 0.1)):
        layer = SelfModifying(16, 4, period, form=form, ranges=SelfRange(lr=lr))
        rates = lr * torch.sigmoid(layer.bias["η"].detach())
        assert bool((rates * period <= 0.7 * rest + 1e-5).all())
        assert bool(rates.diff().gt(0).all())
        if period > 1:
            assert float(rates[-1]) * period == pytest.approx(0.7 * rest, rel=1e-3)


def test_one_key_comes_to_rest_without_overshooting_up_to_the_documented_rate_and_not_beyond():
    """With a frozen gradient and a fixed value: read_{c+1} - v/2 = (2r - 1)(read_c - v/2), r = (1 - η)^C (NL §3.3)."""
    key, value = torch.eye(4, dtype=torch.float64)[:1], torch.ones(1, 4, dtype=torch.float64)
    for product, sign in ((0.6, 1), (0.8, -1)):
        period = 16
        memory = Memory(Matrix(), L2(), Delta(), Descend(), period)
        many = (1, 1, 3 * period, 4)
        y, _ = scan(
            memory,
            {"w1": torch.zeros(1, 4, 4, dtype=torch.float64)},
            *(each.expand(many) for each in (key, key, value)),
            Gates(product / period),
        )
        first, second = (y[0, 0, c * period - 1, 0] - 0.5 for c in (1, 2))
        r = (1 - product / period) ** period
        assert float(second / first) == pytest.approx(2 * r - 1)
        assert float(second / first) * sign > 0


def test_a_linear_memory_without_residual_starts_at_the_identity():
    """The update is linear in it: from zeros it would stay zeros."""
    layer = SelfModifying(16, 2, form=PRINTED)
    assert torch.equal(layer.initial["w1"], torch.eye(8).expand(2, 8, 8))
    with torch.no_grad():
        layer.initial["w1"].zero_()
        _, state = layer(torch.randn(1, 9, 16))
    assert not bool(state.memory.dual["w1"].any())


@pytest.mark.parametrize("period", [4, 16])
@pytest.mark.parametrize("form", [PRINTED, SelfForm()], ids=["printed", "default"])
def test_a_key_that_repeats_is_stable_within_the_documented_rates(period, form):
    """η C ≲ 0.7: thousands of tokens of one kind leave the memory bounded."""
    torch.manual_seed(0)
    layer = SelfModifying(8, 1, period, form=form, ranges=SelfRange(0.7 / period, 20.0, 20.0, 20.0))
    x = torch.randn(1, 1, 8).expand(1, 2000, 8)
    with torch.no_grad():
        y, state = layer(x)
    assert bool(torch.isfinite(y).all())
    assert state.memory.dual["w1"].abs().max() < 100


def test_forgetting_leads_back_to_the_start_and_in_the_printed_form_to_nothing():
    """Whatever was written: once all of it is forgotten, ``Returning`` reads W₀, and α W alone reads zero."""
    for form, expected in ((SelfForm(), lambda start: start), (PRINTED, torch.zeros_like)):
        layer = SelfModifying(8, 2, 4, form=form)
        with torch.no_grad():
            _, state = layer(torch.randn(2, 40, 8))
            layer.bias["α"].fill_(-1e3)
            layer.bias["η"].fill_(-1e3)
            _, state = layer(torch.randn(2, 8, 8), state)
        weight = layer.memory.primal(state.memory.dual, state.memory.origin)["w1"]
        start = layer.initial["w1"].detach().expand_as(weight)
        torch.testing.assert_close(weight, expected(start))


def test_rates_can_reach_beyond_what_is_kept():
    """η up to α + 1 (lr = 2): M k → α M k - η M k has the factor -1, a reflection, which tracking a state needs."""
    form = SelfForm(memory=Matrix(), projections=Matrix(), adaptive=("k", "v", "η"), retention=Delta())
    layer = SelfModifying(8, 1, 1, form=form, ranges=SelfRange(lr=2.0, slow=1e3, fast=1e3)).double()
    with torch.no_grad():
        # v = k makes the gradient vanish: what is left is M (I - 2 k kᵀ).
        layer.initial_projections["v"]["w1"].copy_(layer.initial_projections["k"]["w1"])
        _, state = layer(torch.randn(1, 1, 8, dtype=torch.float64))
    reflected = state.memory.dual["w1"][0, 0]
    torch.testing.assert_close(reflected @ reflected, torch.eye(8, dtype=torch.float64), atol=1e-9, rtol=0)
    assert torch.linalg.det(reflected) == pytest.approx(-1)


def test_values_have_the_length_that_the_form_says():
    v = torch.randn(5, 7) * torch.tensor([1e-3, 0.1, 1.0, 10.0, 1e3])[:, None]
    k, lr = torch.zeros(7), torch.ones(1)
    assert Exactly(1.5)(v, k, lr).norm(dim=-1).tolist() == pytest.approx([1.5] * 5)
    bounded = UpTo(2.0)(v, k, lr)
    assert bool((bounded.norm(dim=-1) <= 2.0 + 1e-6).all())
    torch.testing.assert_close(bounded[0], v[0])
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(bounded, v), torch.ones(5))


def test_two_clocks_commit_each_at_its_own_time():
    layer = SelfModifying(8, 2, 6, form=SelfForm(period=4))
    assert (layer.memory.period, layer.projections.period) == (6, 4)
    assert [row.period for row in layer.levels()] == [6, 4]
    with torch.no_grad():
        _, state = layer(torch.randn(1, 5, 8))
    start = layer.weights()
    assert torch.equal(state.memory.anchor["w1"][0], start[0]["w1"])
    assert not torch.equal(state.projections.anchor["w1"][0], start[1]["w1"])


REFUSED = [
    (lambda: SelfModifying(12, 5), "got dim=12, heads=5"),
    (lambda: SelfForm(adaptive=("k", "v")), "is adaptive or static"),
    (lambda: SelfForm(adaptive=("k", "v", "η", "q")), "is adaptive or static"),
    (lambda: SelfForm(adaptive=("k", "v", "η", "γ")), "is adaptive or static"),
    (lambda: SelfForm(adaptive=(), static=("q", "k", "v", "η")), "nothing here modifies itself"),
    (lambda: SelfForm(static=("q", "β")), "β is the momentum"),
    (lambda: SelfForm(rule=Chain((Descend(), Momentum()))), "is adaptive or static"),
    (lambda: SelfModifying(16, 2, form=SelfForm(gates=Residual(Matrix()))), "keys as wide as values"),
    (lambda: SelfForm(retention=Returning(Returning(Decay()))), "give it a Decay or a Delta"),
]


@pytest.mark.parametrize(("make", "what"), REFUSED)
def test_forms_that_make_no_sense_are_refused(make, what):
    with pytest.raises(NestlingError, match=what):
        make()
