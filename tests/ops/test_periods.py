"""Memories read at their commits: whole periods equal the reference in outputs, states and every outer gradient, in float64."""

from __future__ import annotations

import pytest
import torch

import nestling.tree as tree
from nestling.core import (
    L2,
    MLP,
    Chain,
    Decay,
    Descend,
    Every,
    Gates,
    Huber,
    Matrix,
    Memory,
    Momentum,
    Normed,
    Residual,
    Returning,
)
from nestling.core.architecture import SiLU
from nestling.errors import NestlingError
from nestling.ops import Chunk, Marks, Reference, Resumed, begin, periods, scan
from nestling.ops.layers import layers
from nestling.ops.periods import scan_periods, whole
from tests.ops.pieces import in_pieces, marked
from tests.ops.test_scan import answers, assert_same, draw

DEEP = Residual(Normed(MLP(2, 2)))


def rules(period):
    """Every rule that has a form by whole periods."""
    return [
        Descend(),
        Chain((Descend(), Momentum())),
        Chain((Momentum(0.7), Descend())),
        Chain((Descend(), Every(period, Momentum()))),
        Chain((Descend(), Every(period, Momentum(0.7)))),
    ]


@pytest.mark.parametrize("architecture", [Matrix(), Residual(MLP(2, 2, SiLU())), Normed(MLP(2, 3)), DEEP], ids=repr)
@pytest.mark.parametrize("rule", rules(4), ids=repr)
@pytest.mark.parametrize("per_weight", [True, False])
def test_whole_periods_equal_the_reference(architecture, rule, per_weight):
    memory = Memory(architecture, L2(), Decay(), rule, 4, "commit")
    given = draw(memory, length=10, per_weight=per_weight)
    assert whole(memory, given[4])
    expected = answers(memory, given, Reference())
    for stride in (None, 2, 0) if per_weight else (None, 1):
        assert_same(answers(memory, given, Chunk(stride=stride)), expected)


@pytest.mark.parametrize("length", [1, 63, 100])
@pytest.mark.parametrize("rule", rules(64)[1:4:2], ids=repr)
def test_awkward_lengths_equal_the_reference(rule, length):
    memory = Memory(DEEP, L2(), Decay(), rule, 64, "commit")
    given = draw(memory, batch=1, length=length)
    assert_same(answers(memory, given, Chunk()), answers(memory, given, Reference()))


@pytest.mark.slow
@pytest.mark.parametrize("rule", rules(64)[1:4:2], ids=repr)
def test_a_thousand_tokens_equal_the_reference(rule):
    memory = Memory(DEEP, L2(), Decay(), rule, 64, "commit")
    given = draw(memory, batch=1, length=1000)
    assert_same(answers(memory, given, Chunk()), answers(memory, given, Reference()))


@pytest.mark.parametrize("path", [Chunk(block=4), Reference()], ids=repr)
@pytest.mark.parametrize("rule", rules(8)[1:4:2], ids=repr)
def test_any_split_of_a_stream_gives_the_same(rule, path):
    memory = Memory(DEEP, L2(), Decay(), rule, 8, "commit")
    weights, *tokens = tree.detach(draw(memory, length=45))
    whole = scan(memory, weights, *tokens, path=path)
    assert_same(in_pieces(memory, weights, tokens, (1, 8, 27, 28, 32, 45), path), whole)


@pytest.mark.parametrize("retention", [Decay(), Returning(Decay())], ids=repr)
@pytest.mark.parametrize("objective", [L2(), Huber()], ids=repr)
def test_momentum_once_a_period_with_documents_and_padding(retention, objective):
    memory = Memory(MLP(2, 2), objective, retention, rules(8)[3], 8, "commit")
    given = draw(memory, batch=4, length=37)
    valid, starts = marked(4, 37)
    for marks in (Marks(), Marks(valid), Marks(None, starts), Marks(valid, starts)):
        expected = answers(memory, given, Reference(), marks=marks)
        assert_same(answers(memory, given, Chunk(block=4), marks=marks), expected)


