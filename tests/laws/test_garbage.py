"""Nothing is left for the garbage collector: what no one holds any more is free at once, states and graphs too.

A function that closes over itself, for one, keeps all that it sees until the collector comes by, and that takes many tokens.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

import nestling.tree as tree
from tests.laws.subjects import EVERYTHING, call, draw, subject


def left_by(run):
    """The tensors that only the collector would free."""
    run()  # what is made once, and kept
    gc.disable()
    gc.freeze()  # what is there already is not looked through, which would take a second
    try:
        run()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [tuple(each.shape) for each in gc.garbage if isinstance(each, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_step_and_tokens_leave_no_tensors_behind(name):
    module = subject(name)
    x = draw(module, 2, 9)

    def step():
        y, state = call(module, x)
        floats = [leaf for leaf in tree.leaves((y, state)) if leaf.is_floating_point() and leaf.requires_grad]
        sum(leaf.sum() for leaf in floats).backward()
        module.zero_grad()

    def tokens():
        state = None
        with torch.no_grad():
            for t in range(3):
                _, state = call(module, x[:, t : t + 1], state)

    assert left_by(step) == []
    assert left_by(tokens) == []


def test_what_is_left_is_seen():
    def cycle():
        held = [torch.zeros(3)]
        held.append(held)

    assert left_by(cycle) == [(3,)]
