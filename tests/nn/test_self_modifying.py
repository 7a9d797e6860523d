"""The self-modifying layer: what its ranges mean (its equations are in tests/papers)."""

from __future__ import annotations

import pytest
import torch

from nestling.errors import NestlingError
from nestling.nn import SelfModifying, SelfRange


def test_heads_start_from_slow_to_fast():
    layer = SelfModifying(16, 4, ranges=SelfRange(slow=-5.0, fast=-2.0, retain=4.0))
    assert layer.bias[:, 0].tolist() == pytest.approx([-5, -4, -3, -2])
    assert layer.bias[:, 1].tolist() == pytest.approx([4] * 4)
    assert SelfModifying(16, 1).bias.shape == (1, 2)


def test_the_main_memory_starts_at_the_identity():
    """The update is linear in it: from zeros it would stay zeros."""
    layer = SelfModifying(16, 2)
    assert torch.equal(layer.initial, torch.eye(8).expand(2, 8, 8))
    x = torch.randn(1, 9, 16)
    with torch.no_grad():
        layer.initial.zero_()
        _, state = layer(x)
    assert not bool(state.memory.dual["w1"].any())


@pytest.mark.parametrize("period", [4, 16])
def test_a_key_that_repeats_is_stable_within_the_documented_rates(period):
    """η C ≲ 0.7: thousands of tokens of one kind leave the memory bounded."""
    torch.manual_seed(0)
    rate = 0.7 / period
    layer = SelfModifying(8, 1, period, ranges=SelfRange(lr=rate, slow=20.0, fast=20.0, retain=20.0))
    x = torch.randn(1, 1, 8).expand(1, 2000, 8)
    with torch.no_grad():
        y, state = layer(x)
    assert bool(torch.isfinite(y).all())
    assert state.memory.dual["w1"].abs().max() < 100


def test_shapes_that_do_not_divide_are_refused():
    with pytest.raises(NestlingError, match="got dim=12, heads=5"):
        SelfModifying(12, 5)
