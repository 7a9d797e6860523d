"""lift: padding, wherever it stands, changes no output and no state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nestling.ops import Marks
from tests.laws.subjects import (
    EVERYTHING,
    MIXERS,
    VOCABULARY,
    assert_close,
    assert_equal,
    draw,
    model,
    rows,
    subject,
)

LENGTH = 23
AMOUNTS = (0, 1, 7, 22)
"""Padding in each row."""


def left() -> Tensor:
    return torch.arange(LENGTH) >= torch.tensor(AMOUNTS)[:, None]


def right() -> Tensor:
    return torch.arange(LENGTH) < LENGTH - torch.tensor(AMOUNTS)[:, None]


def interior() -> Tensor:
    valid = torch.ones(len(AMOUNTS), LENGTH, dtype=torch.bool)
    for row, amount in enumerate(AMOUNTS):
        valid[row, torch.randperm(LENGTH, generator=torch.Generator().manual_seed(row))[:amount]] = False
    return valid


PLACES = {"left": left, "right": right, "interior": interior}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", EVERYTHING)
def test_padding_changes_nothing(name, place):
    """From a fresh state and from one whose rows stand at different phases of their periods."""
    lm, valid = model(name), PLACES[place]()
    tokens = draw(lm, len(AMOUNTS), LENGTH)
    state, alone = None, [None] * len(AMOUNTS)
    with torch.no_grad():
        for _ in range(2):
            logits, state = lm(tokens, state, valid)
            assert not bool(logits[~valid].any()), "logits of padding are zero"
            for row, keep in enumerate(valid):
                expected, alone[row] = lm(tokens[row : row + 1, keep], alone[row])
                assert_close(logits[row : row + 1, keep], expected)
                assert_close(rows(state, row), alone[row])


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_padding_says_does_not_matter(name):
    lm, valid = model(name), interior()
    tokens = draw(lm, len(AMOUNTS), LENGTH)
    other = torch.where(valid, tokens, (tokens + 1) % VOCABULARY)
    with torch.no_grad():
        logits, state = lm(tokens, None, valid)
        again, after = lm(other, None, valid)
    assert torch.equal(again, logits)
    assert_equal(after, state)


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_row_of_padding_keeps_its_state_bit_for_bit(name):
    lm = model(name)
    tokens = draw(lm, 3, LENGTH)
    valid = torch.ones(3, LENGTH, dtype=torch.bool)
    valid[1] = False
    with torch.no_grad():
        _, state = lm(tokens)
        logits, after = lm(tokens, state, valid)
        assert_equal(rows(after, 1), rows(state, 1))
        _, nothing = lm(tokens, state, torch.zeros_like(valid))
        assert_equal(nothing, state)
        _, fresh = lm(tokens, None, valid)
        assert_equal(rows(fresh, 1), lm.initial_state(1))
    assert not bool(logits[1].any())


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_takes_padding_at_the_right_end(name):
    mixer, valid = subject(name), right()
    x = draw(mixer, len(AMOUNTS), LENGTH)
    state, alone = None, [None] * len(AMOUNTS)
    with torch.no_grad():
        for _ in range(2):
            y, state = mixer(x, state, Marks(valid))
            for row, keep in enumerate(valid):
                expected, alone[row] = mixer(x[row : row + 1, keep], alone[row])
                assert_close(y[row : row + 1, keep], expected)
                assert_close(rows(state, row), alone[row])


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_gradient_comes_from_padding(name):
    lm, valid = model(name), interior()
    tokens = draw(lm, len(AMOUNTS), LENGTH)
    lm.embedding.weight.grad = None
    unused = VOCABULARY - 1
    tokens = torch.where(valid, tokens.clamp_max(unused - 1), unused)
    logits, _ = lm(tokens, None, valid)
    weights = torch.randn((*logits.shape[:-1], unused), dtype=logits.dtype)
    (grad,) = torch.autograd.grad((logits[..., :unused] * weights).sum(), lm.embedding.weight)
    assert bool(torch.isfinite(grad).all())
    assert not bool(grad[unused].any()) and bool(grad[:unused].any())
