"""Packed rows: every token once, nothing predicted across documents, and a batch that depends on (seed, step) only."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.data import IGNORED, Batch, Packed, TokenFile, stream
from nestling.errors import NestlingError

Row = tuple[list[int], list[int], list[bool]]


def token_file(*lengths: int) -> TokenFile:
    """Documents of these lengths whose tokens are all different: token i of the file is i."""
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    return TokenFile(Path("unused"), np.arange(offsets[-1], dtype=np.uint16), offsets, 65536, "key")


def equal(one: Batch, other: Batch) -> bool:
    pairs = ((one.tokens, other.tokens), (one.targets, other.targets), (one.starts, other.starts))
    return all(torch.equal(a, b) for a, b in pairs)


def epoch_rows(packed: Packed, epoch: int) -> list[Row]:
    """The rows of one epoch, in the order in which batches give them."""
    first, rows = epoch * packed.rows, []
    for row in range(first, first + packed.rows):
        batch, index = packed.batch(row // packed.batch_size), row % packed.batch_size
        rows.append((batch.tokens[index].tolist(), batch.targets[index].tolist(), batch.starts[index].tolist()))
    return rows


corpora = st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(lambda lengths: sum(lengths) > 1)


def cut(file: TokenFile, order: tuple[int, ...], length: int) -> list[Row]:
    """The rows of an epoch by the plainest code: lay the documents of ``order`` end to end, and cut."""
    laid = [(int(token), t == 0) for index in order for t, token in enumerate(file.document(index))]
    rows = []
    for head in range(0, len(laid) - length, length):
        inputs, following = laid[head : head + length], laid[head + 1 : head + length + 1]
        tokens = [token for token, _ in inputs]
        targets = [IGNORED if begins else token for token, begins in following]
        rows.append((tokens, targets, [True, *[begins for _, begins in inputs[1:]]]))
    return rows


@given(lengths=corpora, batch=st.integers(1, 5), seed=st.integers(0, 2**40), epoch=st.integers(0, 3), data=st.data())
@settings(max_examples=200)
def test_an_epoch_is_some_order_of_whole_documents_cut_into_rows(lengths, batch, seed, epoch, data) -> None:
    file = token_file(*lengths)
    length = data.draw(st.integers(1, len(file) - 1))
    rows = sorted(epoch_rows(Packed(file, batch, length, seed), epoch))
    assert any(rows == sorted(cut(file, order, length)) for order in permutations(range(len(lengths))))


@given(lengths=corpora, batch=st.integers(1, 5), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=100)
def test_an_epoch_reads_and_predicts_every_token_once_but_the_remainder(lengths, batch, seed, data) -> None:
    file = token_file(*lengths)
    packed = Packed(file, batch, data.draw(st.integers(1, len(file) - 1)), seed)
    rows = epoch_rows(packed, 0)
    read = [token for tokens, _, _ in rows for token in tokens]
    predicted = [target for _, targets, _ in rows for target in targets if target != IGNORED]
    assert 1 <= packed.remainder <= packed.length
    assert len(read) == len(set(read)) == len(file) - packed.remainder
    assert len(predicted) == len(set(predicted))
    first = set(file.documents[:-1].tolist())
    assert len(set(range(len(file))) - first - set(predicted)) < packed.remainder


@given(lengths=corpora, batch=st.integers(1, 5), seed=st.integers(0, 99), steps=st.lists(st.integers(0, 10**9)))
@settings(max_examples=100)
def test_a_batch_depends_on_seed_and_step_and_not_on_what_was_read_before(lengths, batch, seed, steps) -> None:
    used = Packed(token_file(*lengths), batch, 1, seed)
    for step in steps:
        assert equal(used.batch(step), Packed(token_file(*lengths), batch, 1, seed).batch(step))
        assert equal(used.batch(step), used.batch(step))


def test_the_order_is_this_one_on_every_machine_and_in_every_process() -> None:
    """A run that is resumed elsewhere must read the same rows, so the order is part of the format of a checkpoint."""
    file = token_file(3, 4, 5)
    assert [Packed(file, 2, 3, seed=7).batch(step).tokens.tolist() for step in (0, 1, 10**6)] == [
        [[7, 8, 9], [10, 11, 3]],
        [[0, 1, 2], [9, 10, 11]],
        [[3, 4, 5], [0, 1, 2]],
    ]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {
        tuple(tuple(tokens) for tokens, _, _ in epoch_rows(Packed(token_file(*[7] * 40), 4, 10, seed), epoch))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_rows_of_an_epoch_are_shuffled_even_within_one_document() -> None:
    firsts = [tokens[0] for tokens, _, _ in epoch_rows(Packed(token_file(1001), 4, 10, seed=0), 0)]
    assert sorted(firsts) == list(range(0, 1000, 10)) != firsts


def test_a_batch_that_the_epoch_cannot_fill_goes_on_with_the_next() -> None:
    file = token_file(11)
    wide, narrow = Packed(file, 7, 2, seed=5), Packed(file, 1, 2, seed=5)
    assert wide.rows == 5
    for step in range(4):
        rows = [narrow.batch(row).tokens[0].tolist() for row in range(7 * step, 7 * step + 7)]
        assert wide.batch(step).tokens.tolist() == rows
    assert [wide.epoch(step) for step in range(4)] == [0, 1, 2, 4]


def test_the_remainder_differs_from_epoch_to_epoch() -> None:
    packed = Packed(token_file(*[5] * 20), 1, 33, seed=0)
    unread = {frozenset(range(100)) - {t for row in epoch_rows(packed, epoch) for t in row[0]} for epoch in range(8)}
    assert packed.remainder == 1
    assert len(unread) > 1


def test_batches_have_the_types_that_models_take() -> None:
    batch = Packed(token_file(50), 3, 8, seed=0).batch(0)
    assert [t.dtype for t in (batch.tokens, batch.targets, batch.starts)] == [torch.int64, torch.int64, torch.bool]
    assert batch.tokens.shape == batch.targets.shape == batch.starts.shape == (3, 8)
    moved = batch.to("meta")
    assert {moved.tokens.device.type, moved.targets.device.type, moved.starts.device.type} == {"meta"}


def test_one_epoch_of_memory_is_kept_per_epoch_in_use() -> None:
    packed = Packed(token_file(100), 3, 8, seed=0)
    for step in range(100):
        packed.batch(step)
    assert len(packed._epochs) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch and length must be positive, got batch=0"),
        ({"length": -1}, "got batch=2, length=-1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"length": 10}, "10 tokens do not fill one row: length=10 needs 11. Add text, or take length=9 or less"),
        ({"tokens": token_file(1)}, "1 tokens are too few to predict any: add text"),
        ({"tokens": token_file(0)}, "0 tokens are too few"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict, message: str) -> None:
    with pytest.raises(NestlingError, match=message):
        Packed(**{"tokens": token_file(4, 6), "batch": 2, "length": 3, "seed": 0} | change)


def test_a_negative_step_is_refused() -> None:
    packed = Packed(token_file(10), 2, 3, seed=0)
    for use in (packed.batch, packed.epoch):
        with pytest.raises(NestlingError, match="step must not be negative, got -1"):
            use(-1)


@given(tokens=st.lists(st.integers(0, 255), min_size=2), length=st.integers(1, 20))
def test_a_stream_reads_and_predicts_every_token_once(tokens: list[int], length: int) -> None:
    pieces = list(stream(tokens, length))
    assert [t for piece in pieces for t in piece.tokens[0].tolist()] == tokens[:-1]
    assert [t for piece in pieces for t in piece.targets[0].tolist()] == tokens[1:]
    starts = [s for piece in pieces for s in piece.starts[0].tolist()]
    assert starts == [True, *[False] * (len(tokens) - 2)]
    assert {piece.tokens.shape[1] for piece in pieces[:-1]} <= {length}
    assert 1 <= pieces[-1].tokens.shape[1] <= length


def test_a_stream_takes_arrays_and_tensors() -> None:
    for tokens in (np.array([1, 2, 3], dtype=np.uint16), torch.tensor([1, 2, 3])):
        (piece,) = stream(tokens, 5)
        assert (piece.tokens.dtype, piece.tokens.tolist(), piece.targets.tolist()) == (torch.int64, [[1, 2]], [[2, 3]])


@pytest.mark.parametrize(
    ("tokens", "length", "message"),
    [([1, 2], 0, "length must be positive"), ([1], 3, "at least 2 tokens"), ([[1, 2]], 3, r"got shape \(1, 2\)")],
)
def test_a_stream_that_cannot_be_is_refused_at_once(tokens: list, length: int, message: str) -> None:
    with pytest.raises(NestlingError, match=message):
        stream(tokens, length)
