"""A token at a time: the form that has no blocks equals the reference in outputs and states, in float64."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

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
from nestling.ops import Chunk, Marks, Reference, begin, scan
from nestling.ops.single import scan_single, single

HEADS, WIDTH, LENGTH = 3, 4, 13
DEEP = Residual(Normed(MLP(2)))
RULES = [Descend(), Chain((Descend(), Momentum())), Chain((Descend(), Momentum(0.7)))]
ONCE = [Chain((Descend(), Every(4, Momentum()))), Chain((Descend(), Every(4, Momentum(0.7))))]
FORMS = [
    *((rule, period, at) for rule in RULES for period in (1, 4, float("inf")) for at in ("current", "commit")),
    *((rule, 4, "commit") for rule in ONCE),
]


def drawn(memory, rows=2, per_weight=False):
    """(weights, q, k, v, gates) for ``LENGTH`` tokens."""
    torch.manual_seed(0)
    each = [memory.architecture.init(WIDTH, WIDTH) for _ in range(HEADS)]
    weights = {name: torch.stack([one[name].double() for one in each]) for name in each[0]}
    shape = (rows, HEADS, LENGTH)
    q, k, v = (F.normalize(torch.randn(*shape, WIDTH, dtype=torch.float64), dim=-1) for _ in range(3))

    def gate(low, high):
        one = [low + (high - low) * torch.rand(shape, dtype=torch.float64) for _ in weights]
        return dict(zip(weights, one, strict=True)) if per_weight else one[0]

    return weights, q, k, v, Gates(lr=gate(0, 0.1), retain=gate(0.9, 1), momentum=gate(0, 0.8))


def cut(tokens, first, last):
    """Some of the tokens."""
    return tree.map(lambda x: x[:, :, first:last], tokens)


def same(found, expected):
    """Equal outputs, and states equal leaf by leaf."""
    (y, state), (wanted, after) = found, expected
    torch.testing.assert_close(y, wanted, rtol=1e-11, atol=1e-12)
    assert [path for path, _ in tree.items(state)] == [path for path, _ in tree.items(after)]
    for (_, leaf), (path, other) in zip(tree.items(state), tree.items(after), strict=True):
        torch.testing.assert_close(leaf, other, rtol=1e-11, atol=1e-12, msg=path)


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
    weights, *tokens = drawn(memory, per_weight=True)
    assert single(memory, tokens[3], Marks())
    start = begin(memory, weights, 2)
    held = tree.fork(start)
    same(one_by_one(memory, start, tokens), scan(memory, weights, *tokens, path=Reference()))
    for (path, leaf), (_, other) in zip(tree.items(start), tree.items(held), strict=True):
        assert torch.equal(leaf, other), f"the state that was given has moved: {path}"


@pytest.mark.parametrize("memory", [Memory(DEEP, L2(), Decay(), r, 4, "commit") for r in (*RULES[1:], *ONCE)], ids=repr)
@torch.no_grad()
def test_rows_may_stand_at_different_places_of_their_periods(memory):
    weights, *tokens = drawn(memory)
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
    same((y[:1], tree.map(lambda x: x[:1], state)), (y[:1], expected[0][1]))


def test_scan_takes_it_for_a_token_that_goes_on_without_a_graph(monkeypatch):
    memory = Memory(DEEP, L2(), Decay(), RULES[1], 4)
    weights, *tokens = drawn(memory)
    taken = []
    room = sys.modules["nestling.ops.scan"]
    monkeypatch.setattr(room, "scan_single", lambda *given: taken.append(1) or scan_single(*given))
    with torch.no_grad():
        _, state = scan(memory, weights, *cut(tokens, 0, 3))
        assert not taken
        expected = scan(memory, state, *cut(tokens, 3, 4), path=Reference())
        same(scan(memory, state, *cut(tokens, 3, 4)), expected)
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


@torch.no_grad()
def test_a_token_in_blocks_is_the_same():
    memory = Memory(DEEP, L2(), Decay(), RULES[1], 4)
    weights, *tokens = drawn(memory)
    _, state = scan(memory, weights, *cut(tokens, 0, 6))
    same(scan(memory, state, *cut(tokens, 6, 7)), scan(memory, state, *cut(tokens, 6, 7), path=Chunk(block=2)))
