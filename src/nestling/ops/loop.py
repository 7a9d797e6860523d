"""A loop over blocks that keeps few states: the backward pass runs the blocks again instead of storing what they computed.

With n blocks, the states at every √n-th block are kept, and one group of √n blocks is held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.errors import NestlingError

Step = Callable[[int, Any, Any, Any], tuple[Tensor, Any]]
"""(index, carry, inputs of the block, what all blocks share) -> (output of the block, carry)"""

STORED = 256 * 2**20
"""Up to this many bytes of states, one a block, everything is stored: recomputing costs a third more time."""


def loop(step: Step, carry: Any, inputs: Any, shared: Any, count: int, stride: int | None = None) -> tuple[Tensor, Any]:
    """Run ``step`` over ``count`` blocks.

    ``carry``, ``inputs`` and ``shared`` are trees of tensors; the leaves of ``inputs`` are (B, H, count, ...), and so is the
    output. ``stride``: blocks between stored states; 0 stores everything; None chooses.
    """
    if stride is None:
        stride = 0 if count * tree.nbytes(carry) <= STORED else math.isqrt(count)
    leaves, rebuild = tree.flatten((carry, inputs, shared))
    if stride == 0 or not (torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)):
        return _run(step, carry, inputs, shared, range(count))
    output, *after = _Recomputed.apply(_Plan(step, rebuild, count, stride), *leaves)
    return output, tree.flatten(carry)[1](after)


def _run(step: Step, carry: Any, inputs: Any, shared: Any, indices: range) -> tuple[Tensor, Any]:
    # Unbound once: the gradient of an indexed block would be a whole sequence of zeros, for every block. Copied before, so that
    # blocks lie in memory the same way whatever the number of blocks: a compiler takes another layout for another program.
    leaves, rebuild = tree.flatten(inputs)
    if len(indices) == 1:
        output, carry = step(indices[0], carry, rebuild([leaf[:, :, 0].contiguous() for leaf in leaves]), shared)
        return output[:, :, None], carry
    columns = [leaf.movedim(2, 0).clone(memory_format=torch.contiguous_format).unbind(0) for leaf in leaves]
    outputs = []
    for place, index in enumerate(indices):
        output, carry = step(index, carry, rebuild([column[place] for column in columns]), shared)
        outputs.append(output)
    return torch.stack(outputs, 2), carry


def _part(inputs: Any, group: range) -> Any:
    return tree.map(lambda leaf: leaf[:, :, group.start : group.stop], inputs)


@dataclass(frozen=True)
class _Plan:
    step: Step
    rebuild: Callable[[Any], Any]
    count: int
    stride: int

    def groups(self) -> list[range]:
        return [range(i, min(i + self.stride, self.count)) for i in range(0, self.count, self.stride)]


class _Recomputed(torch.autograd.Function):
    """The loop as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *leaves: Tensor) -> tuple[Tensor, ...]:
        carry, inputs, shared = plan.rebuild(leaves)
        states: list[Tensor] = []
        outputs = []
        for group in plan.groups():
            states.extend(tree.leaves(carry))
            output, carry = _run(plan.step, carry, _part(inputs, group), shared, group)
            outputs.append(output)
        ctx.plan = plan
        ctx.leaves = len(leaves)
        ctx.save_for_backward(*leaves, *states)
        after = [leaf.clone() if any(leaf is given for given in leaves) else leaf for leaf in tree.leaves(carry)]
        ctx.mark_non_differentiable(*(leaf for leaf in after if not leaf.is_floating_point()))
        return torch.cat(outputs, 2), *after

    @staticmethod
    def backward(ctx: Any, output_grad: Tensor, *after_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # `once_differentiable` would let a second derivative pass as zero.
            raise NestlingError("recomputed blocks have no second derivative: store them, with path=Chunk(stride=0).")
        # Blocks ran without autocast (ops.scan turns it off), whatever surrounds the call of `backward`.
        with torch.autocast(output_grad.device.type, enabled=False):
            return _Recomputed._backward(ctx, output_grad, after_grads)

    @staticmethod
    def _backward(ctx: Any, output_grad: Tensor, after_grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        plan, saved = ctx.plan, ctx.saved_tensors
        carry, inputs, shared = plan.rebuild(saved[: ctx.leaves])
        states, (_, rebuild) = saved[ctx.leaves :], tree.flatten(carry)
        width, between = len(tree.leaves(carry)), len(tree.leaves(inputs))
        carry_grads = list(after_grads)
        input_grads = [torch.zeros_like(leaf) if leaf.is_floating_point() else None for leaf in tree.leaves(inputs)]
        shared_grads: list[Tensor | None] = [None] * len(tree.leaves(shared))
        for number, group in reversed(list(enumerate(plan.groups()))):
            kept = rebuild(states[number * width : (number + 1) * width])
            given = tree.map(_leaf, (kept, _part(inputs, group), shared))
            with torch.enable_grad():
                output, after = _run(plan.step, *given, group)
            grads = _pull(output, output_grad[:, :, group.start : group.stop], after, carry_grads, given)
            carry_grads = grads[:width]
            for total, grad in zip(input_grads, grads[width : width + between], strict=True):
                if total is not None and grad is not None:
                    total[:, :, group.start : group.stop] = grad
            shared_grads = [_plus(a, b) for a, b in zip(shared_grads, grads[width + between :], strict=True)]
        return None, *carry_grads, *input_grads, *shared_grads


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _pull(
    output: Tensor, grad: Tensor, after: Any, after_grads: list[Tensor | None], given: Any
) -> list[Tensor | None]:
    """Gradients by the leaves of ``given`` (None where nothing depends on them)."""
    pairs = [(output, grad)]
    for leaf, pulled in zip(tree.leaves(after), after_grads, strict=True):
        if pulled is not None and leaf.requires_grad:
            pairs.append((leaf, pulled))
    leaves = tree.leaves(given)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad([p[0] for p in pairs], wanted, [p[1] for p in pairs], allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]
