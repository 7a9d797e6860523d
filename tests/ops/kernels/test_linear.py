"""Kernels of linear memories: the answer of the reference in float64, under Triton's interpreter where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest
import torch

import nestling.tree as tree
from nestling.core import (
    L2,
    MLP,
    Chain,
    Decay,
    Delta,
    Descend,
    DotProduct,
    Erase,
    GatedDelta,
    Gates,
    Matrix,
    Memory,
    Momentum,
)
from nestling.errors import NestlingError
from nestling.ops import Kernels, Marks, Reference, scan
from nestling.ops.kernels.delta import READS, Cut, LinearTokens, twin
from nestling.ops.kernels.delta_op import linear_chunks
from tests.ops.kernels.parity import BFLOAT16, FLOAT32, assert_path, draw
from tests.ops.pieces import in_pieces

CPU = torch.zeros(())
RETENTIONS = [Decay(), Delta(), Erase(), GatedDelta()]
EVERY = [
    Memory(Matrix(), objective, retention, period=period, read_at=read)
    for objective in (L2(), DotProduct())
    for retention in RETENTIONS
    for period in (1, 16)
    for read in ("current", "commit")
]


@pytest.mark.parametrize(
    ("memory", "length", "block"),
    [
        (Memory(Matrix()), 1, 64),
        (Memory(Matrix()), 18, 16),
        (Memory(Matrix(), L2(), Delta(), period=16), 17, 16),
        (Memory(Matrix(), L2(), period=10, read_at="commit"), 17, 16),
        (Memory(Matrix(), DotProduct(), Erase(), read_at="commit"), 48, 47),
    ],
    ids=repr,
)
def test_kernels_equal_the_reference(memory, length, block, kernels, poisoned):
    assert_path(memory, draw(memory, length), Kernels(block), CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "length"), list(zip(EVERY, cycle((63, 17, 1, 48, 33)), strict=False)), ids=repr)
def test_every_memory(memory, length, kernels, poisoned):
    assert_path(memory, draw(memory, length, (1, 1), (32, 16)), Kernels(32), CPU)


@pytest.mark.gpu
@pytest.mark.parametrize(("products", "tolerance"), [(None, FLOAT32), (torch.bfloat16, BFLOAT16)])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("memory", EVERY[::3], ids=repr)
def test_real_shapes(memory, width, products, tolerance, poisoned):
    given = draw(memory, 1000, (2, 4), (width, width))
    assert_path(memory, given, Kernels(products=products), torch.zeros((), device="cuda"), tolerance)


def test_repeated_keys_do_not_overflow(kernels):
    memory = Memory(Matrix(), L2(), Delta())
    weights, q, k, v, _ = draw(memory, 65)
    given = weights, q, k[:, :, :1].expand(k.shape).contiguous(), v, Gates(*(torch.ones(1, 1, 65) for _ in range(3)))
    y = [scan(memory, *each, path=path)[0] for each, path in ((given, Reference()), (_single(given), Kernels(64)))]
    assert (y[1].double() - y[0]).norm() <= 1e-5 * y[0].norm()


def test_a_stream_goes_on_from_any_place(kernels):
    memory = Memory(Matrix(), L2(), Delta(), period=16)
    weights, *tokens = _single(draw(memory, 40))
    expected, whole = scan(memory, weights, *tokens)
    y, state = in_pieces(memory, weights, tokens, (16, 20, 40), Kernels())
    assert torch.allclose(y, expected, atol=1e-5)
    assert torch.equal(state.phase, whole.phase)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(tree.leaves(state), tree.leaves(whole), strict=True))


def test_padding_takes_another_path(kernels):
    memory = Memory(Matrix())
    given = _single(draw(memory, 5))
    marks = Marks(valid=torch.tensor([[True, False, True, True, False]]))
    got, expected = (scan(memory, *given, marks=marks, path=path)[0] for path in (Kernels(), "auto"))
    assert torch.equal(got, expected)


@pytest.mark.slow
def test_a_compiled_function_has_one_node_for_them(kernels):
    memory = Memory(Matrix())
    weights, *tokens = _single(draw(memory, 3))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(start):
        return scan(memory, {"w1": start}, *tokens, path=Kernels(16))[0].square().sum()

    start = weights["w1"].requires_grad_()
    (got,) = torch.autograd.grad(run(start), start)
    (expected,) = torch.autograd.grad(scan(memory, {"w1": start}, *tokens)[0].square().sum(), start)
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("lone", [True, False])
def test_the_twin_is_the_recurrence(read, lone):
    generator = torch.Generator().manual_seed(3)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    tokens = LinearTokens(
        normal(1, 11, 4), normal(1, 11, 4), normal(1, 11, 3), normal(1, 11), normal(1, 11), -normal(1, 11).abs()
    )
    cut, start = Cut(4, read, lone), normal(1, 3, 4)
    weight, outputs = start[0], []
    for span in cut.spans(11):
        anchor = weight
        for t in span:
            q, k, u, now, frozen, log = (x[0, t] for x in vars(tokens).values())
            before = weight
            # pₜ = cₜ Wₜ₋₁kₜ + gₜ W₀kₜ − uₜ,  Wₜ = αₜ Wₜ₋₁ − pₜ kₜᵀ
            weight = log.exp() * weight - torch.outer(now * weight @ k + frozen * anchor @ k - u, k)
            outputs.append({"current": weight, "before": before, "start": anchor}[read] @ q)
    y, end, held = twin(tokens, start, cut)
    assert torch.allclose(y[0], torch.stack(outputs), rtol=1e-9)
    assert torch.allclose(end[0], weight, rtol=1e-9)
    assert torch.allclose(held[0], anchor, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("lone", [True, False])
@pytest.mark.parametrize("length", [1, 17, 63])
def test_kernels_equal_their_twin(length, read, lone, kernels, poisoned):
    """Where c and g are both there, and in half precision, which the interpreter does have."""
    generator = torch.Generator().manual_seed(4)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator)

    unit = torch.nn.functional.normalize
    given = [unit(normal(2, length, 16), dim=-1) for _ in range(2)] + [normal(2, length, 32)]
    given += [torch.rand(2, length, generator=generator) for _ in range(2)] + [-normal(2, length).abs()]
    start, cut = normal(2, 32, 16), Cut(32, read, lone)
    for kind, tolerance in ((torch.float32, 1e-5), (torch.float16, 5e-3)):
        cast = [x.to(kind) if x.dim() == 3 else x for x in given]
        results = []
        for run, leaves in ((twin, [x.double() for x in (*cast, start)]), (linear_chunks, [*cast, start])):
            leaves = [x.detach().clone().requires_grad_() for x in leaves]
            out = run(LinearTokens(*leaves[:6]), leaves[6], cut)
            total = torch.stack([x.double().square().sum() for x in out]).sum()
            results.append([*out, *torch.autograd.grad(total, leaves)])
        for a, b in zip(*results, strict=True):
            assert (a - b).norm() <= tolerance * b.norm().clamp_min(1.0)


@pytest.mark.parametrize(
    ("memory", "path", "message"),
    [
        (Memory(MLP(depth=3)), Kernels(), "kernels are for Matrix"),
        (Memory(Matrix(), rule=Chain((Descend(), Momentum()))), Kernels(), "kernels are for Matrix"),
        (Memory(Matrix(), period=65), Kernels(), "period of at most 64 tokens, got 65"),
        (Memory(Matrix()), Kernels(block=128), "block of 1 to 64 tokens, got 128"),
        (Memory(Matrix(), period=float("inf")), Kernels(), "period of at most 64 tokens, got inf"),
    ],
)
def test_what_has_no_kernel_is_refused(memory, path, message):
    with pytest.raises(NestlingError, match=message):
        scan(memory, *_single(draw(memory, 2)), path=path)


def test_other_places_and_types_are_refused(kernels, monkeypatch):
    memory = Memory(Matrix())
    weights, q, k, v, gates = draw(memory, 2)
    with pytest.raises(NestlingError, match=r"float32 states, got torch\.float64"):
        scan(memory, weights, q, k, v, gates, path=Kernels())
    by_channel = replace(gates, lr={"w1": torch.ones(1, 1, 2, 16)})
    with pytest.raises(NestlingError, match="one gate for a token"):
        scan(memory, *_single((weights, q, k, v, by_channel)), path=Kernels())
    wide = draw(memory, 1, widths=(129, 4))
    with pytest.raises(NestlingError, match="heads of at most 128 numbers, got 129"):
        scan(memory, *_single(wide), path=Kernels())
    many = draw(memory, 1, (1 << 15, 2), (1, 1))
    with pytest.raises(NestlingError, match="at most 65,535 memories at once, got 65,536"):
        scan(memory, *_single(many), path=Kernels())
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(NestlingError, match="a CUDA device, got 'cpu'"):
        scan(memory, *_single((weights, q, k, v, gates)), path=Kernels())


def _single(given):
    return tree.map(lambda x: x.float(), given)
