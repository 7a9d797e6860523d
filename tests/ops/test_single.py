"""A token at a time: the form that has no blocks equals the reference in outputs and states, in float64."""

from __future__ import annotations

import sys

import pytest
import torch

import nestling.tree as tree
from nestling.core import (
    L2,
    MLP,
    Chain,
    Decay,
    Delta,
    Descend,
    Every,
    Gates,
    Huber,
    Matrix,
    Memory,
    Momentum,
    Normed,
    Residual,
)
from nestling.core.architecture import SiLU
from nestling.ops import Marks, Reference, begin, scan
from nestling.ops.single import scan_single, single
from tests.ops.test_scan import assert_same, draw

LENGTH = 21
DEEP = Residual(Normed(MLP(2)))
RULES = [Descend(), Chain((Descend(), Momentum())), Chain((Descend(), Momentum(0.7)))]
ONCE = [Chain((Descend(), Every(4, Momentum()))), Chain((Descend(), Every(4, Momentum(0.7))))]
FORMS = [
    *((rule, period, at) for rule in RULES for period in (1, 4, float("inf")) for at in ("current", "commit")),
    *((rule, 4, "commit") for rule in ONCE),
]


def cut(tokens, first, last):
    """Some of the tokens."""
    return tree.map(lambda x: x[:, :, first:last], tokens)


def one_by_one(memory, state, tokens):
    """Each token through ``scan_single``."""
    outputs = []
    for t in range(tokens[0].shape[2]):
        y, state = scan_single(memory, state, cut(tokens, t, t + 1))
        outputs.append(y)
    return torch.cat(outputs, 2), state


@pytest.mark.parametrize("architecture", [Matrix(), Normed(MLP(2, 3, SiLU())), DEEP], ids=repr)
@pytest.mark.parametrize(("rule", "period", "read_at"), FORMS)
@torch.no_grad()
def test_tokens_one_by_one_equal_the_reference(architecture, rule, period, read_at):
    memory = Memory(architecture, L2(), Decay(), rule, period, read_at)
    weights, *tokens = draw(memory, per_weight=True)
    assert single(memory, tokens[3], Marks())
    start = begin(memory, weights, 2)
    held = tree.fork(start)
    assert_same(one_by_one(memory, start, tokens), scan(memory, weights, *tokens, path=Reference()))
    for (path, leaf), (_, other) in zip(tree.items(start), tree.items(held), strict=True):
        assert torch.equal(leaf, other), f"the state that was given has moved: {path}"


@pytest.mark.parametrize("memory", [Memory(DEEP, L2(), Decay(), r, 4, "commit") for r in (*RULES[1:], *ONCE)], ids=repr)
@torch.no_grad()
def test_rows_may_stand_at_different_places_of_their_periods(memory):
    weights, *tokens = draw(memory)
    expected = [
        scan(memory, weights, *tree.map(lambda x, n=n: x[n : n + 1], tokens), path=Reference()) for n in range(2)
    ]
    # The second row has read three tokens less.
    ahead = scan(memory, weights, *tree.map(lambda x: x[:1], cut(tokens, 0, 3)))[1]
    fresh = begin(memory, weights, 1)
    state = tree.map(lambda a, b: torch.cat((a, b)), ahead, fresh)
    outputs = []
    for t in range(LENGTH - 3):
        now = tree.map(lambda x, t=t: torch.stack((x[0, :, t + 3 : t + 4], x[1, :, t : t + 1])), tokens)
        y, state = scan_single(memory, state, now)
        outputs.append(y)
    y = torch.cat(outputs, 2)
    torch.testing.assert_close(y[0], expected[0][0][0, :, 3:], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(y[1], expected[1][0][0, :, : LENGTH - 3], rtol=1e-11, atol=1e-12)
    assert_same((y[:1], tree.map(lambda x: x[:1], state)), (y[:1], expected[0][1]))


def test_scan_takes_it_for_a_token_that_goes_on_without_a_graph(monkeypatch):
    memory = Memory(DEEP, L2(), Decay(), RULES[1], 4)
    weights, *tokens = draw(memory)
    taken = []
    room = sys.modules["nestling.ops.scan"]
    monkeypatch.setattr(room, "scan_single", lambda *given: taken.append(1) or scan_single(*given))
    with torch.no_grad():
        _, state = scan(memory, weights, *cut(tokens, 0, 3))
        assert not taken
        expected = scan(memory, state, *cut(tokens, 3, 4), path=Reference())
        assert_same(scan(memory, state, *cut(tokens, 3, 4)), expected)
        assert taken == [1]
        scan(memory, state, *cut(tokens, 3, 5))
    scan(memory, state, *cut(tokens, 3, 4))
    assert taken == [1]


@torch.no_grad()
def test_what_has_no_such_form_is_not_taken():
    memory = Memory(DEEP, L2(), Decay(), RULES[1], 4)
    gates = Gates()
    assert single(memory, gates, Marks())
    assert not single(memory, gates, Marks(valid=torch.ones(1, 1, dtype=torch.bool)))
    for other in (
        Memory(DEEP, Huber(), Decay(), RULES[1], 4),
        Memory(Matrix(), L2(), Delta(), RULES[0], 4),
        Memory(DEEP, L2(), Decay(), Chain((Momentum(0.7), Descend())), 4),
        Memory(Residual(Residual(Matrix())), L2(), Decay(), RULES[1], 4),
        Memory(DEEP, L2(), Decay(), ONCE[0], 8, "commit"),
    ):
        assert not single(other, gates, Marks()), other


def test_a_token_in_blocks_is_the_same():
    memory = Memory(DEEP, L2(), Decay(), RULES[1], 4)
    weights, *tokens = draw(memory)
    _, state = scan(memory, weights, *cut(tokens, 0, 6))
    # With a graph it goes by blocks.
    expected = scan(memory, state, *cut(tokens, 6, 7))
    with torch.no_grad():
        assert_same(scan(memory, state, *cut(tokens, 6, 7)), tree.detach(expected))
