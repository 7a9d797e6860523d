"""TNT: improving chunkwise training for test-time memorization (arXiv 2511.07343)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import nestling.tree as tree
from nestling.core import L2, MLP, Decay, Descend, Gates, Level, Matrix, Memory
from nestling.errors import NestlingError
from nestling.nn import TNT
from nestling.nn.norm import unit
from nestling.ops import Marks, scan
from nestling.ops.shards import resets, scan_anew, scan_shards
from tests.ops.test_scan import assert_same, draw

DIM, HEADS, LENGTH = 8, 2, 27
LEVELS = (Level("global", 6), Level("local", 2, reset=8), Level("other", 3, reset=9))


@pytest.mark.equation("TNT", 7, 15)
def test_eqs_7_and_15_global_and_local_memories_with_projected_queries():
    """o = f(V_ξ(t,C_G), q) + Σᵢ f(W⁽ⁱ⁾_t, [Σ_{τ=ξ(t,C_L)..t} kkᵀ/‖k‖²] q), W⁽ⁱ⁾ = W_init at t ≡ 0 mod S_L: a loop over tokens."""
    torch.manual_seed(0)
    layer = TNT(DIM, HEADS, Memory(Matrix()), LEVELS).double()
    x = torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    with torch.no_grad():
        got, _ = layer(x)
        projected, _ = layer.conv(layer.qkv(x))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in projected.chunk(3, -1))
        q, k, v = unit(F.silu(q)), unit(F.silu(k)), F.silu(v)
        total = torch.zeros_like(v)
        for level, module, initial in zip(LEVELS, layer.gates, layer.weights(), strict=True):
            gates, chunk, shard = module(x), int(level.period), level.reset or LENGTH
            for h in range(HEADS):
                weight = anchor = initial["w1"][h]
                seen = torch.zeros(DIM // HEADS, DIM // HEADS, dtype=torch.float64)
                for t in range(LENGTH):
                    if t % shard == 0:
                        weight = initial["w1"][h]
                    if (t % shard) % chunk == 0:
                        anchor, seen = weight, torch.zeros_like(seen)
                    key, value, query = k[0, h, t], v[0, h, t], q[0, h, t]
                    seen = seen + torch.outer(key, key) / key.square().sum()
                    rate, kept = gates.lr["w1"][0, h, t], gates.retain["w1"][0, h, t]
                    weight = kept * weight - rate * torch.outer(anchor @ key - value, key)
                    total[0, h, t] += anchor @ query if level.reset is None else weight @ (seen @ query)
        y = layer.norm(total).transpose(1, 2).flatten(-2)
        expected = layer.out(y * F.silu(layer.gate(x)))
    # keys have unit length up to an epsilon
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("every", [1, 4, 12, 40])
def test_shards_side_by_side_are_resets_one_after_another_and_separate_runs(every):
    memory = Memory(MLP(2, 2), L2(), Decay(), Descend(), 4 if every % 4 == 0 else 1)
    weights, *inputs = tree.detach(draw(memory, length=LENGTH))
    y, state = scan_shards(memory, weights, tuple(inputs), every)
    position = torch.arange(LENGTH).expand(2, -1)
    marked = scan(memory, weights, *inputs, marks=resets(position, every, Marks()))
    assert_same((y, state), marked)
    pieces = [tree.map(lambda x, low=low: x[:, :, low : low + every], inputs) for low in range(0, LENGTH, every)]
    alone = [scan(memory, weights, *piece) for piece in pieces]
    assert_same((y, state), (torch.cat([each for each, _ in alone], 2), alone[-1][1]))


def test_resets_count_the_tokens_of_a_document_over_calls_and_padding():
    memory = Memory(Matrix())
    weights, *inputs = tree.detach(draw(memory, batch=1, length=14))
    starts, valid = torch.zeros(1, 14, dtype=torch.bool), torch.ones(1, 14, dtype=torch.bool)
    starts[0, 5], valid[0, [2, 8]] = True, False
    position = torch.tensor([[0, 1, 2, 2, 3, 0, 1, 2, 3, 3, 4, 5, 6, 7]])
    y, _ = scan_anew(memory, (None, weights), tuple(inputs), 3, (Marks(valid, starts), position))
    live = valid[0].nonzero()[:, 0]
    pieces = [live[:3], live[3:4], live[4:7], live[7:10], live[10:]]
    expected = [scan(memory, weights, *tree.map(lambda x, at=at: x[:, :, at], inputs))[0] for at in pieces]
    assert_same(y[:, :, live], torch.cat(expected, 2))


def test_gates_of_no_token_pass_through_shards():
    memory = Memory(Matrix())
    weights, q, k, v, _ = tree.detach(draw(memory, length=LENGTH))
    fixed = Gates(lr=0.1, retain=torch.tensor([[0.9], [0.8]], dtype=torch.float64))
    y, _ = scan_shards(memory, weights, (q, k, v, fixed), 5)
    assert_same(
        y, scan(memory, weights, q, k, v, fixed, marks=resets(torch.arange(LENGTH).expand(2, -1), 5, Marks()))[0]
    )


def test_what_cannot_be_built_is_refused():
    with pytest.raises(NestlingError, match="TNT needs levels"):
        TNT(8, 2, Memory(Matrix()), ())
    with pytest.raises(NestlingError, match="names of their own"):
        TNT(8, 2, Memory(Matrix()), (Level("a", 2), Level("a", 4)))
