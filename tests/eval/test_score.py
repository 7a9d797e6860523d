"""The curve of cost against position, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nestling.errors import NestlingError
from nestling.eval import Score, even_edges, log_edges

POSITIONS = [1, 2, 3, 4, 5, 6, 1, 2, 3, 10]
SIZES = [1, 2, 3, 1, 1, 2, 4, 1, 1, 5]
NATS = [0.5, 1.0, 0.25, 2.0, 3.0, 0.125, 4.0, 1.5, 0.75, 6.0]
SCORE = Score(torch.tensor(NATS, dtype=torch.float64), torch.tensor(SIZES), torch.tensor(POSITIONS))


def test_the_total_is_over_all_tokens() -> None:
    assert (SCORE.total.tokens, SCORE.total.bytes, SCORE.total.nats) == (10, 21, sum(NATS))
    assert SCORE.nats_per_token == sum(NATS) / 10
    assert SCORE.perplexity == pytest.approx(math.exp(sum(NATS) / 10))
    assert SCORE.bits_per_byte == pytest.approx(sum(NATS) / 21 / math.log(2))
    assert SCORE.length == 11


@pytest.mark.parametrize("edges", [[1, 2, 4, 8, 11], [0, 100], [2, 3], [1, 7, 9, 11], log_edges(11), even_edges(11, 4)])
def test_buckets_hold_the_tokens_between_their_edges(edges: list[int]) -> None:
    buckets = SCORE.by_position(edges)
    assert [bucket.low for bucket in buckets] == edges[:-1]
    assert [bucket.high for bucket in buckets] == edges[1:]
    for bucket in buckets:
        inside = [index for index, position in enumerate(POSITIONS) if bucket.low <= position < bucket.high]
        assert bucket.surprisal.tokens == len(inside)
        assert bucket.surprisal.bytes == sum(SIZES[index] for index in inside)
        assert bucket.surprisal.nats == pytest.approx(sum(NATS[index] for index in inside))


def test_an_empty_bucket_has_no_rate() -> None:
    (bucket,) = SCORE.by_position([7, 9])
    assert bucket.surprisal.tokens == 0
    assert math.isnan(bucket.bits_per_byte)


@pytest.mark.parametrize("edges", [[], [1], [1, 1], [1, 4, 3]])
def test_edges_that_do_not_grow_are_refused(edges: list[int]) -> None:
    with pytest.raises(NestlingError, match="edges must be two or more growing positions"):
        SCORE.by_position(edges)


@pytest.mark.parametrize("length", range(2, 40))
def test_edges_hold_every_predicted_position_once(length: int) -> None:
    for edges in (log_edges(length), *(even_edges(length, buckets) for buckets in range(1, 12))):
        assert edges == sorted(set(edges))
        assert edges[0] <= 1
        assert edges[-1] == length
    for buckets in range(1, 12):
        assert len(even_edges(length, buckets)) <= buckets + 1


@pytest.mark.parametrize("make", [lambda: log_edges(1), lambda: even_edges(0, 1), lambda: even_edges(5, 0)])
def test_there_are_no_edges_of_nothing(make) -> None:
    with pytest.raises(NestlingError, match="must be at least"):
        make()
