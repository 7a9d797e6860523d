"""stream: f(a ++ b, s) = f(b, f(a, s).state) at any cut, in outputs and in states."""

from __future__ import annotations

import pytest
import torch

import nestling.tree as tree
from nestling.nn import buffered, settled
from tests.laws.subjects import EVERYTHING, assert_close, assert_equal, call, draw, subject

LENGTH = 37  # a multiple of no period and no window


def pieces(seed: int) -> list[tuple[int, int]]:
    """Random cuts, more short pieces than long ones, single tokens among them."""
    generator = torch.Generator().manual_seed(seed)
    cuts, at = [], 0
    while at < LENGTH:
        step = int(torch.tensor([1, 1, 2, 3, 5, 11, 19])[torch.randint(0, 7, (), generator=generator)])
        cuts.append((at, min(at + step, LENGTH)))
        at += step
    return cuts


def by_token() -> list[tuple[int, int]]:
    return [(t, t + 1) for t in range(LENGTH)]


@pytest.mark.parametrize("cuts", [pieces(1), pieces(2), by_token()], ids=["cuts1", "cuts2", "token by token"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_any_split_of_a_stream_gives_the_same(name, cuts):
    module = subject(name)
    x = draw(module, 2, LENGTH)
    with torch.no_grad():
        whole, final = call(module, x)
        state, outputs = None, []
        for low, high in cuts:
            y, state = call(module, x[:, low:high], state)
            outputs.append(y)
    assert_close(torch.cat(outputs, 1), whole)
    assert_close(state, final)


@pytest.mark.parametrize("name", EVERYTHING)
def test_tokens_that_wait_give_the_same(name):
    """Every split goes on from a state in which tokens may wait, and what waits is what was read."""
    module = subject(name)
    x = draw(module, 2, LENGTH)
    with torch.no_grad():
        whole, _ = call(module, x)
        state, outputs = None, []
        for low, high in [(0, 5), *by_token()[5:26], (26, 30), *by_token()[30:]]:
            y, state = call(module, x[:, low:high], state if state is None else buffered(state))
            outputs.append(y)
            if high in (5, 10, 12, 26, 31, LENGTH):
                assert_close(settled(state), call(module, x[:, :high])[1])
    assert_close(torch.cat(outputs, 1), whole)


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_initial_state_is_what_no_state_means(name):
    module = subject(name)
    x = draw(module, 2, 11)
    with torch.no_grad():
        given = module.initial_state(2)
        y, state = call(module, x, given)
        expected, final = call(module, x)
    assert_close(y, expected)
    assert_close(state, final)
    assert all(leaf.shape[0] == 2 for leaf in tree.leaves(given)), "every leaf has the batch as its first dimension"
    assert [leaf.shape for leaf in tree.leaves(given)] == [leaf.shape for leaf in tree.leaves(final)]
    assert [leaf.dtype for leaf in tree.leaves(given)] == [leaf.dtype for leaf in tree.leaves(final)]


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_state_does_not_change_when_it_is_used(name):
    module = subject(name)
    x = draw(module, 2, 13)
    with torch.no_grad():
        _, state = call(module, x)
        before = tree.fork(state)
        first, after = call(module, x, state)
        assert_equal(state, before)
        second, again = call(module, x, state)
    assert torch.equal(first, second)
    assert_equal(after, again)
