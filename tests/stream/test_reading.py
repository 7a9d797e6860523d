"""One step of reading: what it scores, for rows of different lengths."""

from __future__ import annotations

import math

import pytest
import torch

import nestling
from nestling import tree
from nestling.errors import NestlingError
from nestling.stream import Surprisal, advance, begin
from tests.stream.tiny import direct, random_tokens, tiny

RECIPES = nestling.recipes()


@pytest.mark.parametrize("recipe", RECIPES)
def test_nats_are_those_of_the_log_softmax(recipe: str) -> None:
    model, tokens = tiny(recipe), random_tokens(40)
    nats, predicted, after = advance(model, tokens[None], begin(model))
    assert predicted.tolist() == [[False] + 39 * [True]]
    assert nats[0, 0] == 0
    torch.testing.assert_close(nats[0, 1:], direct(model, tokens), rtol=1e-9, atol=1e-9)
    assert after.position.tolist() == [40]
    assert after.logits.untyped_storage().nbytes() == after.logits.nbytes  # not a view of the logits of the whole piece


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_with_padding_are_read_as_if_alone(recipe: str) -> None:
    model, tokens = tiny(recipe), torch.stack([random_tokens(20, seed) for seed in range(3)])
    lengths, wider = (20, 7, 0), torch.stack([random_tokens(9, seed) for seed in (5, 6, 7)])
    valid = torch.arange(20) < torch.tensor(lengths)[:, None]
    _, _, start = advance(model, wider, begin(model, 3))
    nats, predicted, after = advance(model, tokens, start, valid)
    assert torch.equal(predicted, valid)
    assert (nats[~valid] == 0).all()
    for row, length in enumerate(lengths):
        _, _, alone = advance(model, wider[row : row + 1], begin(model))
        if length:
            cost, _, alone = advance(model, tokens[row : row + 1, :length], alone)
            torch.testing.assert_close(nats[row, :length], cost[0], rtol=1e-9, atol=1e-9)
        mine = tree.map(lambda leaf, row=row: leaf[row : row + 1], after)
        for (path, found), (_, expected) in zip(tree.items(mine), tree.items(alone), strict=True):
            torch.testing.assert_close(
                found, expected, rtol=1e-9, atol=1e-9, msg=lambda text, path=path: f"{path}: {text}"
            )


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_in_place_does_not_reach_a_stream(recipe: str) -> None:
    model = tiny(recipe)
    moment = begin(model)
    before = tree.fork(moment)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(moment), tree.leaves(before), strict=True))


def test_streams_can_begin_at_a_state_but_not_at_several() -> None:
    model = tiny("hope")
    _, _, after = advance(model, random_tokens(10)[None], begin(model))
    moment = begin(model, 3, after.state)
    assert all(
        torch.equal(many, one.expand_as(many))
        for many, one in zip(tree.leaves(moment.state), tree.leaves(after.state), strict=True)
    )
    with pytest.raises(NestlingError, match="begins at the state of one row"):
        begin(model, 3, moment.state)


def test_half_precision_is_scored_in_single() -> None:
    model, tokens = tiny("transformer", torch.bfloat16), random_tokens(30)
    nats, _, _ = advance(model, tokens[None], begin(model))
    assert nats.dtype == torch.float32
    with torch.no_grad():
        logits = model(tokens[None])[0].float()
    expected = -logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    torch.testing.assert_close(nats[0, 1:], expected, rtol=0.02, atol=0.1)


def test_the_cost_of_nothing_is_no_number() -> None:
    nothing = Surprisal(tokens=0, bytes=0, nats=0.0)
    assert all(math.isnan(value) for value in (nothing.nats_per_token, nothing.perplexity, nothing.bits_per_byte))


def test_a_diverged_model_has_infinite_perplexity() -> None:
    assert Surprisal(tokens=1, bytes=1, nats=1e4).perplexity == math.inf
    assert Surprisal(tokens=1, bytes=1, nats=math.inf).perplexity == math.inf
