"""Stretches of a sequence: the gradients of the whole, from memory that grows with inputs, outputs and states only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import nestling.tree as tree
from nestling.core import MLP, Chain, Descend, Memory, Momentum
from nestling.errors import NestlingError
from nestling.nn import MemoryLayer
from nestling.ops import stretches

DIM, LENGTH = 16, 64


def layer() -> MemoryLayer:
    torch.manual_seed(0)
    return MemoryLayer(DIM, heads=2, memory=Memory(MLP(), rule=Chain((Descend(), Momentum())), period=16))


@pytest.mark.parametrize("length", [1, 7, 32, 100])
def test_outputs_state_and_gradients_are_those_of_one_call(length: int) -> None:
    mixer = layer().double()
    x = torch.randn(2, 37, DIM, dtype=torch.float64, requires_grad=True)
    started = tree.map(lambda leaf: leaf.requires_grad_(leaf.is_floating_point()), mixer.initial_state(2))
    wanted = [*mixer.parameters(), x, *(leaf for leaf in tree.leaves(started) if leaf.requires_grad)]

    def slopes(y: Tensor, state: object) -> list[Tensor | None]:
        ends = sum(leaf.square().sum() for leaf in tree.leaves(state) if leaf.is_floating_point())
        return list(torch.autograd.grad(y.square().sum() + ends, wanted, allow_unused=True))

    outputs, after = stretches(mixer, x, started, length)
    y, expected = mixer(x, started)
    torch.testing.assert_close(torch.cat(outputs, 1), y, rtol=1e-9, atol=1e-12)
    for a, b in zip(tree.leaves(after), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(slopes(torch.cat(outputs, 1), after), slopes(y, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def peak(mixer: MemoryLayer, tokens: int, length: int | None) -> int:
    """The most bytes of tensors that a training step holds beyond what was there before, counted at each one's making and end."""
    x = torch.randn(1, tokens, DIM)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        y = mixer(x)[0] if length is None else torch.cat(stretches(mixer, x, None, length)[0], 1)
        y.square().mean().backward()
        del y
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_memory_grows_with_inputs_outputs_and_states() -> None:
    mixer = layer()
    peak(mixer, LENGTH, LENGTH)  # makes the gradients of the parameters
    _, state = mixer(torch.randn(1, LENGTH, DIM))
    more = 4 * LENGTH
    # Outputs, joined, and their derivatives, twice: 4 numbers a token and channel; a state each stretch.
    formula = more * DIM * 4 * 4 + more // LENGTH * tree.nbytes(state)
    grown = peak(mixer, 2 * LENGTH + more, LENGTH) - peak(mixer, 2 * LENGTH, LENGTH)
    assert 0 < grown <= formula
    assert peak(mixer, 2 * LENGTH + more, None) - peak(mixer, 2 * LENGTH, None) > 5 * formula


def test_without_gradients_nothing_is_stored() -> None:
    mixer, x = layer(), torch.randn(1, 40, DIM)
    with torch.no_grad():
        outputs, _ = stretches(mixer, x, None, 16)
        torch.testing.assert_close(torch.cat(outputs, 1), mixer(x)[0], rtol=1e-4, atol=1e-5)
    assert not outputs[0].requires_grad


def test_a_second_derivative_is_refused() -> None:
    mixer, x = layer(), torch.randn(1, 40, DIM)
    outputs, _ = stretches(mixer, x, None, 16)
    with pytest.raises(NestlingError, match="no second derivative"):
        torch.autograd.grad(outputs[0].sum(), list(mixer.out.parameters()), create_graph=True)


class Asks(nn.Module):
    """Adds up what it reads, and notes in which precision it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(())), list[bool]()

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        self.seen.append(torch.is_autocast_enabled("cpu"))
        state = x.sum(1) if state is None else state + x.sum(1)
        return x * state[:, None] * self.scale, state


def test_the_backward_pass_computes_in_the_precision_of_the_forward_pass() -> None:
    for mixed in (True, False):
        module = Asks()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            outputs, _ = stretches(module, torch.randn(1, 6, DIM), None, 4)
        torch.cat(outputs, 1).sum().backward()
        assert module.seen == [mixed] * 4


def test_a_stretch_has_tokens() -> None:
    with pytest.raises(NestlingError, match="at least 1 token, got length=0"):
        stretches(layer(), torch.randn(1, 4, DIM), None, 0)
