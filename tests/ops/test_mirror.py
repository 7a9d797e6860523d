"""Mirror maps, lag tokens and gates by channel in blocks: outputs, final states and outer gradients as in the reference, in float64."""

from __future__ import annotations

import pytest
import torch

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
    Gates,
    HeldLq,
    Lag,
    Logistic,
    Lp,
    Lq,
    LqLink,
    Matrix,
    Memory,
    MixedHuber,
    Momentum,
    Normed,
    Residual,
)
from nestling.errors import NestlingError
from nestling.ops import Chunk, Marks, Reference, scan
from tests.ops.pieces import in_pieces, marked
from tests.ops.test_scan import answers, assert_same, draw

DEEP = Residual(Normed(MLP(2, 2)))
TITANS = Chain((Descend(), Momentum()))
MAPS = [KL(), KL(1.0, "mean", 1e-3), ElasticNet(0.05), Logistic(), Lq(4.0), Lq(4.0, "mean"), LqLink(1.5), HeldLq(4.0)]
LAGS = [Lag(KL(1.0, "mean", 1e-2)), Lag(ElasticNet(0.05)), Lag(LqLink(1.5))]


def started(memory, **options):
    """Initial weights in the set that the retention allows."""
    weights, *rest = draw(memory, **options)
    map = memory.retention.map if isinstance(memory.retention, Lag) else memory.retention
    inside = {name: map.primal(weight).detach().requires_grad_() for name, weight in weights.items()}
    return inside, *rest


def channelled(memory, given, seed=3):
    """The same with rates and retentions by channel."""
    weights, q, k, v, gates = given
    generator = torch.Generator().manual_seed(seed)

    def gate(low, high):
        return {
            name: (low + (high - low) * torch.rand(*q.shape[:3], min(w.shape[-2:]), generator=generator, dtype=q.dtype))
            .detach()
            .requires_grad_()
            for name, w in weights.items()
        }

    return weights, q, k, v, Gates(gate(0.01, 0.1), gate(0.8, 1.0), threshold=gates.threshold)


@pytest.mark.parametrize(
    ("rule", "period", "read_at"), [(Descend(), 1, "current"), (TITANS, 4, "current"), (TITANS, 4, "commit")], ids=repr
)
@pytest.mark.parametrize("retention", MAPS, ids=repr)
def test_mirror_maps_equal_the_reference(retention, rule, period, read_at):
    memory = Memory(DEEP, L2(), retention, rule, period, read_at)
    given = started(memory, batch=1, length=9)
    assert_same(answers(memory, given, Chunk()), answers(memory, given, Reference()))


@pytest.mark.parametrize(
    ("period", "read_at"), [(1, "current"), (5, "current"), (5, "commit"), (float("inf"), "current")], ids=repr
)
@pytest.mark.parametrize("retention", LAGS, ids=repr)
def test_lag_tokens_equal_the_reference(retention, period, read_at):
    memory = Memory(DEEP, L2(), retention, Descend(), period, read_at)
    given = started(memory, batch=1, length=9)
    expected = answers(memory, given, Reference())
    for path in (Chunk(), Chunk(block=2, stride=2)):
        assert_same(answers(memory, given, path), expected)


CHANNELLED = [
    Memory(DEEP, MixedHuber(), Decay(), Descend(), 4),
    Memory(Matrix(), L2(), Decay(), Descend(), 8),
    Memory(DEEP, Lp(3.0), HeldLq(4.0, "mean"), Descend(), 4),
    Memory(DEEP, L2(), Lag(KL(1.0, "mean", 1e-2)), Descend(), 4),
    Memory(MLP(2, 3), L2(), KL(), Descend(), 4, "commit"),
]


@pytest.mark.parametrize("memory", CHANNELLED, ids=repr)
def test_gates_by_channel_equal_the_reference(memory):
    given = channelled(memory, started(memory, length=9))
    expected = answers(memory, given, Reference())
    for path in (Chunk(), Chunk(block=2, stride=2)):
        assert_same(answers(memory, given, path), expected)


