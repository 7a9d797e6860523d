"""The frozen twin: the same parameters, and memories that take in nothing."""

from __future__ import annotations

import pytest
import torch

import nestling as nl
import nestling.tree as tree
from tests.laws.subjects import EVERYTHING, RECIPES, VOCABULARY, assert_close, build, draw, model

LENGTH = 37
MEMORIES = [name for name in RECIPES if name not in ("transformer", "hope_attention")]


@pytest.mark.parametrize("name", EVERYTHING)
def test_it_shares_every_parameter_and_leaves_the_model_as_it_was(name):
    live = model(name)
    tokens = draw(live, 2, LENGTH)
    with torch.no_grad():
        before, _ = live(tokens)
        twin = live.frozen()
        after, _ = live(tokens)
    assert torch.equal(before, after)
    own, shared = dict(live.named_parameters()), dict(twin.named_parameters())
    assert own.keys() == shared.keys()
    assert all(own[path] is shared[path] for path in own)
    assert twin is not live


@pytest.mark.parametrize("name", MEMORIES)
def test_what_it_reads_leaves_no_trace_beyond_its_convolutions_and_windows(name):
    live = build(name)
    twin = live.frozen()
    window = vars(live.config).get("window", vars(live.config).get("segment", 1))
    reach = live.config.layers * (live.config.conv - 1 + window - 1)
    tokens = draw(live, 2, LENGTH)
    other = tokens.clone()
    other[:, 4] = (other[:, 4] + 1) % VOCABULARY
    with torch.no_grad():
        first, second = twin(tokens)[0], twin(other)[0]
        assert not torch.equal(first[:, 4 : 5 + reach], second[:, 4 : 5 + reach])
        assert torch.equal(first[:, 5 + reach :], second[:, 5 + reach :])
        first, second = live(tokens)[0], live(other)[0]
        assert not torch.equal(first[:, -1], second[:, -1]), "the live model remembers"


@pytest.mark.parametrize("name", EVERYTHING)
def test_it_is_a_stream_too(name):
    twin = model(name).frozen()
    tokens = draw(twin, 2, LENGTH)
    with torch.no_grad():
        whole, final = twin(tokens)
        state, outputs = None, []
        for low, high in ((0, 1), (1, 9), (9, 20), (20, LENGTH)):
            y, state = twin(tokens[:, low:high], state)
            outputs.append(y)
    assert_close(torch.cat(outputs, 1), whole)
    assert_close(state, final)


@pytest.mark.parametrize("name", MEMORIES)
def test_its_anchors_stay_where_they_began(name):
    twin = build(name).frozen()
    with torch.no_grad():
        _, state = twin(draw(twin, 2, LENGTH))
    found = 0
    for (path, leaf), start in zip(tree.items(state), tree.leaves(twin.initial_state(2)), strict=True):
        if ".anchor." in path:
            assert torch.equal(leaf, start), path
            found += 1
    assert found
    written = [level for level in nl.describe(twin).levels if level.unit == "token" and level.rule != "store"]
    assert {level.period for level in written} == {float("inf")}


@pytest.mark.parametrize("name", MEMORIES)
def test_both_see_what_is_learnt(name):
    live = build(name)
    twin, tokens = live.frozen(), draw(live, 1, 9)
    with torch.no_grad():
        before = twin(tokens)[0]
        for parameter in live.parameters():
            parameter.mul_(1.1)
        assert not torch.equal(twin(tokens)[0], before)
