"""Memory as context, a token at a time: rows that stand at different places of their segments are each what they are alone."""

from __future__ import annotations

import pytest
import torch

import nestling.tree as tree
from nestling.core import MLP, Chain, Descend, Every, Memory, Momentum
from nestling.nn import MemoryAsContext, MemoryLayer, Segment

LENGTH = 23


def layer(memory):
    """Segments of 8 tokens with 4 memory tokens, in float64."""
    torch.manual_seed(0)
    return MemoryAsContext(MemoryLayer(16, 2, memory), Segment(8, persistent=2)).double()


MEMORIES = [
    Memory(MLP(2), rule=Chain((Descend(), Momentum())), period=4),
    Memory(MLP(2), rule=Chain((Descend(), Every(8, Momentum()))), period=8, read_at="commit"),
]


@pytest.mark.parametrize("memory", MEMORIES, ids=("by token", "by segment"))
@torch.no_grad()
def test_rows_at_different_places_are_what_they_are_alone(memory):
    model, x = layer(memory), torch.randn(2, LENGTH, 16, dtype=torch.float64)
    whole, _ = model(x)
    # The second row is five tokens behind.
    _, ahead = model(x[:1, :5])
    state = tree.map(lambda a, b: torch.cat((a, b)), ahead, model.initial_state(1))
    for t in range(LENGTH - 5):
        y, state = model(torch.stack((x[0, t + 5 : t + 6], x[1, t : t + 1])), state)
        torch.testing.assert_close(y[0, 0], whole[0, t + 5], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(y[1, 0], whole[1, t], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("memory", MEMORIES, ids=("by token", "by segment"))
def test_a_token_that_is_differentiated_is_the_same_token(memory):
    model, x = layer(memory), torch.randn(2, LENGTH, 16, dtype=torch.float64)
    states = {}
    for graph in (True, False):
        state, outputs = None, []
        with torch.set_grad_enabled(graph):
            for t in range(LENGTH):
                y, state = model(x[:, t : t + 1], state)
                outputs.append(y)
        states[graph] = torch.cat(outputs, 1), state
    for one, other in zip(tree.leaves(states[True]), tree.leaves(states[False]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