@pytest.mark.parametrize("rule", rules(4), ids=repr)
def test_writes_alone_need_no_queries(rule):
    memory = Memory(DEEP, L2(), Decay(), rule, 4, "commit")
    weights, query, key, value, gates = tree.detach(draw(memory, length=8))
    before = begin(memory, weights, 2)
    expected = scan_periods(memory, before, (query, key, value, gates))[1]
    y, after = scan_periods(memory, before, (None, key, value, gates))
    assert y.shape[2] == 0
    for one, other in zip(tree.leaves(after), tree.leaves(expected), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_a_state_that_is_gone_on_from_is_left_as_it_is():
    """Periods write over weights of their own alone."""
    memory = Memory(DEEP, L2(), Decay(), rules(4)[3], 4, "commit")
    weights, *tokens = tree.detach(draw(memory, length=24))
    _, state = scan(memory, weights, *tree.map(lambda x: x[:, :, :8], tokens))
    kept = tree.fork(state)
    for length in (4, 8, 16):
        _, after = scan(memory, state, *tree.map(lambda x, n=length: x[:, :, 8 : 8 + n], tokens))
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(state), tree.leaves(kept), strict=True))
        first = tree.fork(after)
        scan(memory, after, *tree.map(lambda x: x[:, :, :8], tokens))
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(after), tree.leaves(first), strict=True))


def test_gradients_reach_the_state_that_is_gone_on_from():
    memory = Memory(DEEP, L2(), Decay(), rules(4)[3], 4, "commit")
    weights, q, k, v, gates = draw(memory, length=24)
    first, second = (tree.map(lambda x, s=s: x[:, :, s], (q, k, v, gates)) for s in (slice(0, 12), slice(12, 24)))

    def total(path):
        origin = begin(memory, weights, 2)
        one, state = scan(memory, origin, *first, path=path)
        two, state = scan(memory, Resumed(state, weights), *second, path=path)
        leaves = [leaf for leaf in tree.leaves((one, two, state)) if leaf.is_floating_point()]
        loss = sum((leaf * torch.linspace(-1, 1, leaf.numel()).view(leaf.shape)).sum() for leaf in leaves)
        return torch.autograd.grad(loss, tree.leaves((weights, q, k, v, gates)), allow_unused=True)

    for got, expected in zip(total(Chunk()), total(Reference()), strict=True):
        assert (got is None) == (expected is None)
        assert got is None or torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("room", [0, 30_000, 2**30])
def test_what_is_stored_changes_no_answer(room, monkeypatch):
    memory = Memory(DEEP, L2(), Decay(), rules(4)[3], 4, "commit")
    given = draw(memory, length=24)
    expected = answers(memory, given, Chunk(stride=1))
    monkeypatch.setattr(periods, "STORED", room)
    assert_same(answers(memory, given, Chunk()), expected)


def test_buffers_need_no_zeros(poisoned):
    memory = Memory(DEEP, L2(), Decay(), rules(4)[1], 4, "commit")
    given = draw(memory, length=14)
    expected = answers(memory, given, Reference())
    for stride in (None, 2):
        assert_same(answers(memory, given, Chunk(stride=stride)), expected)


def test_a_backward_pass_can_be_run_twice_and_needs_no_autocast():
    memory = Memory(DEEP, L2(), Decay(), rules(4)[3], 4, "commit")
    weights, q, k, v, gates = draw(memory, length=12)
    y, _ = scan(memory, weights, q, k, v, gates)
    first = torch.autograd.grad(y.square().sum(), tree.leaves(weights), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        second = torch.autograd.grad(y.square().sum(), tree.leaves(weights))
    assert_same(list(second), list(first))


def test_second_derivatives_are_refused_or_right():
    memory = Memory(MLP(2, 2), L2(), Decay(), rules(4)[1], 4, "commit")
    weights, q, k, v, gates = draw(memory, length=8, batch=1)
    y, _ = scan(memory, weights, q, k, v, gates)
    with pytest.raises(NestlingError, match="no second derivative"):
        torch.autograd.grad(y.sum(), [q], create_graph=True)
    for path in (Chunk(stride=0), Reference()):
        y, _ = scan(memory, weights, q, k, v, gates, path=path)
        (grad,) = torch.autograd.grad(y.square().sum(), [k], create_graph=True)
        assert torch.autograd.grad(grad.square().sum(), [v])[0].isfinite().all()


def test_what_has_no_such_form():
    assert layers(Residual(Residual(Matrix()))) is None
    assert not whole(Memory(DEEP, L2(), Decay(), Descend(), 4), Gates())
    assert not whole(Memory(DEEP, L2(), Decay(), Chain((Descend(), Every(3, Momentum()))), 4, "commit"), Gates())
    assert not whole(Memory(DEEP, L2(), Decay(), Descend(), float("inf"), "commit"), Gates())
