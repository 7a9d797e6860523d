"""Windowed attention, against a softmax written out for each query."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nestling.errors import NestlingError
from nestling.nn import Attention, rotate
from nestling.ops import Marks

DIM, HEADS, LENGTH = 12, 2, 17


def literal(layer: Attention, x: Tensor, documents: Tensor) -> Tensor:
    """For each head and query: softmax over the keys of its document, at most ``window`` of them, itself included."""
    width = DIM // HEADS
    projected = x @ layer.qkv.weight.T
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for head in range(HEADS):
            q, k, v = (projected[row, :, part * DIM + head * width :][:, :width] for part in range(3))
            q, k = rotate(q, 0), rotate(k, 0)
            for t in range(x.shape[1]):
                seen = [j for j in range(t + 1) if t - j < layer.window and documents[row, j] == documents[row, t]]
                weights = torch.softmax(k[seen] @ q[t] / width**0.5, 0)
                out[row, t, head * width : (head + 1) * width] = weights @ v[seen]
    return out @ layer.out.weight.T


@pytest.mark.equation("Nested Learning", 62, 63)
@pytest.mark.equation("Titans", 1, 2)
@pytest.mark.parametrize("window", [1, 4, 16, 17, 100])
def test_it_is_softmax_attention_within_its_window(window):
    layer = Attention(DIM, HEADS, window).double()
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    with torch.no_grad():
        expected = literal(layer, x, torch.zeros(2, LENGTH))
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-10, atol=1e-11)
        starts = torch.zeros(2, LENGTH, dtype=torch.bool)
        starts[0, [3, 4, 11]] = True
        starts[1, [0, 16]] = True
        expected = literal(layer, x, starts.cumsum(1))
        torch.testing.assert_close(layer(x, None, Marks(None, starts))[0], expected, rtol=1e-10, atol=1e-11)


def test_full_attention_is_what_a_window_as_long_as_the_sequence_sees():
    """Both ways of computing it: causal where nothing came before, masked where something did."""
    layer = Attention(DIM, HEADS, LENGTH).double()
    x = torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    with torch.no_grad():
        fresh, _ = layer(x)
        masked, _ = layer(x, layer.initial_state(1))
    torch.testing.assert_close(fresh, masked, rtol=1e-11, atol=1e-12)


def test_its_state_stays_as_large_as_its_window():
    layer = Attention(DIM, HEADS, 4)
    state = layer.initial_state(2)
    for length in (1, 2, 9, 30):
        _, state = layer(torch.randn(2, length, DIM), state)
        assert state.key.shape == state.value.shape == (2, HEADS, 4, DIM // HEADS)
    assert state.filled.tolist() == [4, 4]


def test_shapes_that_do_not_divide_are_refused():
    with pytest.raises(NestlingError, match="got dim=12, heads=4"):
        Attention(12, 4, 8)
    with pytest.raises(NestlingError, match="window ≥ 1, got 0"):
        Attention(12, 2, 0)
