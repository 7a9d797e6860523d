"""stream, with documents: nothing from before a document's first token reaches it; packed rows equal separate runs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.each import each
from tests.laws.subjects import EVERYTHING, VOCABULARY, assert_close, assert_equal, call, draw, model, rows, subject

LENGTH = 31
BEGINS = {
    "in the middle": (9, 20),
    "at the first token": (0,),
    "at the first token and later": (0, 17),
    "one after the other": (4, 5, 6, 18, 19),
    "at the last token": (30,),
    "nowhere": (),
    "at every token": tuple(range(LENGTH)),
}
"""One row each: a batch has documents at different places."""


def marks() -> Tensor:
    starts = torch.zeros(len(BEGINS), LENGTH, dtype=torch.bool)
    for row, places in enumerate(BEGINS.values()):
        starts[row, list(places)] = True
    return starts


def documents(places: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, after the last) of each piece; the first piece goes on with what came before."""
    bounds = sorted({0, *places, LENGTH})
    return list(itertools.pairwise(bounds))


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "going on"])
@pytest.mark.parametrize("name", each(EVERYTHING))
def test_packed_documents_equal_separate_runs(name, warm):
    module, starts = subject(name), marks()
    x = draw(module, len(BEGINS), LENGTH)
    with torch.no_grad():
        state = call(module, draw(module, len(BEGINS), 6, seed=1))[1] if warm else None
        y, after = call(module, x, state, starts=starts)
        for row, places in enumerate(BEGINS.values()):
            alone = rows(state, row) if warm else None
            for low, high in documents(places):
                begun = None if low in places else alone
                expected, alone = call(module, x[row : row + 1, low:high], begun)
                assert_close(y[row : row + 1, low:high], expected)
            # What a state holds beyond what is still seen (old keys in a window) may differ; what is read later may not.
            tail = x[row : row + 1, :9]
            expected, _ = call(module, tail, alone)
            got, _ = call(module, tail, rows(after, row))
            assert_close(got, expected)


@pytest.mark.parametrize("name", each(EVERYTHING))
def test_documents_and_padding_together(name):
    """Documents that begin on padding, end in padding, or are padding alone; each begins where its mark is."""
    lm = model(name)
    generator = torch.Generator().manual_seed(3)
    count = 6
    starts = torch.rand(count, LENGTH, generator=generator) < 0.15
    valid = torch.rand(count, LENGTH, generator=generator) < 0.7
    starts[0, 12], valid[0, 12] = True, False
    starts[1, -1], valid[1, -1] = True, False
    starts[2, 5:9], valid[2, 3:10] = True, False
    valid[3], starts[3] = False, torch.arange(LENGTH) == 7
    valid[4], starts[4] = False, False
    starts[5, 0], valid[5, 0] = True, False
    tokens = draw(lm, count, LENGTH)
    with torch.no_grad():
        _, state = lm(draw(lm, count, 6, seed=1))
        logits, after = lm(tokens, state, valid, starts)
        more, _ = lm(tokens[:, :9], after)
        for row in range(count):
            alone, places = rows(state, row), tuple(starts[row].nonzero()[:, 0].tolist())
            for low, high in documents(places):
                keep = valid[row, low:high].nonzero()[:, 0] + low
                alone = lm.initial_state(1) if low in places else alone
                if len(keep):
                    expected, alone = lm(tokens[row : row + 1, keep], alone)
                    assert_close(logits[row : row + 1, keep], expected)
            expected, _ = lm(tokens[row : row + 1, :9], alone)
            assert_close(more[row : row + 1], expected)
    assert not bool(logits[~valid].any())


@pytest.mark.parametrize("name", each(EVERYTHING))
def test_nothing_from_before_reaches_a_document(name):
    """Not by one bit: neither in what is read in it nor in the gradient."""
    module = model(name)
    tokens = draw(module, 2, LENGTH)
    starts = torch.zeros(2, LENGTH, dtype=torch.bool)
    starts[:, 13] = True
    other = tokens.clone()
    other[:, :13] = (other[:, :13] + 1) % VOCABULARY
    with torch.no_grad():
        y, state = call(module, tokens, starts=starts)
        z, after = call(module, other, starts=starts)
        assert torch.equal(y[:, 13:], z[:, 13:])
        assert not torch.equal(y[:, :13], z[:, :13])
        y, _ = call(module, tokens, state)
        z, _ = call(module, tokens, after)
    assert torch.equal(y, z)


@pytest.mark.parametrize("name", each(EVERYTHING))
def test_marks_that_say_nothing_change_nothing(name):
    module = subject(name)
    x = draw(module, 2, LENGTH)
    nothing, everything = torch.zeros(2, LENGTH, dtype=torch.bool), torch.ones(2, LENGTH, dtype=torch.bool)
    with torch.no_grad():
        y, state = call(module, x)
        z, after = call(module, x, None, everything, nothing)
    assert_close(z, y)
    assert_close(after, state)


def test_states_of_equal_documents_are_equal():
    """A law's own check: the comparison above sees a state that was not reset."""
    lm = model("titans_lmm")
    tokens = draw(lm, 1, LENGTH)
    with torch.no_grad():
        _, state = lm(tokens)
        fresh, _ = lm(tokens)
        went_on, _ = lm(tokens, state)
    with pytest.raises(AssertionError):
        assert_close(went_on, fresh)
    with pytest.raises(AssertionError):
        assert_equal(state, lm.initial_state(1))
