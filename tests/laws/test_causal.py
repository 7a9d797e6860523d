"""causal: changing token j changes no output before j, not by one bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.laws.subjects import EVERYTHING, VOCABULARY, build, call, draw

LENGTH = 21  # a multiple of no period and no window
LOUDER = 3.0


def louder(name: str) -> nn.Module:
    """Weights three times as large, so that what leaks is seen."""
    module = build(name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(LOUDER)
    return module


def another(x: Tensor) -> Tensor:
    """Other tokens, or other vectors."""
    return 1 - 2 * x if x.is_floating_point() else (x + 1) % VOCABULARY


@pytest.mark.parametrize("how", ["fresh", "going on", "documents"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_no_output_depends_on_a_later_token(name, how):
    module = louder(name)
    x = draw(module, 1, LENGTH).repeat_interleave(LENGTH, 0)
    # Row j has another token at position j. The same shapes, so the same rounding: equal means equal.
    changed, position = x.clone(), torch.arange(LENGTH)
    changed[position, position] = another(x[position, position])
    starts = ((position % 8) == 3).expand(LENGTH, -1) if how == "documents" else None
    with torch.no_grad():
        state = None if how == "fresh" else call(module, draw(module, LENGTH, 7, seed=2))[1]
        expected, _ = call(module, x, state, starts=starts)
        got, _ = call(module, changed, state, starts=starts)
    assert bool(torch.isfinite(expected).all())
    before = position[None, :] < position[:, None]
    differs = (got != expected).flatten(2).any(-1)
    assert not bool((differs & before).any()), f"(changed, seen by): {(differs & before).nonzero().tolist()[:5]}"
    assert bool(differs[position, position].all()), "a token changes what is read at it"


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_longer_future_changes_nothing(name):
    """The number of tokens in a call is no input either (blocks are cut elsewhere, so up to rounding)."""
    module = louder(name)
    x = draw(module, 2, LENGTH)
    with torch.no_grad():
        whole, _ = call(module, x)
        for length in (1, 5, LENGTH - 1):
            y, _ = call(module, x[:, :length])
            assert (y - whole[:, :length]).abs().max() <= 1e-9 * whole.abs().max(), length
