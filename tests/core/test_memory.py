"""``Memory``: what a write does, when the anchor moves, and which weights a read sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import (
    KL,
    L2,
    MLP,
    Chain,
    Decay,
    Delta,
    Descend,
    ElasticNet,
    GatedDelta,
    Gates,
    Matrix,
    Memory,
    MemoryState,
    Momentum,
)
from nestling.errors import NestlingError

KEYS, VALUES = 3, 2
TITANS = Chain((Descend(), Momentum()))


def tokens(count: int) -> list[tuple[Tensor, Tensor, Gates]]:
    generator = torch.Generator().manual_seed(0)

    def one() -> tuple[Tensor, Tensor, Gates]:
        key, value = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (KEYS, VALUES))
        lr, retain, momentum = torch.rand(3, generator=generator, dtype=torch.float64)
        return key, value, Gates(0.3 * lr, 0.5 + 0.5 * retain, momentum)

    return [one() for _ in range(count)]


def start(seed: int = 1) -> dict[str, Tensor]:
    return {"w1": torch.randn(VALUES, KEYS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}


@pytest.mark.parametrize("period", [1, 2, 5, float("inf")])
def test_the_anchor_moves_at_the_first_write_after_its_period_is_full(period):
    """Not at the write that fills it: all tokens of a period, and what is saved between, see one anchor."""
    memory = Memory(Matrix(), L2(), Decay(), TITANS, period)
    state = memory.init(start())
    w, trace, anchor = start()["w1"], torch.zeros(VALUES, KEYS, dtype=torch.float64), start()["w1"]
    for t, (key, value, gates) in enumerate(tokens(13)):
        if period != float("inf") and t > 0 and t % period == 0:
            anchor = w
        trace = gates.momentum * trace - gates.lr * torch.outer(anchor @ key - value, key)
        w = gates.retain * w + trace
        state = memory.write(state, key, value, gates)
        torch.testing.assert_close(state.anchor["w1"], anchor, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.dual["w1"], w, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.rule["w1"][1], trace, rtol=1e-12, atol=1e-12)
        assert int(state.phase) == (t + 1 if period == float("inf") else t % int(period) + 1)


@pytest.mark.parametrize("retention", [Decay(), Delta(), GatedDelta(), ElasticNet(0.1), KL()], ids=repr)
def test_surprise_is_taken_at_the_anchor_and_at_what_the_retention_sees(retention):
    weights = {"w1": torch.softmax(start()["w1"], -1)}
    memory = Memory(Matrix(), L2(), retention, period=4)
    state = memory.init(weights)
    for key, value, gates in tokens(3):
        state = memory.write(state, key, value, gates)
    key, value, gates = tokens(4)[-1]
    seen = memory.surprise(state, key, value, gates)
    anchor = gates.retain * weights["w1"] if retention == GatedDelta() else weights["w1"]
    torch.testing.assert_close(seen.gradient("w1"), torch.outer(anchor @ key - value, key), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(seen.loss, 0.5 * (anchor @ key - value).square().sum())


def test_read_at_commit_sees_the_anchor_and_current_the_running_weights():
    given = tokens(7)
    current = Memory(Matrix(), L2(), Decay(), TITANS, 4)
    commit = Memory(Matrix(), L2(), Decay(), TITANS, 4, "commit")
    state, query = current.init(start()), torch.randn(KEYS, dtype=torch.float64)
    for key, value, gates in given:
        state = current.write(state, key, value, gates)
        torch.testing.assert_close(current.read(state, query), state.dual["w1"] @ query)
        torch.testing.assert_close(commit.read(state, query), state.anchor["w1"] @ query)
    assert (current.read(state, query) - commit.read(state, query)).abs().max() > 1e-3


def test_a_read_goes_through_the_mirror_map():
    memory = Memory(Matrix(), L2(), KL())
    state = memory.init({"w1": torch.softmax(start()["w1"], -1)})
    key, value, gates = tokens(1)[0]
    state = memory.write(state, key, value, gates)
    torch.testing.assert_close(memory.read(state, key), torch.softmax(state.dual["w1"], -1) @ key)
    assert memory.primal(state.dual)["w1"].shape == (VALUES, KEYS)


def test_a_memory_that_never_commits_and_reads_commits_takes_in_nothing():
    memory = Memory(Matrix(), L2(), Decay(), TITANS, float("inf"), "commit")
    state, query = memory.init(start()), torch.randn(KEYS, dtype=torch.float64)
    before = memory.read(state, query)
    for key, value, gates in tokens(9):
        state = memory.write(state, key, value, gates)
    assert torch.equal(memory.read(state, query), before)
    assert torch.equal(state.anchor["w1"], start()["w1"])


def test_neutral_gates_are_unit_rate_nothing_forgotten_no_momentum():
    key, value, _ = tokens(1)[0]
    memory = Memory(Matrix(), L2(), Decay(), TITANS)
    state = memory.write(memory.init(start()), key, value, Gates())
    w = start()["w1"]
    torch.testing.assert_close(state.dual["w1"], w - torch.outer(w @ key - value, key))


def test_gates_of_their_own_for_each_weight():
    """Titans' gates per memory layer: a weight with no rate and no forgetting stays as it is."""
    memory = Memory(MLP(2, 2), L2(), Decay(), TITANS)
    weights = memory.architecture.init(KEYS, VALUES)
    gates = Gates(lr={"w1": 0.0, "w2": 0.5}, retain={"w1": 1.0, "w2": 0.9}, momentum={"w1": 0.5, "w2": 0.5})
    state = memory.write(memory.init(weights), torch.randn(KEYS), torch.randn(VALUES), gates)
    assert torch.equal(state.dual["w1"], weights["w1"])
    assert not torch.equal(state.dual["w2"], weights["w2"])
    assert gates.of("w2") == Gates(0.5, 0.9, 0.5)


def test_writing_changes_no_state_and_reading_nothing_at_all():
    memory = Memory(MLP(2, 2), L2(), Decay(), TITANS, 2)
    state = memory.init(memory.architecture.init(KEYS, VALUES))
    before = tree.fork(state)
    key, value = torch.randn(KEYS), torch.randn(VALUES)
    for _ in range(3):
        memory.read(state, key)
        memory.write(state, key, value, Gates(0.1))
        memory.commit(state)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(state), tree.leaves(before), strict=True))


def test_committing_twice_is_committing_once():
    memory = Memory(Matrix(), period=2)
    state = memory.init(start())
    for key, value, gates in tokens(2):
        state = memory.write(state, key, value, gates)
    once = memory.commit(state)
    twice = memory.commit(once)
    assert int(once.phase) == 0 and torch.equal(once.anchor["w1"], state.dual["w1"])
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(once), tree.leaves(twice), strict=True))


def test_a_state_is_a_tree_with_readable_paths():
    state = Memory(Matrix(), L2(), Decay(), TITANS).init(start())
    assert isinstance(state, MemoryState)
    assert [path for path, _ in tree.items(state)] == ["dual.w1", "anchor.w1", "rule.w1.1", "phase"]


@pytest.mark.parametrize("period", [0, -1, 0.5, 1.5, float("-inf"), float("nan")])
def test_a_period_is_a_whole_number_or_infinite(period):
    with pytest.raises(NestlingError, match=r"period is a whole number of writes ≥ 1 or inf, got"):
        Memory(Matrix(), period=period)


def test_a_read_is_at_one_of_two_places():
    with pytest.raises(NestlingError, match="'current' or 'commit', got 'now'"):
        Memory(Matrix(), read_at="now")
