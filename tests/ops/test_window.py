"""Windows of pairs, judges of surprise, and weights formed token by token: as the reference has them, in everything."""

from __future__ import annotations

import pytest
import torch

import nestling.tree as tree
from nestling.core import (
    L2,
    MLP,
    Above,
    Chain,
    Clip,
    Decay,
    Delta,
    Descend,
    Gates,
    Huber,
    Matrix,
    Memory,
    Momentum,
    NewtonSchulz,
    Normed,
    Omega,
    Quantile,
    Residual,
    Scale,
)
from nestling.errors import NestlingError
from nestling.ops import Chunk, Marks, Reference, scan
from nestling.ops.chunk import supported
from nestling.ops.formed import forms
from nestling.ops.window import band
from tests.ops.pieces import in_pieces, marked
from tests.ops.test_scan import answers, assert_same, draw

TITANS, LMM = Chain((Descend(), Momentum())), Residual(Normed(MLP(2, 2)))
MUON = Chain((Momentum(), NewtonSchulz(3), Descend()))
ABOVE = Above(L2(), Quantile(0.5, 0.3))
CASES = {
    "omega": Memory(LMM, Omega(L2(), 3), Decay(), TITANS, 4),
    "omega, wide": Memory(MLP(2, 2), Omega(Huber(), 11), Decay(), Chain((Momentum(0.5), Descend())), 4),
    "omega, two": Memory(Matrix(), Omega(L2(), 2), Decay(), Descend(), 8),
    "above a gate": Memory(LMM, Above(L2(), None, 0.5), Decay(), TITANS, 4),
    "above a quantile": Memory(LMM, ABOVE, Decay(), TITANS, 4),
    "above, by delta": Memory(Matrix(), ABOVE, Delta(), Descend(), 4),
    "omega above a quantile": Memory(MLP(2, 2), Omega(ABOVE, 3), Decay(), Descend(), 3),
    "muon": Memory(LMM, L2(), Decay(), MUON, 4),
    "atlas": Memory(MLP(2, 2), Omega(L2(), 3), Decay(), MUON, 4),
    "no momentum": Memory(Matrix(), L2(), Decay(), Chain((Clip(0.5), Scale(2.0), Descend())), 4),
    "read at the commit": Memory(Matrix(), Omega(L2(), 3), Decay(), MUON, 4, "commit"),
}


def given_for(memory, **options):
    weights, q, k, v, gates = draw(memory, **options)
    share = torch.rand(gates.threshold.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return weights, q, k, v, Gates(gates.lr, gates.retain, gates.momentum, gates.threshold, share.requires_grad_())


@pytest.mark.parametrize("memory", CASES.values(), ids=CASES)
def test_blocks_equal_the_reference(memory):
    assert supported(memory)
    given = given_for(memory, batch=1, length=11)
    # Newton-Schulz has derivatives of a few hundred: what differs in rounding is as much larger.
    tolerance = 1e-7 if forms(memory) else 1e-9
    expected = answers(memory, given, Reference())
    for stride in (0, 2):
        assert_same(answers(memory, given, Chunk(stride=stride)), expected, tolerance)


@pytest.mark.parametrize("memory", CASES.values(), ids=CASES)
def test_any_split_of_a_stream_gives_the_same(memory):
    weights, *tokens = tree.detach(given_for(memory, batch=1, length=16))
    whole = scan(memory, weights, *tokens)
    for path in (Chunk(block=2), Reference()):
        assert_same(in_pieces(memory, weights, tokens, (1, 2, 9, 16), path), whole)


@pytest.mark.parametrize("name", ["omega above a quantile", "atlas"])
def test_documents_and_padding_equal_the_reference(name):
    memory = CASES[name]
    given = given_for(memory, batch=4, heads=1, length=15)
    valid, starts = marked(4, 15)
    expected = answers(memory, given, Reference(), marks=Marks(valid, starts))
    got = answers(memory, given, Chunk(block=8), marks=Marks(valid, starts))
    assert_same(got, expected, 1e-7 if forms(memory) else 1e-9)


def test_a_band_passes_over_empty_slots():
    filled = torch.tensor([False, True, False, True])
    expected = [[0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1]]
    assert band(3, 4, filled, torch.zeros(1)).tolist() == expected


def test_a_window_of_one_is_the_objective_itself():
    plain = Memory(LMM, L2(), Decay(), TITANS, 4)
    given = draw(plain)
    y, _, _ = answers(plain, given, Chunk())
    z, _, _ = answers(CASES["omega"], given, Chunk())
    one = Memory(LMM, Omega(L2(), 1), Decay(), TITANS, 4)
    assert_same(answers(one, given, Chunk())[0], y)
    assert not torch.allclose(y, z)


def test_a_threshold_of_nothing_writes_everything_and_one_of_infinity_nothing():
    plain = Memory(Matrix(), L2(), Decay(), Descend(), 4)
    weights, q, k, v, gates = tree.detach(draw(plain))
    y, _ = scan(plain, weights, q, k, v, gates)
    all_of_it = Memory(Matrix(), Above(L2(), -1.0), Decay(), Descend(), 4)
    assert_same(scan(all_of_it, weights, q, k, v, gates)[0], y)
    nothing = Memory(Matrix(), Above(L2(), float("inf")), Decay(), Descend(), 4)
    _, kept = scan(nothing, weights, q, k, v, gates)
    decayed = gates.retain["w1"].prod(-1)[..., None, None] * weights["w1"]
    assert_same(kept.dual["w1"], decayed)


def test_a_running_quantile_finds_its_share():
    memory = Memory(Matrix(), Above(L2(), Quantile(0.25, 0.05)), Decay(), Descend(), 4)
    weights, q, k, v, _ = tree.detach(draw(memory, length=1200))
    _, state = scan(memory, weights, q, k, 5 * v, Gates(lr=0.01))
    surprise = 0.5 * (k @ state.anchor["w1"].mT - 5 * v).square().sum(-1)[:, :, 600:]
    written = (surprise > state.objective.anchor.exp()).double().mean()
    assert 0.15 < written < 0.35


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Omega(L2(), 0), "window is a number of tokens ≥ 1, got 0"),
        (lambda: Omega(Omega()), "Give one window"),
        (lambda: Above(Omega()), "Write Omega"),
        (lambda: Above(softness=-1.0), "softness ≥ 0"),
        (lambda: Quantile(share=1.5), "0 < share < 1"),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(NestlingError, match=message):
        make()


def test_a_window_that_erases_has_no_block_form():
    memory = Memory(Matrix(), Omega(L2(), 3), Delta(), Descend(), 4)
    assert not supported(memory)
    weights, q, k, v, gates = tree.detach(draw(memory, length=5))
    assert bool(torch.isfinite(scan(memory, weights, q, k, v, gates)[0]).all())
