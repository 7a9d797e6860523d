"""The memory layer: its wiring, step by step, around a scan that has its own tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nestling.core import (
    KL,
    L2,
    MLP,
    Chain,
    Decay,
    Descend,
    ElasticNet,
    GatedDelta,
    Lag,
    Logistic,
    Lq,
    Matrix,
    Memory,
    Momentum,
    Normed,
    Residual,
)
from nestling.errors import NestlingError
from nestling.nn import MemoryLayer
from nestling.ops import Chunk, Reference, scan

DIM, HEADS = 12, 2
TITANS = Memory(Residual(Normed(MLP(2, 2))), L2(), Decay(), Chain((Descend(), Momentum())), 4)


@pytest.mark.equation("Titans", 11)
@pytest.mark.equation("Nested Learning", 61, 76, 77, 78)
def test_the_wiring_of_titans():
    """§4.4: projections → convolution → SiLU → ‖q‖ = ‖k‖ = 1, v as it is → memory → norm and gate → out."""
    layer = MemoryLayer(DIM, HEADS, TITANS).double()
    x = torch.randn(2, 11, DIM, dtype=torch.float64)
    with torch.no_grad():
        taps = layer.conv.weight.flip(0).T[:, None]
        projected = F.conv1d(F.pad((x @ layer.qkv.weight.T).mT, (3, 0)), taps, groups=3 * DIM).mT
        q, k, v = (
            F.silu(part).reshape(2, 11, HEADS, DIM // HEADS).transpose(1, 2) for part in projected.split(DIM, -1)
        )
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        y, _ = scan(TITANS, dict(layer.initial), q, k, v, layer.gates(x), path=Reference())
        y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + layer.norm.eps) * layer.norm.gain
        y = y.transpose(1, 2).reshape(2, 11, DIM)
        expected = (y * F.silu(x @ layer.gate.weight.T)) @ layer.out.weight.T
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("path", [Chunk(block=2), Chunk(stride=1), Reference()], ids=repr)
def test_the_path_changes_nothing(path):
    layer = MemoryLayer(DIM, HEADS, TITANS).double()
    x = torch.randn(2, 11, DIM, dtype=torch.float64)
    with torch.no_grad():
        expected, _ = layer(x)
        layer.path = path
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("retention", [KL(2.0), ElasticNet(0.05), Lq(4.0), Lag(KL(2.0)), Logistic()], ids=repr)
def test_memories_start_in_the_set_that_the_retention_allows(retention):
    layer = MemoryLayer(DIM, HEADS, Memory(Matrix(), L2(), retention))
    state = layer.initial_state(3)
    for name, anchor in state.memory.anchor.items():
        torch.testing.assert_close(anchor, retention.primal(state.memory.dual[name]), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(anchor[1], retention.inside(layer.initial[name]), rtol=1e-4, atol=1e-6)


def test_every_head_starts_at_weights_of_its_own():
    layer = MemoryLayer(DIM, HEADS, TITANS)
    for weight in layer.initial.values():
        assert weight.shape[0] == HEADS and not torch.equal(weight[0], weight[1])


def test_the_state_is_as_large_for_one_token_as_for_many():
    layer = MemoryLayer(DIM, HEADS, TITANS)
    _, short = layer(torch.randn(1, 1, DIM))
    _, long = layer(torch.randn(1, 99, DIM))
    assert short.conv.shape == long.conv.shape and short.memory.dual["w1"].shape == long.memory.dual["w1"].shape


def test_what_it_cannot_be_is_refused():
    with pytest.raises(NestlingError, match="got dim=12, heads=5"):
        MemoryLayer(12, 5, TITANS)
    with pytest.raises(NestlingError, match="no chunk-parallel form"):
        MemoryLayer(8, 2, Memory(Matrix(), L2(), GatedDelta()), path=Chunk())(torch.randn(1, 2, 8))
