"""The loop over blocks: recomputing in the backward pass changes no number, and keeps little."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestling.tree as tree
from nestling.errors import NestlingError
from nestling.ops.loop import loop
from nestling.tree import state

COUNT = 11


@state
class Carry:
    a: Tensor
    b: tuple
    phase: Tensor


def problem() -> tuple[Carry, dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    carry = Carry(normal(2, 3, 4), (normal(2, 3, 1),), torch.zeros(2, 3, dtype=torch.int64))
    inputs = {"x": normal(2, 3, COUNT, 4), "mask": torch.rand(2, 3, COUNT, generator=generator) < 0.7}
    return carry, inputs, normal(4, 4)


def step(index: int, carry: Carry, now: dict[str, Tensor], shared: Tensor) -> tuple[Tensor, Carry]:
    a = torch.tanh(carry.a @ shared + now["x"]) + 0.1 * index
    a = torch.where(now["mask"][..., None], a, carry.a)
    b = carry.b[0] * 0.9 + a.sum(-1, keepdim=True)
    return (a * b).unsqueeze(-2), Carry(a, (b,), carry.phase + now["mask"])


def plain() -> tuple[Tensor, Carry, tuple]:
    given = problem()
    carry, inputs, shared = given
    outputs = []
    for i in range(COUNT):
        y, carry = step(i, carry, tree.map(lambda leaf, i=i: leaf[:, :, i], inputs), shared)
        outputs.append(y)
    return torch.stack(outputs, 2), carry, given


def slopes(y: Tensor, carry: Carry, given: tuple, of: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    parts = {"output": [y], "state": [carry.a, carry.b[0]], "both": [y, carry.a, carry.b[0]], "part": [carry.b[0]]}[of]
    total = sum((part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in parts)
    wanted = [leaf for leaf in tree.leaves(given) if leaf.requires_grad]
    return list(torch.autograd.grad(total, wanted))


@pytest.mark.parametrize("of", ["output", "state", "both", "part"])
@pytest.mark.parametrize("stride", [0, 1, 3, 4, COUNT, 100, None])
def test_outputs_states_and_all_gradients_are_those_of_a_plain_loop(stride, of):
    y, carry, given = plain()
    again = problem()
    z, after = loop(step, *again, COUNT, stride)
    assert torch.equal(z, y)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(after), tree.leaves(carry), strict=True))
    for a, b in zip(slopes(z, after, again, of), slopes(y, carry, given, of), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 4])
def test_recomputing_is_gradcheckable(stride):
    carry, inputs, shared = problem()
    inputs = {"x": inputs["x"][:, :, :5].detach(), "mask": inputs["mask"][:, :, :5]}

    def function(a: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y, after = loop(step, Carry(a, carry.b, carry.phase), {**inputs, "x": x}, w, 5, stride)
        return y, after.a

    given = [leaf.detach().requires_grad_() for leaf in (carry.a, inputs["x"], shared)]
    assert torch.autograd.gradcheck(function, given)


def test_only_what_requires_gradients_gets_them():
    carry, inputs, shared = problem()
    y, _ = loop(step, carry, inputs, shared.detach(), COUNT, 3)
    grads = torch.autograd.grad(y.sum(), [carry.a, inputs["x"], carry.b[0]])
    assert all(bool(grad.any()) for grad in grads)


def test_a_state_that_no_step_changes_comes_back_and_passes_gradients():
    kept = torch.randn(1, 1, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(1, 1, 4, 2, dtype=torch.float64, requires_grad=True)
    y, after = loop(lambda i, carry, now, shared: (now * carry, carry), kept, x, None, 4, 2)
    (grad,) = torch.autograd.grad(y.sum() + (3 * after).sum(), kept)
    torch.testing.assert_close(grad, x.detach().sum(2) + 3)
    assert torch.equal(after, kept)


def test_without_gradients_every_block_runs_once():
    calls = []

    def counted(index: int, *rest) -> tuple[Tensor, Carry]:
        calls.append(index)
        return step(index, *rest)

    with torch.no_grad():
        loop(counted, *problem(), COUNT, 3)
    assert calls == list(range(COUNT))


def test_the_backward_pass_runs_blocks_again_group_by_group_from_the_end():
    calls = []

    def counted(index: int, *rest) -> tuple[Tensor, Carry]:
        calls.append(index)
        return step(index, *rest)

    y, _ = loop(counted, *problem(), COUNT, 4)
    y.sum().backward()
    assert calls == [*range(COUNT), 8, 9, 10, 4, 5, 6, 7, 0, 1, 2, 3]


def saved_bytes(stride: int) -> int:
    """What the graph keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    carry = torch.randn(1, 1, 64, 64, requires_grad=True)
    x = torch.randn(1, 1, 64, 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = loop(lambda i, c, now, s: (now, torch.tanh(c @ s)), carry, x, torch.eye(64), 64, stride)
    del y
    return sum(kept.values())


def test_states_are_stored_every_stride_blocks_only():
    assert saved_bytes(8) < 0.2 * saved_bytes(0)


def test_loops_recompute_by_themselves_when_their_states_are_large(monkeypatch):
    calls = []
    monkeypatch.setattr("nestling.ops.loop.STORED", 4 * 32)  # bytes: 32 states of one float32

    def short(index: int, carry: Tensor, now: Tensor, shared: None) -> tuple[Tensor, Tensor]:
        calls.append(index)
        return now * carry, carry * 0.9

    for count, runs in ((32, 32), (33, 2 * 33)):
        calls.clear()
        carry = torch.ones(1, 1, 1, requires_grad=True)
        y, _ = loop(short, carry, torch.ones(1, 1, count, 1), None, count)
        y.sum().backward()
        assert len(calls) == runs


def test_a_backward_pass_under_autocast_computes_the_same():
    """Recomputed blocks run as they first ran, whatever surrounds the call of ``backward``."""

    def slope(surrounded: bool) -> Tensor:
        carry, inputs, shared = tree.map(lambda x: x.detach().float() if x.is_floating_point() else x, problem())
        shared.requires_grad_()
        y, _ = loop(step, carry, inputs, shared, COUNT, 3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=surrounded):
            y.sum().backward()
        return shared.grad

    assert torch.equal(slope(True), slope(False))


def test_a_second_derivative_is_refused_rather_than_zero():
    given = problem()
    y, _ = loop(step, *given, COUNT, 3)
    with pytest.raises(NestlingError, match="stride=0"):
        torch.autograd.grad(y.sum(), given[2], create_graph=True)


def test_stored_blocks_have_second_derivatives():
    carry, inputs, shared = problem()
    inputs = {"x": inputs["x"][:, :, :3].detach(), "mask": inputs["mask"][:, :, :3]}
    carry = tree.detach(carry)
    weights = shared.detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda w: loop(step, carry, inputs, w, 3, 0)[0], weights)