def test_gates_by_channel_that_are_all_alike_are_one_gate():
    memory = CHANNELLED[0]
    weights, q, k, v, gates = tree.detach(draw(memory))
    spread = {
        name: {weight: each[..., None].expand(*each.shape, 4) for weight, each in vars(gates)[name].items()}
        for name in ("lr", "retain")
    }
    same = Gates(spread["lr"], spread["retain"], threshold=gates.threshold)
    assert_same(scan(memory, weights, q, k, v, same), scan(memory, weights, q, k, v, gates))


def test_a_gate_by_channel_takes_the_narrower_side():
    """By outputs of w2 (values, hidden), by inputs of w1 (hidden, keys): a rate of zero writes nothing there, and only there."""
    memory = Memory(MLP(2, 2))
    weights, q, k, v, _ = tree.detach(draw(memory, length=1))
    rate = {name: torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64).expand(2, 2, 1, 4) for name in weights}
    for path in (Chunk(), Reference()):
        _, state = scan(memory, weights, q, k, v, Gates(lr=rate), path=path)
        moved = {name: (state.dual[name] != weights[name]).any(0).any(0) for name in weights}
        assert moved["w1"].any(0).tolist() == [True, False, False, True]
        assert moved["w2"].any(1).tolist() == [True, False, False, True]


EVERY = [*(Memory(DEEP, L2(), r, Descend(), 4) for r in (KL(), ElasticNet(0.05), HeldLq(4.0), LAGS[0])), *CHANNELLED]


@pytest.mark.parametrize("memory", EVERY, ids=repr)
def test_documents_padding_and_cuts(memory):
    given = started(memory, batch=4, length=17)
    given = channelled(memory, given) if memory in CHANNELLED else given
    valid, starts = marked(4, 17)
    for marks in (Marks(valid), Marks(valid, starts)):
        expected = answers(memory, given, Reference(), marks=marks)
        assert_same(answers(memory, given, Chunk(block=8), marks=marks), expected)
    weights, *tokens = tree.detach(given)
    assert_same(in_pieces(memory, weights, tokens, (1, 2, 9, 10, 17)), scan(memory, weights, *tokens))


@pytest.mark.slow
@pytest.mark.parametrize("memory", EVERY[:4], ids=repr)
def test_blocks_of_mirror_maps_compile(memory):
    given = started(memory, batch=1, length=8)
    assert_same(answers(memory, given, Chunk(compiled=True)), answers(memory, given, Chunk()))


def test_gates_by_channel_in_float32_hold_at_the_ends_of_their_range():
    """Nothing kept, or all, for a whole block: no overflow in either factor, forward or back."""
    memory = Memory(MLP(2, 2), L2(), Decay(), Descend(), 16)
    weights, q, k, v, _ = tree.map(lambda leaf: leaf.detach().float(), draw(memory, batch=1, length=32))
    for kept in (0.0, 1.0):
        keep = {name: torch.full((1, 2, 32, 4), kept, requires_grad=True) for name in weights}
        gates = Gates({name: torch.full((1, 2, 32, 4), 0.01) for name in weights}, keep)
        got, _ = scan(memory, weights, q, k, v, gates, path=Chunk())
        expected, _ = scan(memory, weights, q, k, v, gates, path=Reference())
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)
        grads = torch.autograd.grad(got.sum(), list(keep.values()))
        assert all(bool(torch.isfinite(grad).all()) for grad in grads)


def test_what_has_no_block_form_is_told():
    memory = Memory(Matrix(), L2(), Delta())
    given = tree.detach(channelled(memory, draw(memory)))
    with pytest.raises(NestlingError, match="with gates by channel has no chunk-parallel form"):
        scan(memory, *given, path=Chunk())
    wrong = Gates(lr={"w1": torch.ones(2, 2, 21, 3, dtype=torch.float64)})
    with pytest.raises(NestlingError, match="has 3 channels: give 4"):
        scan(memory, *given[:4], wrong)
