"""Gates as functions of the token."""

from __future__ import annotations

import torch

from nestling.nn import GateProjection, GateRange

RANGE = GateRange(lr=0.2, lr_start=0.05, forget_start=0.01, momentum_start=0.7)


def test_before_training_the_gates_are_what_the_range_says():
    gates = GateProjection(8, 2, ("w1", "w2"), RANGE)(torch.zeros(3, 5, 8))
    for name in ("w1", "w2"):
        own = gates.of(name)
        for gate, start in ((own.lr, 0.05), (own.retain, 0.99), (own.momentum, 0.7)):
            assert gate.shape == (3, 2, 5)
            torch.testing.assert_close(gate, torch.full((3, 2, 5), start), rtol=1e-5, atol=1e-6)


def test_gates_stay_in_their_range_whatever_the_token():
    with torch.no_grad():
        gates = GateProjection(8, 2, ("w1",), RANGE)(1e4 * torch.randn(3, 50, 8)).of("w1")
    for gate, high in ((gates.lr, 0.2), (gates.retain, 1.0), (gates.momentum, 1.0)):
        assert float(gate.min()) >= 0 and float(gate.max()) <= high + 1e-6
        assert float(gate.min()) < 0.1 * high and float(gate.max()) > 0.9 * high, "the whole range is in reach"


def test_every_weight_head_and_token_has_its_own():
    x = torch.randn(2, 4, 8)
    gates = GateProjection(8, 3, ("w1", "w2"), RANGE)(x)
    every = torch.stack([torch.stack([gates.of(n).lr, gates.of(n).retain, gates.of(n).momentum]) for n in ("w1", "w2")])
    assert len(every.unique()) == every.numel() == 2 * 3 * 2 * 3 * 4


def test_a_gate_depends_on_its_own_token_alone():
    x = torch.randn(1, 4, 8)
    other = x.clone()
    other[0, 2] += 1
    projection = GateProjection(8, 1, ("w1",), RANGE)
    changed = (projection(x).of("w1").lr != projection(other).of("w1").lr)[0, 0]
    assert changed.tolist() == [False, False, True, False]


def test_autocast_leaves_them_in_the_type_of_the_parameters():
    """0.999 has no bfloat16: rounded to 1, nothing would be forgotten."""
    projection = GateProjection(8, 1, ("w1",), GateRange(forget_start=1e-3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        retain = projection(torch.zeros(1, 1, 8).bfloat16()).of("w1").retain
    assert retain.dtype == torch.float32
    torch.testing.assert_close(retain, torch.full((1, 1, 1), 0.999))
