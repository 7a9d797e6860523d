"""Tokens that wait to be written: outputs and states are those of tokens that do not, and a state is still a value."""

from __future__ import annotations

import sys

import pytest
import torch

import nestling.tree as tree
from nestling.core import L2, MLP, Chain, Decay, Descend, Every, Huber, Matrix, Memory, Momentum, Normed, Residual
from nestling.errors import NestlingError
from nestling.ops import Marks, Reference, begin, scan
from nestling.ops.buffered import Buffered, buffer, scan_buffered, settled, without_waiting
from nestling.ops.events import between, resumed
from tests.ops.test_scan import assert_same, draw
from tests.ops.test_single import LENGTH, cut

DEEP = Residual(Normed(MLP(2)))
TITANS = Chain((Descend(), Momentum()))
ONCE = Chain((Descend(), Every(4, Momentum())))
WAITING = [
    Memory(DEEP, L2(), Decay(), ONCE, 4, "commit"),
    Memory(DEEP, L2(), Decay(), TITANS, 8, "commit"),
    Memory(Matrix(), L2(), Decay(), Descend(), 3, "commit"),
    Memory(MLP(2), L2(), Decay(), TITANS, float("inf"), "commit"),
]
AT_ONCE = [
    Memory(DEEP, L2(), Decay(), TITANS, 4),
    Memory(DEEP, Huber(), Decay(), Descend(), 4, "commit"),
]


def one_by_one(memory, state, tokens, weights):
    """Each token through ``scan_buffered``; how many wait after each, too."""
    outputs, waiting, state = [], [], buffer(state)
    for t in range(tokens[0].shape[2]):
        y, state = scan_buffered(memory, state, cut(tokens, t, t + 1), weights)
        outputs.append(y)
        waiting.append(len(state.tokens))
    return torch.cat(outputs, 2), state, waiting


@pytest.mark.parametrize("ahead", [0, 2, 8])
@pytest.mark.parametrize("memory", WAITING + AT_ONCE, ids=repr)
@torch.no_grad()
def test_outputs_and_states_are_those_of_the_reference(memory, ahead):
    weights, *tokens = draw(memory, per_weight=True)
    start = begin(memory, weights, 2)
    if ahead:
        _, start = scan(memory, weights, *cut(tokens, 0, ahead), path=Reference())
    y, state, waiting = one_by_one(memory, start, cut(tokens, ahead, LENGTH), weights)
    whole, final = scan(memory, weights, *tokens, path=Reference())
    assert_same((y, settled(state)), (whole[:, :, ahead:], final))
    if memory in WAITING:
        assert waiting == [min(t - ahead, t % memory.period) for t in range(ahead + 1, LENGTH + 1)]
    else:
        assert not any(waiting)


@torch.no_grad()
def test_a_state_is_a_value():
    """What goes on from a state twice gets the same twice, and whoever settles it takes nothing from others."""
    memory = WAITING[0]
    weights, *tokens = draw(memory)
    _, state, waiting = one_by_one(memory, begin(memory, weights, 2), cut(tokens, 0, 6), weights)
    assert waiting[-1] == 2
    first = one_by_one(memory, state, cut(tokens, 6, 12), weights)
    expected = scan(memory, settled(state), *cut(tokens, 6, 12))
    second = one_by_one(memory, state, cut(tokens, 6, 12), weights)
    assert_same((first[0], settled(first[1])), expected)
    assert torch.equal(first[0], second[0])
    assert_same((first[0], settled(tree.fork(first[1]))), expected)
    assert buffer(state) is state
    assert_same((first[0], without_waiting(state)), (first[0], scan(memory, weights, *cut(tokens, 0, 4))[1]))


@torch.no_grad()
def test_what_meets_no_buffer_is_joined_to_it():
    """The way of a compiled program: it gets a state in which nothing waits, and gives back one token."""
    memory = WAITING[0]
    weights, *tokens = draw(memory)
    _, state, _ = one_by_one(memory, begin(memory, weights, 2), cut(tokens, 0, 5), weights)
    outputs = []
    for t in range(5, 11):
        form = between(state)
        assert not form.tokens and form.memory is None and len(tree.leaves(form)) == 3, "two weights and the phase"
        y, after = scan_buffered(memory, form, cut(tokens, t, t + 1), weights)
        outputs.append(y)
        state = resumed(state, after)
    whole, final = scan(memory, weights, *cut(tokens, 0, 11))
    assert_same((torch.cat(outputs, 2), settled(state)), (whole[:, :, 5:], final))


@torch.no_grad()
def test_few_wait_however_long_the_period(monkeypatch):
    monkeypatch.setattr(sys.modules["nestling.ops.buffered"], "MOST", 5)
    memory = WAITING[3]
    weights, *tokens = draw(memory)
    y, state, waiting = one_by_one(memory, begin(memory, weights, 2), tokens, weights)
    assert max(waiting) == 4
    assert_same((y, settled(state)), scan(memory, weights, *tokens, path=Reference()))


@torch.no_grad()
def test_several_tokens_at_once_and_rows_that_are_not_alike_are_written():
    memory = WAITING[0]
    weights, *tokens = draw(memory)
    _, state, _ = one_by_one(memory, begin(memory, weights, 2), cut(tokens, 0, 6), weights)
    y, after = scan_buffered(memory, state, cut(tokens, 6, 9), weights)
    whole, final = scan(memory, weights, *cut(tokens, 0, 9))
    assert not after.tokens
    assert_same((y, settled(after)), (whole[:, :, 6:], final))
    fresh = begin(memory, weights, 1)
    unlike = tree.map(lambda a, b: torch.cat((a[:1], b)), settled(state), fresh)
    now = cut(tokens, 6, 7)
    y, after = scan_buffered(memory, Buffered(unlike), now, weights)
    assert not after.tokens
    assert_same((y, after.written), scan(memory, unlike, *now))


@torch.no_grad()
def test_a_document_that_begins_meets_the_initial_weights():
    memory = WAITING[0]
    weights, *tokens = draw(memory)
    _, state, _ = one_by_one(memory, begin(memory, weights, 2), cut(tokens, 0, 6), weights)
    begins = Marks(starts=torch.ones(2, 1, dtype=torch.bool))
    y, after = scan_buffered(memory, state, cut(tokens, 6, 7), weights, begins)
    assert_same((y, settled(after)), scan(memory, weights, *cut(tokens, 6, 7)))


def test_with_gradients_nothing_waits():
    memory = WAITING[0]
    weights, *tokens = draw(memory)
    _, after = scan_buffered(memory, Buffered(begin(memory, weights, 2)), cut(tokens, 0, 1), weights)
    assert not after.tokens


def test_shapes_are_checked():
    memory = WAITING[0]
    weights, q, k, v, gates = draw(memory)
    with pytest.raises(NestlingError, match="scan needs q and k"):
        scan_buffered(memory, Buffered(begin(memory, weights, 2)), (q[0], k, v, gates), weights)
