"""Every path gives the same answer: outputs, final state, and all outer gradients, in float64."""

from __future__ import annotations

import pytest
import torch

import nestling.tree as tree
from nestling.core import (
    L2,
    MLP,
    Chain,
    Constant,
    Decay,
    Delta,
    Descend,
    DotProduct,
    GatedMLP,
    Gates,
    Huber,
    InputDelta,
    Lp,
    Matrix,
    Memory,
    Momentum,
    Normed,
    Residual,
    Returning,
    UnitDelta,
)
from nestling.errors import NestlingError
from nestling.ops import Chunk, Marks, Reference, begin, scan
from tests.ops.pieces import in_pieces, marked

TITANS = Chain((Descend(), Momentum()))
ARCHITECTURES = [
    Matrix(),
    MLP(2, 1),
    MLP(2, 2),
    MLP(2, 3),
    Residual(Normed(MLP(2, 2))),
    GatedMLP(2),
    Constant(),
]
OBJECTIVES = [L2(), Huber(), Lp(3.0), DotProduct()]


def draw(memory, batch=2, heads=2, length=21, width=4, seed=0, per_weight=True):
    """Inputs and initial weights in float64, all requiring gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def gate(low, high):
        return low + (high - low) * torch.rand(batch, heads, length, generator=generator, dtype=torch.float64)

    names = list(memory.architecture.shapes(width, width))
    weights = {n: normal(heads, *s) * s[1] ** -0.5 for n, s in memory.architecture.shapes(width, width).items()}
    q, k = (torch.nn.functional.normalize(normal(batch, heads, length, width), dim=-1) for _ in range(2))
    v = normal(batch, heads, length, width)

    def keyed(low, high):
        return {n: gate(low, high) for n in names} if per_weight else gate(low, high)

    gates = Gates(keyed(0.01, 0.1), keyed(0.8, 1.0), keyed(0.3, 0.9), gate(0.2, 2.0))
    given = (weights, q, k, v, gates)
    return tree.map(lambda leaf: leaf.requires_grad_(), given)


def answers(memory, given, path, **options):
    """Everything that can differ: outputs, state, gradients of a random functional of both."""
    weights, q, k, v, gates = given
    y, state = scan(memory, weights, q, k, v, gates, path=path, **options)
    generator = torch.Generator().manual_seed(9)
    total = torch.zeros((), dtype=torch.float64)
    for leaf in (y, *(leaf for leaf in tree.leaves(state) if leaf.is_floating_point())):
        total = total + (leaf * torch.randn(leaf.shape, generator=generator, dtype=torch.float64)).sum()
    wanted = tree.leaves(given)
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    zeros = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]
    return y.detach(), tree.detach(state), zeros


def assert_same(got, expected, tolerance=1e-9):
    """Relative to the largest entry of each tensor."""
    assert len(tree.leaves(got)) == len(tree.leaves(expected))
    for (path, a), b in zip(tree.items(got), tree.leaves(expected), strict=True):
        scale = max(float(b.abs().max()), 1.0) if b.numel() else 1.0
        assert (a - b).abs().max() <= tolerance * scale, path


@pytest.mark.parametrize("period", [1, 4, 16])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)
def test_chunks_equal_the_reference(architecture, objective, period):
    memory = Memory(architecture, objective, Decay(), TITANS, period)
    given = draw(memory)
    assert_same(answers(memory, given, Chunk(stride=0)), answers(memory, given, Reference()))


@pytest.mark.parametrize("read_at", ["current", "commit"])
@pytest.mark.parametrize("period", [1, 8, float("inf")])
@pytest.mark.parametrize(
    ("retention", "rule"),
    [
        (Decay(), Descend()),
        (Decay(), Chain((Descend(), Momentum(0.7)))),
        (Decay(), Chain((Momentum(), Descend()))),
        (Delta(), Descend()),
        (Delta(), TITANS),
        (Delta(), Chain((Momentum(0.5), Descend()))),
        (UnitDelta(), Descend()),
        (UnitDelta(), TITANS),
        (InputDelta(), TITANS),
        (Returning(Decay()), TITANS),
        (Returning(Delta()), Descend()),
        (Returning(UnitDelta()), TITANS),
    ],
    ids=repr,
)
def test_rules_and_retentions_equal_the_reference(retention, rule, period, read_at):
    memory = Memory(Residual(MLP(2, 2)), L2(), retention, rule, period, read_at)
    given = draw(memory, per_weight=False)
    assert_same(answers(memory, given, Chunk()), answers(memory, given, Reference()))


@pytest.mark.parametrize("block", [1, 3, 8, 64])
@pytest.mark.parametrize("stride", [0, 1, 3])
def test_neither_block_nor_stride_changes_the_answer(block, stride):
    memory = Memory(MLP(2, 2), L2(), Decay(), TITANS, 24)
    given = draw(memory, length=61)
    expected = answers(memory, given, Chunk(block=24, stride=0))
    assert_same(answers(memory, given, Chunk(block=block, stride=stride)), expected)


MARKED = [
    (Decay(), TITANS, 4),
    (Delta(), Descend(), 8),
    (Decay(), TITANS, float("inf")),
    (Returning(UnitDelta()), TITANS, 4),
]


@pytest.mark.parametrize(("retention", "rule", "period"), MARKED, ids=repr)
def test_documents_and_padding_equal_the_reference(retention, rule, period):
    memory = Memory(MLP(2, 2), L2(), retention, rule, period)
    given = draw(memory, batch=4, length=37)
    valid, starts = marked(4, 37)
    for marks in (Marks(valid), Marks(None, starts), Marks(valid, starts)):
        expected = answers(memory, given, Reference(), marks=marks)
        assert_same(answers(memory, given, Chunk(block=8), marks=marks), expected)


@pytest.mark.parametrize(("retention", "rule", "period"), MARKED, ids=repr)
@pytest.mark.parametrize("path", [Chunk(block=8), Reference()], ids=repr)
def test_any_split_of_a_stream_gives_the_same(path, retention, rule, period):
    memory = Memory(Residual(Normed(MLP(2, 2))), L2(), retention, rule, period)
    weights, *tokens = tree.detach(draw(memory, length=30))
    whole = scan(memory, weights, *tokens, path=path)
    assert_same(in_pieces(memory, weights, tokens, (1, 2, 9, 10, 27, 30), path), whole)


def test_rows_at_different_phases_go_on_together():
    memory = Memory(MLP(2, 2), L2(), Decay(), TITANS, 8)
    weights, q, k, v, gates = tree.detach(draw(memory, batch=3, length=20))
    valid = torch.arange(20) < torch.tensor([[3], [8], [13]])
    _, state = scan(memory, weights, q, k, v, gates, marks=Marks(valid))
    assert state.phase[:, 0].tolist() == [3, 8, 5]
    y, after = scan(memory, state, q, k, v, gates)
    for row, length in enumerate((3, 8, 13)):
        alone = tree.map(
            lambda x, row=row, length=length: torch.cat((x[row : row + 1, :, :length], x[row : row + 1]), 2),
            (q, k, v, gates),
        )
        expected, end = scan(memory, weights, *alone)
        assert_same(y[row : row + 1], expected[:, :, length:])
        assert_same(tree.map(lambda leaf, row=row: leaf[row : row + 1], after), end)


def test_many_blocks_have_finite_gradients():
    memory = Memory(Residual(Normed(MLP(2, 2))), L2(), Decay(), TITANS, 4)
    _, state, grads = answers(memory, draw(memory, batch=1, length=4 * 300), "auto")
    assert all(bool(torch.isfinite(leaf).all()) for leaf in (*tree.leaves(state), *grads))


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_gates_at_the_ends_of_their_range_are_finite(gate):
    memory = Memory(MLP(2, 2), L2(), Decay(), TITANS, 8)
    weights, q, k, v, gates = draw(memory)
    edge = {name: torch.full_like(each, gate).requires_grad_() for name, each in gates.retain.items()}
    given = (weights, q, k, v, Gates(gates.lr, edge, edge, gates.threshold))
    got, expected = answers(memory, given, Chunk()), answers(memory, given, Reference())
    assert_same(got[:2], expected[:2])
    assert all(bool(torch.isfinite(grad).all()) for grad in got[2])


def test_state_dtype_is_kept_and_the_input_dtype_comes_back():
    memory = Memory(MLP(2, 2), period=4)
    weights, q, k, v, gates = tree.map(lambda leaf: leaf.detach().float(), draw(memory))
    y, state = scan(memory, weights, q.bfloat16(), k.bfloat16(), v.bfloat16(), gates)
    assert y.dtype == torch.bfloat16 and state.dual["w1"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, g: (q[0], k, v, g), "q and k"),
        (lambda q, k, v, g: (q, k[..., :3], v, g), "q and k"),
        (lambda q, k, v, g: (q, k, v[:, :, :4], g), "q and k"),
        (lambda q, k, v, g: (q[:, :, :0], k[:, :, :0], v[:, :, :0], g), "at least one token"),
        (lambda q, k, v, g: (q, k, v, Gates(lr=torch.ones(3))), "gate lr has shape"),
    ],
)
def test_wrong_shapes_say_what_to_do(change, message):
    memory = Memory(Matrix())
    weights, q, k, v, _ = tree.detach(draw(memory))
    with pytest.raises(NestlingError, match=message):
        scan(memory, weights, *change(q, k, v, Gates()))


def test_documents_without_initial_weights_are_refused():
    memory = Memory(Matrix())
    weights, q, k, v, gates = tree.detach(draw(memory))
    with pytest.raises(NestlingError, match="Resumed"):
        scan(memory, begin(memory, weights, 2), q, k, v, gates, marks=Marks(starts=torch.ones(2, 21, dtype=torch.bool)))
