"""Kernels of memories of two layers: the answer of the reference in float64, under Triton's interpreter where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest
import torch

import nestling.tree as tree
from nestling.core import L2, MLP, Chain, Decay, Descend, Gates, Memory, Momentum, Normed, Residual
from nestling.ops import Kernels, scan
from nestling.ops.coefficients import table
from nestling.ops.kernels import layered, mlp, path
from tests.ops.kernels.parity import BFLOAT16, FLOAT32, assert_path, draw
from tests.ops.pieces import in_pieces

CPU = torch.zeros(())
TITANS = Chain((Descend(), Momentum()))
EVERY = [
    Memory(architecture, L2(), Decay(), rule, period, read)
    for architecture in (MLP(2), Residual(MLP(2.5)), Normed(MLP(2)), Residual(Normed(MLP(4))))
    for rule in (Descend(), TITANS, Chain((Momentum(0.5), Descend())))
    for period in (8, 16)
    for read in ("current", "commit")
]


def apart(given):
    """Gates of their own for either weight, as Titans has them"""
    weights, q, k, v, gates = given
    both = {
        name: {"w1": gate, "w2": gate.flip(-1)} for name, gate in vars(gates).items() if isinstance(gate, torch.Tensor)
    }
    return weights, q, k, v, replace(gates, **both)


@pytest.mark.parametrize(
    ("memory", "length"),
    [
        (Memory(MLP(2), rule=TITANS, period=10), 1),
        (Memory(Residual(Normed(MLP(2.5))), rule=TITANS, period=16), 33),
        (Memory(Residual(Normed(MLP(2))), rule=Chain((Momentum(0.5), Descend())), period=8, read_at="commit"), 9),
        (Memory(MLP(2), period=8), 9),
    ],
    ids=repr,
)
def test_kernels_equal_the_reference(memory, length, kernels, poisoned):
    widths = (16, 16) if isinstance(memory.architecture, Residual) else (16, 24)
    assert_path(memory, apart(draw(memory, length, widths=widths)), Kernels(), CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "length"), list(zip(EVERY, cycle((17, 1, 33)), strict=False)), ids=repr)
def test_every_memory(memory, length, kernels, poisoned):
    assert_path(memory, draw(memory, length, (1, 1), (16, 16), strength=0.3), Kernels(), CPU)


@pytest.mark.gpu
@pytest.mark.parametrize(("products", "tolerance"), [(None, 2 * FLOAT32), (torch.bfloat16, 2 * BFLOAT16)])
@pytest.mark.parametrize(("width", "period"), [(64, 16), (64, 64), (128, 16)])
@pytest.mark.parametrize("architecture", [MLP(4), Residual(Normed(MLP(4)))], ids=repr)
@pytest.mark.parametrize("rule", [Descend(), TITANS], ids=repr)
def test_real_shapes(architecture, rule, width, period, products, tolerance, poisoned):
    for read in ("current", "commit"):
        memory = Memory(architecture, L2(), Decay(), rule, period, read)
        # About as strong as a layer's gates are before training
        given = draw(memory, 1000, (2, 2), (width, width), strength=0.03)
        assert_path(memory, given, Kernels(products=products), torch.zeros((), device="cuda"), tolerance)


def test_a_stream_goes_on_from_any_place(kernels):
    memory = Memory(Residual(Normed(MLP(1))), rule=TITANS, period=8)
    weights, *tokens = tree.map(lambda x: x.float(), draw(memory, 27, widths=(16, 16), strength=0.1))
    expected, whole = scan(memory, weights, *tokens)
    y, state = in_pieces(memory, weights, tokens, (16, 19, 27), Kernels())
    assert torch.allclose(y, expected, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(tree.leaves(state), tree.leaves(whole), strict=True))


@pytest.mark.slow
def test_a_compiled_function_has_one_node_for_them(kernels):
    memory = Memory(Residual(Normed(MLP(1))), rule=TITANS, period=8)
    weights, *tokens = tree.map(lambda x: x.float(), draw(memory, 11, widths=(16, 16), strength=0.1))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(start):
        return scan(memory, {**weights, "w1": start}, *tokens, path=Kernels())[0].square().sum()

    start = weights["w1"].requires_grad_()
    (got,) = torch.autograd.grad(run(start), start)
    (expected,) = torch.autograd.grad(scan(memory, weights, *tokens)[0].square().sum(), start)
    assert torch.allclose(got, expected, atol=1e-4)


def tabled(lr, retain, momentum, length):
    filled = (torch.arange(lr.shape[1] * lr.shape[2]) < length).view(lr.shape[1:])
    return table(TITANS, Gates(lr, retain.exp(), momentum.exp()), filled)


@pytest.mark.parametrize("memory", EVERY[::5], ids=repr)
def test_the_twin_is_the_reference(memory, monkeypatch):
    """In float64, which the door of the kernels does not let through."""
    monkeypatch.setattr(layered, "layer_periods", mlp.twin)
    monkeypatch.setattr(layered, "momentum_table", tabled)
    monkeypatch.setattr(path, "_check", lambda *given: None)
    given = apart(draw(memory, 21, (2, 1), (6, 6)))
    assert_path(memory, given, Kernels(), torch.zeros((), dtype=torch.float64), 1e-9)
