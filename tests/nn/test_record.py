"""Surprise of every token on request: what memories see, whatever the cuts, and nothing where nobody listens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nestling as nl
from nestling.core import KL, L2, MLP, Above, Gates, Level, Matrix, Memory, Quantile
from nestling.errors import NestlingError
from nestling.nn import TNT, MemoryLayer, ShareRange, ThresholdRange, recording
from nestling.ops import Chunk, Marks, Reference, begin, scan, watch
from tests.laws.subjects import MEMORIES, small
from tests.ops.test_scan import draw


@pytest.mark.parametrize("name", ["titans", "selective", "gated_delta"])
def test_surprise_is_the_loss_at_the_anchor_of_each_write(name):
    """A loop over tokens with the memory of the core."""
    memory = MEMORIES[name]
    weights, _, k, v, gates = draw(memory, batch=1, heads=1, length=9)
    surprise, written = watch(memory, (None, weights), k, v, gates)
    state = memory.init({n: w[0] for n, w in weights.items()})
    for t in range(9):
        now = Gates(
            *(
                {n: g[0, 0, t] for n, g in each.items()} if isinstance(each, dict) else each
                for each in vars(gates).values()
            )
        )
        now = replace(now, threshold=gates.threshold[0, 0, t])
        state = memory.commit(state)
        loss = memory.loss(state, k[0, 0, t], v[0, 0, t], now)
        assert float(surprise[0, 0, t]) == pytest.approx(float(loss), rel=1e-9)
        if name == "selective":
            assert bool(written[0, 0, t]) == bool(loss > state.objective[1].anchor.exp())
        state = memory.write(state, k[0, 0, t], v[0, 0, t], now)


@pytest.mark.parametrize("recipe", ["titans_mac", "titans_mal", "tnt", "hope"])
def test_any_split_of_a_stream_is_recorded_alike(recipe):
    torch.manual_seed(0)
    model = nl.build(recipe, **small(recipe)).double()
    tokens = torch.randint(0, 256, (1, 13))
    with torch.no_grad():
        expected, _ = model(tokens)
        with recording(model) as whole:
            got, _ = model(tokens)
        with recording(model) as parts:
            _, state = model(tokens[:, :9])
            for t in range(9, 13):
                _, state = model(tokens[:, t : t + 1], state)
    assert torch.equal(got, expected)
    assert list(whole) == list(parts) and len(whole) >= 1
    for name, heard in whole.items():
        assert heard.surprise.shape == (1, 2, 13) and heard.saved == 0.0
        assert torch.allclose(heard.surprise, parts[name].surprise, atol=1e-9), name
        assert heard.gates.of("w1").lr.shape == (1, 2, 13) and bool((heard.surprise > 0).any())
        assert torch.allclose(heard.gates.of("w1").retain, parts[name].gates.of("w1").retain)


def test_nobody_listens_after_the_block_and_records_nest():
    layer = MemoryLayer(8, 2, MEMORIES["titans"])
    x = torch.randn(1, 5, 8)
    with recording(layer) as outer:
        layer(x)
        with recording(layer) as inner:
            layer(x)
        MemoryLayer(8, 2, MEMORIES["titans"])(x)
    layer(x)
    assert outer[""].surprise.shape[-1] == 10 and inner[""].surprise.shape[-1] == 5
    assert not outer[""].surprise.requires_grad
    with recording(layer) as empty, pytest.raises(NestlingError, match="none yet"):
        empty["blocks.0.mixer"]


def test_padding_is_left_out_or_not_a_number():
    layer = MemoryLayer(8, 2, MEMORIES["titans"])
    x = torch.randn(2, 5, 8)
    with recording(layer) as alike:
        layer(x, None, Marks(torch.arange(5).expand(2, -1) < 3))
    assert alike[""].surprise.shape == (2, 2, 3)
    with recording(layer) as ragged:
        layer(x, None, Marks(torch.arange(5) < torch.tensor([[3], [5]])))
    assert ragged[""].surprise.isnan().sum((1, 2)).tolist() == [4, 0] and ragged[""].saved == 0.0


def test_the_writes_that_a_threshold_saves_are_counted():
    torch.manual_seed(0)
    memory = Memory(MLP(2, 2), Above(L2(), Quantile(0.25, 0.1, 1e-3)), period=4)
    layer = MemoryLayer(16, 2, memory)
    with recording(layer) as record, torch.no_grad():
        layer(torch.randn(2, 200, 16))
    heard = record[""]
    assert 0.15 < float(heard.written[..., 100:].mean()) < 0.4
    assert heard.saved == pytest.approx(1 - float(heard.written.mean()))
    learnt = MemoryLayer(16, 2, Memory(MLP(2, 2), Above(L2(), None, 0.1), period=4), gates=ThresholdRange(start=0.02))
    x = torch.randn(1, 9, 16)
    with recording(learnt) as record:
        learnt(x)[0].square().sum().backward()
    heard = record[""]
    assert torch.equal(heard.written, (heard.surprise > heard.gates.threshold).float())
    assert bool(learnt.gates.linear.weight.grad.ne(0).any()), "a threshold with a soft edge is learnt"


def test_a_learnt_share_is_learnt():
    layer = MemoryLayer(16, 2, MEMORIES["selective"], gates=ShareRange())
    layer(torch.randn(1, 9, 16))[0].square().sum().backward()
    assert bool(layer.gates.linear.weight.grad.ne(0).all())


def test_by_blocks_and_by_tokens_are_one():
    memory = Memory(Matrix(), L2(), KL(), period=4)
    layer = TNT(8, 2, memory, (Level("a", 4), Level("b", 2, reset=4)))
    with recording(layer) as record:
        layer(torch.randn(1, 6, 8))
    assert list(record) == ["a", "b"]
    weights, q, k, v, gates = draw(MEMORIES["titans"], length=6)
    y, state = scan(MEMORIES["titans"], weights, q, k, v, gates, path=Chunk())
    again = scan(MEMORIES["titans"], begin(MEMORIES["titans"], weights, 2), q, k, v, gates, path=Reference())
    assert torch.allclose(y, again[0]) and state.phase.tolist() == again[1].phase.tolist()


def test_a_session_is_recorded_as_it_reads():
    model = nl.build("titans_lmm", **small("titans_lmm")).double()
    text = "What it reads is recorded, in pieces."
    with recording(model) as pieces:
        nl.Session(model, nl.data.ByteTokenizer(), piece=8).learn(text)
    with torch.no_grad(), recording(model) as whole:
        model(torch.tensor([list(text.encode())]))
    for name, heard in whole.items():
        assert torch.allclose(heard.surprise, pieces[name].surprise, atol=1e-9), name
