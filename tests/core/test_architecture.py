"""Architectures: each against its formula written out, and its inner gradient against torch.autograd's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nestling.core import (
    GELU,
    MLP,
    Beside,
    Constant,
    GatedMLP,
    Gates,
    Matrix,
    Memory,
    MemoryState,
    Normed,
    Residual,
    SiLU,
    linear,
)
from nestling.core.apply import tape
from nestling.core.memory import surprise
from nestling.errors import NestlingError
from tests.core.values import ARCHITECTURES, OBJECTIVES

WIDTH = 4


def activated(x: Tensor, how: GELU | SiLU) -> Tensor:
    match how:
        case GELU():
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        case SiLU():
            return x / (1 + torch.exp(-x))


def literal(architecture, w: dict[str, Tensor], k: Tensor) -> Tensor:
    """M(W, k) for one key, with matrices and vectors only."""
    match architecture:
        case Constant():
            return w["w1"][:, 0]
        case Matrix():
            return w["w1"] @ k
        case MLP(_, depth, activation):
            x = w["w1"] @ k
            for i in range(2, depth + 1):
                x = w[f"w{i}"] @ activated(x, activation)
            return x
        case GatedMLP(_, activation):
            return w["w2"] @ (activated(w["w1"] @ k, activation) * (w["w3"] @ k))
        case Residual(inner):
            return k + literal(inner, w, k)
        case Normed(inner, eps):
            x = literal(inner, w, k)
            centred = x - x.mean()
            return centred / torch.sqrt((centred * centred).mean() + eps)
        case Beside(parts):
            made, row = [], 0
            for name, inner, width in parts:
                rows = inner.shapes(len(k), width)["w1"][0]
                own = {n.removeprefix(f"{name}."): x for n, x in w.items() if n.startswith(f"{name}.")}
                made.append(literal(inner, {"w1": w["w1"][row : row + rows], **own}, k))
                row += rows
            return torch.cat(made)


def loss_of(objective, prediction: Tensor, value: Tensor, threshold: float) -> Tensor:
    """The objectives written out; Huber branch by branch."""
    r = prediction - value
    match type(objective).__name__:
        case "DotProduct":
            return -torch.dot(prediction, value)
        case "L2":
            return torch.dot(r, r) / 2
        case "Lp":
            return sum(torch.sqrt(x * x + objective.epsilon) ** objective.p for x in r)
        case "Huber":
            return sum(x * x / 2 if abs(x) <= threshold else threshold * (abs(x) - threshold / 2) for x in r)
        case "NormHuber":
            length = torch.sqrt(torch.dot(r, r))
            return length**2 / 2 if length <= threshold else threshold * (length - threshold / 2)
        case "MixedHuber":
            taxi = sum(torch.sqrt(x * x + objective.epsilon) for x in r)
            return torch.dot(r, r) / 2 if torch.dot(r, r) <= threshold**2 else threshold * (taxi - threshold / 2)
        case "ValueShift":
            length = torch.sqrt(torch.dot(r, r) + objective.epsilon)
            return torch.dot(r, r) / 2 + objective.shift * length + objective.shift**2 / 2


def problem(architecture, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = architecture.shapes(WIDTH, WIDTH)
    weights = {n: torch.randn(*s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    key, value = (torch.randn(WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    return weights, key, value


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)
def test_it_is_its_formula(architecture):
    weights, key, _ = problem(architecture)
    torch.testing.assert_close(
        architecture(linear(weights), key), literal(architecture, weights, key), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)
def test_the_inner_gradient_is_autograds(architecture, objective):
    """Of the loss written independently, by every weight; the loss too; from ``surprise`` and from ``Memory.surprise``."""
    weights, key, value = problem(architecture)
    needed = {name: w.clone().requires_grad_() for name, w in weights.items()}
    loss = loss_of(objective, literal(architecture, needed, key), value, 0.7)
    expected = dict(zip(needed, torch.autograd.grad(loss, list(needed.values())), strict=True))
    memory = Memory(architecture, objective)
    for seen in (
        surprise(architecture, objective, weights, key, value, 0.7),
        memory.surprise(memory.init(weights), key, value, Gates(threshold=0.7)),
    ):
        torch.testing.assert_close(seen.loss, loss.detach(), rtol=1e-11, atol=1e-11)
        assert seen.cotangents.keys() == seen.inputs.keys() == weights.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 0, "a test of zeros tests nothing"
            torch.testing.assert_close(seen.gradient(name), gradient, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)
def test_many_examples_at_once_are_many_single_ones(architecture):
    weights, _, _ = problem(architecture)
    keys, values = (torch.randn(3, WIDTH, dtype=torch.float64) for _ in range(2))
    together = surprise(architecture, OBJECTIVES[1], weights, keys, values, 1.0)
    for i in range(3):
        alone = surprise(architecture, OBJECTIVES[1], weights, keys[i], values[i], 1.0)
        for name in weights:
            torch.testing.assert_close(together.gradient(name)[i], alone.gradient(name), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("architecture", "shapes"),
    [
        (Constant(), {"w1": (5, 1)}),
        (Matrix(), {"w1": (5, 3)}),
        (MLP(2, 1), {"w1": (5, 3)}),
        (MLP(2, 3), {"w1": (6, 3), "w2": (6, 6), "w3": (5, 6)}),
        (MLP(0.1, 2), {"w1": (1, 3), "w2": (5, 1)}),
        (GatedMLP(2), {"w1": (6, 3), "w2": (5, 6), "w3": (6, 3)}),
        (Normed(Matrix()), {"w1": (5, 3)}),
    ],
    ids=repr,
)
def test_shapes_of_keys_and_values_of_different_widths(architecture, shapes):
    assert architecture.shapes(3, 5) == shapes
    weights = architecture.init(3, 5, generator=torch.Generator().manual_seed(0))
    assert {name: tuple(w.shape) for name, w in weights.items()} == shapes
    assert architecture(linear(weights), torch.randn(7, 3)).shape == (7, 5)
    again = architecture.init(3, 5, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_initial_weights_keep_the_size_of_their_input():
    for architecture, name in ((Matrix(), "w1"), (MLP(4, 2), "w2"), (GatedMLP(4), "w2")):
        w = architecture.init(64, 64, generator=torch.Generator().manual_seed(0))[name]
        assert float(w.var()) * w.shape[1] == pytest.approx(1.0, rel=0.1)
    assert not bool(Constant().init(64, 64)["w1"].any())


def refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(NestlingError, match=message):
        make()


def test_what_cannot_be_is_refused():
    refused(lambda: MLP(depth=0), "depth ≥ 1")
    refused(lambda: MLP(expand=0), "expand > 0")
    refused(lambda: Residual(Matrix()).shapes(3, 5), "got 3 and 5")
    apply = tape({"w1": torch.eye(2)}, {"w1": torch.zeros(2)}, {"w1": torch.zeros(2)})
    refused(lambda: apply("w1", torch.zeros(2)), "applied twice")


def test_gelu_is_the_exact_one():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(GELU()(x), activated(x, GELU()), rtol=1e-13, atol=1e-13)
    assert (GELU()(x) - torch.nn.functional.gelu(x, approximate="tanh")).abs().max() > 1e-5
    torch.testing.assert_close(SiLU()(x), activated(x, SiLU()), rtol=1e-13, atol=1e-13)


def test_a_state_begins_at_its_weights():
    weights, key, _ = problem(MLP(2, 2))
    memory = Memory(MLP(2, 2))
    state = memory.init(weights)
    assert isinstance(state, MemoryState) and int(state.phase) == 0
    torch.testing.assert_close(memory.read(state, key), literal(MLP(2, 2), weights, key))


def test_memories_side_by_side_start_as_each_alone():
    """``joined`` puts the weights of the parts where ``M(k) = (M₁(k), M₂(k))`` reads them."""
    parts = (("a", MLP(2), 3), ("b", Matrix(), 1))
    each = {name: inner.init(WIDTH, width) for name, inner, width in parts}
    key = torch.randn(WIDTH)
    alone = [inner(linear(each[name]), key) for name, inner, _ in parts]
    torch.testing.assert_close(Beside(parts)(linear(Beside(parts).joined(each)), key), torch.cat(alone))
    with pytest.raises(NestlingError, match="got values of width 5"):
        Beside(parts).shapes(WIDTH, 5)
