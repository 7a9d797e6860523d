"""Several memories that share a context flow: each commits by its own period, whatever the blocks are cut into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import L2, Chain, Decay, Delta, Descend, Gates, Matrix, Memory, Momentum
from nestling.ops import Chunk, Marks, Reference, begin, scan
from nestling.ops.chunk import Tokens, block
from nestling.ops.drive import drive

FAST = Memory(Matrix(), L2(), Delta(), Descend(), 4)
SLOW = Memory(Matrix(), L2(), Decay(), Chain((Descend(), Momentum(0.5))), 6)
NEVER = Memory(Matrix(), L2(), Decay(), Descend(), float("inf"))
MEMORIES = (FAST, SLOW, NEVER)
B, H, T, D = 2, 2, 29, 3


def problem() -> tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(B, H, T, D), dim=-1) for _ in range(2))
    lr = 0.2 * torch.rand(B, H, T, generator=generator, dtype=torch.float64)
    return (q, k, normal(B, H, T, D), lr), tuple({"w1": normal(H, D, D)} for _ in MEMORIES)


def work(before, inputs, filled):
    """Side by side: outputs added, so that each memory alone is the oracle."""
    q, k, v, lr = inputs
    gates = Gates(lr, torch.full_like(lr, 0.95), torch.zeros_like(lr))
    done = [block(m, held, Tokens(q, k, v, gates, filled)) for m, held in zip(MEMORIES, before, strict=True)]
    return sum(y for y, *_ in done), tuple(tuple(wrote) for _, *wrote in done)


def alone(inputs, weights, marks=Marks()):
    q, k, v, lr = inputs
    gates = Gates(lr, 0.95, 0.0)
    done = [scan(m, w, q, k, v, gates, marks=marks, path=Reference()) for m, w in zip(MEMORIES, weights, strict=True)]
    return sum(y for y, _ in done), tuple(state for _, state in done)


def assert_same(got, expected):
    for (path, a), b in zip(tree.items(got), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, path=path: f"{path}: {m}")


@pytest.mark.parametrize("chunk", [Chunk(), Chunk(block=1), Chunk(block=2, stride=3)], ids=repr)
def test_memories_of_different_periods_run_side_by_side(chunk):
    inputs, weights = problem()
    assert_same(drive(MEMORIES, None, weights, inputs, Marks(), chunk, work), alone(inputs, weights))


@pytest.mark.parametrize("cuts", [(1, 7, 8, 20), (13,), (4, 6, 12, 24)], ids=str)
def test_and_go_on_where_they_stopped(cuts):
    inputs, weights = problem()
    states, outputs, low = None, [], 0
    for high in (*cuts, T):
        now = tuple(x[:, :, low:high] for x in inputs)
        y, states = drive(MEMORIES, states, None if states else weights, now, Marks(), Chunk(), work)
        outputs.append(y)
        low = high
    assert_same((torch.cat(outputs, 2), states), alone(inputs, weights))


def test_rows_that_stand_apart_go_on_as_each_would_alone():
    inputs, weights = problem()
    apart = (3, 5)
    before = [
        drive(MEMORIES, None, weights, tuple(x[row : row + 1, :, :n] for x in inputs), Marks(), Chunk(), work)[1]
        for row, n in enumerate(apart)
    ]
    together = tree.map(lambda *leaves: torch.cat(leaves), *before)
    now = tuple(torch.stack([x[row, :, n : n + 12] for row, n in enumerate(apart)]) for x in inputs)
    y, states = drive(MEMORIES, together, None, now, Marks(), Chunk(), work)
    for row, n in enumerate(apart):
        whole, after = alone(tuple(x[row : row + 1, :, : n + 12] for x in inputs), weights)
        assert_same((y[row : row + 1], tree.map(lambda x, row=row: x[row : row + 1], states)), (whole[:, :, n:], after))


def test_and_begin_anew_with_documents_and_skip_padding():
    inputs, weights = problem()
    generator = torch.Generator().manual_seed(1)
    marks = Marks(torch.rand(B, T, generator=generator) < 0.8, torch.rand(B, T, generator=generator) < 0.15)
    assert_same(drive(MEMORIES, None, weights, inputs, marks, Chunk(), work), alone(inputs, weights, marks))


def test_states_begin_apart():
    state = begin(SLOW, {"w1": torch.randn(H, D, D)}, B)
    assert state.dual["w1"].shape == (B, H, D, D) and state.phase.shape == (B, H)
    assert not bool(state.rule["w1"][1].any())


def test_nothing_to_begin_at_is_refused():
    inputs, _ = problem()
    with pytest.raises(ValueError, match="states to go on from or fresh weights"):
        drive(MEMORIES, None, None, inputs, Marks(), Chunk(), work)


@pytest.mark.parametrize("memory", [FAST, SLOW, NEVER], ids=["delta", "momentum", "plain"])
@pytest.mark.parametrize("shared", [True, False], ids=["one gate", "a gate for each weight"])
def test_tables_made_ahead_change_nothing(monkeypatch, memory, shared):
    (q, k, v, lr), (weights, *_) = problem()
    gates = Gates(lr if shared else {"w1": lr}, torch.full_like(lr, 0.95), torch.zeros_like(lr))

    def answer():
        return scan(memory, weights, q, k, v, gates, path=Chunk(block=4))

    made = answer()
    monkeypatch.setattr("nestling.ops.chunk.AHEAD", 0)
    for a, b in zip(tree.leaves(answer()), tree.leaves(made), strict=True):
        torch.testing.assert_close(a, b)
