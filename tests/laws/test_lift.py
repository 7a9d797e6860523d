"""lift: a batch is the loop over its rows; rows share no memory."""

from __future__ import annotations

import pytest
import torch

from tests.laws.subjects import EVERYTHING, assert_close, assert_equal, call, draw, rows, subject

LENGTH = 19


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_batch_equals_the_loop_over_its_rows(name):
    module = subject(name)
    x = draw(module, 3, LENGTH)
    with torch.no_grad():
        y, state = call(module, x)
        y2, state2 = call(module, x.flip(0), state)
        for row in range(3):
            alone, after = call(module, x[row : row + 1])
            assert_close(y[row : row + 1], alone)
            assert_close(rows(state, row), after)
            alone, after = call(module, x.flip(0)[row : row + 1], after)
            assert_close(y2[row : row + 1], alone)
            assert_close(rows(state2, row), after)


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_one_row_reads_never_reaches_another(name):
    module = subject(name)
    x = draw(module, 3, LENGTH)
    other = x.clone()
    other[1] = draw(module, 1, LENGTH, seed=1)[0]
    with torch.no_grad():
        y, state = call(module, x)
        z, after = call(module, other)
        y, state = call(module, x, state)
        z, after = call(module, x, after)
    for row in (0, 2):
        assert torch.equal(y[row], z[row])
        assert_equal(rows(after, row), rows(state, row))


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_same_input_gives_the_same_answer_and_draws_no_random_numbers(name):
    module = subject(name)
    x = draw(module, 2, LENGTH)
    with torch.no_grad():
        before = torch.get_rng_state()
        y, state = call(module, x)
        assert torch.equal(before, torch.get_rng_state())
        again, after = call(module, x)
        trained, _ = call(module.train(), x)
        evaluated, _ = call(module.eval(), x)
    assert torch.equal(y, again) and torch.equal(trained, evaluated)
    assert_equal(after, state)
