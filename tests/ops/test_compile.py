"""torch.compile(fullgraph=True) of a block: the same outputs, states and outer gradients as eager."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import nestling.tree as tree
from nestling.core import L2, MLP, Chain, Decay, Descend, Every, Gates, Memory, Momentum, Normed, Residual
from nestling.nn import MemoryLayer, SelfModifying, self_modifying_tokens
from nestling.ops import Chunk, scan

COMPILER = pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C++ compiler")
# The whole way through the C++ compiler takes a minute; capturing one graph and differentiating it takes seconds.
LATER = pytest.param("inductor", marks=[COMPILER, pytest.mark.slow])

LMM = Memory(Residual(Normed(MLP(2, 2))), L2(), Decay(), Chain((Descend(), Momentum())), period=4)
ONCE = Memory(LMM.architecture, L2(), Decay(), Chain((Descend(), Every(4, Momentum()))), 4, "commit")
"""By whole periods; what is left over by blocks"""
LENGTH = 10  # the last block is padded: a mask is part of what is compiled


@pytest.fixture
def backend(request, monkeypatch):
    """What ``torch.compile`` uses; blocks are compiled anew, and forgotten afterwards."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    forget()
    yield request.param
    forget()


def forget() -> None:
    for module in ("nestling.ops.scan", "nestling.nn.self_modifying", "nestling.nn.self_modifying_tokens"):
        importlib.import_module(module)._compiled.cache_clear()
    importlib.import_module("nestling.ops.periods")._programs.cache_clear()
    torch.compiler.reset()


def total(outputs, state):
    """A random functional of all that comes out. (The plain sum of what a LayerNorm gives has no gradient.)"""
    generator = torch.Generator().manual_seed(1)
    leaves = [outputs, *(leaf for leaf in tree.leaves(state) if leaf.is_floating_point())]
    return sum((leaf * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)).sum() for leaf in leaves)


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(1.0, float(b.abs().max()))


def answers(run, wanted):
    y, state = run()
    grads = torch.autograd.grad(total(y, state), wanted)
    assert all(bool(grad.any()) for grad in grads)
    return [leaf.detach() for leaf in (y, *tree.leaves(state))], grads


@pytest.mark.parametrize("backend", ["aot_eager", LATER], indirect=True)
@pytest.mark.parametrize(
    "memory",
    [LMM, ONCE, pytest.param(replace(LMM, read_at="commit"), marks=pytest.mark.slow)],
    ids=("token", "once", "commit"),
)
def test_a_long_term_memory(backend, memory):
    """Titans' LMM, forward and backward, in float64."""
    weights = {
        n: torch.randn(2, *shape, dtype=torch.float64) * 0.4 for n, shape in memory.architecture.shapes(4, 4).items()
    }
    q, k, v = (
        torch.nn.functional.normalize(torch.randn(2, 2, LENGTH, 4, dtype=torch.float64), dim=-1) for _ in range(3)
    )
    uniform = torch.rand(3, 2, 2, LENGTH, dtype=torch.float64)
    given = (weights, q, k, v, Gates(0.1 * uniform[0], 0.8 + 0.2 * uniform[1], 0.9 * uniform[2]))
    wanted = tree.leaves(tree.map(lambda leaf: leaf.requires_grad_(), given))
    (eager, eager_grads), (compiled, compiled_grads) = (
        answers(lambda path=path: scan(memory, *given, path=path), wanted) for path in (Chunk(), Chunk(compiled=True))
    )
    assert_same(compiled, eager)
    assert_same(compiled_grads, eager_grads)


@pytest.mark.parametrize("backend", ["aot_eager", LATER], indirect=True)
@pytest.mark.parametrize("period", [1, 4])
def test_a_self_modifying_layer(backend, period, monkeypatch):
    """Two groups of delta memories, one of which makes what the other is written with; a few tokens at once at period 1."""
    monkeypatch.setattr(self_modifying_tokens, "UNROLLED", 3)
    layer = SelfModifying(8, 2, period, path=Chunk(compiled=True)).double()
    x = torch.randn(2, LENGTH, 8, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    compiled, compiled_grads = answers(lambda: layer(x), wanted)
    layer.path = Chunk()
    eager, eager_grads = answers(lambda: layer(x), wanted)
    assert_same(compiled, eager)
    assert_same(compiled_grads, eager_grads)


@pytest.mark.slow
def test_a_longer_text_is_no_other_program(monkeypatch):
    """Lengths share their programs, and no memory takes another's room."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    forget()
    for period in (2, 4, 8):
        layer = MemoryLayer(8, 1, replace(LMM, period=period), path=Chunk(compiled=True))
        for length in (16, 24, 80):
            layer(torch.randn(1, length, 8))[0].sum().backward()
            with torch.no_grad():
                layer(torch.randn(1, length, 8))
            if length == 16:
                programs = counter.frame_count
        assert counter.frame_count == programs
    forget()
    # more than torch's own limit of eight for one function
    assert programs > 8
