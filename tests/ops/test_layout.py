"""Where tokens lie in blocks: every token once and in order, no block across documents, commits where they belong."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestling.ops.layout import Layout, Marks, arrange


@st.composite
def batches(draw) -> tuple[Tensor, Tensor | None, Tensor | None, int, int]:
    """(phase, valid, starts, length, block)"""
    rows, length, block = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    phase = torch.tensor(draw(st.lists(st.integers(0, block - 1), min_size=rows, max_size=rows)))

    def mask(chance: int) -> Tensor | None:
        if draw(st.booleans()):
            return None
        cells = draw(st.lists(st.integers(0, 9), min_size=rows * length, max_size=rows * length))
        return (torch.tensor(cells) < chance).reshape(rows, length)

    return phase, mask(7), mask(3), length, block


def pieces(row: int, valid: Tensor | None, starts: Tensor | None, length: int) -> list[list[int]]:
    """The tokens of each document of a row; the first list is what goes on from before."""
    found: list[list[int]] = [[]]
    for t in range(length):
        if starts is not None and bool(starts[row, t]):
            found.append([])
        if valid is None or bool(valid[row, t]):
            found[-1].append(t)
    return found


def expected_blocks(phase: int, documents: list[list[int]], block: int) -> list[tuple[bool, list[int | None]]]:
    """(does it begin a document, its slots): what an unhurried person would lay out."""
    blocks: list[tuple[bool, list[int | None]]] = []
    for number, tokens in enumerate(documents):
        slots: list[int | None] = [*([None] * phase if number == 0 else []), *tokens]
        count = math.ceil(len(slots) / block) if number == 0 else max(1, math.ceil(len(slots) / block))
        slots += [None] * (count * block - len(slots))
        for i in range(count):
            blocks.append((number > 0 and i == 0, slots[i * block : (i + 1) * block]))
    return blocks


@given(batches())
def test_it_is_what_an_unhurried_person_lays_out(batch):
    phase, valid, starts, length, block = batch
    layout = arrange(phase, Marks(valid, starts), length, block)
    slots = layout.filled.shape[1]
    assert slots % block == 0 and slots > 0
    for row in range(len(phase)):
        wanted = expected_blocks(int(phase[row]), pieces(row, valid, starts, length), block)
        assert slots // block >= len(wanted)
        wanted += [(False, [None] * block)] * (slots // block - len(wanted))
        for i, (begins, tokens) in enumerate(wanted):
            assert bool(layout.begins[row, i] if layout.begins is not None else False) == begins
            for j, token in enumerate(tokens):
                slot = i * block + j
                assert bool(layout.filled[row, slot]) == (token is not None)
                if token is not None:
                    assert int(layout.source[row, slot]) == token and int(layout.slot[row, token]) == slot


@given(batches())
def test_what_is_placed_can_be_taken_back(batch):
    phase, valid, starts, length, block = batch
    layout = arrange(phase, Marks(valid, starts), length, block)
    x = torch.randn(len(phase), 2, length, 3)
    back = layout.take(layout.place(x))
    live = torch.ones(len(phase), length, dtype=torch.bool) if valid is None else valid
    assert torch.equal(back.transpose(1, 2)[live], x.transpose(1, 2)[live])
    gates = x[..., 0]
    assert torch.equal(layout.take(layout.place(gates)).transpose(1, 2)[live], gates.transpose(1, 2)[live])


@given(batches())
def test_placing_does_not_mix_rows_and_passes_gradients_to_live_tokens_alone(batch):
    phase, valid, starts, length, block = batch
    layout = arrange(phase, Marks(valid, starts), length, block)
    x = torch.zeros(len(phase), 1, length, requires_grad=True)
    (layout.place(x) * layout.filled[:, None]).sum().backward()
    live = torch.ones(len(phase), length) if valid is None else valid.float()
    assert torch.equal(x.grad[:, 0], live), "every live token lies in exactly one slot"


def test_with_nothing_marked_slots_are_tokens():
    layout = arrange(torch.zeros(2, dtype=torch.int64), Marks(), 8, 4)
    assert isinstance(layout, Layout)
    assert layout.slot.tolist() == [list(range(8))] * 2
    assert layout.filled[:, :8].all() and not layout.filled[:, 8:].any() and layout.begins is None
