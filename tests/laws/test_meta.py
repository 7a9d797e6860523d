"""meta: outer gradients are exact, and reach initial memories, gates and projections through the writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling.tree as tree
from nestling.core import L2, MLP, Architecture, Decay, Gates, Memory, Normed, Residual
from nestling.models import LM
from nestling.nn import MemoryLayer, SelfModifying
from nestling.ops import Chunk, Path, Reference, scan
from tests.each import each
from tests.laws.subjects import (
    DEEP,
    EVERYTHING,
    HEADS,
    MEMORIES,
    PRINTED,
    RECIPES,
    TITANS,
    assert_close,
    build,
    call,
    draw,
    subject,
)

LENGTH = 37
LAYERS_WITH_MEMORY = [name for name in RECIPES if name not in ("transformer", "hope_attention")]


def loss(model: LM, tokens: Tensor) -> Tensor:
    logits, _ = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def livelier(name: str) -> LM:
    """Embeddings of unit size: at 0.02 half of what a token does is lost in the epsilon of a norm."""
    model = build(name)
    assert isinstance(model, LM)
    with torch.no_grad():
        model.embedding.weight.mul_(50)
    return model


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_is_learnt(name):
    model = livelier(name)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss(model, draw(model, 2, LENGTH)), list(named.values()))
    for path, grad in zip(named, grads, strict=True):
        assert bool(torch.isfinite(grad).all()), path
        # A relu would leave some entries out; nothing here does, and every head and every weight has its part.
        assert (grad != 0).double().mean() > 0.99, path


@pytest.mark.parametrize("name", RECIPES)
def test_every_gradient_is_the_slope_of_the_loss(name):
    """Central differences along a random direction, for each parameter: a stop-gradient anywhere shows."""
    model = livelier(name)
    tokens = draw(model, 2, LENGTH)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss(model, tokens), list(named.values()))
    step = 1e-5
    for (path, parameter), grad in zip(named.items(), grads, strict=True):
        direction = torch.randn_like(parameter)
        direction /= direction.norm()
        with torch.no_grad():
            start = parameter.clone()
            ahead = loss(model, tokens) if parameter.copy_(start + step * direction) is parameter else None
            behind = loss(model, tokens) if parameter.copy_(start - step * direction) is parameter else None
            parameter.copy_(start)
        slope = float((ahead - behind) / (2 * step))
        expected = float((grad * direction).sum())
        assert slope == pytest.approx(expected, rel=1e-4, abs=1e-8), path


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_split_stream_has_the_gradients_of_the_whole(name):
    """State carries the graph: what is read after a call teaches what was written in it."""
    module = subject(name)
    x = draw(module, 2, 23)
    weights = [p for p in module.parameters() if p.requires_grad]

    def slopes(pieces: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        state, outputs = None, []
        for low, high in pieces:
            y, state = call(module, x[:, low:high], state)
            outputs.append(y)
        y = torch.cat(outputs, 1)
        generator = torch.Generator().manual_seed(1)
        total = (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum()
        return torch.autograd.grad(total, weights)

    assert_close(slopes([(0, 9), (9, 10), (10, 23)]), slopes([(0, 23)]), 1e-8)


@pytest.mark.parametrize("name", LAYERS_WITH_MEMORY)
def test_gradients_come_through_the_writes(name):
    """What only the writes use gets a gradient from a live model and none from its frozen twin; the rest gets another."""
    model = livelier(name)
    twin, tokens = model.frozen(), draw(model, 2, LENGTH)
    named = dict(model.named_parameters())
    live = torch.autograd.grad(loss(model, tokens), list(named.values()))
    shut = torch.autograd.grad(loss(twin, tokens), list(named.values()), allow_unused=True)
    dead = []
    for path, a, b in zip(named, live, shut, strict=True):
        if b is None or not bool(b.any()):
            dead.append(path)
        elif ".mixer." in path:
            assert (a - b).norm() > 1e-3 * a.norm(), path
    assert dead, "a memory has parts that serve only its writes"
    # Where memories start empty, a frozen one says nothing, and the norm before it serves only the writes.
    assert all(".mixer" in path for path in dead), dead


@pytest.mark.parametrize("name", ["titans", "delta", "moneta_held"])
def test_the_last_token_teaches_the_first_write(name):
    """Gradient of one output by the keys and values of a token many periods before it, exactly as finite differences say."""
    module = subject(name)
    x = draw(module, 1, 22).requires_grad_()

    def last(x: Tensor) -> Tensor:
        return call(module, x)[0][0, -1, 0]

    (grad,) = torch.autograd.grad(last(x), x)
    direction = torch.zeros_like(x)
    direction[0, 1] = torch.randn(x.shape[-1], dtype=x.dtype)
    with torch.no_grad():
        slope = (last(x + 1e-6 * direction) - last(x - 1e-6 * direction)) / 2e-6
    assert grad[0, 1].abs().max() > 0
    assert float(slope) == pytest.approx(float((grad * direction).sum()), rel=1e-5, abs=1e-12)


def checked(layer: nn.Module, length: int, fast_mode: bool = False) -> bool:
    """gradcheck of the outputs and of the final state, by the input and by every parameter."""
    layer = layer.double()
    names = [name for name, _ in layer.named_parameters()]
    dim = next(p for name, p in layer.named_parameters() if name == "out.weight").shape[0]

    def function(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        y, state = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return y, *(leaf for leaf in tree.leaves(state) if leaf.is_floating_point() and leaf.requires_grad)

    x = torch.randn(1, length, dim, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    return torch.autograd.gradcheck(function, (x, *parameters), atol=1e-6, rtol=1e-4, fast_mode=fast_mode)


PATHS = [Chunk(stride=0), Chunk(stride=2)]


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_gradcheck_of_a_memory_layer_over_four_periods(path):
    memory = replace(MEMORIES["titans"], architecture=Residual(Normed(MLP(1, 2))), period=2)
    assert checked(MemoryLayer(4, 1, memory, conv=2, path=path), 7)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_gradcheck_of_self_modifying_memories_over_four_periods(path):
    assert checked(SelfModifying(4, HEADS, 2, conv=2, path=path), 7)


@pytest.mark.parametrize("form", [PRINTED, DEEP], ids=["printed", "deep"])
def test_gradcheck_of_other_forms_along_random_directions(form):
    """The same over three periods of the one clock and two of the other."""
    assert checked(SelfModifying(4, HEADS, 2, form=form, conv=2, path=Chunk(stride=2)), 5, fast_mode=True)


@pytest.mark.parametrize(
    "name", each(["self_modifying", "self_modifying_deep", "titans", "delta"], frozenset({"self_modifying_deep"}))
)
def test_gradients_are_finite_through_256_chunks(name):
    module = build(name)
    x = draw(module, 1, 4 * 256).requires_grad_()
    y, _ = call(module, x)
    weights = [x, *module.parameters()]
    grads = torch.autograd.grad((y[:, -8:] * torch.randn_like(y[:, -8:])).sum(), weights)
    assert bool(torch.isfinite(y).all())
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    assert all(bool(grad.any()) for grad in grads)


def second_derivative_is_exact(architecture: Architecture, path: Path) -> bool:
    memory = Memory(architecture, L2(), Decay(), TITANS, period=2)
    weights = {n: torch.randn(1, *s, dtype=torch.float64) for n, s in architecture.shapes(3, 3).items()}
    q, k, v = (torch.nn.functional.normalize(torch.randn(1, 1, 4, 3, dtype=torch.float64), dim=-1) for _ in range(3))
    return torch.autograd.gradgradcheck(
        lambda k: scan(memory, weights, q, k, v, Gates(0.3, 0.9, 0.5), path=path)[0], k.requires_grad_()
    )


@pytest.mark.parametrize("path", [Chunk(stride=0), Reference()], ids=repr)
def test_second_derivatives_are_exact_too(path):
    assert second_derivative_is_exact(MLP(1, 2), path)


def test_second_derivatives_of_a_normed_memory_are_exact_too():
    """The inner gradient is one derivative, so this is the third of the norm, where torch's own ``layer_norm`` is wrong."""
    assert second_derivative_is_exact(Normed(MLP(1, 2)), Chunk(stride=0))
